//! Request smuggling: what two servers could read in two ways reaches nobody. A server that keeps all it was
//! sent is the judge.

use futures_util::stream::{self, StreamExt};
use weir_tests::edge::{Edge, app, upgrade};
use weir_tests::recorder::{Connection, statuses};

/// Sockets at once.
const AT_ONCE: usize = 64;

/// What stands for the row's own target.
const TARGET: &[u8] = b"/T";

pub struct Row {
    sent: Vec<u8>,
    /// The answers that the client must get; any of these.
    answers: &'static [&'static [u16]],
    /// How many requests of the row the server sees when the answer is 200.
    seen: usize,
}

pub fn row(sent: impl Into<Vec<u8>>, answers: &'static [&'static [u16]], seen: usize) -> Row {
    Row { sent: sent.into(), answers, seen }
}

pub fn refused(sent: impl Into<Vec<u8>>) -> Row {
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
pub async fn check(rows: Vec<Row>) -> Vec<Connection> {
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

pub fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Lines of a head that could be read in two ways; `own` is the good one.
fn ambiguous(own: &str, length: usize) -> Vec<String> {
    vec![
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
}

#[tokio::test]
async fn framing_that_could_be_read_in_two_ways() {
    let own = format!("Content-Length: {}", BODY.len());
    let mut rows: Vec<Row> = ambiguous(&own, BODY.len())
        .into_iter()
        .map(|fields| refused(post(fields.as_bytes(), BODY)))
        .collect();
    rows.push(refused(format!("POST /T HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{BODY}")));
    rows.push(refused(format!("POST /T HTTP/1.0\r\nTransfer-Encoding: chunked\r\n{own}\r\n\r\n{BODY}")));
    rows.push(refused(format!("GET /T HTTP/1.1\nHost: a\n\n{BODY}")));
    rows.push(refused(format!("GET /T HTTP/1.1\r\nHost: a\n\r\n{BODY}")));
    rows.push(refused(format!("GET /T HTTP/1.1\r\n X: first line is folded\r\nHost: a\r\n\r\n{BODY}")));
    // Good, so that the table can tell: each is one request.
    for good in [own.clone(), format!("content-length:{} \t", BODY.len()), format!("{own}\r\nX: y\t\u{e9}z")]
    {
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
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0;\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "5\r\nhello\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\nZ: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\n folded\r\n\r\n",
        &format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(20_000)),
    ] {
        // Some of it may have been passed on already; the server sees that it never came to an end.
        rows.push(refused(chunked(body)));
    }
    // Good; and written anew: the server never sees an extension.
    for body in [
        "5\r\nhello\r\n0\r\n\r\n",
        "5;ext=1\r\nhello\r\n0\r\n\r\n",
        "005\r\nhello\r\n00\r\n\r\n",
        "2\r\nhe\r\n3\r\nllo\r\n0;last=\"1;\"\r\n\r\n",
    ] {
        rows.push(row(chunked(body), &[&[200]], 1));
    }
    // Trailers may not bring what belongs into a head.
    let trailers = "5\r\nhello\r\n0\r\nContent-Length: 50\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    rows.push(row(chunked(trailers), &[&[200]], 1));
    for request in check(rows).await.iter().flat_map(|c| &c.requests) {
        assert!(!request.head.contains("6.6.6.6") && !request.head.contains("Content-Length: 50"));
        if request.whole && request.head.starts_with("POST") {
            assert_eq!(request.body, b"hello", "{}", request.head);
        }
    }
}

/// A second request on the connection is one of its own, and never part of the first.
#[tokio::test]
async fn requests_one_after_the_other_stay_apart() {
    let get = "GET /T HTTP/1.1\r\nHost: a\r\n\r\n";
    let bad = "GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let chunked = post(b"Transfer-Encoding: chunked", "5;x\r\nhello\r\n0\r\nX: trailer\r\n\r\n");
    let chunked = String::from_utf8_lossy(&chunked);
    let rows = vec![
        row(format!("{get}{bad}"), &[&[200, 400]], 1),
        row(
            format!("{}hello{bad}", String::from_utf8_lossy(&post(b"Content-Length: 5", ""))),
            &[&[200, 400]],
            1,
        ),
        row(format!("{chunked}{bad}"), &[&[200, 400]], 1),
        row(format!("{chunked}GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"), &[&[200, 200]], 1),
        row(format!("{chunked}{}", chunked.replace(" /T ", " /probe ").repeat(3)), &[&[200; 4]], 1),
        // A body that nobody announced is the next request, and no good one.
        row(format!("{get}X"), &[&[200, 408]], 1),
        row(format!("{get}\0\r\n\r\n"), &[&[200, 400]], 1),
        row(format!("{get}{}", upgrade("/smuggled").replace("Host: a\r\n", "")), &[&[200, 400]], 1),
    ];
    check(rows).await;
}
