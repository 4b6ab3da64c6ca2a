//! Bad frames, floods and readers that do not read: that connection only, with a code that says why.

use super::*;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// A client's frame with the mask 0: the payload as it is.
pub fn frame(first: u8, len: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first, 0x80 | len[0]];
    out.extend_from_slice(&len[1..]);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

/// A socket that is past the handshake.
pub async fn raw(server: &Server) -> TcpStream {
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    let request = "GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101")
            && head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    tcp
}

/// The code of the close frame with which what comes ends.
async fn close_code(tcp: &mut (impl tokio::io::AsyncRead + Unpin)) -> u16 {
    loop {
        let opcode = tokio::time::timeout(PATIENCE, tcp.read_u8()).await.expect("a close").unwrap() & 0xf;
        let len = match tcp.read_u8().await.unwrap() {
            126 => usize::from(tcp.read_u16().await.unwrap()),
            127 => tcp.read_u64().await.unwrap() as usize,
            len => usize::from(len),
        };
        let mut payload = vec![0; len];
        tcp.read_exact(&mut payload).await.unwrap();
        if opcode == 8 {
            return u16::from_be_bytes([payload[0], payload[1]]);
        }
    }
}

#[tokio::test]
async fn bad_frames_are_closed_with_their_code() {
    let server = Server::start(|c| c.message_size = 1000);
    let mut bystander = server.client("").await;
    let over = vec![b'x'; 1001];
    let mut fragments = frame(0x01, &[126, 2, 0], &[b'x'; 512]);
    fragments.extend(frame(0x80, &[126, 2, 0], &[b'x'; 512]));
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("unmasked", vec![0x81, 2, b'{', b'}'], 1002),
        ("reserved bit", frame(0xc1, &[2], b"{}"), 1002),
        ("reserved opcode", frame(0x83, &[0], b""), 1002),
        ("reserved control opcode", frame(0x8b, &[0], b""), 1002),
        ("fragmented ping", frame(0x09, &[0], b""), 1002),
        ("long ping", frame(0x89, &[126, 0, 126], &[0; 126]), 1002),
        ("continuation of nothing", frame(0x80, &[0], b""), 1002),
        ("close with half a code", frame(0x88, &[1], b"x"), 1002),
        ("not utf-8", frame(0x81, &[2], b"\xc3\x28"), 1007),
        ("not utf-8, seen in a fragment", frame(0x01, &[2], b"\xc3\x28"), 1007),
        ("too long", frame(0x81, &[126, 3, 0xe9], &over), 1009),
        (
            "too long, and only announced",
            frame(0x81, &[127, 0x7f, 255, 255, 255, 255, 255, 255, 255], b""),
            1009,
        ),
        ("too long in fragments", fragments, 1009),
        ("binary", frame(0x82, &[2], b"{}"), 3506),
        ("empty", frame(0x81, &[0], b""), 3501),
        ("no JSON", frame(0x81, &[1], b"{"), 3501),
    ];
    for (name, bytes, code) in cases {
        let mut tcp = raw(&server).await;
        tcp.write_all(&bytes).await.unwrap();
        assert_eq!(close_code(&mut tcp).await, code, "{name}");
    }
    assert_eq!(bystander.ask(json!({"id": 9, "rpc": {}})).await["error"]["code"], 108);
}

#[tokio::test]
async fn endless_fragments_come_to_an_end() {
    let server = Server::start(|c| c.message_size = 1000);
    let mut tcp = raw(&server).await;
    let mut flood = frame(0x01, &[0], b"");
    for _ in 0..20_000 {
        flood.extend(frame(0x00, &[0], b""));
    }
    // The close may come before all is written.
    let _ = tcp.write_all(&flood).await;
    assert_eq!(close_code(&mut tcp).await, 1008);
}

/// Whatever has begun and does not end, with pings in between or not; the rest of the clients is not touched.
#[tokio::test]
async fn a_message_has_a_deadline_for_its_rest() {
    let timeout = Duration::from_millis(400);
    let server = Server::start(|conf| conf.message_timeout = timeout);
    let mut bystander = server.client("").await;
    let ping = frame(0x89, &[1], b"p");
    let whole = frame(0x8a, &[0], b"");
    for (name, begun) in [
        ("a fragment", frame(0x01, &[3], b"{\"i")),
        ("an empty fragment", frame(0x01, &[0], b"")),
        ("half a frame", frame(0x81, &[10], b"{}")),
        ("half a header", vec![0x81]),
        ("half a ping", frame(0x89, &[10], b"p")),
        ("a whole message and a fragment", [whole, frame(0x01, &[1], b"{")].concat()),
    ] {
        for pings in [false, true] {
            // Within a frame there is no place for one.
            if pings && name.starts_with("half") {
                continue;
            }
            let mut tcp = raw(&server).await;
            let since = std::time::Instant::now();
            tcp.write_all(&begun).await.unwrap();
            let (mut read, mut write) = tcp.split();
            let pinging = async {
                loop {
                    tokio::time::sleep(timeout / 8).await;
                    if write.write_all(&ping).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let code = async {
                if pings {
                    tokio::select! { code = close_code(&mut read) => code, () = pinging => 0 }
                } else {
                    close_code(&mut read).await
                }
            };
            assert_eq!(code.await, 1008, "{name}, pings: {pings}");
            assert!(since.elapsed() >= timeout, "{name}: {:?}", since.elapsed());
        }
    }
    // Many messages take longer than one may, each of them in pieces.
    let mut tcp = raw(&server).await;
    tcp.write_all(&frame(0x81, &[21], br#"{"id":1,"connect":{}}"#)).await.unwrap();
    for n in 0..10 {
        let text = format!("{{\"id\":{},\"rpc\":{{}}}}", 2 + n);
        let (first, rest) = text.split_at(4);
        tcp.write_all(&frame(0x01, &[first.len() as u8], first.as_bytes())).await.unwrap();
        tokio::time::sleep(timeout / 5).await;
        tcp.write_all(&frame(0x80, &[rest.len() as u8], rest.as_bytes())).await.unwrap();
    }
    tcp.write_all(&frame(0x88, &[2], &1000_u16.to_be_bytes())).await.unwrap();
    assert_eq!(close_code(&mut tcp).await, 1000);
    // The stream of a session of WebTransport is no other.
    let mut lines = server.session_with(super::webtransport::PATH, 1 << 16).await;
    lines.stream.write_all(b"{\"id\":1,\"conn").await.unwrap();
    assert_eq!(lines.hear().await["push"]["disconnect"]["code"], 1008);
    assert_eq!(bystander.ask(json!({"id": 9, "rpc": {}})).await["error"]["code"], 108);
}

#[tokio::test]
async fn a_flood_of_pings_is_cut_and_one_ping_is_answered() {
    let server = Server::start(|_| {});
    let mut client = server.client("").await;
    client.ws.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(client.next().await, Some(Message::Pong("p".into())));
    let mut tcp = raw(&server).await;
    let flood: Vec<u8> = (0..500).flat_map(|_| frame(0x89, &[1], b"p")).collect();
    let _ = tcp.write_all(&flood).await;
    assert_eq!(close_code(&mut tcp).await, 3013);
}

#[tokio::test]
async fn frames_in_pieces_and_pings_between_fragments() {
    let server = Server::start(|_| {});
    let mut tcp = raw(&server).await;
    for byte in frame(0x81, &[23], br#"{"id":1,"connect":{ } }"#) {
        tcp.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(tcp.read_u8().await.unwrap(), 0x81);
    let mut client = server.client("").await;
    let part =
        |text: &'static str, opcode, last| Message::Frame(Frame::message(text, OpCode::Data(opcode), last));
    client.ws.send(part("{\"id\":7,", Data::Text, false)).await.unwrap();
    client.ws.send(Message::Ping("x".into())).await.unwrap();
    client.ws.send(part("\"rpc\":{}}", Data::Continue, true)).await.unwrap();
    assert_eq!(client.next().await, Some(Message::Pong("x".into())));
    assert_eq!(client.hear().await["id"], 7);
}

#[tokio::test]
async fn a_slow_reader_is_cut_and_nobody_else_notices() {
    let server = Server::start(|c| c.write_timeout = Duration::from_secs(30));
    let (mut slow, mut fast) = (server.client("").await, server.client("").await);
    slow.subscribe("plain:c").await;
    fast.subscribe("plain:c").await;
    let data = "x".repeat(9000);
    // More than the kernel's buffers and the outbox hold together; read by the one, not by the other.
    for n in 0..2000 {
        let params = json!({"channel": "plain:c", "data": [n, data]});
        let publish = weir_wire::envelope::Publish {
            channel: "plain:c".into(),
            data: params["data"].to_string().into(),
            ..Default::default()
        };
        weir_broker::Bus::publish(&*server.bus, publish).await.unwrap();
        assert_eq!(fast.publication().await[0], n);
    }
    assert_eq!(slow.close_code().await, 3008);
    assert_eq!(server.health.connections(), 2, "until the close is answered, or had its time");
    assert_eq!(server.metric("weir_node_outbox_bytes"), 0.0);
    assert_eq!(fast.ask(json!({"id": 9, "rpc": {}})).await["error"]["code"], 108);
}

#[tokio::test]
async fn a_write_that_makes_no_progress_is_cut_too() {
    let server = Server::start(|c| {
        c.write_timeout = Duration::from_millis(200);
        c.outbox_size = 1 << 30;
    });
    let mut slow = server.client("").await;
    slow.subscribe("plain:c").await;
    let data = json!("x".repeat(60_000)).to_string();
    for _ in 0..300 {
        let publish = weir_wire::envelope::Publish {
            channel: "plain:c".into(),
            data: data.clone().into(),
            ..Default::default()
        };
        weir_broker::Bus::publish(&*server.bus, publish).await.unwrap();
    }
    while server.metric("weir_node_clients") > 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(slow.close_code().await, 3008);
}

#[tokio::test]
async fn who_does_not_pong_is_dropped() {
    let server = Server::start(|c| {
        c.ping_interval = Duration::from_millis(200);
        c.pong_timeout = Duration::from_millis(150);
    });
    let mut silent = server.client("").await;
    assert_eq!(silent.next().await, Some(Message::text("{}")));
    assert_eq!(silent.close_code().await, 3012);

    let mut alive = server.client("").await;
    for _ in 0..5 {
        assert_eq!(alive.next().await, Some(Message::text("{}")));
        alive.say("{}").await;
    }
    // Pings as control frames, on wish; tungstenite answers them as it reads.
    let mut by_frame = server.open("/connection/websocket?cf_ws_frame_ping_pong=true").await;
    let reply = by_frame.ask(json!({"id": 1, "connect": {}})).await;
    assert!(reply["connect"]["ping"].is_null() && reply["connect"]["pong"].is_null(), "{reply}");
    for _ in 0..5 {
        assert!(matches!(by_frame.next().await, Some(Message::Ping(_))));
    }
}

#[tokio::test]
async fn who_does_not_connect_is_stale() {
    let server = Server::start(|c| c.stale_timeout = Duration::from_millis(100));
    assert_eq!(server.open("/connection/websocket").await.close_code().await, 3502);
    // Half a message does not help.
    let mut tcp = raw(&server).await;
    tcp.write_all(&[0x81, 0x85]).await.unwrap();
    assert_eq!(close_code(&mut tcp).await, 3502);
}
