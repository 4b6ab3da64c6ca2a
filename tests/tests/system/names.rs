//! Names of channels that a client makes up cost nothing: neither a node nor a broker keeps anything of them once
//! nobody is subscribed, and whoever comes back to a channel that nobody published to has missed nothing.

use serde_json::{Value, json};
use weir_tests::client::{Client, Open};
use weir_tests::process::Process;
use weir_tests::systems::{Embedded, Nodes};
use weir_tests::{unique, until};

const NAMES: usize = 3_000;
/// Less than `channels_per_client`.
const AT_ONCE: usize = 50;
/// What names cost shows without the rates that bound how many one client makes up.
const NO_RATES: [(&str, &str); 4] = [
    ("node.rate.connection.subscribes", "0/s"),
    ("node.rate.connection.new_channels", "0/s"),
    ("node.rate.user.subscribes", "0/s"),
    ("node.rate.user.new_channels", "0/s"),
];

async fn flood(client: &mut Client, prefix: &str) {
    for first in (0..NAMES).step_by(AT_ONCE) {
        let names = || (first..first + AT_ONCE).map(|n| format!("chat:{prefix}-{n}"));
        for channel in names() {
            client.subscribe(&channel).await;
        }
        for channel in names() {
            client.ok("unsubscribe", json!({ "channel": channel })).await;
        }
    }
}

async fn left_behind(process: &Process, gauges: &[&str]) {
    for gauge in gauges {
        until(&format!("{gauge} is back to nothing"), || async {
            match process.metric(gauge, &[]).await {
                0.0 => Ok(()),
                left => Err(format!("{left} left")),
            }
        })
        .await;
    }
}

async fn subscribed(open: &Open, request: Value) -> (Client, Value) {
    let mut client = open.connect().await;
    let reply = client.ok("subscribe", request).await;
    (client, reply)
}

/// A client that was subscribed to a channel to which nobody published, and what it says when it comes back.
async fn silent(open: &Open, channel: &str) -> Value {
    let (_gone, reply) = subscribed(open, json!({ "channel": channel })).await;
    assert!(reply["epoch"].as_str().is_some_and(|epoch| !epoch.is_empty()), "{reply}");
    json!({ "channel": channel, "recover": true, "epoch": reply["epoch"], "offset": 0 })
}

#[tokio::test]
async fn names_leave_nothing_behind_and_a_silent_channel_is_recovered() {
    let weir = Embedded::start_with(&NO_RATES).await;
    let (channel, open) = (format!("chat:{}", unique("silent")), weir.client());
    let back = silent(&open, &channel).await;
    let mut client = open.connect().await;
    flood(&mut client, "name").await;
    let gauges =
        ["weir_broker_channels", "weir_broker_interest", "weir_broker_streams", "weir_node_channels"];
    left_behind(&weir.process, &gauges).await;
    let (_here, reply) = subscribed(&open, back.clone()).await;
    assert_eq!(reply["recovered"], json!(true), "{reply}");
    // The first publication keeps the epoch: whoever was away for it gets it.
    drop(_here);
    let (mut publisher, _) = subscribed(&open, json!({ "channel": channel })).await;
    publisher.ok("publish", json!({ "channel": channel, "data": "first" })).await;
    let (_here, reply) = subscribed(&open, back).await;
    assert_eq!((&reply["recovered"], &reply["publications"][0]["data"]), (&json!(true), &json!("first")));
}

#[tokio::test]
async fn names_leave_nothing_behind_at_a_broker_of_another_process() {
    let nodes = Nodes::start_with(&NO_RATES).await;
    let mut client = nodes.client(0).connect().await;
    flood(&mut client, "name").await;
    left_behind(&nodes.nodes[0], &["weir_node_channels"]).await;
    left_behind(nodes.broker(), &["weir_broker_channels", "weir_broker_interest", "weir_broker_streams"])
        .await;
}

#[tokio::test]
async fn whoever_fills_the_streams_with_what_is_over_stands_in_nobodys_way() {
    let weir = Embedded::start_with(&[("broker.max_channels", "50")]).await;
    let api = weir.api();
    for n in 0..500 {
        let request = json!({ "channel": format!("chat:gone-{n}"), "data": n });
        api.ok("publish", request).await;
        api.ok("history_remove", json!({ "channel": format!("chat:gone-{n}") })).await;
    }
    let (_here, _) = subscribed(&weir.client(), json!({ "channel": "chat:new" })).await;
    assert!(weir.process.metric("weir_broker_streams_evicted_total", &[]).await >= 449.0);
}
