//! The broker's process is killed and comes back: connections stay, and everyone is told the truth.

use serde_json::{Value, json};
use std::net::Ipv4Addr;
use weir_tests::client::Client;
use weir_tests::systems::Shipped;
use weir_tests::{unique, until};

/// Clients on both nodes, subscribed; where they are.
async fn clients(system: &Shipped, channel: &str) -> (Vec<Client>, Value) {
    let mut clients = Vec::new();
    let mut epoch = Value::Null;
    for n in 2..10 {
        let mut client = system.client().from(Ipv4Addr::new(127, 0, 0, n)).open().await;
        client.connect(json!({"token": Shipped::token("ann")})).await;
        epoch = client.subscribe(channel).await["epoch"].clone();
        clients.push(client);
    }
    (clients, epoch)
}

#[tokio::test]
async fn the_broker_is_killed_and_comes_back() {
    let mut system = Shipped::start().await;
    let channel = unique("chat:");
    let (mut clients, epoch) = clients(&system, &channel).await;
    system.api(0).publish(&channel, json!(1)).await;
    for client in &mut clients {
        assert_eq!(client.publication(&channel).await["offset"], 1);
    }

    system.kill_broker().await;
    // Down: publishing is refused as temporary, by both ways in; nobody loses his connection.
    for node in [0, 1] {
        let answer = system.api(node).call("publish", &json!({"channel": channel, "data": 2})).await;
        assert_eq!(answer["error"]["code"], 100, "{answer}");
    }
    for client in &mut clients {
        let reply = client.command("publish", &json!({"channel": channel, "data": 2})).await;
        assert_eq!(
            (&reply["error"]["code"], &reply["error"]["temporary"]),
            (&json!(100), &json!(true)),
            "{reply}"
        );
        client.fence().await;
    }
    for node in &system.nodes {
        let ready = weir_tests::http::get(node.admin(), "/ready").await;
        assert_eq!(ready.status, 503, "{ready:?}");
        assert!(ready.body.contains("broker link"), "{ready:?}");
        assert_eq!(weir_tests::http::get(node.admin(), "/health").await.status, 200);
    }

    system.start_broker().await;
    for node in &system.nodes {
        node.await_ready().await;
    }
    // It began anew: what the clients knew of the channel is no more, and each is told to subscribe again.
    for client in &mut clients {
        let push = client.expect("to be told", |m| m["push"].get("unsubscribe").is_some()).await;
        assert_eq!(push["push"]["channel"], channel);
        assert_eq!(push["push"]["unsubscribe"]["code"], 2500, "{push}");
        let request = json!({"channel": channel, "recover": true, "epoch": epoch, "offset": 1});
        let reply = client.ok("subscribe", request).await;
        assert_eq!(reply["was_recovering"], true, "{reply}");
        assert_ne!(reply["recovered"], true, "{reply}");
        assert_ne!(reply["epoch"], epoch, "{reply}");
    }
    let result = system.api(1).publish(&channel, json!(3)).await;
    for client in &mut clients {
        let publication = client.publication(&channel).await;
        assert_eq!((&publication["data"], &publication["offset"]), (&json!(3), &result["offset"]));
    }
    let connections = system.nodes[0].metric("weir_node_connections", &[]).await
        + system.nodes[1].metric("weir_node_connections", &[]).await;
    assert_eq!(connections as usize, clients.len(), "some connection did not stay");
}

/// Who is there is known again to a broker that began anew, and channels without history go on.
#[tokio::test]
async fn presence_and_plain_channels_are_back() {
    let mut system = Shipped::start().await;
    let channel = unique("chat:");
    let (clients, _) = clients(&system, &channel).await;
    let number = clients.len();
    system.kill_broker().await;
    system.start_broker().await;
    for node in &system.nodes {
        node.await_ready().await;
    }
    until("all clients are present again", || async {
        let stats = system.api(0).call("presence_stats", &json!({"channel": channel})).await;
        let present = stats["result"]["num_clients"].as_u64();
        if present == Some(number as u64) { Ok(()) } else { Err(stats.to_string()) }
    })
    .await;
}
