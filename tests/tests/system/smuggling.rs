//! Request smuggling: what two servers could read in two ways reaches nobody, and what follows an upgrade
//! reaches the server only once that has really switched. A server that keeps all it was sent is the judge.

use futures_util::stream::{self, StreamExt};
use weir_tests::edge::{Edge, app, upgrade};
use weir_tests::recorder::{Connection, Reply, Request, statuses, switch};
use weir_tests::within;

/// Sockets at once.
const AT_ONCE: usize = 64;

/// What stands for the row's own target.
const TARGET: &[u8] = b"/T";

struct Row {
    sent: Vec<u8>,
    /// The answers that the client must get; any of these.
    answers: &'static [&'static [u16]],
    /// How many requests of the row the server sees when the answer is 200.
    seen: usize,
}

fn row(sent: impl Into<Vec<u8>>, answers: &'static [&'static [u16]], seen: usize) -> Row {
    Row { sent: sent.into(), answers, seen }
}

fn refused(sent: impl Into<Vec<u8>>) -> Row {
    row(sent, &[&[400]], 0)
}

/// A POST with these lines in its head.
fn post(fields: &[u8], body: &str) -> Vec<u8> {
    [b"POST /T HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n\r\n", body.as_bytes()].concat()
}

/// The body of each attack: whoever takes it for chunks finds a second request in it.
const BODY: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match bytes.windows(from.len()).position(|w| w == from) {
        Some(at) => [&bytes[..at], to, &bytes[at + from.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

/// Sends all rows side by side, then looks at what their server saw, all told.
async fn check(rows: Vec<Row>) -> Vec<Connection> {
    let edge = Edge::start(&[], app).await;
    let edge = &edge;
    let answers = stream::iter(rows.iter().enumerate()).map(|(n, row)| async move {
        let target = format!("/row-{n}");
        let answer = edge.send(&replace(&row.sent, TARGET, target.as_bytes())).await;
        (n, answer)
    });
    let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
    let mut wrong = Vec::new();
    let mut expected = vec![0; rows.len()];
    for (n, answer) in &answers {
        let (row, statuses) = (&rows[*n], statuses(answer));
        if !row.answers.contains(&statuses.as_slice()) {
            wrong.push(format!("{statuses:?}, not {:?}: {}", row.answers, show(&row.sent)));
        }
        expected[*n] = if statuses.contains(&200) { row.seen } else { 0 };
    }
    edge.assert_serves().await;
    let mut seen = vec![0; rows.len()];
    let connections = edge_ends(edge).await;
    for connection in &connections {
        if !connection.odd.is_empty() {
            wrong.push(format!("the server was sent {}", show(&connection.odd)));
        }
        for request in &connection.requests {
            match request.target().strip_prefix("/row-").and_then(|n| n.parse::<usize>().ok()) {
                Some(n) => seen[n] += usize::from(request.whole),
                None if request.target().starts_with("/probe") => {}
                None => wrong.push(format!("the server saw {}", request.head)),
            }
        }
    }
    for (n, row) in rows.iter().enumerate() {
        if seen[n] != expected[n] {
            wrong.push(format!(
                "the server saw {} requests, not {}: {}",
                seen[n],
                expected[n],
                show(&row.sent)
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    connections
}

/// The proxy stays up: its connections to the server end by themselves once it has no use for them, or with it.
async fn edge_ends(edge: &Edge) -> Vec<Connection> {
    edge.process.signal(nix::sys::signal::Signal::SIGTERM);
    edge.server.ended().await;
    edge.server.connections()
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[tokio::test]
async fn framing_that_could_be_read_in_two_ways() {
    let length = BODY.len();
    let own = format!("Content-Length: {length}");
    let mut rows: Vec<Row> = [
        format!("{own}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\n{own}"),
        format!("{own}\r\n{own}"),
        format!("{own}\r\nContent-Length: 5"),
        format!("Content-Length: 5\r\n{own}"),
        format!("{own}, {length}"),
        format!("Content-Length: +{length}"),
        format!("Content-Length: -{length}"),
        format!("Content-Length: 0x{length:x}"),
        format!("Content-Length: {length} {length}"),
        format!("Content-Length: {length};"),
        format!("Content-Length: {length}.0"),
        format!("Content-Length: \"{length}\""),
        "Content-Length:".to_owned(),
        "Content-Length: 18446744073709551617".to_owned(),
        "Transfer-Encoding:".to_owned(),
        "Transfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: chunked, identity".to_owned(),
        "Transfer-Encoding: identity, chunked".to_owned(),
        "Transfer-Encoding: gzip, chunked".to_owned(),
        "Transfer-Encoding: chunked, chunked".to_owned(),
        "Transfer-Encoding: chunked,".to_owned(),
        "Transfer-Encoding: chunked;q=1".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding: \"chunked\"".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked".to_owned(),
        format!("{own}\r\nTransfer-Encoding: x"),
        // Folded lines, and lines that end in another way.
        format!("{own}\r\nX: y\r\n z"),
        format!("{own}\r\nX: y\r\n\tz"),
        format!("{own}\r\nTransfer-Encoding:\r\n chunked"),
        "Content-Length:\r\n 5".to_owned(),
        format!("{own}\nTransfer-Encoding: chunked"),
        format!("{own}\rTransfer-Encoding: chunked"),
        format!("{own}\r\r\nTransfer-Encoding: chunked"),
        format!("{own}\r\nX: y\nz: 1"),
        format!("{own}\r\nX: y\rz: 1"),
        format!("{own}\r\nX: y\0z"),
        format!("{own}\r\nX\0: y"),
        // Names that only some take for a header's.
        format!("Content-Length : {length}"),
        format!("{own}\r\nX : y"),
        format!("{own}\r\nX\t: y"),
        format!("{own}\r\nno colon"),
        format!("{own}\r\n: no name"),
        format!("{own}\r\n\"Transfer-Encoding\": chunked"),
    ]
    .into_iter()
    .map(|fields| refused(post(fields.as_bytes(), BODY)))
    .collect();
    rows.push(refused(format!("POST /T HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{BODY}")));
    rows.push(refused(format!("POST /T HTTP/1.0\r\nTransfer-Encoding: chunked\r\n{own}\r\n\r\n{BODY}")));
    rows.push(refused(format!("GET /T HTTP/1.1\nHost: a\n\n{BODY}")));
    rows.push(refused(format!("GET /T HTTP/1.1\r\nHost: a\n\r\n{BODY}")));
    rows.push(refused(format!("GET /T HTTP/1.1\r\n X: first line is folded\r\nHost: a\r\n\r\n{BODY}")));
    // Good, so that the table can tell: each is one request.
    for good in [own.clone(), format!("content-length:{length} \t"), format!("{own}\r\nX: y\t\u{e9}z")] {
        rows.push(row(post(good.as_bytes(), BODY), &[&[200]], 1));
    }
    let good = "5\r\nhello\r\n0\r\n\r\n";
    for coding in ["Transfer-Encoding: chunked", "transfer-encoding:\tCHUNKED "] {
        rows.push(row(post(coding.as_bytes(), good), &[&[200]], 1));
    }
    check(rows).await;
}

/// The ways to hide `Transfer-Encoding: chunked` from one of two readers, each with every byte that might do it.
#[tokio::test]
async fn a_transfer_encoding_that_one_of_two_readers_overlooks() {
    let own = format!("Content-Length: {}\r\n", BODY.len());
    let mut rows = Vec::new();
    let hidden = |fields: &[&[u8]]| post(&[own.as_bytes(), &fields.concat()].concat(), BODY);
    for byte in
        (0..=0x20).chain(0x7f..=0x80).chain([0x85, 0xa0, 0xff, b'_', b'.', b':', b';', b',', b'"', b'('])
    {
        let b = &[byte][..];
        rows.push(refused_or_harmless(hidden(&[b"Transfer-Encoding", b, b": chunked"])));
        rows.push(refused_or_harmless(hidden(&[b"Transfer", b, b"Encoding: chunked"])));
        rows.push(refused_or_harmless(hidden(&[b, b"Transfer-Encoding: chunked"])));
        rows.push(refused_or_harmless(hidden(&[b"X: y", b, b"Transfer-Encoding: chunked"])));
        rows.push(refused(hidden(&[b"Transfer-Encoding:", b, b"chunked"])));
        rows.push(refused(hidden(&[b"Transfer-Encoding: chunked", b])));
        rows.push(refused(hidden(&[b"Transfer-Encoding: chu", b, b"nked"])));
    }
    let connections = check(rows).await;
    // What was passed on as another header is none that a lenient server takes for this one: CGI and its like
    // know no difference between `-` and `_`.
    for request in connections.iter().flat_map(|c| &c.requests) {
        for line in request.head.lines().skip(1) {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            assert_ne!(name.replace('_', "-"), "transfer-encoding", "{}", request.head);
        }
    }
}

/// Refused, or a header that means nothing: then the body goes by its length.
fn refused_or_harmless(sent: Vec<u8>) -> Row {
    row(sent, &[&[400], &[200]], 1)
}

#[tokio::test]
async fn chunks_that_could_be_read_in_two_ways() {
    let mut rows = Vec::new();
    let chunked = |body: &str| post(b"Transfer-Encoding: chunked", body);
    for body in [
        "5\nhello\n0\n\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
    ] {
        // Some of it may have been passed on already; the server must see that it never came to an end.
        rows.push(row(chunked(body), &[&[400], &[502], &[]], 0));
    }
    // Read leniently by Pingora, and written anew: the server never sees an extension or an odd line.
    for body in [
        "5\r\nhello\r\n0\r\n\r\n",
        "5;ext=1\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "005\r\nhello\r\n00\r\n\r\n",
        "5\r\nhello\r\n0;\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        rows.push(row(chunked(body), &[&[200], &[400]], 1));
    }
    // No size at all is taken for none; what follows dies with the connection.
    let empty = rows.len();
    rows.push(row(chunked("\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"), &[&[200], &[400]], 1));
    // Trailers may not bring what belongs into a head.
    let trailers = "5\r\nhello\r\n0\r\nContent-Length: 50\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    rows.push(row(chunked(trailers), &[&[200], &[400]], 1));
    for request in check(rows).await.iter().flat_map(|c| &c.requests) {
        assert!(!request.head.contains("6.6.6.6") && !request.head.contains("Content-Length: 50"));
        if request.whole && request.head.starts_with("POST") {
            let body = if request.target() == format!("/row-{empty}") { &b""[..] } else { b"hello" };
            assert_eq!(request.body, body, "{}", request.head);
        }
    }
}

/// A second request on the connection is one of its own, and never part of the first.
#[tokio::test]
async fn requests_one_after_the_other_stay_apart() {
    let get = "GET /T HTTP/1.1\r\nHost: a\r\n\r\n";
    let bad = "GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let rows = vec![
        row(format!("{get}{bad}"), &[&[200, 400]], 1),
        row(
            format!("{}hello{bad}", String::from_utf8_lossy(&post(b"Content-Length: 5", ""))),
            &[&[200, 400]],
            1,
        ),
        // A body that nobody announced is the next request, and no good one.
        row(format!("{get}X"), &[&[200, 408]], 1),
        row(format!("{get}\0\r\n\r\n"), &[&[200, 400]], 1),
        row(format!("{get}{}", upgrade("/smuggled").replace("Host: a\r\n", "")), &[&[200, 400]], 1),
    ];
    check(rows).await;
}

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
