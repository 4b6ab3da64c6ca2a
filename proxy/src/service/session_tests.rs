//! Sessions of WebTransport to a node of another process, which is the test itself: a proxy on real sockets, and a client
//! that is weir-h3's other role.

use crate::front::h3::testing::{Client, Exchange, close, open, request, within};
use crate::tunnel::frames::tests::frame;
use crate::{Inherited, Proxy, self_signed};
use futures_util::FutureExt;
use http::{HeaderValue, Method, StatusCode};
use prometheus_client::registry::Registry;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, ReadError, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_conf::proxy::tls::{Certificate, Listen};
use weir_conf::proxy::{Proxy as Conf, Route, Upstream};
use weir_core::drain::Drain;
use weir_h3::{Protocol, Settings, capsule, datagram};
use weir_tests::ports::Port;

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: weir-webtransport\r\n\r\n";

struct Edge {
    at: Port,
    node: TcpListener,
    drain: Drain,
    registry: Registry,
    client: quinn::ClientConfig,
    _files: tempfile::TempDir,
}

/// A session, seen from both sides.
struct Session {
    client: Client,
    connect: Exchange,
    send: SendStream,
    recv: RecvStream,
    node: TcpStream,
}

async fn edge(change: impl FnOnce(&mut Conf)) -> Edge {
    let (files, at) = (tempfile::tempdir().unwrap(), Port::free());
    let made = self_signed(&["localhost".to_owned()], 13).unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut conf = crate::testing::conf();
    conf.listen = vec!["127.0.0.1:0".parse().unwrap()];
    (conf.threads, conf.handshake_rate, conf.max_connections_per_ip) = (1, None, 0);
    conf.tls.listen = vec![Listen { http3: true, ..Listen::at(at.addr()) }];
    conf.tls.certificates =
        vec![Certificate { cert: file("cert.pem", &made.cert_pem), key: file("key.pem", &made.key_pem) }];
    conf.upstream.clear();
    conf.upstream.insert("app".into(), Upstream::of([node.local_addr().unwrap().to_string()]));
    conf.route = vec![Route::to("app")];
    change(&mut conf);
    let mut registry = Registry::default();
    let proxy = Proxy::bind(&conf, None, &mut registry, Inherited::new()).unwrap();
    let drain = Drain::new();
    tokio::spawn(proxy.run(drain.clone()));
    let der = CertificateDer::from_pem_slice(made.cert_pem.as_bytes()).unwrap();
    let tls = crate::quic::tests::client_tls(der);
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    // Small, so that a reader who stops is felt soon.
    transport.stream_receive_window(VarInt::from_u32(128 * 1024));
    client.transport_config(Arc::new(transport));
    Edge { at, node, drain, registry, client, _files: files }
}

impl Edge {
    async fn client(&self) -> Client {
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(self.client.clone());
        let conn = within(endpoint.connect(self.at.addr(), "localhost").unwrap()).await.unwrap();
        Client::new(endpoint, conn, &Settings::new(16 * 1024).with_webtransport(1)).await
    }

    /// Asked for; and what the node gets of it.
    async fn ask(&self, client: &Client) -> (Exchange, TcpStream, String) {
        let mut head = request(Method::CONNECT, "/connection/webtransport?cf_datagrams=true");
        head.headers.insert("origin", HeaderValue::from_static("https://a.test"));
        head.headers.insert("sec-websocket-protocol", HeaderValue::from_static("x"));
        head.extensions.insert(Protocol::new("webtransport").unwrap());
        let connect = client.send(&head).await;
        let (mut node, _) = within(self.node.accept()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(within(node.read_u8()).await.unwrap());
        }
        (connect, node, String::from_utf8(seen).unwrap())
    }

    async fn session(&self) -> Session {
        let client = self.client().await;
        let (mut connect, mut node, _) = self.ask(&client).await;
        node.write_all(SWITCH.as_bytes()).await.unwrap();
        assert_eq!(connect.status().await, StatusCode::OK);
        let (mut send, recv) = open(&client, connect.id()).await;
        send.write_all(b"in").await.unwrap();
        assert_eq!(exactly(&mut node, 2).await, b"in");
        Session { client, connect, send, recv, node }
    }

    /// The figure of a family with this label.
    fn metric(&self, family: &str, label: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find(|line| {
            line.starts_with(&format!("weir_proxy_{family}{{"))
                && line.contains(&format!("\"{label}\""))
                && line.contains("\"webtransport\"")
        });
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// A tunnel's end is counted when all that it held is given back.
    async fn ended(&self, cause: &str) {
        let counted = async {
            while self.metric("tunnel_ends_total", cause) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(counted).await;
    }
}

async fn exactly(from: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    within(from.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Up to the connection's end, be it a reset.
async fn rest(node: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _reset = within(node.read_to_end(&mut bytes)).await;
    bytes
}

fn end(code: u16, reason: &str) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes(), reason.as_bytes()].concat(), None)
}

impl Session {
    /// What it ends with, for a client that leaves nothing unread and does not leave by itself.
    async fn close(&mut self) -> Option<(u32, String)> {
        close(&mut self.connect).await
    }
}

#[tokio::test]
async fn a_session_reaches_a_node_and_its_code_the_client() {
    let edge = edge(|conf| conf.tunnel.ping_interval = Duration::from_millis(50)).await;
    let client = edge.client().await;
    let (mut connect, mut node, seen) = edge.ask(&client).await;
    let lower = seen.to_lowercase();
    assert!(seen.starts_with("GET /connection/webtransport?cf_datagrams=true HTTP/1.1\r\n"), "{seen}");
    for field in [
        "upgrade: weir-webtransport",
        "connection: upgrade",
        "origin: https://a.test",
        "host: a.test",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "x-request-id: ",
    ] {
        assert!(lower.contains(&format!("\r\n{field}")), "{field} in {seen}");
    }
    assert!(!lower.contains("sec-websocket"), "{seen}");
    // What comes before the node has said yes waits.
    let (mut send, mut recv) = open(&client, connect.id()).await;
    send.write_all(b"first\n").await.unwrap();
    client.conn.send_datagram(datagram::write(connect.id(), b"for nobody")).unwrap();
    assert!(connect.recv.read_chunk(1, true).now_or_never().is_none());
    node.write_all(&[SWITCH.as_bytes(), &frame(0x82, b"hello\n", None)].concat()).await.unwrap();
    assert_eq!(connect.status().await, StatusCode::OK);
    assert_eq!(exactly(&mut node, 6).await, b"first\n");
    let mut hello = [0; 6];
    within(recv.read_exact(&mut hello)).await.unwrap();
    assert_eq!((&hello, edge.metric("tunnels", "webtransport")), (b"hello\n", 1));
    let (second, _) = open(&client, connect.id()).await;
    assert_eq!(within(second.stopped()).await.unwrap(), Some(VarInt::from_u32(0x3994_bd84)));
    // In two pieces, and then the last message.
    let long = frame(0x82, &[7; 3000], None);
    node.write_all(&long[..1000]).await.unwrap();
    node.write_all(&[&long[1000..], &frame(0x82, b"bye\n", None), &end(3501, "bad request")].concat())
        .await
        .unwrap();
    node.shutdown().await.unwrap();
    let heard = within(recv.read_to_end(10_000)).await.unwrap();
    assert_eq!(heard, [&[7; 3000][..], b"bye\n"].concat());
    // What it still says is for nobody.
    send.write_all(b"late").await.unwrap();
    assert_eq!(close(&mut connect).await, Some((3501, "bad request".to_owned())));
    assert_eq!(rest(&mut node).await, b"");
    edge.ended("closed").await;
    assert_eq!(edge.metric("handshakes_total", "accepted"), 1);
    assert_eq!(edge.metric("tunnels", "webtransport"), 0);
}

#[tokio::test]
async fn a_client_that_has_said_all_is_closed_at_once() {
    let edge = edge(|_| {}).await;
    let mut session = edge.session().await;
    session.send.finish().unwrap();
    assert_eq!(rest(&mut session.node).await, b"", "the end of what it says goes on to the node");
    session
        .node
        .write_all(&[frame(0x82, b"answer", None), end(3000, "connection closed")].concat())
        .await
        .unwrap();
    assert_eq!(within(session.recv.read_to_end(100)).await.unwrap(), b"answer");
    assert_eq!(session.close().await, Some((3000, "connection closed".to_owned())));
}

/// A session without a stream can be told nothing, and is closed all the same.
#[tokio::test]
async fn a_client_that_opens_no_stream_hears_why_it_is_closed() {
    let edge = edge(|_| {}).await;
    let client = edge.client().await;
    let (mut connect, mut node, _) = edge.ask(&client).await;
    let last = [frame(0x82, b"disconnect\n", None), end(3502, "stale")].concat();
    node.write_all(&[SWITCH.as_bytes(), &last].concat()).await.unwrap();
    assert_eq!(connect.status().await, StatusCode::OK);
    assert_eq!(close(&mut connect).await, Some((3502, "stale".to_owned())));
}

#[tokio::test]
async fn a_refusal_is_passed_on_and_anything_else_is_502() {
    let edge = edge(|_| {}).await;
    let client = edge.client().await;
    let websocket = SWITCH.replace("weir-webtransport", "websocket");
    for (answer, expected, outcome) in [
        ("HTTP/1.1 403 F\r\nContent-Length: 2\r\n\r\nno", 403, "refused_by_server"),
        ("HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n", 404, "refused_by_server"),
        ("HTTP/1.1 503 S\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n", 503, "refused_by_server"),
        ("HTTP/1.1 400 B\r\nContent-Length: 0\r\n\r\n", 502, "not_a_node"),
        ("HTTP/1.1 426 U\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", 502, "not_a_node"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 502, "not_a_node"),
        (&websocket, 502, "false_switch"),
        ("", 502, "server_closed"),
    ] {
        let before = edge.metric("handshakes_total", outcome);
        let (mut connect, mut node, _) = edge.ask(&client).await;
        let (stream, _recv) = open(&client, connect.id()).await;
        node.write_all(answer.as_bytes()).await.unwrap();
        node.shutdown().await.unwrap();
        let head = connect.head().await;
        assert_eq!(head.status.as_u16(), expected, "{answer}");
        assert_eq!(head.headers.contains_key("retry-after"), answer.contains("Retry-After"), "{answer}");
        assert!(within(stream.stopped()).await.unwrap().is_some(), "{answer}");
        assert_eq!(edge.metric("handshakes_total", outcome), before + 1, "{answer}");
    }
}

#[tokio::test]
async fn a_node_that_dies_is_1014() {
    let edge = edge(|_| {}).await;
    for how in ["reset", "end", "nonsense"] {
        let Session { client: _client, mut connect, send: _send, mut recv, mut node } = edge.session().await;
        node.write_all(&frame(0x82, b"last", None)).await.unwrap();
        let mut last = [0; 4];
        within(recv.read_exact(&mut last)).await.unwrap();
        match how {
            "reset" => node.set_zero_linger().unwrap(),
            "end" => node.shutdown().await.unwrap(),
            _ => node.write_all(b"HTTP/1.1 500 Oops\r\n\r\n").await.unwrap(),
        }
        if how == "reset" {
            drop(node);
        }
        assert_eq!(close(&mut connect).await, Some((1014, String::new())), "{how}");
    }
    edge.ended("server_error").await;
    edge.ended("closed").await;
}

#[tokio::test]
async fn a_client_that_closes_or_is_gone_is_gone_for_the_node_at_once() {
    let edge = edge(|_| {}).await;
    let mut session = edge.session().await;
    session.connect.write(&capsule::close(7, "enough")).await;
    assert_eq!(rest(&mut session.node).await, b"");
    edge.ended("closed").await;
    let gone = within(session.recv.read_chunk(10, true)).await.unwrap_err();
    assert_eq!(gone, ReadError::Reset(VarInt::from_u32(0x170d_7b68)));
    let mut session = edge.session().await;
    session.client.conn.close(VarInt::from_u32(0x100), b"");
    assert_eq!(rest(&mut session.node).await, b"");
    edge.ended("client_error").await;
}

#[tokio::test]
async fn a_drain_and_a_limit_end_a_session_with_their_codes() {
    let limited = edge(|conf| {
        (conf.tunnel.bytes_rate, conf.tunnel.over) = (1000, weir_conf::proxy::Over::Close);
    })
    .await;
    let mut session = limited.session().await;
    session.send.write_all(&[7; 2000]).await.unwrap();
    assert_eq!(session.close().await, Some((1008, String::new())));
    limited.ended("rate").await;

    let edge = edge(|_| {}).await;
    let mut session = edge.session().await;
    // A frame under way may end.
    let last = frame(0x82, b"last words", None);
    session.node.write_all(&last[..5]).await.unwrap();
    within(session.recv.read_exact(&mut [0; 3])).await.unwrap();
    edge.drain.begin();
    session.node.write_all(&last[5..]).await.unwrap();
    assert_eq!(within(session.recv.read_to_end(100)).await.unwrap(), b"t words");
    session.send.finish().unwrap();
    assert_eq!(session.close().await, Some((1012, String::new())));
    assert_eq!(rest(&mut session.node).await, b"");
    edge.ended("drained").await;
}

/// What it does not take the node keeps, and nothing is lost.
#[tokio::test]
async fn a_slow_reader_is_felt_by_the_node() {
    const ALL: usize = 24 << 20;
    let edge = edge(|_| {}).await;
    let Session { client: _client, connect: _connect, send: _send, mut recv, mut node } =
        edge.session().await;
    socket2::SockRef::from(&node).set_send_buffer_size(64 << 10).unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let writer = tokio::spawn(async move {
        for n in 0..ALL / (16 << 10) {
            node.write_all(&frame(0x82, &[n as u8; 16 << 10], None)).await.unwrap();
            counted.fetch_add(16 << 10, Relaxed);
        }
        node.write_all(&end(3000, "")).await.unwrap();
        node
    });
    // Slow as the machine may be: what came to rest early is less, and not more.
    let mut before = usize::MAX;
    while std::mem::replace(&mut before, taken.load(Relaxed)) != before {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < ALL / 2 + (ALL >> 2), "{before} bytes were taken for a client that does not read");
    let mut at = 0;
    while let Some(chunk) = within(recv.read_chunk(usize::MAX, true)).await.unwrap() {
        assert!(chunk.bytes.iter().enumerate().all(|(n, b)| *b == ((at + n) >> 14) as u8), "at {at}");
        at += chunk.bytes.len();
    }
    assert_eq!(at, ALL);
    writer.await.unwrap();
}
