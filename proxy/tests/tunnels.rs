//! Open tunnels over real sockets: limits, pings, age, peers that are gone or do not read, drains.
#![allow(clippy::unwrap_used)]

#[path = "common/front.rs"]
mod front;

use front::{HANGS, SWITCH, exactly, head};

use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};
use weir_conf::proxy::{Over, Proxy as Conf, Route, Tunnel, Upstream};
use weir_conf::units::Rate;
use weir_core::drain::Drain;
use weir_proxy::{Control, Inherited, Proxy};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const MS: Duration = Duration::from_millis(1);

/// A proxy in front of one server, which is the test itself.
struct Edge {
    addr: SocketAddr,
    server: TcpListener,
    drain: Drain,
    control: Control,
    ended: JoinHandle<std::io::Result<()>>,
}

async fn edge(change: impl FnOnce(&mut Conf, &mut Tunnel)) -> Edge {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut conf = weir_conf::Config::default().proxy;
    conf.listen = vec!["127.0.0.1:0".parse().unwrap()];
    conf.threads = 1;
    conf.handshake_rate = None;
    conf.max_connections_per_ip = 0;
    conf.upstream.clear();
    conf.upstream.insert("app".into(), Upstream::of([server.local_addr().unwrap().to_string()]));
    conf.route = vec![Route { tunnel: Default::default(), ..Route::to("app") }];
    let mut tunnel = conf.tunnel.clone();
    change(&mut conf, &mut tunnel);
    conf.tunnel = tunnel;
    let proxy = Proxy::bind(&conf, None, &mut Registry::default(), Inherited::new()).unwrap();
    let (addr, control, drain) = (proxy.local_addrs()[0], proxy.control(), Drain::new());
    let ended = tokio::spawn(proxy.run(drain.clone()));
    Edge { addr, server, drain, control, ended }
}

impl Edge {
    /// A tunnel: the client's socket and the server's.
    async fn open(&self) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(self.addr).await.unwrap();
        client.write_all(UPGRADE.as_bytes()).await.unwrap();
        let (mut server, _) = timeout(HANGS, self.server.accept()).await.unwrap().unwrap();
        head(&mut server).await;
        server.write_all(SWITCH.as_bytes()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
        (client, server)
    }
}

/// Up to the end of the connection, be it a reset.
async fn rest(from: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _reset = timeout(HANGS, from.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

/// A frame of a client.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

/// A frame of a server.
fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, payload.len(), 0)[..], payload].concat()
}

fn header(first: u8, size: usize, mask: u8) -> Vec<u8> {
    match size {
        0..126 => vec![first, mask | size as u8],
        126..=0xffff => vec![first, mask | 126, (size >> 8) as u8, size as u8],
        _ => [&[first, mask | 127][..], &(size as u64).to_be_bytes()].concat(),
    }
}

/// What a client gets at the end.
fn close(code: u16) -> Vec<u8> {
    plain(0x88, &code.to_be_bytes())
}

/// What a server gets at the end: its mask is drawn at random.
async fn is_closed_with(server: &mut TcpStream, code: u16) {
    let frame = exactly(server, 8).await;
    assert_eq!(frame[..2], [0x88, 0x82]);
    assert_eq!([frame[6] ^ frame[2], frame[7] ^ frame[3]], code.to_be_bytes());
}

#[tokio::test]
async fn a_frame_too_large_is_1009_and_never_reaches_the_server() {
    let edge = edge(|_, t| t.max_frame_size = 1000).await;
    let (mut client, mut server) = edge.open().await;
    let good = masked(0x82, &[7; 1000]);
    // Its header alone is enough, and comes in two pieces.
    let large = masked(0x82, &[7; 1001]);
    client.write_all(&[&good[..], &large[..3]].concat()).await.unwrap();
    assert_eq!(exactly(&mut server, good.len()).await, good);
    client.write_all(&large[3..10]).await.unwrap();
    assert_eq!(exactly(&mut client, 4).await, close(1009));
    client.write_all(&large[10..]).await.unwrap();
    client.write_all(&masked(0x88, &1009_u16.to_be_bytes())).await.unwrap();
    is_closed_with(&mut server, 1001).await;
    server.write_all(&close(1001)).await.unwrap();
    assert_eq!(rest(&mut server).await, b"", "not a byte of it");
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn a_message_that_does_not_end_is_1008_whatever_stands_between() {
    let limit = Duration::from_millis(400);
    let edge = edge(|_, t| t.message_timeout = limit).await;
    let ping = masked(0x89, b"p");
    let whole = masked(0x81, b"whole");
    for (name, begun, pings) in [
        ("a fragment", masked(0x01, b"he"), false),
        ("a fragment and pings", masked(0x01, b"he"), true),
        ("fragments that say nothing", [masked(0x01, b""), masked(0x00, b"")].concat(), true),
        ("half a frame", masked(0x82, &[7; 100])[..50].to_vec(), false),
        ("a whole message and a fragment", [&whole[..], &masked(0x01, b"he")].concat(), false),
    ] {
        let (mut client, _server) = edge.open().await;
        let since = std::time::Instant::now();
        client.write_all(&begun).await.unwrap();
        let (mut read, mut write) = client.split();
        let pinging = async {
            loop {
                tokio::time::sleep(limit / 8).await;
                if !pings || write.write_all(&ping).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut told = [0; 4];
        tokio::select! {
            read = read.read_exact(&mut told) => drop(read.unwrap()),
            () = pinging => {}
        }
        assert_eq!(told[..], close(1008), "{name}");
        assert!(since.elapsed() >= limit, "{name}: {:?}", since.elapsed());
    }
    // Many messages take longer than one may.
    let (mut client, mut server) = edge.open().await;
    for _ in 0..10 {
        let (first, last) = (masked(0x01, b"he"), masked(0x80, b"llo"));
        client.write_all(&first).await.unwrap();
        tokio::time::sleep(limit / 5).await;
        client.write_all(&last).await.unwrap();
        assert_eq!(exactly(&mut server, first.len() + last.len()).await, [first, last].concat());
    }
}

#[tokio::test]
async fn nonsense_is_1002_under_limits_and_passes_without() {
    let with_limits = edge(|_, t| t.max_frame_size = 1000).await;
    let (mut client, mut server) = with_limits.open().await;
    client.write_all(b"GET /admin HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(exactly(&mut client, 4).await, close(1002));
    is_closed_with(&mut server, 1001).await;
    let without = edge(|_, _| {}).await;
    let (mut client, mut server) = without.open().await;
    client.write_all(b"GET /admin HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(exactly(&mut server, 23).await, b"GET /admin HTTP/1.1\r\n\r\n");
    server.write_all(b"not a frame either").await.unwrap();
    assert_eq!(exactly(&mut client, 18).await, b"not a frame either");
    // Nothing is put into what is not understood.
    without.drain.begin();
    assert_eq!((rest(&mut client).await, rest(&mut server).await), (vec![], vec![]));
}

/// Sends all and says how long the server waited for the whole of it.
async fn slowly(edge: &Edge, bytes: Vec<u8>) -> Duration {
    let (mut client, mut server) = edge.open().await;
    let begun = Instant::now();
    let expected = bytes.clone();
    let sent = tokio::spawn(async move {
        client.write_all(&bytes).await.unwrap();
        client
    });
    assert!(exactly(&mut server, expected.len()).await == expected, "changed on the way");
    let took = begun.elapsed();
    // The other direction is not slowed down.
    let back = plain(0x82, &[1; 3000]);
    server.write_all(&back).await.unwrap();
    assert_eq!(exactly(&mut sent.await.unwrap(), back.len()).await, back);
    took
}

#[tokio::test]
async fn a_client_over_its_rate_is_slowed_down_and_loses_nothing() {
    let frames: Vec<u8> = (0..100_u8).flat_map(|n| masked(0x82, &[n; 3000])).collect();
    let (bytes, by_frames) = tokio::join!(
        edge(|_, t| t.bytes_rate = 100_000),
        edge(|_, t| t.frames_rate = Some(Rate { per_second: 50.0 }))
    );
    // 300,800 bytes, 100,000 of them at once, and 100 frames, 50 of them.
    let (took, took_by_frames) = tokio::join!(slowly(&bytes, frames.clone()), slowly(&by_frames, frames));
    assert!(took >= 1950 * MS && took < 3000 * MS, "{took:?}");
    assert!(took_by_frames >= 950 * MS && took_by_frames < 2000 * MS, "{took_by_frames:?}");
}

#[tokio::test]
async fn a_client_over_its_rate_is_closed_with_1008_where_asked() {
    let edge = edge(|_, t| (t.frames_rate, t.over) = (Some(Rate { per_second: 5.0 }), Over::Close)).await;
    let (mut client, mut server) = edge.open().await;
    let frame = masked(0x81, b"again");
    client.write_all(&frame.repeat(6)).await.unwrap();
    assert_eq!(exactly(&mut server, 5 * frame.len()).await, frame.repeat(5));
    is_closed_with(&mut server, 1001).await;
    assert_eq!(exactly(&mut client, 4).await, close(1008));
}

#[tokio::test]
async fn a_tunnel_ends_with_its_age() {
    let edge = edge(|_, t| (t.max_age, t.max_age_jitter) = (400 * MS, 0)).await;
    let begun = Instant::now();
    let (mut client, mut server) = edge.open().await;
    assert_eq!(exactly(&mut client, 4).await, close(1012));
    let age = begun.elapsed();
    assert!(age >= 400 * MS && age < 2000 * MS, "{age:?}");
    is_closed_with(&mut server, 1001).await;
    // Both answer: nothing more is waited for.
    client.write_all(&masked(0x88, &1012_u16.to_be_bytes())).await.unwrap();
    server.write_all(&close(1001)).await.unwrap();
    assert_eq!((rest(&mut client).await, rest(&mut server).await), (vec![], vec![]));
    assert!(begun.elapsed() < age + 1000 * MS);
}

#[tokio::test]
async fn a_client_is_pinged_for_an_app_that_does_not_and_given_up_without_an_answer() {
    let edge = edge(|_, t| (t.ping_interval, t.ping_timeout) = (300 * MS, 200 * MS)).await;
    let (mut client, mut server) = edge.open().await;
    for _ in 0..3 {
        let ping = exactly(&mut client, 10).await;
        assert_eq!(ping[..2], [0x89, 8]);
        client.write_all(&masked(0x8a, &ping[2..])).await.unwrap();
    }
    // The app sees what is meant for it, and no pong of ours.
    let text = [masked(0x8a, b"foreign"), masked(0x81, b"text")].concat();
    client.write_all(&text).await.unwrap();
    assert_eq!(exactly(&mut server, text.len()).await, text);
    assert_eq!(exactly(&mut client, 10).await[..2], [0x89, 8]);
    // No answer this time.
    is_closed_with(&mut server, 1001).await;
    server.write_all(&close(1001)).await.unwrap();
    assert_eq!((rest(&mut server).await, rest(&mut client).await), (vec![], vec![]));
}

#[tokio::test]
async fn a_side_that_closes_leaves_the_other_its_time() {
    let edge = edge(|_, t| t.idle_timeout = 600 * MS).await;
    let (mut client, mut server) = edge.open().await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    let last = plain(0x81, b"last words");
    server.write_all(&last).await.unwrap();
    assert_eq!(exactly(&mut client, last.len()).await, last);
    // Then it is silent, and does not close.
    let begun = Instant::now();
    assert_eq!(rest(&mut client).await, close(1001));
    assert!(begun.elapsed() >= 400 * MS && begun.elapsed() < 4000 * MS, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_peer_that_resets_releases_the_other_at_once() {
    let edge = edge(|_, _| {}).await;
    for client_resets in [true, false] {
        let (client, server) = edge.open().await;
        let (gone, mut left) = if client_resets { (client, server) } else { (server, client) };
        gone.set_zero_linger().unwrap();
        let begun = Instant::now();
        drop(gone);
        assert_eq!(rest(&mut left).await, b"");
        assert!(begun.elapsed() < 2000 * MS, "{:?}", begun.elapsed());
    }
}

/// Writes until it is refused; says how much was taken.
async fn flood(to: &mut TcpStream, frame: &[u8]) -> usize {
    let mut taken = 0;
    let flood = async {
        while to.write_all(frame).await.is_ok() {
            taken += frame.len()
        }
    };
    timeout(HANGS, flood).await.expect("never released");
    taken
}

#[tokio::test]
async fn who_never_reads_is_given_up_and_costs_a_bounded_amount() {
    let edge = edge(|_, t| t.write_timeout = 500 * MS).await;
    for client_reads in [true, false] {
        let (mut client, mut server) = edge.open().await;
        let taken = match client_reads {
            true => flood(&mut client, &masked(0x82, &[0; 60_000])).await,
            false => flood(&mut server, &plain(0x82, &[0; 60_000])).await,
        };
        // Socket buffers of the kernel, and 32 KiB of ours.
        assert!(taken < 64 << 20, "{taken}");
    }
    edge.drain.begin();
    timeout(HANGS, edge.ended).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_sends_away_the_oldest_first_at_its_pace() {
    let edge = edge(|c, _| c.drain.rate = Rate { per_second: 100.0 }).await;
    let mut tunnels = Vec::new();
    for _ in 0..200 {
        tunnels.push(edge.open().await);
    }
    let begun = Instant::now();
    edge.drain.begin();
    let ends = tunnels.into_iter().map(|(mut client, mut server)| {
        tokio::spawn(async move {
            assert_eq!(exactly(&mut client, 4).await, close(1012));
            let at = begun.elapsed();
            is_closed_with(&mut server, 1001).await;
            client.write_all(&masked(0x88, &1012_u16.to_be_bytes())).await.unwrap();
            server.write_all(&close(1001)).await.unwrap();
            assert_eq!((rest(&mut client).await, rest(&mut server).await), (vec![], vec![]));
            at
        })
    });
    let mut at = Vec::new();
    for end in ends.collect::<Vec<_>>() {
        at.push(end.await.unwrap());
    }
    let took = *at.iter().max().unwrap();
    assert!(took >= 1900 * MS && took <= 2200 * MS, "{took:?}");
    // In order of age; neighbours may be seen in another order by a test with threads of its own.
    for (n, pair) in at.windows(10).enumerate() {
        assert!(pair[9] > pair[0], "{n}: {pair:?}");
    }
    timeout(HANGS, edge.ended).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(edge.addr).await.is_err());
}

#[tokio::test]
async fn a_drain_lets_frames_end_and_nothing_follows_its_close_frame() {
    let edge = edge(|_, _| {}).await;
    let (mut client, mut server) = edge.open().await;
    let (up, down) = (masked(0x82, &[1; 5000]), plain(0x82, &[2; 5000]));
    client.write_all(&up[..2000]).await.unwrap();
    server.write_all(&down[..100]).await.unwrap();
    assert!(exactly(&mut server, 2000).await == up[..2000]);
    assert!(exactly(&mut client, 100).await == down[..100]);
    edge.drain.begin();
    // Until both know of it, their frames go on.
    let told = timeout(300 * MS, server.read_u8()).await;
    assert!(told.is_err(), "a byte within a frame");
    client.write_all(&[&up[2000..], &masked(0x81, b"too late")].concat()).await.unwrap();
    server.write_all(&[&down[100..], &plain(0x81, b"too late")].concat()).await.unwrap();
    assert!(exactly(&mut server, up.len() - 2000).await == up[2000..]);
    is_closed_with(&mut server, 1001).await;
    assert!(exactly(&mut client, down.len() - 100).await == down[100..]);
    assert_eq!(exactly(&mut client, 4).await, close(1012));
    assert_eq!((rest(&mut client).await, rest(&mut server).await), (vec![], vec![]));
}

#[tokio::test]
async fn a_frame_that_does_not_end_is_not_waited_for_for_long() {
    let edge = edge(|_, _| {}).await;
    let (mut client, mut server) = edge.open().await;
    let up = masked(0x82, &[1; 5000]);
    client.write_all(&up[..2000]).await.unwrap();
    assert!(exactly(&mut server, 2000).await == up[..2000]);
    let begun = Instant::now();
    edge.drain.begin();
    assert_eq!(exactly(&mut client, 4).await, close(1012), "its own direction is at a boundary");
    assert_eq!(rest(&mut server).await, b"", "no byte of ours within its frame");
    assert!(begun.elapsed() < 4000 * MS, "{:?}", begun.elapsed());
}

/// Keeps the lines of the access log.
struct Log(Mutex<Vec<String>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

impl Subscriber for &'static Log {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        about.target() == "weir_proxy::access"
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn the_access_log_has_frames_and_who_closed() {
    static LOG: Log = Log(Mutex::new(Vec::new()));
    tracing::subscriber::set_global_default(&LOG).unwrap();
    let edge = edge(|_, t| t.max_frame_size = 1000).await;
    for (path, last, expected) in [
        ("/left", masked(0x88, &4001_u16.to_be_bytes()), "close_by=\"client\" close_code=4001 "),
        ("/thrown-out", masked(0x82, &[0; 1001]), "close_by=\"proxy\" close_code=1009 "),
        ("/vanished", vec![], ""),
    ] {
        let mut client = TcpStream::connect(edge.addr).await.unwrap();
        client.write_all(UPGRADE.replace("/ws", path).as_bytes()).await.unwrap();
        let (mut server, _) = edge.server.accept().await.unwrap();
        head(&mut server).await;
        server.write_all(SWITCH.as_bytes()).await.unwrap();
        head(&mut client).await;
        let (up, down) = (masked(0x81, b"a").repeat(2), plain(0x81, b"b").repeat(3));
        client.write_all(&up).await.unwrap();
        server.write_all(&down).await.unwrap();
        exactly(&mut server, up.len()).await;
        exactly(&mut client, down.len()).await;
        client.write_all(&last).await.unwrap();
        client.shutdown().await.unwrap();
        rest(&mut server).await;
        drop((client, server));
        let line = loop {
            let find = |lines: &Vec<String>| lines.iter().find(|l| l.contains(path)).cloned();
            let found = find(&LOG.0.lock().unwrap());
            match found {
                Some(line) => break line,
                None => tokio::time::sleep(5 * MS).await,
            }
        };
        let frames_up = if path == "/left" { 3 } else { 2 };
        assert!(line.contains(&format!("frames_up={frames_up} frames_down=3 {expected}ms=")), "{line}");
    }
}

#[tokio::test]
async fn the_tunnels_of_one_server_can_be_told_alone() {
    let edge = edge(|_, _| {}).await;
    let (mut client, mut server) = edge.open().await;
    // It is one as soon as something has passed.
    client.write_all(&masked(0x81, b"x")).await.unwrap();
    exactly(&mut server, 7).await;
    let server = edge.server.local_addr().unwrap().to_string();
    assert_eq!(edge.control.drain_tunnels("app", Some("127.0.0.1:1")).await, 0);
    assert_eq!(edge.control.drain_tunnels("other", None).await, 0);
    let (told, end) = tokio::join!(edge.control.drain_tunnels("app", Some(&server)), exactly(&mut client, 4));
    assert_eq!((told, end), (1, close(1012)));
    let (_client, _server) = edge.open().await;
}
