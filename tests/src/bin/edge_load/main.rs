//! Both ends of the scripts in `tests/benches`: a crowd of WebSocket clients, and a server with a limit.
//! Prints a line of JSON for each thing that happened and each window of time; a script reads them.
//!
//!   edge_load clients ADDR count=5000 rate=500 [first=0] [lasts=SECONDS] [retry=1] [probes=200] [every=MILLISECONDS]
//!       Opens that many at that pace, holds them (or closes each after `lasts`), and reports handshakes per
//!       second with their latency, each close with its code, and the latency of `probes` echoes.
//!       retry=1: who is refused comes again when `Retry-After` says, who is cut off comes again at once.
//!       On standard input: `check` has every open connection echo once; `end`, or its end, ends all.
//!   edge_load server ADDR [rate=300]
//!       Echoes. Answers no more handshakes than `rate` a second; the others wait.

#![allow(clippy::unwrap_used)]

mod server;

use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until, timeout};

const HANDSHAKE: Duration = Duration::from_secs(60);
const CHECK: Duration = Duration::from_secs(20);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let options: BTreeMap<String, f64> = args[2..]
        .iter()
        .map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.parse().unwrap())).unwrap())
        .collect();
    let addr: SocketAddr = args[1].parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match args[0].as_str() {
            "clients" => clients(addr, &options).await,
            "server" => server::run(addr, options.get("rate").copied()).await,
            other => panic!("{other}: clients or server"),
        }
    });
}

/// Milliseconds since 1970: what the lines of several processes are compared by.
fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn say(line: &serde_json::Value) {
    println!("{line}");
}

/// Latencies of one window.
#[derive(Default)]
struct Window(RefCell<Vec<Duration>>);

impl Window {
    fn add(&self, took: Duration) {
        self.0.borrow_mut().push(took);
    }

    fn take(&self) -> serde_json::Value {
        let mut all = self.0.take();
        all.sort();
        let ms =
            |share: usize| all.get(all.len() * share / 100).or(all.last()).map(|d| d.as_secs_f64() * 1000.0);
        json!({"count": all.len(), "p50": ms(50), "p99": ms(99), "max": ms(100)})
    }
}

struct Crowd {
    addr: SocketAddr,
    /// Sources and keys are told from those of another crowd by it.
    first: usize,
    retry: bool,
    lasts: Option<Duration>,
    every: Duration,
    open: Cell<usize>,
    handshakes: Window,
    echoes: Window,
    /// What became of handshakes that failed, in this window.
    failed: RefCell<BTreeMap<String, u32>>,
    /// The number of the check asked for last, and how many have passed and failed it.
    check: watch::Receiver<u32>,
    checked: Cell<(usize, usize)>,
}

async fn clients(addr: SocketAddr, options: &BTreeMap<String, f64>) {
    let number = |name: &str| options.get(name).copied();
    let (order, check) = watch::channel(0);
    let crowd = Rc::new(Crowd {
        addr,
        first: number("first").unwrap_or(0.0) as usize,
        retry: number("retry").is_some_and(|n| n > 0.0),
        lasts: number("lasts").map(Duration::from_secs_f64),
        every: Duration::from_millis(number("every").unwrap_or(100.0) as u64),
        open: Cell::default(),
        handshakes: Window::default(),
        echoes: Window::default(),
        failed: RefCell::default(),
        check,
        checked: Cell::default(),
    });
    let (count, probes) = (number("count").unwrap_or(1.0) as usize, number("probes").unwrap_or(0.0) as usize);
    let gap = Duration::from_secs_f64(1.0 / number("rate").unwrap_or(500.0));
    let opening = crowd.clone();
    spawn_local(async move {
        let start = tokio::time::Instant::now();
        for index in 0..count {
            sleep_until(start + gap * index as u32).await;
            spawn_local(client(opening.clone(), opening.first + index, index < probes));
        }
    });
    spawn_local(report(crowd.clone()));
    let mut lines = stdin();
    while let Some(line) = lines.recv().await {
        match line.as_str() {
            "check" => check_all(&crowd, &order).await,
            _ => break,
        }
    }
    say(&json!({"event": "end", "t": now(), "open": crowd.open.get()}));
}

fn stdin() -> tokio::sync::mpsc::Receiver<String> {
    let (lines, received) = tokio::sync::mpsc::channel(8);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    received
}

async fn check_all(crowd: &Crowd, order: &watch::Sender<u32>) {
    let open = crowd.open.get();
    crowd.checked.set((0, 0));
    order.send_modify(|n| *n += 1);
    let start = Instant::now();
    while crowd.checked.get().0 + crowd.checked.get().1 < open && start.elapsed() < CHECK {
        sleep(Duration::from_millis(10)).await;
    }
    let (passed, failed) = crowd.checked.get();
    say(&json!({"event": "check", "t": now(), "open": open, "passed": passed, "failed": failed}));
}

/// A line each second, on the second.
async fn report(crowd: Rc<Crowd>) {
    loop {
        sleep(Duration::from_millis(1000 - now() % 1000)).await;
        say(&json!({
            "event": "second", "t": now(), "open": crowd.open.get(), "handshakes": crowd.handshakes.take(),
            "failed": crowd.failed.take(), "echoes": crowd.echoes.take(),
        }));
    }
}

async fn client(crowd: Rc<Crowd>, index: usize, probe: bool) {
    loop {
        let start = Instant::now();
        let outcome = timeout(HANDSHAKE, connect(&crowd, index)).await.unwrap_or(Err(Failed::new("timeout")));
        match outcome {
            Ok(stream) => {
                crowd.handshakes.add(start.elapsed());
                crowd.open.set(crowd.open.get() + 1);
                let opened = Instant::now();
                let end = hold(&crowd, stream, probe).await;
                crowd.open.set(crowd.open.get() - 1);
                if matches!(end, End::Ours) {
                    return;
                }
                let age = opened.elapsed().as_millis() as u64;
                say(
                    &json!({"event": "closed", "t": now(), "index": index, "how": end.words(), "code": end.code(), "age": age}),
                );
                if !crowd.retry {
                    return;
                }
            }
            Err(failed) => {
                *crowd.failed.borrow_mut().entry(failed.what).or_default() += 1;
                if !crowd.retry {
                    return;
                }
                sleep(failed.retry_after).await;
            }
        }
    }
}

struct Failed {
    what: String,
    retry_after: Duration,
}

impl Failed {
    fn new(what: impl Into<String>) -> Failed {
        Failed { what: what.into(), retry_after: Duration::from_secs(1) }
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Failed {
        Failed::new(format!("{:?}", error.kind()))
    }
}

/// A head, and what was read after it.
async fn head(stream: &mut TcpStream) -> Result<(String, Vec<u8>), Failed> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(Failed::new("closed in the handshake"));
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|l| l.split_once(':'));
    fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
}

async fn connect(crowd: &Crowd, index: usize) -> Result<TcpStream, Failed> {
    let socket = TcpSocket::new_v4()?;
    // A hundred to an address.
    socket.bind((Ipv4Addr::from_bits(0x7f10_0001 + index as u32 / 100), 0).into())?;
    let mut stream = socket.connect(crowd.addr).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /ws?key={index} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        crowd.addr
    );
    stream.write_all(request.as_bytes()).await?;
    let (answer, _no_server_speaks_first) = head(&mut stream).await?;
    if answer.starts_with("HTTP/1.1 101 ") {
        return Ok(stream);
    }
    let wait = field(&answer, "retry-after").and_then(|v| v.parse().ok()).unwrap_or(1);
    let status = answer.split(' ').nth(1).unwrap_or("?");
    Err(Failed { what: status.to_owned(), retry_after: Duration::from_secs(wait) })
}

enum End {
    /// It had lasted as long as it should.
    Ours,
    Close(u16),
    /// Without a close frame.
    Cut(&'static str),
}

impl End {
    fn words(&self) -> &'static str {
        match self {
            End::Ours => "ours",
            End::Close(_) => "close",
            End::Cut(how) => how,
        }
    }

    fn code(&self) -> Option<u16> {
        if let End::Close(code) = self { Some(*code) } else { None }
    }
}

/// A masked message of eight bytes, and a masked close 1000; the mask is zero.
const MESSAGE: [u8; 14] = *b"\x82\x88\0\0\0\0an echo.";
const CLOSE: [u8; 8] = *b"\x88\x82\0\0\0\0\x03\xe8";

async fn hold(crowd: &Crowd, mut stream: TcpStream, probe: bool) -> End {
    let mut check = crowd.check.clone();
    check.mark_unchanged();
    let mut bytes = Vec::new();
    let (mut asked, mut checking): (Option<Instant>, bool) = (None, false);
    let mut next = tokio::time::Instant::now() + crowd.every;
    let end = tokio::time::Instant::now() + crowd.lasts.unwrap_or(Duration::from_secs(86400));
    loop {
        let idle = asked.is_none();
        tokio::select! {
            _ = stream.readable() => {
                let mut scratch = [0; 512];
                match stream.try_read(&mut scratch) {
                    Ok(0) => return ended(crowd, checking, End::Cut("end")),
                    Ok(n) => bytes.extend_from_slice(&scratch[..n]),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return ended(crowd, checking, End::Cut("reset")),
                }
            }
            Ok(()) = check.changed(), if idle => {
                checking = true;
                asked = Some(Instant::now());
                let _seen_when_read = stream.write_all(&MESSAGE).await;
            }
            () = sleep_until(next), if probe && idle => {
                next += crowd.every;
                asked = Some(Instant::now());
                let _seen_when_read = stream.write_all(&MESSAGE).await;
            }
            () = sleep_until(end), if crowd.lasts.is_some() => {
                let _gone_already = stream.write_all(&CLOSE).await;
                return End::Ours;
            }
        }
        while bytes.len() >= 2 && bytes.len() >= 2 + usize::from(bytes[1] & 0x7f) {
            let frame: Vec<u8> = bytes.drain(..2 + usize::from(bytes[1] & 0x7f)).collect();
            match frame[0] & 0x0f {
                8 => {
                    let _gone_already = stream.write_all(&CLOSE).await;
                    let code = frame.get(2..4).map_or(1005, |c| u16::from_be_bytes([c[0], c[1]]));
                    return ended(crowd, checking, End::Close(code));
                }
                2 => {
                    if let Some(asked) = asked.take() {
                        crowd.echoes.add(asked.elapsed());
                    }
                    if std::mem::take(&mut checking) {
                        crowd.checked.set((crowd.checked.get().0 + 1, crowd.checked.get().1));
                    }
                }
                _ => {}
            }
        }
    }
}

fn ended(crowd: &Crowd, checking: bool, end: End) -> End {
    if checking {
        crowd.checked.set((crowd.checked.get().0, crowd.checked.get().1 + 1));
    }
    end
}
