//! Sessions of WebTransport, as a front brings them: the protocol over a stream of lines, and its closes.

use super::front::{Fake, OfSession, bring};
use super::*;
use crate::testing::Faults;
use tokio::io::DuplexStream;
use weir_core::accept::Transport;

pub const PATH: &str = "/connection/webtransport";

fn connect(url: &str) -> http::request::Builder {
    http::Request::builder().method("CONNECT").version(http::Version::HTTP_3).uri(format!("https://x{url}"))
}

fn parts(request: http::request::Builder) -> http::request::Parts {
    request.body(()).unwrap().into_parts().0
}

/// The client's end of a session.
pub struct Lines<S = DuplexStream> {
    pub stream: S,
    pub read: Vec<u8>,
    pub session: Arc<Fake>,
}

impl Server {
    /// Before, nobody is served.
    async fn is_running(&self) {
        while !self.health.is_ready() {
            tokio::task::yield_now().await;
        }
    }

    pub async fn session_with(&self, url: &str, buffer: usize) -> Lines {
        self.is_running().await;
        let (stream, fronts) = tokio::io::duplex(buffer);
        let session = Fake::new();
        let of_session = Box::new(OfSession(fronts, session.clone()));
        let (answer, _) = bring(self, Transport::WebTransport, parts(connect(url)), of_session).await;
        answer.unwrap();
        Lines { stream, read: vec![], session }
    }

    /// A client that is connected and subscribed.
    pub async fn session(&self, url: &str, channel: &str) -> Lines {
        let mut client = self.session_with(url, 1 << 16).await;
        client.say(json!({"id": 1, "connect": {}})).await;
        assert!(client.hear().await["connect"]["client"].is_string());
        client.say(json!({"id": 2, "subscribe": {"channel": channel}})).await;
        assert_eq!(client.hear().await, json!({"id": 2, "subscribe": {}}));
        client
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Lines<S> {
    pub async fn say(&mut self, line: impl ToString) {
        self.stream.write_all(format!("{}\n", line.to_string()).as_bytes()).await.unwrap();
    }

    /// The next line; `None`: the end.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            let read = self.stream.read_buf(&mut self.read);
            if tokio::time::timeout(PATIENCE, read).await.expect("something within reason").unwrap() == 0 {
                assert!(self.read.is_empty(), "half a line: {:?}", self.read);
                return None;
            }
        }
    }

    pub async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.line().await.expect("a message")).unwrap()
    }

    /// Reads on to the end; the last message is a disconnect push. Gives its code, and the session's.
    async fn closed(mut self) -> (u64, u32, String) {
        let mut last = Value::Null;
        while let Some(line) = self.line().await {
            last = serde_json::from_str(&line).unwrap();
        }
        assert_eq!(*self.session.closed.borrow(), None, "the client is given time to read all this");
        drop(self.stream);
        let (code, reason) = closed(&self.session).await;
        let push = &last["push"]["disconnect"];
        assert_eq!(push["reason"], *reason, "{last}");
        (push["code"].as_u64().unwrap(), code, reason)
    }
}

pub async fn closed(session: &Fake) -> (u32, String) {
    let mut closed = session.closed.subscribe();
    let closed = closed.wait_for(Option::is_some);
    tokio::time::timeout(PATIENCE, closed).await.expect("a close").unwrap().clone().unwrap()
}

#[tokio::test]
async fn the_protocol_over_lines() {
    let server = Server::start(|_| {});
    let mut client = server.session_with(PATH, 1 << 16).await;
    // As SDKs do: several commands at once, and nothing says that they come in one piece.
    let both =
        "{\"id\":1,\"connect\":{\"name\":\"js\"}}\n{\"id\":2,\"subscribe\":{\"channel\":\"open:ä\"}}\n";
    for byte in both.replace('ä', "c").as_bytes() {
        client.stream.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(client.hear().await["connect"]["ping"], 25);
    assert_eq!(client.hear().await["subscribe"]["recoverable"], true);
    assert!(client.hear().await["push"]["join"].is_object());
    let many: Vec<String> = (0..200)
        .map(|n| json!({"id": n + 10, "publish": {"channel": "open:c", "data": [n, "ö"]}}).to_string())
        .collect();
    client.say(many.join("\n")).await;
    let (mut replies, mut pushes) = (0, 0);
    while replies < 200 || pushes < 200 {
        let message = client.hear().await;
        if message["id"].is_u64() {
            assert_eq!(message, json!({"id": replies + 10, "publish": {}}));
            replies += 1;
        } else {
            assert_eq!(message["push"]["pub"]["data"], json!([pushes, "ö"]));
            pushes += 1;
        }
    }
    client.say(json!({"id": 999, "history": {"channel": "open:c", "limit": 2, "reverse": true}})).await;
    let history = client.hear().await;
    assert_eq!(history["history"]["publications"][0]["data"], json!([199, "ö"]), "{history}");
    assert_eq!(server.metric("weir_node_messages_in_total"), 203.0);

    // The client ends its side, and so the session.
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.line().await, None);
    assert_eq!(closed(&client.session).await, (3000, "connection closed".into()));
    while !server.twin.members("open:c").is_empty() || server.health.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn subscribers_on_both_get_the_same_and_once() {
    let server = Server::start(|_| {});
    let mut socket = server.client("ann").await;
    socket.subscribe("plain:c").await;
    let mut stream = server.session(PATH, "plain:c").await;
    stream.say(json!({"id": 3, "publish": {"channel": "plain:c", "data": "from the stream"}})).await;
    socket.say(json!({"id": 3, "publish": {"channel": "plain:c", "data": "from the socket"}})).await;
    for n in 0..50 {
        server.api("publish", json!({"channel": "plain:c", "data": n})).await;
    }
    let pushes = |messages: Vec<Value>| {
        let mut data: Vec<String> =
            messages.iter().filter(|m| m["push"]["pub"].is_object()).map(|m| m["push"].to_string()).collect();
        data.sort();
        data
    };
    let (mut of_socket, mut of_stream) = (vec![], vec![]);
    for _ in 0..53 {
        of_socket.push(socket.hear().await);
        of_stream.push(stream.hear().await);
    }
    let of_socket = pushes(of_socket);
    assert_eq!(of_socket.len(), 52);
    assert_eq!(of_socket, pushes(of_stream));
    let by = |transport: &str| server.metric_with("weir_node_connections", transport);
    assert_eq!((by("h1"), by("webtransport")), (1.0, 1.0));
    assert_eq!(server.metric_with("weir_node_handshakes_total", "webtransport"), 1.0);
}

#[tokio::test]
async fn bad_input_ends_the_session_with_its_code() {
    let server = Server::start(|c| c.message_size = 1000);
    let mut bystander = server.session(PATH, "plain:c").await;
    let connect = b"{\"id\":1,\"connect\":{}}\n";
    let long = [b'x'; 1001];
    // What is sent, the code in the last message, and the session's.
    let cases: &[(&str, &[u8], u64, u32)] = &[
        ("no JSON", b"{\n", 3501, 3501),
        ("an empty line", b"\n", 3501, 3501),
        ("an empty line behind a good one", &[connect.as_slice(), b"\n"].concat(), 3501, 3501),
        ("not connected", b"{\"id\":1,\"rpc\":{}}\n", 3501, 3501),
        ("no token that is one", b"{\"id\":1,\"connect\":{\"token\":\"x\"}}\n", 3500, 3500),
        ("not utf-8", b"{\"id\":1,\"x\":\"\xc3\x28\"}\n", 1007, 1007),
        // By the push's code SDKs decide whether they come back: not for this one.
        ("too long", &[&long, b"\n".as_slice()].concat(), 3501, 1009),
        ("too long, and no end in sight", &long, 3501, 1009),
        ("behind a good line", &[connect.as_slice(), &long].concat(), 3501, 1009),
    ];
    for (name, bytes, push, code) in cases {
        let mut client = server.session_with(PATH, 1 << 16).await;
        client.stream.write_all(bytes).await.unwrap();
        let (got_push, got_code, _) = client.closed().await;
        assert_eq!((got_push, got_code), (*push, *code), "{name}");
    }
    bystander.say(json!({"id": 9, "rpc": {}})).await;
    assert_eq!(bystander.hear().await["error"]["code"], 108);
    assert_eq!(server.metric("weir_node_disconnects_total"), cases.len() as f64);
}

#[tokio::test]
async fn other_ends() {
    let server = Server::start(|c| {
        c.ping_interval = Duration::from_millis(200);
        c.pong_timeout = Duration::from_millis(150);
    });
    let mut silent = server.session(PATH, "plain:c").await;
    assert_eq!(silent.line().await.as_deref(), Some("{}\n"), "a ping");
    assert_eq!(silent.closed().await, (3012, 3012, "no pong".into()));
    let mut alive = server.session(PATH, "plain:c").await;
    for _ in 0..4 {
        assert_eq!(alive.line().await.as_deref(), Some("{}\n"));
        alive.say("{}").await;
    }
    server.drain.begin();
    assert_eq!(alive.closed().await, (3001, 3001, "shutdown".into()));
}

/// Nobody is there to be told on the stream; the session is closed all the same.
#[tokio::test(start_paused = true)]
async fn a_session_without_a_stream_and_one_that_stays() {
    let server = Server::start(|_| {});
    let begun = tokio::time::Instant::now();
    // Room for nothing: as a stream that the client never opens.
    let none = server.session_with(PATH, 1).await;
    assert_eq!(closed(&none.session).await, (3502, "stale".into()));
    assert!(begun.elapsed() <= Duration::from_secs(16), "{:?}", begun.elapsed());

    let mut stays = server.session_with(PATH, 1 << 16).await;
    stays.say("nonsense").await;
    while stays.line().await.is_some() {}
    let ended = tokio::time::Instant::now();
    assert_eq!(closed(&stays.session).await.0, 3501);
    assert!((900..1100).contains(&ended.elapsed().as_millis()), "{:?}", ended.elapsed());
}

#[tokio::test]
async fn a_busy_session_reads_no_more_than_it_must() {
    let server = Server::start(|_| {});
    let mut client = server.session_with(PATH, 1024).await;
    client.say(json!({"id": 1, "connect": {}})).await;
    client.hear().await;
    server.bus.set(Faults { stalled: true, ..Faults::default() });
    let lines: Vec<Value> = (0..5000)
        .map(|n| json!({"id": n + 10, "publish": {"channel": "open:c", "data": "x".repeat(100)}}))
        .collect();
    let (mut reading, mut writing) = tokio::io::split(client.stream);
    let mut sent = std::pin::pin!(async {
        for line in &lines {
            writing.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }
    });
    tokio::select! {
        () = &mut sent => panic!("all of it was taken in while nothing could be done with it"),
        () = async {
            while server.twin.calls("publish") == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } => {}
    }
    assert!(server.metric("weir_node_messages_in_total") < 20.0);
    server.bus.set(Faults::default());
    let mut replies = String::new();
    let read = async {
        let mut chunk = vec![0; 4096];
        while replies.lines().count() < 5000 || !replies.ends_with('\n') {
            let n = reading.read(&mut chunk).await.unwrap();
            replies.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(sent, read) }).await.expect("all replies");
    for (n, line) in replies.lines().enumerate() {
        assert_eq!(line, format!("{{\"id\":{},\"publish\":{{}}}}", n + 10));
    }
}

#[tokio::test]
async fn a_slow_reader_of_lines_is_cut_and_nobody_else_notices() {
    let server = Server::start(|c| c.write_timeout = Duration::from_secs(30));
    let slow = server.session(PATH, "plain:c").await;
    let mut fast = server.session(PATH, "plain:c").await;
    for n in 0..200 {
        let publish = weir_wire::envelope::Publish {
            channel: "plain:c".into(),
            data: json!([n, "x".repeat(9000)]).to_string().into(),
            ..Default::default()
        };
        weir_broker::Bus::publish(&*server.bus, publish).await.unwrap();
        assert_eq!(fast.hear().await["push"]["pub"]["data"][0], n);
    }
    // What was begun is whole, and then the reason.
    assert_eq!(slow.closed().await, (3008, 3008, "slow".into()));
    assert_eq!(server.metric("weir_node_outbox_bytes"), 0.0);
}

#[tokio::test]
async fn who_gets_a_session() {
    let server = Server::start(|c| {
        c.max_connections_per_ip = 1;
        c.allowed_origins = vec!["https://app.test".into()];
    });
    server.is_running().await;
    let refused = async |transport, request| {
        let (_, fronts) = tokio::io::duplex(64);
        let of_session = Box::new(OfSession(fronts, Fake::new()));
        bring(&server, transport, parts(request), of_session).await.0.map_err(|r| r.status().as_u16())
    };
    let wt = Transport::WebTransport;
    let good = async || connect(PATH).header("origin", "https://app.test");
    assert_eq!(refused(wt, connect("/connection/websocket")).await.unwrap_err(), 404);
    assert_eq!(refused(Transport::H3, connect(PATH)).await.unwrap_err(), 404);
    assert_eq!(refused(wt, good().await.method("GET")).await.unwrap_err(), 400);
    assert_eq!(refused(wt, connect(PATH).header("origin", "https://evil.test")).await.unwrap_err(), 403);
    let (stays, fronts) = tokio::io::duplex(64);
    let of_session = Box::new(OfSession(fronts, Fake::new()));
    bring(&server, wt, parts(good().await), of_session).await.0.unwrap();
    assert_eq!(refused(wt, good().await).await.unwrap_err(), 429);
    drop(stays);
    server.drain.begin();
    while !server.health.is_draining() {
        tokio::task::yield_now().await;
    }
    assert_eq!(refused(wt, good().await).await.unwrap_err(), 503);
    let off = Server::start(|c| c.webtransport = false);
    off.is_running().await;
    let (_, fronts) = tokio::io::duplex(64);
    let of_session = Box::new(OfSession(fronts, Fake::new()));
    let (answer, _) = bring(&off, wt, parts(connect(PATH)), of_session).await;
    assert_eq!(answer.unwrap_err().status(), 404);
}
