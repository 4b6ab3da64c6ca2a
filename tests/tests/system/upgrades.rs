//! Smuggling by upgrade: what follows a handshake reaches the server only once that has really switched, and
//! `websocket` is all that can be switched to.

use crate::smuggling::{Row, check, refused, row, show};
use weir_tests::edge::{Edge, app, upgrade};
use weir_tests::recorder::{Reply, Request, statuses, switch};
use weir_tests::within;

#[tokio::test]
async fn handshakes_that_are_none() {
    let good = upgrade("/T");
    let version = |to: &str| good.replace("Sec-WebSocket-Version: 13", to);
    let key = |to: &str| good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", to);
    let line = |to: &str| good.replace("Upgrade: websocket", to);
    let mut rows: Vec<Row> = [
        good.replace("GET ", "POST "),
        good.replace("GET ", "PUT "),
        good.replace("GET ", "HEAD "),
        good.replace("HTTP/1.1", "HTTP/1.0"),
        good.replace("Connection: Upgrade\r\n", ""),
        good.replace("Connection: Upgrade", "Connection: keep-alive"),
        good.replace("Connection: Upgrade", "Connection: \"Upgrade\""),
        line("Upgrade: websocket\r\nUpgrade: websocket"),
        line("Upgrade: websocket\r\nUpgrade: h2c"),
        line("Upgrade: h2c\r\nUpgrade: websocket"),
        line("Upgrade: websocket, h2c"),
        line("Upgrade: h2c, websocket"),
        line("Upgrade: websocket\r\nContent-Length: 5") + "hello",
        line("Upgrade: websocket\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        line("Upgrade: websocket\r\nContent-Length: 0\r\nTransfer-Encoding: chunked"),
        line("Upgrade : websocket"),
        line("Upgrade: websocket\r\n x"),
        version("X: y"),
        version("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13"),
        version("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8"),
        key("X: y"),
        key("Sec-WebSocket-Key: short"),
        key("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"),
        key("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    .map(|head| refused(head + "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))
    .into();
    for other in ["Sec-WebSocket-Version: 8", "Sec-WebSocket-Version: 14", "Sec-WebSocket-Version: x"] {
        rows.push(row(version(other), &[&[426]], 0));
    }
    // Other protocols are no upgrades here, but plain requests, and the server is not told of them.
    for other in [
        line("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        line("Upgrade: h2c").replace("Connection: Upgrade", "Connection: Upgrade, HTTP2-Settings"),
        line("Upgrade: TLS/1.0"),
        line("Upgrade: foo, bar"),
        line("Upgrade: websocket/13"),
        line("Upgrade: xwebsocket"),
    ] {
        rows.push(row(other.clone(), &[&[200]], 1));
        rows.push(row(other + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[&[200, 505], &[200, 400]], 1));
    }
    for request in check(rows).await.iter().flat_map(|c| &c.requests) {
        if request.target().starts_with("/row-") {
            for name in ["upgrade", "http2-settings"] {
                assert!(request.values(name).is_empty(), "{}", request.head);
            }
        }
    }
}

/// What a server says to a handshake. All but the true switch end there: the bytes behind the request die.
const ANSWERS: [(&str, &str, u16); 19] = [
    ("no accept", "101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502),
    (
        "empty accept",
        "101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept:\r\n\r\n",
        502,
    ),
    (
        "wrong accept",
        "101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        502,
    ),
    (
        "two accepts",
        "101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        502,
    ),
    (
        "no Upgrade",
        "101 X\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        502,
    ),
    (
        "no Connection",
        "101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        502,
    ),
    (
        "another protocol",
        "101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        502,
    ),
    (
        "two protocols",
        "101 X\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        502,
    ),
    ("a bare 101", "101 X\r\n\r\n", 502),
    ("200", "200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
    ("200 and keep-alive", "200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200),
    ("200 in chunks", "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200),
    (
        "200 that claims an upgrade",
        "200 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nContent-Length: 0\r\n\r\n",
        200,
    ),
    ("204", "204 No Content\r\n\r\n", 204),
    ("400", "400 Bad Request\r\nContent-Length: 0\r\n\r\n", 400),
    ("426", "426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n", 426),
    ("100, then 403", "100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 403),
    ("302", "302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", 302),
    ("no HTTP", "what?\r\n\r\n", 502),
];

#[tokio::test]
async fn what_follows_a_handshake_dies_unless_the_server_switches() {
    let edge = Edge::start(&[], |request: &Request| {
        let row = request.target().trim_start_matches("/row-").parse::<usize>();
        match row.ok().and_then(|n| ANSWERS.get(n)) {
            Some((_, answer, _)) => Reply::Last(format!("HTTP/1.1 {answer}").into_bytes()),
            None => app(request),
        }
    })
    .await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let edge_ref = &edge;
    let asks = ANSWERS.iter().enumerate().map(|(n, (what, _, status))| async move {
        let got = edge_ref.send((upgrade(&format!("/row-{n}")) + smuggled).as_bytes()).await;
        let text = String::from_utf8_lossy(&got).into_owned();
        assert_eq!(statuses(&got), [*status], "{what}: {text}");
        assert!(text.to_ascii_lowercase().contains("connection: close"), "{what}: {text}");
        // Nothing in the answer could be taken for a switch.
        assert!(!text.to_ascii_lowercase().contains("upgrade: websocket"), "{what}: {text}");
    });
    futures_util::future::join_all(asks).await;
    edge.assert_serves().await;
    let requests: Vec<Request> = edge.finish().await.into_iter().flat_map(|c| c.requests).collect();
    for (n, (what, ..)) in ANSWERS.iter().enumerate() {
        let own: Vec<_> = requests.iter().filter(|r| r.target() == format!("/row-{n}")).collect();
        assert_eq!(own.len(), 1, "{what}");
        assert!(own[0].after.is_empty(), "{what}: {}", show(&own[0].after));
    }
    assert!(requests.iter().all(|r| r.target() != "/smuggled"));
}

/// The true switch: what came early arrives after it, whole and once; and nothing before it.
#[tokio::test]
async fn what_follows_a_true_switch_is_the_tunnel() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let edge = Edge::start(&[], |request: &Request| {
        let early = [b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), switch(request), b"first".to_vec()].concat();
        if request.values("upgrade").is_empty() { app(request) } else { Reply::Last(early) }
    })
    .await;
    let mut tcp = tokio::net::TcpStream::connect(edge.addr()).await.unwrap();
    let early = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    tcp.write_all(&[upgrade("/tunnel").as_bytes(), early].concat()).await.unwrap();
    let mut got = Vec::new();
    within("the switch", async {
        while !got.ends_with(b"\r\n\r\nfirst") {
            tcp.read_buf(&mut got).await.unwrap();
        }
    })
    .await;
    assert!(got.starts_with(b"HTTP/1.1 101 "), "{}", show(&got));
    tcp.write_all(b"later").await.unwrap();
    tcp.shutdown().await.unwrap();
    within("the end", tcp.read_to_end(&mut got)).await.unwrap();
    let requests: Vec<Request> = edge.finish().await.into_iter().flat_map(|c| c.requests).collect();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].after, [&early[..], b"later"].concat());
}

/// A server that switches where nobody asked for it opens no tunnel.
#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_502() {
    let edge = Edge::start(&[], |request: &Request| match request.target() {
        "/switch" => {
            Reply::Last(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec())
        }
        _ => app(request),
    })
    .await;
    for head in [
        "GET /switch HTTP/1.1\r\nHost: a\r\n",
        "GET /switch HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\n",
    ] {
        let got = edge.send(format!("{head}\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
        assert_eq!(statuses(&got), [502], "{}", show(&got));
    }
    edge.assert_serves().await;
    for request in edge.finish().await.iter().flat_map(|c| &c.requests) {
        assert!(
            request.target() != "/smuggled" && (request.after.is_empty() || request.target() != "/switch")
        );
    }
}
