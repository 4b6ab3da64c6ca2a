//! The Protobuf form over both transports, beside JSON clients of the same channels.

use super::webtransport::{PATH, closed};
use super::*;
use crate::protocol::protobuf::{message_at, messages as proto};
use crate::testing::Faults;
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use weir_core::sync::lock;

fn command(id: u32) -> proto::Command {
    proto::Command { id, ..Default::default() }
}

fn connect() -> proto::Command {
    proto::Command { connect: Some(proto::ConnectRequest::default()), ..command(1) }
}

fn subscribe(id: u32, channel: &str) -> proto::Command {
    let subscribe = proto::SubscribeRequest { channel: channel.into(), ..Default::default() };
    proto::Command { subscribe: Some(subscribe), ..command(id) }
}

/// Connect, and subscribe at a position.
pub fn come_back(channel: &str, epoch: &str, offset: u64) -> Vec<u8> {
    let (channel, epoch) = (channel.to_owned(), epoch.to_owned());
    let (recover, recoverable) = (true, true);
    let subscribe =
        proto::SubscribeRequest { channel, recover, epoch, offset, recoverable, ..Default::default() };
    let subscribe = proto::Command { subscribe: Some(subscribe), ..command(2) };
    [connect(), subscribe].map(|c| c.encode_length_delimited_to_vec()).concat()
}

fn publish(id: u32, channel: &str, data: &'static [u8]) -> proto::Command {
    let publish = proto::PublishRequest { channel: channel.into(), data: Bytes::from_static(data) };
    proto::Command { publish: Some(publish), ..command(id) }
}

/// The messages of one frame.
fn replies(frame: &[u8]) -> Vec<proto::Reply> {
    let (mut all, mut rest) = (vec![], frame);
    while !rest.is_empty() {
        let at = message_at(rest).unwrap().unwrap();
        all.push(proto::Reply::decode(&rest[at.clone()]).unwrap());
        rest = &rest[at.end..];
    }
    all
}

pub async fn next(client: &mut Client) -> proto::Reply {
    match client.next().await {
        Some(Message::Binary(frame)) => replies(&frame).remove(0),
        other => panic!("{other:?}"),
    }
}

fn publication(reply: proto::Reply) -> Bytes {
    reply.push.and_then(|push| push.publication).expect("a publication").data
}

const OFFER: &[(&str, &str)] = &[("sec-websocket-protocol", "centrifuge-protobuf")];

#[tokio::test]
async fn protobuf_and_json_in_one_channel() {
    let server = Server::start(|_| {});
    let mut json = server.client("").await;
    json.subscribe("stream:c").await;
    // By subprotocol, which tungstenite sees echoed, or by URL.
    let mut binary = server.open_with("/connection/websocket", OFFER).await.unwrap();
    let by_url = server.open_with("/connection/websocket?cf_protocol=protobuf", &[]).await;
    let mut by_url = by_url.unwrap();
    let mut stream =
        server.session_with(&format!("{PATH}?cf_protocol=protobuf&cf_datagrams=true"), 1 << 16).await;
    let hello = [connect(), subscribe(2, "stream:c")].map(|c| c.encode_length_delimited_to_vec()).concat();
    for client in [&mut binary, &mut by_url] {
        client.ws.send(Message::binary(hello.clone())).await.unwrap();
        let result = next(client).await.connect.unwrap();
        assert_eq!((result.ping, result.client.len()), (25, 36));
        assert!(next(client).await.subscribe.is_some());
    }
    stream.stream.write_all(&hello).await.unwrap();
    assert!(reply_of(&mut stream).await.connect.is_some());
    assert!(reply_of(&mut stream).await.subscribe.is_some());

    let data = [b"{\"a\":\n1}".as_slice(), b"boom", b"\"}}\n{\"push\":{}}\n"];
    for (n, data) in data.into_iter().enumerate() {
        let publish = publish(n as u32 + 10, "stream:c", data);
        by_url.ws.send(Message::binary(publish.encode_length_delimited_to_vec())).await.unwrap();
        let both = [next(&mut by_url).await, next(&mut by_url).await];
        assert!(both.iter().any(|m| m.publish.is_some() && m.id == n as u32 + 10), "{both:?}");
    }
    json.say(json!({"id": 9, "publish": {"channel": "stream:c", "data": [1]}})).await;
    let want: [&[u8]; 4] = [b"{\"a\":1}", data[1], data[2], b"[1]"];
    for want in want {
        assert_eq!(publication(next(&mut binary).await), want);
        assert_eq!(publication(reply_of(&mut stream).await), want);
    }
    // What is no JSON comes to JSON clients as a string, live and as history.
    let as_json = [json!({"a": 1}), json!("Ym9vbQ=="), json!("In19CnsicHVzaCI6e319Cg=="), json!([1])];
    for want in &as_json {
        assert_eq!(json.publication().await, *want);
    }
    let history = server.api("history", json!({"channel": "stream:c", "limit": 10})).await;
    let kept: Vec<Value> =
        history["result"]["publications"].as_array().unwrap().iter().map(|p| p["data"].clone()).collect();
    assert_eq!(kept, as_json);

    // As a datagram the message goes without its length.
    stream.stream.write_all(&subscribe(3, "lossy:c").encode_length_delimited_to_vec()).await.unwrap();
    assert_eq!(reply_of(&mut stream).await.id, 3);
    server.api("publish", json!({"channel": "lossy:c", "data": "x".repeat(200)})).await;
    let sent = lock(&stream.session.datagrams).remove(0);
    assert_eq!(publication(proto::Reply::decode(sent).unwrap()).len(), 202);
}

pub async fn reply_of(client: &mut super::webtransport::Lines) -> proto::Reply {
    let read = async {
        loop {
            if let Some(at) = message_at(&client.read).unwrap().filter(|at| at.end <= client.read.len()) {
                let whole: BytesMut = client.read.drain(..at.end).collect();
                return proto::Reply::decode(&whole[at.start..]).unwrap();
            }
            assert_ne!(client.stream.read_buf(&mut client.read).await.unwrap(), 0, "the end");
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("a message")
}

#[tokio::test]
async fn bad_protobuf_is_closed_with_its_code() {
    let server = Server::start(|c| c.message_size = 1000);
    let cases = [
        (Message::binary(&b"\x05\x08"[..]), 3501),
        (Message::binary(&b""[..]), 3501),
        (Message::binary(&b"\x80\x80\x80\x80\x80\x01"[..]), 3501),
        (Message::text("{}"), 3506),
        (Message::binary(vec![0; 1001]), 1009),
    ];
    for (message, code) in cases {
        let mut client = server.open_with("/connection/websocket", OFFER).await.unwrap();
        client.ws.send(message.clone()).await.unwrap();
        assert_eq!(client.close_code().await, code, "{message:?}");
    }
    let on_stream: &[(&[u8], u32, u32)] =
        &[(b"\x02\x08\x08", 3501, 3501), (b"\xe9\x07", 3501, 1009), (b"\x04\x22\x02\xff\xff", 3501, 3501)];
    for (bytes, push, code) in on_stream {
        let mut client = server.session_with(&format!("{PATH}?cf_protocol=protobuf"), 1 << 16).await;
        client.stream.write_all(bytes).await.unwrap();
        let last = reply_of(&mut client).await.push.and_then(|p| p.disconnect).expect("a disconnect");
        assert_eq!(last.code, *push, "{bytes:?}");
        drop(client.stream);
        assert_eq!(closed(&client.session).await.0, *code, "{bytes:?}");
    }
}

#[tokio::test]
async fn pings_and_errors_in_protobuf() {
    let server = Server::start(|c| {
        c.ping_interval = Duration::from_millis(200);
        c.pong_timeout = Duration::from_millis(150);
    });
    let mut client = server.open_with("/connection/websocket", OFFER).await.unwrap();
    client.ws.send(Message::binary(connect().encode_length_delimited_to_vec())).await.unwrap();
    next(&mut client).await;
    for _ in 0..3 {
        assert_eq!(client.next().await, Some(Message::binary(&b"\x00"[..])));
        client.ws.send(Message::binary(&b"\x00"[..])).await.unwrap();
    }
    server.bus.set(Faults { down: true, ..Faults::default() });
    let publish = publish(5, "plain:c", b"1");
    client.ws.send(Message::binary(publish.encode_length_delimited_to_vec())).await.unwrap();
    let refused = next(&mut client).await;
    assert_eq!((refused.id, refused.error.map(|e| e.code)), (5, Some(103)), "not subscribed");
    assert_eq!(client.close_code().await, 3012);
}
