//! What two nodes are to each other: one system, whatever happens to the link of one of them.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weir_tests::client::Client;
use weir_tests::systems::Nodes;
use weir_tests::{conf, unique, until};

#[tokio::test]
async fn publications_cross_in_order_and_once() {
    let nodes = Nodes::start().await;
    let channel = unique("chat:");
    let mut there = nodes.client(1).connect().await;
    there.subscribe(&channel).await;
    for n in 1..=300 {
        assert_eq!(nodes.api(0).publish(&channel, json!(n)).await["offset"], n);
    }
    for n in 1..=300 {
        let publication = there.publication(&channel).await;
        assert_eq!((&publication["offset"], &publication["data"]), (&json!(n), &json!(n)));
    }
    there.fence().await;
    there.assert_none("a second copy", |m| m["push"].get("pub").is_some());
}

#[tokio::test]
async fn each_knows_who_is_at_the_other() {
    let nodes = Nodes::start().await;
    let (channel, user) = (unique("chat:"), unique("user-"));
    let token = conf::jwt(&json!({"sub": user}));
    let mut here = nodes.client(0).open().await;
    here.connect(json!({"token": token})).await;
    here.subscribe(&channel).await;
    let mut there = nodes.client(1).open().await;
    there.connect(json!({"token": token})).await;
    there.subscribe(&channel).await;
    here.expect("the other's join", |m| m["push"]["join"]["info"]["client"] == there.id.as_str()).await;

    let presence = here.ok("presence", json!({"channel": channel})).await;
    let mut ids: Vec<_> = presence["presence"].as_object().unwrap().keys().cloned().collect();
    let mut both = vec![here.id.clone(), there.id.clone()];
    ids.sort();
    both.sort();
    assert_eq!(ids, both);
    let info = nodes.api(0).ok("info", json!({})).await;
    let clients: Vec<_> =
        info["nodes"].as_array().unwrap().iter().map(|n| n["num_clients"].clone()).collect();
    assert_eq!(clients, [1, 1], "{info}");
    let channels = nodes.api(0).ok("channels", json!({"pattern": channel})).await;
    assert_eq!(channels["channels"][&channel]["num_clients"], 2, "{channels}");

    // A user is disconnected wherever he is.
    nodes.api(0).ok("disconnect", json!({"user": user})).await;
    for client in [&mut here, &mut there] {
        assert_eq!(client.expect_close().await, (3503, "force disconnect".to_owned()));
    }
    let api = nodes.api(0);
    until("nobody is there", || async {
        let stats = api.ok("presence_stats", json!({"channel": channel})).await;
        if stats["num_clients"] == 0 { Ok(()) } else { Err(stats.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_client_recovers_at_the_other() {
    let nodes = Nodes::start().await;
    let channel = unique("chat:");
    let mut client = nodes.client(0).connect().await;
    let epoch = client.subscribe(&channel).await["epoch"].clone();
    nodes.api(0).publish(&channel, json!(1)).await;
    assert_eq!(client.publication(&channel).await["offset"], 1);
    drop(client);
    for n in 2..=6 {
        nodes.api(1).publish(&channel, json!(n)).await;
    }
    let mut client = nodes.client(1).connect().await;
    let request = json!({"channel": channel, "recover": true, "epoch": epoch, "offset": 1});
    let back = client.ok("subscribe", request).await;
    assert_eq!((&back["recovered"], &back["was_recovering"]), (&json!(true), &json!(true)));
    assert_eq!(back["offset"], 1, "the position that was asked for: {back}");
    let missed: Vec<_> = back["publications"].as_array().unwrap().iter().map(|p| p["data"].clone()).collect();
    assert_eq!(missed, [2, 3, 4, 5, 6]);
    nodes.api(0).publish(&channel, json!(7)).await;
    assert_eq!(client.publication(&channel).await["offset"], 7);
}

/// Takes publications until `last`; where the server says that the place in the stream is lost, subscribes again
/// from there, as the SDKs do.
async fn follow(client: &mut Client, channel: &str, epoch: &Value, mut at: u64, last: u64) -> Vec<u64> {
    let mut seen: Vec<u64> = Vec::new();
    while at < last {
        let mut push = client.expect("a push of the channel", |m| m["push"]["channel"] == channel).await;
        let push = push["push"].take();
        if let Some(offset) = push["pub"]["offset"].as_u64() {
            seen.push(offset);
        } else if let Some(code) = push["unsubscribe"]["code"].as_u64() {
            assert_eq!(code, 2500);
            let request = json!({"channel": channel, "recover": true, "epoch": epoch, "offset": at});
            let back = client.ok("subscribe", request).await;
            assert_eq!(back["recovered"], true, "{back}");
            let missed = back["publications"].as_array().into_iter().flatten();
            seen.extend(missed.filter_map(|p| p["offset"].as_u64()));
        }
        at = seen.last().copied().unwrap_or(at);
    }
    seen
}

#[tokio::test]
async fn a_link_that_was_cut_is_filled_in_order_and_once() {
    let nodes = Nodes::start().await;
    let channel = unique("chat:");
    let mut client = nodes.client(1).connect().await;
    let epoch = client.subscribe(&channel).await["epoch"].clone();
    for round in 0..3_u64 {
        nodes.link.cut();
        for n in 1..=5 {
            assert_eq!(nodes.api(0).publish(&channel, json!(n)).await["offset"], round * 6 + n);
        }
        nodes.link.heal();
        nodes.nodes[1].await_ready().await;
        nodes.api(0).publish(&channel, json!("live")).await;
        let (from, to) = (round * 6, (round + 1) * 6);
        let seen = follow(&mut client, &channel, &epoch, from, to).await;
        assert_eq!(seen, (from + 1..=to).collect::<Vec<_>>(), "round {round}");
    }
    client.fence().await;
    client.assert_none("a second copy", |m| m["push"].get("pub").is_some());
}

/// The link is there and nothing comes: what a dead host looks like.
#[tokio::test]
async fn a_broker_that_hangs_is_an_error_within_the_deadline() {
    let nodes = Nodes::start_with(&[("node.bus_timeout", "500ms")]).await;
    let channel = unique("chat:");
    let mut client = nodes.client(1).connect().await;
    client.subscribe(&channel).await;
    nodes.link.stall();
    let start = Instant::now();
    let refused = client.command("publish", &json!({"channel": channel, "data": 1})).await;
    assert_eq!((&refused["error"]["code"], &refused["error"]["temporary"]), (&json!(100), &json!(true)));
    assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    nodes.link.heal();
    let api = nodes.api(1);
    until("publishing works again", || async {
        let answer = api.call("publish", &json!({"channel": channel, "data": "back"})).await;
        if answer.get("result").is_some() { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
}
