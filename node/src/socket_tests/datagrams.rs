//! Channels where publications may go by datagram; and sessions whose stream comes from a proxy of another process, where
//! they cannot.

use super::front::Fake;
use super::webtransport::{Lines, PATH};
use super::*;
use weir_core::accept::NoDatagram;
use weir_core::sync::lock;

#[tokio::test]
async fn datagrams_to_whoever_asked_for_them() {
    let server = Server::start(|_| {});
    let mut socket = server.client("").await;
    socket.subscribe("lossy:c").await;
    let mut plain = server.session(PATH, "lossy:c").await;
    let wishes = format!("{PATH}?cf_datagrams=true");
    let mut asked = server.session(&wishes, "lossy:c").await;
    asked.say(json!({"id": 3, "subscribe": {"channel": "plain:c"}})).await;
    asked.hear().await;
    let publish = async |channel: &str, data: Value| {
        server.api("publish", json!({"channel": channel, "data": data})).await;
    };
    let push = |n: i32| json!({"push": {"channel": "lossy:c", "pub": {"data": n}}});
    publish("lossy:c", json!(1)).await;
    assert_eq!(socket.hear().await, push(1));
    assert_eq!(plain.hear().await, push(1));
    let sent = std::mem::take(&mut *lock(&asked.session.datagrams));
    assert_eq!(sent, [push(1).to_string()], "the message alone, without a newline");

    // Where there is no way for datagrams, by the stream, for everybody once.
    for (n, why) in [(2, NoDatagram::TooLarge), (3, NoDatagram::Unsupported)] {
        *lock(&asked.session.answer) = Err(why);
        publish("lossy:c", json!(n)).await;
        for client in [&mut plain, &mut asked] {
            assert_eq!(client.hear().await, push(n));
        }
        assert_eq!(socket.hear().await, push(n));
    }
    *lock(&asked.session.answer) = Err(NoDatagram::Closed);
    publish("lossy:c", json!(4)).await;
    *lock(&asked.session.answer) = Ok(());
    // Other channels, and other messages of this one, do not go by datagram.
    publish("plain:c", json!(5)).await;
    assert_eq!(asked.hear().await["push"]["pub"]["data"], 5);
    asked.say(json!({"id": 4, "subscribe": {"channel": "lossy:d", "join_leave": true}})).await;
    assert_eq!(asked.hear().await["id"], 4);
    assert!(asked.hear().await["push"]["join"].is_object());
    assert_eq!(*lock(&asked.session.datagrams), Vec::<bytes::Bytes>::new());
    for outcome in ["sent", "too_large", "unsupported", "closed"] {
        assert_eq!(server.metric_with("weir_node_datagrams_total", outcome), 1.0, "{outcome}");
    }
}

/// More datagrams than anybody reads take no room here.
#[tokio::test]
async fn datagrams_do_not_pile_up() {
    let server = Server::start(|c| c.outbox_size = 2048);
    let mut client = server.session(&format!("{PATH}?cf_datagrams=true"), "lossy:c").await;
    for n in 0..500 {
        let publish = weir_wire::envelope::Publish {
            channel: "lossy:c".into(),
            data: json!([n, "x".repeat(500)]).to_string().into(),
            ..Default::default()
        };
        weir_broker::Bus::publish(&*server.bus, publish).await.unwrap();
    }
    while lock(&client.session.datagrams).len() < 500 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.metric("weir_node_outbox_bytes"), 0.0);
    client.say(json!({"id": 9, "rpc": {}})).await;
    assert_eq!(client.hear().await["error"]["code"], 108);
}

/// What a proxy in another process does.
async fn upgrade(server: &Server, more: &str) -> (String, TcpStream) {
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    let request =
        format!("GET {PATH}?cf_datagrams=true HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{more}\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap().to_lowercase(), tcp)
}

/// What such a proxy passes on, and what the session is to end with.
fn unframed(tcp: TcpStream) -> (Lines, tokio::task::JoinHandle<(u16, String)>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut from_node, mut to_node) = tcp.into_split();
    let (mut from_client, mut to_client) = tokio::io::split(far);
    tokio::spawn(async move {
        tokio::io::copy(&mut from_client, &mut to_node).await.unwrap();
        to_node.shutdown().await.unwrap();
    });
    let close = tokio::spawn(async move {
        loop {
            let (opcode, short) = (from_node.read_u8().await.unwrap(), from_node.read_u8().await.unwrap());
            let length = if short < 126 { u16::from(short) } else { from_node.read_u16().await.unwrap() };
            let mut payload = vec![0; length.into()];
            from_node.read_exact(&mut payload).await.unwrap();
            if opcode == 0x88 {
                assert_eq!(from_node.read(&mut [0]).await.unwrap(), 0, "nothing follows it");
                to_client.shutdown().await.unwrap();
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (code, String::from_utf8(payload[2..].to_vec()).unwrap());
            }
            assert_eq!(opcode, 0x82);
            to_client.write_all(&payload).await.unwrap();
        }
    });
    (Lines { stream: near, read: vec![], session: Fake::new() }, close)
}

#[tokio::test]
async fn a_session_that_another_process_holds() {
    let server = Server::start(|_| {});
    let token = "Upgrade: weir-webtransport\r\nX-Forwarded-For: 9.9.9.9\r\n";
    let (head, tcp) = upgrade(&server, token).await;
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: weir-webtransport"), "{head}");
    let (mut client, close) = unframed(tcp);
    client.say(json!({"id": 1, "connect": {}})).await;
    assert!(client.hear().await["connect"].is_object());
    client.say(json!({"id": 2, "subscribe": {"channel": "lossy:c"}})).await;
    assert_eq!(client.hear().await["id"], 2);
    server.api("publish", json!({"channel": "lossy:c", "data": 1})).await;
    assert_eq!(client.hear().await["push"]["pub"]["data"], 1, "without datagrams, as ever");
    assert_eq!(server.metric_with("weir_node_connections", "webtransport"), 1.0);
    client.say("nonsense").await;
    let last = client.hear().await;
    assert_eq!(last["push"]["disconnect"]["code"], 3501);
    assert_eq!(client.line().await, None);
    assert_eq!(close.await.unwrap(), (3501, "bad request".to_owned()));
    // Who leaves by himself is not told so on the stream.
    let (mut leaving, close) = unframed(upgrade(&server, token).await.1);
    leaving.stream.shutdown().await.unwrap();
    assert_eq!(leaving.line().await, None);
    assert_eq!(close.await.unwrap(), (3000, "connection closed".to_owned()));

    for wrong in ["Upgrade: websocket\r\n", ""] {
        assert!(upgrade(&server, wrong).await.0.starts_with("http/1.1 400"), "{wrong}");
    }
    let strict = Server::start(|c| c.trusted = vec![]);
    assert!(upgrade(&strict, token).await.0.starts_with("http/1.1 403"));
    let off = Server::start(|c| c.webtransport = false);
    assert!(upgrade(&off, token).await.0.starts_with("http/1.1 404"));
}
