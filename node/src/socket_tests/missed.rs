//! What clients missed, however much: all of it, once and in order, at their pace, on every transport and in every
//! format; and what it costs the node when they do not read.

use super::protobuf::{self, reply_of};
use super::webtransport::{Lines, PATH};
use super::*;
use crate::protocol::protobuf::messages as proto;
use weir_broker::Bus;
use weir_wire::envelope::{Publish, StreamOptions};

const CHANNEL: &str = "long:c";
const STREAM: StreamOptions = StreamOptions { size: 5000, ttl_ms: 300_000, meta_ttl_ms: 300_000 };

async fn publish(server: &Server, from: u64, to: u64, size: usize) {
    for _ in from..=to {
        let data = json!("x".repeat(size)).to_string().into();
        let publish = Publish { channel: CHANNEL.into(), data, stream: Some(STREAM), ..Default::default() };
        server.bus.publish(publish).await.unwrap();
    }
}

/// A client of one transport and format.
enum Reader {
    Json(Client),
    Protobuf(Client),
    Lines(Lines),
    Lengths(Lines),
}

/// What one message says of publications.
#[derive(Debug, Default)]
struct Said {
    offsets: Vec<u64>,
    recovered: Option<bool>,
    unsubscribed: Option<u64>,
}

impl Reader {
    /// Comes back at this position; the uni one says so in its connect request.
    async fn come_back(server: &Server, kind: &str, epoch: &str, offset: u64) -> Reader {
        let wish = json!({"recover": true, "epoch": epoch, "offset": offset, "recoverable": true});
        let mut subscribe = wish.clone();
        subscribe["channel"] = json!(CHANNEL);
        let both =
            format!("{}\n{}", json!({"id": 1, "connect": {}}), json!({"id": 2, "subscribe": subscribe}));
        let binary = protobuf::come_back(CHANNEL, epoch, offset);
        match kind {
            "json" => {
                let mut client = server.open("/connection/websocket").await;
                client.say(both).await;
                Reader::Json(client)
            }
            "uni" => {
                let mut client = server.open("/connection/uni_websocket").await;
                client.say(json!({"subs": {CHANNEL: wish}})).await;
                Reader::Json(client)
            }
            "protobuf" => {
                let mut client = server.open("/connection/websocket?cf_protocol=protobuf").await;
                client.ws.send(Message::binary(binary)).await.unwrap();
                Reader::Protobuf(client)
            }
            "lines" => {
                let mut client = server.session_with(PATH, 1 << 16).await;
                client.say(both).await;
                Reader::Lines(client)
            }
            "lengths" => {
                let mut client = server.session_with(&format!("{PATH}?cf_protocol=protobuf"), 1 << 16).await;
                client.stream.write_all(&binary).await.unwrap();
                Reader::Lengths(client)
            }
            other => panic!("{other}"),
        }
    }

    async fn next(&mut self) -> Said {
        match self {
            Reader::Json(client) => of_json(&client.hear().await),
            Reader::Lines(client) => of_json(&client.hear().await),
            Reader::Protobuf(client) => of_protobuf(protobuf::next(client).await),
            Reader::Lengths(client) => of_protobuf(reply_of(client).await),
        }
    }
}

fn of_json(message: &Value) -> Said {
    let push = if message["push"].is_object() { &message["push"] } else { message };
    let in_reply = [&message["subscribe"], &push["connect"]["subs"][CHANNEL]];
    let result = in_reply.into_iter().find(|result| result.is_object());
    let listed = result.and_then(|result| result["publications"].as_array());
    let pushed = push["pub"].is_object().then_some(&push["pub"]);
    let all = listed.into_iter().flatten().chain(pushed);
    Said {
        offsets: all.map(|p| p["offset"].as_u64().unwrap()).collect(),
        recovered: result.map(|result| result["recovered"] == true),
        unsubscribed: push["unsubscribe"]["code"].as_u64(),
    }
}

fn of_protobuf(reply: proto::Reply) -> Said {
    let result = reply.subscribe;
    let listed = result.iter().flat_map(|result| &result.publications).map(|p| p.offset).collect::<Vec<_>>();
    let push = reply.push.unwrap_or_default();
    let pushed = push.publication.map(|p| p.offset);
    Said {
        offsets: listed.into_iter().chain(pushed).collect(),
        recovered: result.map(|result| result.recovered),
        unsubscribed: push.unsubscribe.map(|push| u64::from(push.code)),
    }
}

#[tokio::test]
async fn ten_megabytes_come_once_and_in_order_in_every_form() {
    let server = Server::start(|_| {});
    let size = 11_000;
    publish(&server, 1, 1000, size).await;
    let epoch = server.twin.top(CHANNEL).epoch.to_string();
    for (round, kind) in ["json", "uni", "protobuf", "lines", "lengths"].into_iter().enumerate() {
        let (before, top) = (20 * round as u64, 1000 + 20 * (round as u64 + 1));
        let mut reader = Reader::come_back(&server, kind, &epoch, before).await;
        let (mut at, mut recovered, mut most) = (before, None, 0);
        while at < top {
            let said = reader.next().await;
            assert_eq!(said.unsubscribed, None, "{kind} at {at}");
            recovered = recovered.or(said.recovered);
            assert!(said.offsets.is_empty() || recovered == Some(true), "{kind}: the reply comes first");
            for offset in said.offsets {
                assert_eq!(offset, at + 1, "{kind}");
                at = offset;
                if at == 500 + before {
                    // While it is catching up.
                    publish(&server, top - 19, top, size).await;
                }
            }
            most = most.max(server.metric("weir_node_outbox_bytes") as usize);
        }
        assert!(most < 2 << 20, "{kind}: {most} bytes waited");
    }
    assert_eq!(server.metric_with("weir_node_catch_ups_total", "done"), 5.0);
    assert_eq!(server.metric_with("weir_node_disconnects_total", "3008"), 0.0);
}

#[tokio::test]
async fn one_publication_larger_than_the_outbox_comes_too() {
    let server = Server::start(|c| c.outbox_size = 10_000);
    publish(&server, 1, 3, 20_000).await;
    let epoch = server.twin.top(CHANNEL).epoch.to_string();
    for kind in ["json", "uni", "protobuf", "lines", "lengths"] {
        let mut reader = Reader::come_back(&server, kind, &epoch, 0).await;
        let mut offsets = Vec::new();
        while offsets.len() < 3 {
            offsets.extend(reader.next().await.offsets);
        }
        assert_eq!(offsets, [1, 2, 3], "{kind}");
    }
}

#[tokio::test]
async fn what_history_drops_meanwhile_is_told() {
    let server = Server::start(|_| {});
    publish(&server, 1, 1000, 11_000).await;
    let epoch = server.twin.top(CHANNEL).epoch.to_string();
    let mut reader = Reader::come_back(&server, "json", &epoch, 0).await;
    let (mut at, mut unsubscribed) = (0, None);
    while unsubscribed.is_none() {
        let said = reader.next().await;
        for offset in said.offsets {
            assert_eq!(offset, at + 1);
            at = offset;
        }
        if at > 100 {
            server.twin.trim(CHANNEL);
        }
        unsubscribed = said.unsubscribed;
    }
    assert!(at < 1000 && unsubscribed == Some(2500), "{at} {unsubscribed:?}");
    let mut again = Reader::come_back(&server, "json", &epoch, at).await;
    again.next().await;
    let said = again.next().await;
    assert!(said.recovered == Some(false) && said.offsets.is_empty(), "{said:?}");
}

/// Beside what is missed everything goes on: commands, other channels, the end of the subscription.
#[tokio::test]
async fn a_client_that_catches_up_is_a_client_like_any_other() {
    let server = Server::start(|_| {});
    publish(&server, 1, 1000, 11_000).await;
    let epoch = server.twin.top(CHANNEL).epoch.to_string();
    let Reader::Json(mut client) = Reader::come_back(&server, "json", &epoch, 0).await else { panic!() };
    let mut other = server.client("").await;
    other.subscribe("plain:c").await;
    other.say(json!({"id": 3, "publish": {"channel": "plain:c", "data": 1}})).await;
    client.say(json!({"id": 3, "subscribe": {"channel": "plain:c"}})).await;
    client.say(json!({"id": 4, "unsubscribe": {"channel": CHANNEL}})).await;
    let mut publications = 0;
    loop {
        let message = client.hear().await;
        publications += of_json(&message).offsets.len();
        if message["id"] == 4 {
            break;
        }
    }
    assert!(publications < 1000, "it has not waited for all");
    other.say(json!({"id": 5, "publish": {"channel": "plain:c", "data": 2}})).await;
    let push = loop {
        let message = client.hear().await;
        if message["push"]["pub"]["data"] == 2 {
            break message;
        }
        assert_ne!(message["push"]["channel"], CHANNEL, "after the end of the subscription");
    };
    assert_eq!(push["push"]["channel"], "plain:c");
}

/// A hole that is as large: whoever has no room for it catches up, whoever has is not kept waiting.
#[tokio::test]
async fn a_hole_larger_than_the_outbox_is_filled_for_all() {
    let server = Server::start(|c| c.outbox_size = 200_000);
    let mut clients = [server.client("").await, server.client("").await];
    for client in &mut clients {
        client.subscribe(CHANNEL).await;
    }
    server.twin.drop_next(300);
    publish(&server, 1, 301, 11_000).await;
    for client in &mut clients {
        for offset in 1..=301 {
            assert_eq!(of_json(&client.hear().await).offsets, [offset]);
        }
    }
    assert!(server.metric("weir_node_catch_ups_total") > 0.0);
}

#[tokio::test]
async fn replies_larger_than_the_outbox_come_whole_and_one_at_a_time() {
    let server = Server::start(|c| c.outbox_size = 100_000);
    publish(&server, 1, 200, 11_000).await;
    let mut client = server.client("u").await;
    client.subscribe(CHANNEL).await;
    let ask = |id| json!({"id": id, "history": {"channel": CHANNEL, "limit": -1}}).to_string();
    let begun = std::time::Instant::now();
    // In one frame, and nothing is read meanwhile.
    client.say((10..20).map(ask).collect::<Vec<_>>().join("\n")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waiting = server.metric("weir_node_outbox_bytes");
    assert!(waiting < 2.0 * 200.0 * 11_100.0, "{waiting} bytes wait for one client");
    for id in 10..20 {
        let reply = client.hear().await;
        assert_eq!((&reply["id"], of_json(&reply).recovered), (&json!(id), None));
        assert_eq!(reply["history"]["publications"].as_array().map(Vec::len), Some(200));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "each goes on when the last one is read, not at the next ping"
    );
    assert_eq!(client.ask(json!({"id": 50, "rpc": {}})).await["error"]["code"], 108);
}

#[tokio::test]
async fn a_reply_is_no_larger_than_reply_size() {
    let server = Server::start(|c| c.reply_size = 100_000);
    publish(&server, 1, 200, 11_000).await;
    let mut client = server.client("u").await;
    client.subscribe(CHANNEL).await;
    let (mut at, mut calls) = (0, 0);
    while at < 200 {
        let since = json!({"offset": at, "epoch": server.twin.top(CHANNEL).epoch.to_string()});
        let ask = json!({"id": 3, "history": {"channel": CHANNEL, "limit": -1, "since": since}});
        let reply = client.ask(ask).await;
        for publication in reply["history"]["publications"].as_array().unwrap() {
            assert_eq!(publication["offset"], at + 1);
            at += 1;
        }
        calls += 1;
    }
    assert_eq!(calls, 23, "nine to a call");
}

/// As many as may be, and none of them reads: the node holds what is allowed, and closes them.
#[tokio::test]
async fn who_never_reads_is_closed_and_costs_no_more_than_is_allowed() {
    let server = Server::start(|c| {
        c.write_timeout = Duration::from_millis(500);
        c.outbox_size = 100_000;
        c.replies_memory = 10 << 20;
    });
    publish(&server, 1, 300, 30_000).await;
    let epoch = server.twin.top(CHANNEL).epoch.to_string();
    let mut silent = Vec::new();
    for n in 0..20 {
        let mut client = server.client("u").await;
        let recover = json!({"channel": CHANNEL, "recover": true, "epoch": epoch, "offset": 0});
        client.say(json!({"id": 2, "subscribe": recover})).await;
        if n % 2 == 0 {
            client.say(json!({"id": 3, "history": {"channel": CHANNEL, "limit": -1}})).await;
        }
        silent.push(client);
    }
    let mut most = 0.0_f64;
    while server.metric("weir_node_clients") > 0.0 {
        most = most.max(server.metric("weir_node_outbox_bytes"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let allowed = f64::from((10 << 20) + 20 * 2 * 100_000);
    assert!(most > 0.0 && most < allowed, "{most} bytes, {allowed} allowed");
    assert_eq!(server.metric_with("weir_node_disconnects_total", "1006"), 0.0);
}
