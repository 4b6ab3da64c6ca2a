//! HTTP/2 over TLS from outside: WebSockets by extended CONNECT, plain requests, and what a client may not do.
#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{HANGS, head, listener};
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, Version};
use prometheus_client::registry::Registry;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weir_conf::{Sources, load};
use weir_core::drain::Drain;
use weir_proxy::{Inherited, Proxy};

struct Front {
    addr: SocketAddr,
    drain: Drain,
    registry: Registry,
    ca: CertificateDer<'static>,
    _files: TempDir,
}

/// A proxy with TLS, an echoing server behind it, and this conf besides.
async fn front(conf: &str) -> (Front, Arc<AtomicUsize>) {
    front_with(conf, "").await
}

/// The same, with more in `[proxy.tls]`.
async fn front_with(conf: &str, tls: &str) -> (Front, Arc<AtomicUsize>) {
    let files = tempfile::tempdir().unwrap();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let (pem, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    std::fs::write(&pem, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    let (server, seen) = server().await;
    let text = format!(
        "roles = [\"proxy\"]\n[proxy]\nlisten = \"127.0.0.1:0\"\nthreads = 2\nhandshake_rate = \"0/s\"\n\
         max_connections_per_ip = 0\n{conf}\n[proxy.tls]\nlisten = [\"127.0.0.1:0\"]\nhsts = \"1h\"\n\
         certificates = [{{ cert = {pem:?}, key = {key:?} }}]\n{tls}\n\
         [proxy.upstream.app]\nservers = [\"{server}\"]\n[[proxy.route]]\nto = \"app\"\n"
    );
    let conf = load(&Sources::new().text("test", text)).unwrap_or_else(|errors| panic!("{errors}")).config;
    let mut registry = Registry::default();
    let proxy = Proxy::bind(&conf.proxy, None, &mut registry, Inherited::new()).unwrap();
    let (addr, drain) = (proxy.tls_addrs()[0], Drain::new());
    tokio::spawn(proxy.run(drain.clone()));
    (Front { addr, drain, registry, ca: cert.der().clone(), _files: files }, seen)
}

/// Echoes WebSockets; any other request comes back as the body. Counts requests.
async fn server() -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, addr) = listener().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, count.clone()));
        }
    });
    (addr, seen)
}

async fn serve(mut tcp: TcpStream, seen: Arc<AtomicUsize>) {
    loop {
        let mut first = [0];
        if tcp.read(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        let request = format!("{}{}", char::from(first[0]), head(&mut tcp).await);
        seen.fetch_add(1, SeqCst);
        let field = |name: &str| {
            let line = request.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
            Some(line.split_once(": ")?.1.to_owned())
        };
        if let Some(key) = field("sec-websocket-key") {
            let mut sha = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
            sha.update(key.as_bytes());
            sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            let accept = STANDARD.encode(sha.finish());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
            );
            tcp.write_all(answer.as_bytes()).await.unwrap();
            let (mut read, mut write) = tcp.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
            return;
        }
        let mut body = request.clone().into_bytes();
        if let Some(length) = field("content-length") {
            let mut sent = vec![0; length.parse().unwrap()];
            tcp.read_exact(&mut sent).await.unwrap();
            body.extend(sent);
        } else if field("transfer-encoding").is_some() {
            let mut sent = Vec::new();
            while !sent.ends_with(b"0\r\n\r\n") {
                sent.push(tcp.read_u8().await.unwrap());
            }
            body.extend(sent);
        }
        // In chunks, so that its framing has to be made anew.
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        tcp.write_all(answer.as_bytes()).await.unwrap();
        tcp.write_all(&body).await.unwrap();
        tcp.write_all(b"\r\n0\r\n\r\n").await.unwrap();
    }
}

impl Front {
    async fn tls(&self, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("a.test").unwrap();
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// A connection that allows extended CONNECT.
    async fn connect(&self) -> SendRequest<Bytes> {
        // Its own window must not be what stalls streams.
        let mut client = h2::client::Builder::new();
        let connecting = client.initial_connection_window_size(1 << 24).handshake(self.tls(b"h2").await);
        let (mut send, conn) = connecting.await.unwrap();
        tokio::spawn(conn);
        timeout(HANGS, poll_fn(|cx| send.poll_ready(cx))).await.unwrap().unwrap();
        // Its SETTINGS come with its first bytes.
        while !send.is_extended_connect_protocol_enabled() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        send
    }

    fn metric(&self, line: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.contains(&format!("weir_proxy_{line}\n"))
    }

    async fn until(&self, line: &str) {
        let seen = async {
            while !self.metric(line) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        timeout(HANGS, seen).await.unwrap_or_else(|_| panic!("no {line}"));
    }
}

fn websocket() -> Request<()> {
    let request =
        Request::builder().method(Method::CONNECT).uri("https://a.test/ws").version(Version::HTTP_2);
    let request = request.extension(Protocol::from_static("websocket"));
    request.header("sec-websocket-version", "13").header("sec-websocket-protocol", "chat").body(()).unwrap()
}

struct Socket {
    response: Response<()>,
    send: SendStream<Bytes>,
    recv: RecvStream,
}

async fn open(send: &mut SendRequest<Bytes>, request: Request<()>) -> Result<Socket, h2::Error> {
    poll_fn(|cx| send.poll_ready(cx)).await?;
    let (response, send) = send.send_request(request, false)?;
    let (parts, recv) = timeout(HANGS, response).await.unwrap()?.into_parts();
    Ok(Socket { response: Response::from_parts(parts, ()), send, recv })
}

impl Socket {
    async fn say(&mut self, frame: &[u8]) {
        self.send.reserve_capacity(frame.len());
        self.send.send_data(Bytes::copy_from_slice(frame), false).unwrap();
    }

    async fn hear(&mut self, bytes: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < bytes {
            let data = timeout(HANGS, self.recv.data()).await.unwrap().unwrap().unwrap();
            self.recv.flow_control().release_capacity(data.len()).unwrap();
            heard.extend(data);
        }
        heard
    }
}

/// A masked text frame; the mask is zero.
const HELLO: [u8; 11] = [0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];

#[tokio::test]
async fn websockets_share_a_connection_and_end_one_by_one() {
    let (front, seen) = front("").await;
    let mut conn = front.connect().await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        let socket = open(&mut conn, websocket()).await.unwrap();
        assert_eq!(socket.response.status(), 200);
        let headers = socket.response.headers();
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        assert_eq!(headers["strict-transport-security"], "max-age=3600");
        for hop in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!headers.contains_key(hop), "{hop}");
        }
        sockets.push(socket);
    }
    for socket in &mut sockets {
        socket.say(&HELLO).await;
        assert_eq!(socket.hear(HELLO.len()).await, HELLO);
    }
    assert!(front.metric("tunnels{transport=\"h2\"} 50"));
    assert!(front.metric("connections 51"), "each WebSocket counts, and their connection");
    // One is reset, one ends; the others go on.
    sockets.pop().unwrap().send.send_reset(Reason::CANCEL);
    sockets.pop().unwrap().send.send_data(Bytes::new(), true).unwrap();
    front.until("tunnels{transport=\"h2\"} 48").await;
    for socket in &mut sockets {
        socket.say(&HELLO).await;
        assert_eq!(socket.hear(HELLO.len()).await, HELLO);
    }
    assert_eq!(seen.load(SeqCst), 50);
    assert!(front.metric("handshakes_total{outcome=\"accepted\",transport=\"h2\"} 50"));
}

#[tokio::test]
async fn a_stream_that_is_not_read_stalls_itself_alone() {
    let (front, _) = front("").await;
    let mut conn = front.connect().await;
    let mut stuck = open(&mut conn, websocket()).await.unwrap();
    let mut lively = open(&mut conn, websocket()).await.unwrap();
    // The echo of it is never read: first the client's window fills, then the buffers of the proxy and of the
    // server behind it, and then nothing more is taken.
    let (mut sent, whole) =
        (0, [0x82, 0xfe, 0x20, 0, 0, 0, 0, 0].into_iter().chain([7; 8192]).collect::<Vec<u8>>());
    let flood = async {
        loop {
            stuck.send.reserve_capacity(whole.len());
            while stuck.send.capacity() < whole.len() {
                poll_fn(|cx| stuck.send.poll_capacity(cx)).await.unwrap().unwrap();
            }
            stuck.send.send_data(Bytes::copy_from_slice(&whole), false).unwrap();
            sent += whole.len();
            assert!(sent < 64 << 20, "{sent} bytes, and still taken");
        }
    };
    let talk = async {
        for _ in 0..2000 {
            lively.say(&HELLO).await;
            assert_eq!(lively.hear(HELLO.len()).await, HELLO);
        }
    };
    tokio::select! { () = flood => {}, () = talk => {} }
}

#[tokio::test]
async fn requests_come_with_their_bodies_and_get_theirs() {
    let (front, _) = front("").await;
    let mut conn = front.connect().await;
    let ask = async |conn: &mut SendRequest<Bytes>, request: Request<()>, body: &'static str| {
        poll_fn(|cx| conn.poll_ready(cx)).await.unwrap();
        let (response, mut send) = conn.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            send.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        }
        let (parts, mut recv) = timeout(HANGS, response).await.unwrap().unwrap().into_parts();
        let mut text = Vec::new();
        while let Some(data) = timeout(HANGS, recv.data()).await.unwrap() {
            text.extend(data.unwrap());
        }
        (parts, String::from_utf8(text).unwrap())
    };
    let get = || Request::builder().uri("https://a.test/x?q=1").version(Version::HTTP_2);
    let request = get().header("cookie", "a=1").header("cookie", "b=2").header("te", "trailers").body(());
    let (parts, text) = ask(&mut conn, request.unwrap(), "").await;
    assert_eq!((parts.status.as_u16(), parts.version), (200, Version::HTTP_2));
    assert!(!parts.headers.contains_key("transfer-encoding"));
    assert!(text.starts_with("GET /x?q=1 HTTP/1.1\r\n"), "{text}");
    for line in ["Host: a.test\r\n", "Cookie: a=1; b=2\r\n", "X-Forwarded-Proto: https\r\n"] {
        assert!(text.to_lowercase().contains(&line.to_lowercase()), "{line} in {text}");
    }
    let post = get().method(Method::POST).header("content-length", "5").body(()).unwrap();
    assert!(ask(&mut conn, post, "hello").await.1.ends_with("\r\n\r\nhello"));
    let post = get().method(Method::POST).body(()).unwrap();
    let text = ask(&mut conn, post, "hello").await.1;
    assert!(
        text.to_lowercase().contains("transfer-encoding: chunked") && text.contains("5\r\nhello\r\n"),
        "{text}"
    );
    let head = get().method(Method::HEAD).body(()).unwrap();
    assert_eq!(ask(&mut conn, head, "").await.1, "");
    front.until("requests_total{class=\"2xx\",transport=\"h2\"} 4").await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_on_its_stream_alone() {
    let (front, seen) = front("").await;
    let mut conn = front.connect().await;
    let mut witness = open(&mut conn, websocket()).await.unwrap();
    let mut strange = websocket();
    strange.extensions_mut().insert(Protocol::from_static("connect-udp"));
    let bare = Request::builder().method(Method::CONNECT).uri("a.test:443").version(Version::HTTP_2).body(());
    let mut old = websocket();
    old.headers_mut().insert("sec-websocket-version", "8".parse().unwrap());
    for (request, status) in [(strange, 501), (bare.unwrap(), 405), (old, 426)] {
        let shown = format!("{request:?}");
        let socket = open(&mut conn, request).await.unwrap();
        assert_eq!(socket.response.status(), status, "{shown}");
    }
    witness.say(&HELLO).await;
    assert_eq!(witness.hear(HELLO.len()).await, HELLO);
    assert_eq!(seen.load(SeqCst), 1, "the server saw none of them");
}

#[tokio::test]
async fn resets_without_end_cost_their_connection() {
    let (front, _) = front("").await;
    let mut witness_conn = front.connect().await;
    let mut witness = open(&mut witness_conn, websocket()).await.unwrap();
    let mut conn = front.connect().await;
    // Whether it still gets to read the GOAWAY, before its own writes fail, is chance; the metric says why.
    let mut ended = false;
    for _ in 0..20_000 {
        let ready = poll_fn(|cx| conn.poll_ready(cx)).await.is_ok();
        match ready.then(|| conn.send_request(websocket(), false)) {
            Some(Ok((_, mut send))) => send.send_reset(Reason::CANCEL),
            _ => {
                ended = true;
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    assert!(ended, "20,000 resets, and still served");
    front.until("refused_total{cause=\"h2_flood\"} 1").await;
    witness.say(&HELLO).await;
    assert_eq!(witness.hear(HELLO.len()).await, HELLO);
}

#[tokio::test]
async fn a_drain_says_goaway_and_ends_the_tunnels_in_order() {
    let (front, _) = front("").await;
    let mut conn = front.connect().await;
    let mut socket = open(&mut conn, websocket()).await.unwrap();
    front.drain.begin();
    // 1012, "come again".
    assert_eq!(socket.hear(4).await[..4], [0x88, 0x02, 0x03, 0xf4]);
    socket.say(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]).await;
    socket.send.send_data(Bytes::new(), true).unwrap();
    let mut end = timeout(HANGS, socket.recv.data()).await.unwrap();
    if end.as_ref().is_some_and(|data| data.as_ref().is_ok_and(Bytes::is_empty)) {
        end = timeout(HANGS, socket.recv.data()).await.unwrap();
    }
    assert!(end.is_none(), "the stream ends as it should: {end:?}");
    let refused =
        poll_fn(|cx| conn.poll_ready(cx)).await.is_err() || conn.send_request(websocket(), false).is_err();
    assert!(refused, "nothing new on a connection that was sent away");
}

#[tokio::test]
async fn http_1_over_tls_is_the_same_proxy() {
    let (front, _) = front("").await;
    let mut tls = front.tls(b"http/1.1").await;
    tls.write_all(common::handshake("/ws", "").replace("Host: a", "Host: a.test").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(HANGS, tls.read_u8()).await.unwrap().unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    tls.write_all(&HELLO).await.unwrap();
    let mut echo = [0; HELLO.len()];
    timeout(HANGS, tls.read_exact(&mut echo)).await.unwrap().unwrap();
    assert_eq!(echo, HELLO);
    assert!(front.metric("tunnels{transport=\"h1\"} 1"));
}

/// Without TLS there is nothing that can be said to it, and an answer over TLS would cost what is to be spared.
#[tokio::test]
async fn an_address_over_its_rate_of_tls_handshakes_is_let_go_before_the_next() {
    let (front, _) = front_with("", "handshake_rate = \"1/h\"\nhandshake_burst = 2").await;
    let _open = (front.tls(b"http/1.1").await, front.connect().await);
    let mut third = TcpStream::connect(front.addr).await.unwrap();
    let mut answer = Vec::new();
    timeout(HANGS, third.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"");
    assert!(front.metric("refused_total{cause=\"tls_handshake_rate\"} 1"));
    assert!(front.metric("tls_handshakes_total{outcome=\"accepted\"} 2"));
}
