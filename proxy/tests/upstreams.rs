//! Upstreams over real sockets: what servers and clients see of balancing, limits, checks and breakers.
#![allow(clippy::unwrap_used)]

use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, pki_types};
use weir_conf::proxy::{Check, Health, Proxy as Conf, Route, Server, Sticky, Tls, Upstream};
use weir_core::breaker::State as Breaker;
use weir_core::drain::Drain;
use weir_proxy::{Control, Inherited, Proxy, ServerState, ServerStatus};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const PLAIN: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Nothing here takes so long unless it hangs.
const HANGS: Duration = Duration::from_secs(20);

struct Front {
    addr: SocketAddr,
    control: Control,
    conf: Conf,
    registry: Registry,
    drain: Drain,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

fn front(app: Upstream) -> Front {
    front_with(app, |_| {})
}

fn front_with(app: Upstream, change: impl FnOnce(&mut Conf)) -> Front {
    let mut conf = weir_conf::Config::default().proxy;
    conf.listen = vec!["127.0.0.1:0".parse().unwrap()];
    conf.threads = 1;
    conf.handshake_rate = None;
    conf.max_connections_per_ip = 0;
    conf.upstream = BTreeMap::from([("app".to_owned(), app)]);
    let sticky = Sticky::Header("x-key".into());
    conf.route = vec![Route { host: vec!["a".into()], sticky, ..Route::to("app") }];
    change(&mut conf);
    let mut registry = Registry::default();
    let proxy = Proxy::bind(&conf, None, &mut registry, Inherited::new()).unwrap();
    let (addr, control, drain) = (proxy.local_addrs()[0], proxy.control(), Drain::new());
    tokio::spawn(proxy.run(drain.clone()));
    Front { addr, control, conf, registry, drain }
}

impl Front {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends a handshake of this key; the head of the answer.
    async fn shake(&self, key: &str) -> (TcpStream, String) {
        let mut client = self.connect().await;
        let request = UPGRADE.replace("Host: a\r\n", &format!("Host: a\r\nX-Key: {key}\r\n"));
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        (client, answer)
    }

    async fn open(&self, key: &str) -> TcpStream {
        let (client, answer) = self.shake(key).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        client
    }

    /// A plain request on a connection of its own.
    async fn ask(&self) -> String {
        let mut client = self.connect().await;
        client
            .write_all(PLAIN.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        timeout(HANGS, client.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    fn servers(&self) -> Vec<ServerStatus> {
        self.control.upstreams().remove("app").unwrap()
    }

    fn server(&self, name: &str) -> ServerStatus {
        self.servers().into_iter().find(|s| *s.name == *name).unwrap()
    }

    /// Waits until this holds of the servers.
    async fn until(&self, what: &str, holds: impl Fn(&[ServerStatus]) -> bool) {
        let end = Instant::now() + HANGS;
        while !holds(&self.servers()) {
            assert!(Instant::now() < end, "never {what}: {:#?}", self.servers());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn figures(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// A head, and not a byte after it. Empty: closed before.
async fn head<S: AsyncRead + Unpin>(from: &mut S) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match timeout(HANGS, from.read_u8()).await.unwrap() {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

async fn exactly<S: AsyncRead + Unpin>(from: &mut S, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(HANGS, from.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

/// Switches and echoes; answers anything else with 200 and the head as its body.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    loop {
        let seen = head(&mut stream).await;
        if seen.is_empty() {
            return;
        }
        if seen.contains("Upgrade: websocket") {
            stream.write_all(SWITCH.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let mut bytes = vec![0; 16 << 10];
            while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                if stream.write_all(&bytes[..n]).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
            return;
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len());
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

async fn server() -> String {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    addr
}

async fn servers(n: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..n {
        all.push(server().await);
    }
    all
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("weir-{}-{name}", std::process::id()));
    let _not_there = std::fs::remove_file(&path);
    path
}

#[tokio::test]
async fn open_tunnels_bound_the_load_where_that_is_asked_for_and_a_reload_keeps_count() {
    let front = front(Upstream { load_factor: 1.25, ..Upstream::of(servers(4).await) });
    let mut tunnels = Vec::new();
    for n in 1..=60 {
        tunnels.push(front.open(&format!("user-{n}")).await);
        let most = front.servers().iter().map(|s| s.open).max().unwrap();
        assert!(most as f64 <= (1.25 * f64::from(n) / 4.0).ceil().max(10.0), "{most} of {n} on one server");
    }
    front.control.reload(&front.conf).unwrap();
    tunnels.push(front.open("user-61").await);
    assert_eq!(front.servers().iter().map(|s| s.open).sum::<usize>(), 61);
    let most = front.servers().iter().map(|s| s.open).max().unwrap();
    assert!(most <= 20, "{most} of 61 on one server");
    let shown = front.figures();
    let counts = shown.lines().filter(|line| line.starts_with("weir_proxy_upstream_connections{"));
    let sum: usize = counts.map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()).sum();
    assert_eq!(sum, 61);
    assert!(shown.contains("weir_proxy_upstream_handshake_seconds_count"), "{shown}");
    drop(tunnels);
    front.until("empty", |all| all.iter().all(|s| s.open == 0)).await;
}

#[tokio::test]
async fn a_server_that_drains_keeps_its_tunnels_and_gets_no_other() {
    let front = front(Upstream { load_factor: 0.0, ..Upstream::of(servers(3).await) });
    let mut tunnel = front.open("k").await;
    let home = front.servers().into_iter().find(|s| s.open == 1).unwrap().name;
    let set = front.control.set_server("app", &home, ServerState::Draining).unwrap().unwrap();
    assert_eq!(set[0], home);
    assert!(front.control.set_server("app", "nobody:1", ServerState::Up).unwrap().is_err());
    assert!(front.control.set_server("other", &home, ServerState::Up).is_none());
    front.control.reload(&front.conf).unwrap();
    let _others = [front.open("k").await, front.open("k").await];
    tunnel.write_all(b"still").await.unwrap();
    assert_eq!(exactly(&mut tunnel, 5).await, b"still");
    let drained = front.server(&home);
    assert_eq!((drained.open, drained.state), (1, ServerState::Draining));
    front.control.set_server("app", &home, ServerState::Up).unwrap().unwrap();
    let _back = front.open("k").await;
    assert_eq!(front.server(&home).open, 2);
}

#[tokio::test]
async fn an_app_on_a_unix_socket_takes_both_kinds_of_request() {
    let path = scratch("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((unix, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            tokio::spawn(serve(unix));
        }
    });
    let front = front(Upstream::of([format!("unix:{}", path.display())]));
    let mut tunnel = front.open("k").await;
    tunnel.write_all(b"hello").await.unwrap();
    assert_eq!(exactly(&mut tunnel, 5).await, b"hello");
    for _ in 0..3 {
        assert!(front.ask().await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(accepted.load(SeqCst), 2, "plain requests share a connection");
    assert_eq!(&*front.servers()[0].name, format!("unix:{}", path.display()));
    std::fs::remove_file(&path).unwrap();
}

/// An authority's file, and a server that it vouches for as `app.test`.
async fn tls_server() -> (String, PathBuf) {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["app.test".to_owned()]).unwrap();
    let cert = cert.signed_by(&own, &issuer).unwrap();
    let file = scratch(&format!("ca-{}.pem", CALLS.fetch_add(1, SeqCst)));
    std::fs::write(&file, authority.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let conf = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            pki_types::PrivateKeyDer::Pkcs8(own.serialize_der().into()),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(conf));
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    serve(stream).await;
                }
            });
        }
    });
    (addr, file)
}

#[tokio::test]
async fn tls_to_a_server_holds_for_both_kinds_of_request_and_believes_its_authority_alone() {
    let (addr, ca) = tls_server().await;
    let (_, other_ca) = tls_server().await;
    let text = |path: &PathBuf| Some(path.display().to_string());
    let tls = |sni: Option<&str>, ca, verify| Upstream {
        tls: Some(Tls { sni: sni.map(str::to_owned), ca, verify }),
        ..Upstream::of([addr.clone()])
    };
    let good = front(tls(Some("app.test"), text(&ca), true));
    let mut tunnel = good.open("k").await;
    // More than any buffer in between holds, in both directions at once.
    let (mut read, mut write) = tunnel.split();
    let sent: Vec<u8> = (0..3 << 20).map(|n| (n % 251) as u8).collect();
    let (echoed, _) = tokio::join!(exactly(&mut read, sent.len()), async {
        write.write_all(&sent).await.unwrap();
    });
    assert!(echoed == sent, "what came back is something else");
    for _ in 0..3 {
        assert!(good.ask().await.starts_with("HTTP/1.1 200 "));
    }
    for (bad, why) in [
        (tls(Some("other.test"), text(&ca), true), "another name"),
        (tls(None, text(&ca), true), "its address is not in the certificate"),
        (tls(Some("app.test"), text(&other_ca), true), "another authority"),
    ] {
        let bad = front(bad);
        let (_, answer) = bad.shake("k").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{why}: {answer}");
        assert!(!bad.ask().await.starts_with("HTTP/1.1 200 "), "{why}");
        assert_eq!(bad.servers()[0].last_failure.unwrap().0, "tls", "{why}");
    }
    let any = front(tls(None, None, false));
    let _open = any.open("k").await;
    let missing = tls(None, Some("/nowhere/ca.pem".into()), true);
    let mut conf = good.conf.clone();
    conf.upstream.insert("app".into(), missing);
    let error = good.control.reload(&conf).unwrap_err().to_string();
    assert!(error.starts_with("proxy.upstream.app.tls: cannot use the file \"/nowhere/ca.pem\""), "{error}");
}

#[tokio::test]
async fn servers_that_ask_are_told_the_client_by_proxy_protocol() {
    let (listener, addr) = listener().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let headers = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let headers = headers.clone();
            tokio::spawn(async move {
                let header = exactly(&mut tcp, 28).await;
                headers.lock().unwrap().push(header);
                serve(tcp).await;
            });
        }
    });
    let front = front(Upstream { send_proxy_protocol: true, ..Upstream::of([addr]) });
    let expected = |client: &TcpStream| {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
        bytes.extend(client.local_addr().unwrap().port().to_be_bytes());
        bytes.extend(front.addr.port().to_be_bytes());
        bytes
    };
    let mut tunnel = front.open("k").await;
    tunnel.write_all(b"hello").await.unwrap();
    assert_eq!(exactly(&mut tunnel, 5).await, b"hello");
    assert_eq!(seen.lock().unwrap().pop().unwrap(), expected(&tunnel));
    // Two clients, one after the other: neither gets the other's connection.
    for _ in 0..2 {
        let mut client = front.connect().await;
        client.write_all(PLAIN.as_bytes()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(seen.lock().unwrap().pop().unwrap(), expected(&client));
    }
}

#[tokio::test]
async fn checks_decide_who_gets_clients() {
    let (listener, sick) = listener().await;
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let is_well = is_well.clone();
            tokio::spawn(async move {
                let seen = head(&mut tcp).await;
                if seen.starts_with("GET /health HTTP/1.1\r\nHost: app.test\r\n") {
                    let status = if is_well.load(SeqCst) { "204 No Content" } else { "500 Oh" };
                    tcp.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
                } else {
                    tcp.write_all(SWITCH.as_bytes()).await.unwrap();
                    let _open = tcp.read_u8().await;
                }
            });
        }
    });
    let health = Health {
        path: "/health".into(),
        host: Some("app.test".into()),
        interval: Duration::from_millis(30),
        timeout: Duration::from_millis(30),
        ..Health::of(Check::Http)
    };
    let front = front(Upstream {
        health: Some(health),
        load_factor: 0.0,
        ..Upstream::of([sick.clone(), server().await])
    });
    // The other one answers /health with 200.
    front.until("taken out", |all| all.iter().filter(|s| !s.healthy).count() == 1).await;
    for n in 0..20 {
        let _open = front.open(&format!("user-{n}")).await;
        assert_eq!(front.server(&sick).open, 0);
    }
    assert_eq!(front.server(&sick).last_failure.unwrap().0, "check_status");
    assert!(front.figures().contains("weir_proxy_upstream_healthy"));
    well.store(true, SeqCst);
    front.until("back", |all| all.iter().all(|s| s.healthy)).await;
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(front.open(&format!("user-{n}")).await);
    }
    assert!(front.server(&sick).open > 0);
}

#[tokio::test]
async fn a_websocket_check_is_a_whole_handshake_and_says_goodbye() {
    let (listener, addr) = listener().await;
    let health =
        Health { path: "/ws".into(), interval: Duration::from_millis(20), ..Health::of(Check::WebSocket) };
    let health = Health { timeout: health.interval, ..health };
    let front = front(Upstream { health: Some(health), ..Upstream::of([addr]) });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let seen = head(&mut tcp).await;
    assert!(seen.starts_with("GET /ws HTTP/1.1\r\n") && seen.contains("Upgrade: websocket\r\n"), "{seen}");
    let key = seen.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap().to_owned();
    let accept = {
        use base64::Engine;
        let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        base64::engine::general_purpose::STANDARD.encode(digest)
    };
    tcp.write_all(SWITCH.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept).as_bytes()).await.unwrap();
    let frame = exactly(&mut tcp, 8).await;
    let code = u16::from_be_bytes([frame[6] ^ frame[2], frame[7] ^ frame[3]]);
    assert_eq!((frame[0], frame[1], code), (0x88, 0x82, 1000));
    tcp.write_all(b"\x88\x02\x03\xe8").await.unwrap();
    assert!(front.servers()[0].healthy);
    // From here on it answers with the accept value of another key.
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            head(&mut tcp).await;
            let _gone = tcp.write_all(SWITCH.as_bytes()).await;
        }
    });
    front.until("taken out", |all| !all[0].healthy).await;
    let (_, answer) = front.shake("k").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test]
async fn who_finds_a_server_full_waits_or_is_told_when_to_come_back() {
    let limits = Upstream {
        max_connections: 1,
        queue: 1,
        queue_timeout: Duration::from_millis(700),
        ..Upstream::of([server().await])
    };
    let front = Arc::new(front(limits));
    let first = front.open("a").await;
    let waiting = tokio::spawn({
        let front = front.clone();
        async move { front.shake("b").await }
    });
    let in_line = async {
        while !front.figures().contains("weir_proxy_upstream_queue{upstream=\"app\"} 1") {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANGS, in_line).await.unwrap();
    let (_, answer) = front.shake("c").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "), "{answer}");
    drop(first);
    let (second, answer) = waiting.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let begun = Instant::now();
    let (_, answer) = front.shake("d").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && begun.elapsed() >= Duration::from_millis(700), "{answer}");
    // Who leaves while it waits is not waited for.
    let mut gone = front.connect().await;
    gone.write_all(UPGRADE.as_bytes()).await.unwrap();
    drop(gone);
    let left = async {
        while !front.figures().contains("outcome=\"left\"} 1") {
            tokio::task::yield_now().await;
        }
    };
    timeout(HANGS, left).await.unwrap();
    let figures = front.figures();
    for outcome in ["served", "full", "timeout", "left"] {
        let line = format!("queue_outcomes_total{{upstream=\"app\",outcome=\"{outcome}\"}} 1");
        assert!(figures.contains(&line), "{line} in {figures}");
    }
    drop(second);
}

/// A server that can be stopped: it accepts, as the kernel does for it, and answers nobody.
struct Stopper {
    stopped: tokio::sync::watch::Sender<bool>,
    /// For each handshake that came while it was not stopped, how many there were at once.
    at_once: Arc<Mutex<Vec<usize>>>,
}

async fn stopper() -> (Stopper, String) {
    let (listener, addr) = listener().await;
    let (stopped, watch) = tokio::sync::watch::channel(false);
    let at_once = Arc::new(Mutex::new(Vec::new()));
    let (counts, under_way) = (at_once.clone(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (mut watch, counts, under_way) = (watch.clone(), counts.clone(), under_way.clone());
            tokio::spawn(async move {
                head(&mut tcp).await;
                if *watch.borrow() {
                    watch.wait_for(|stopped| !stopped).await.unwrap();
                } else {
                    let now = under_way.fetch_add(1, SeqCst) + 1;
                    counts.lock().unwrap().push(now);
                    // Slow enough that a stampede would be seen as one.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    under_way.fetch_sub(1, SeqCst);
                }
                if tcp.write_all(SWITCH.as_bytes()).await.is_ok() {
                    let _open = tcp.read_u8().await;
                }
            });
        }
    });
    (Stopper { stopped, at_once }, addr)
}

#[tokio::test]
async fn a_hanging_server_is_left_alone_and_taken_back_step_by_step() {
    let (stopper, hanging) = stopper().await;
    let mut all = servers(3).await;
    all.push(hanging.clone());
    let front = Arc::new(front_with(Upstream { load_factor: 0.0, ..Upstream::of(all) }, |conf| {
        conf.handshake_timeout = Duration::from_millis(200);
        conf.breaker.failures = 3;
        conf.breaker.open_for = Duration::from_secs(1);
        conf.breaker.open_max = Duration::from_secs(1);
    }));
    let mut keys = Vec::new();
    while keys.len() < 20 {
        let key = format!("user-{}", rand::random::<u32>());
        let _open = front.open(&key).await;
        if front.server(&hanging).open > 0 {
            keys.push(key);
            drop(_open);
            front.until("closed", |all| all.iter().all(|s| s.open == 0)).await;
        }
    }
    stopper.stopped.send(true).unwrap();
    for (n, key) in keys.iter().enumerate().take(3) {
        let (_, answer) = front.shake(key).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{n}: {answer}");
    }
    assert_eq!(front.server(&hanging).breaker, Breaker::Open);
    let begun = Instant::now();
    for key in &keys {
        let _elsewhere = front.open(key).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?} for 20", begun.elapsed());

    // Many clients of its keys, all the time; it goes on, and is asked by one, two, four at once.
    stopper.at_once.lock().unwrap().clear();
    stopper.stopped.send(false).unwrap();
    let clients: Vec<_> = (0..20)
        .map(|n| {
            let (front, key, hanging) = (front.clone(), keys[n].clone(), hanging.clone());
            tokio::spawn(async move {
                while front.server(&hanging).breaker != Breaker::Closed {
                    let (client, answer) = front.shake(&key).await;
                    drop((client, answer));
                }
            })
        })
        .collect();
    timeout(HANGS, async {
        for client in clients {
            client.await.unwrap();
        }
    })
    .await
    .unwrap();
    let at_once = stopper.at_once.lock().unwrap().clone();
    let most = |n: usize| at_once.iter().take(n).max().copied().unwrap();
    assert!(most(1) == 1 && most(3) <= 2 && most(7) <= 4, "a stampede: {at_once:?}");
    let _home = front.open(&keys[0]).await;
    assert_eq!(front.server(&hanging).open, 1);
}

/// Answers every A question with these addresses and a TTL of a second; `None`: not at all.
async fn name_server(addrs: Arc<Mutex<Option<Vec<Ipv4Addr>>>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut bytes).await {
            let Some(addrs) = addrs.lock().unwrap().clone() else { continue };
            // The question ends after its name (a zero), type and class.
            let end = 12 + bytes[12..n].iter().position(|b| *b == 0).unwrap() + 5;
            let is_a = bytes[end - 4..end - 2] == [0, 1];
            let addrs = if is_a { addrs } else { Vec::new() };
            let mut answer = bytes[..end].to_vec();
            (answer[2], answer[3]) = (0x81, 0x80);
            answer[6..12].copy_from_slice(&[0, addrs.len() as u8, 0, 0, 0, 0]);
            for addr in addrs {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                answer.extend(addr.octets());
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    at
}

// The proxy looks up names before it starts, and blocks meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_moves_takes_new_clients_along() {
    let told = Arc::new(Mutex::new(Some(vec![Ipv4Addr::new(127, 0, 0, 1)])));
    let dns = name_server(told.clone()).await;
    // The same port on two addresses of this machine.
    let (listener, addr) = listener().await;
    let port = addr.rsplit_once(':').unwrap().1.to_owned();
    let other = TcpListener::bind(format!("127.0.0.2:{port}")).await.unwrap();
    for listener in [listener, other] {
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp));
            }
        });
    }
    let app = Upstream {
        servers: vec![Server { address: format!("app.test:{port}"), weight: 1 }],
        ..Upstream::default()
    };
    let front = front_with(app, |conf| {
        conf.dns_servers = vec![dns];
        conf.dns_min_ttl = Duration::from_millis(50);
    });
    let first = format!("127.0.0.1:{port}");
    let mut tunnel = front.open("k").await;
    assert_eq!((front.servers().len(), front.server(&first).open), (1, 1));
    *told.lock().unwrap() = Some(vec![Ipv4Addr::new(127, 0, 0, 2)]);
    let second = format!("127.0.0.2:{port}");
    front.until("moved", |all| all.len() == 1 && *all[0].name == *second).await;
    let _new = front.open("k").await;
    assert_eq!(front.server(&second).open, 1);
    tunnel.write_all(b"still").await.unwrap();
    assert_eq!(exactly(&mut tunnel, 5).await, b"still");
    // No answer, or an empty one: what was known stays.
    *told.lock().unwrap() = Some(Vec::new());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let _kept = front.open("k").await;
    *told.lock().unwrap() = Some(vec![Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)]);
    front.until("both", |all| all.len() == 2).await;
    assert_eq!(front.server(&first).open, 1, "it is the same server as before, tunnel and all");
}

// The proxy looks up names before it starts, and blocks meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_without_an_address_is_waited_for() {
    let told = Arc::new(Mutex::new(Some(Vec::new())));
    let dns = name_server(told.clone()).await;
    let (listener, addr) = listener().await;
    let port = addr.rsplit_once(':').unwrap().1.to_owned();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    let front = front_with(Upstream::of([format!("late.test:{port}")]), |conf| {
        conf.dns_servers = vec![dns];
        conf.dns_min_ttl = Duration::from_millis(50);
    });
    let (_, answer) = front.shake("k").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "), "{answer}");
    front.control.reload(&front.conf).unwrap();
    *told.lock().unwrap() = Some(vec![Ipv4Addr::new(127, 0, 0, 1)]);
    front.until("found", |all| all.len() == 1).await;
    let _there = front.open("k").await;
}

// The proxy looks up names before it starts, and blocks meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_of_a_name_is_tried_for_each_kind_of_request() {
    // The last of five is the only one that listens, on each turn another.
    let (listener, addr) = listener().await;
    let port = addr.rsplit_once(':').unwrap().1.to_owned();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    for plain in [true, false] {
        let addrs = [2, 3, 4, 5, 1].map(|n| Ipv4Addr::new(127, 0, 0, n));
        let dns = name_server(Arc::new(Mutex::new(Some(addrs.to_vec())))).await;
        let front =
            front_with(Upstream::of([format!("app.test:{port}")]), |conf| conf.dns_servers = vec![dns]);
        for key in ["a", "b", "c"] {
            if plain {
                let mut client = front.connect().await;
                let request = PLAIN.replace("\r\n\r\n", &format!("\r\nX-Key: {key}\r\n\r\n"));
                client.write_all(request.as_bytes()).await.unwrap();
                let answer = head(&mut client).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            } else {
                let _tunnel = front.open(key).await;
            }
        }
    }
}
