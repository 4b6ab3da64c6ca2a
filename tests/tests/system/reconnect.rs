//! The broker's process is killed and comes back: connections stay, and everyone is told the truth.

use serde_json::{Value, json};
use std::net::Ipv4Addr;
use weir_tests::client::{Client, Open};
use weir_tests::http::Api;
use weir_tests::ports::Port;
use weir_tests::process::Spec;
use weir_tests::systems::Shipped;
use weir_tests::{conf, unique, until};

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
    let stats = system.api(0).ok("presence_stats", json!({"channel": channel})).await;
    assert_eq!(stats["num_clients"], clients.len(), "who subscribed again is present again");
    let connections = system.nodes[0].metric("weir_node_connections", &[]).await
        + system.nodes[1].metric("weir_node_connections", &[]).await;
    assert_eq!(connections as usize, clients.len(), "some connection did not stay");
}

/// Channels without history have no place to lose: their subscribers stay, and a broker that began anew learns
/// from the node who is there. Broker and node prove themselves by a secret here.
#[tokio::test]
async fn subscribers_of_channels_without_history_stay_and_are_present_again() {
    let (broker_port, node_port) = (Port::free(), Port::free());
    let listen = [("broker.listen", &broker_port)];
    let broker = || Spec::text("broker", conf::broker()).start(&listen);
    let first = broker().await;
    let node = Spec::text("node", conf::node(broker_port.addr())).start(&[("node.listen", &node_port)]).await;
    let api = Api { addr: node_port.addr(), key: conf::API_KEY.to_owned() };
    let channel = unique("room:");
    let (mut ann, mut bob) =
        (Open::to(node_port.addr()).connect().await, Open::to(node_port.addr()).connect().await);
    for client in [&mut ann, &mut bob] {
        client.subscribe(&channel).await;
    }
    first.kill_9().await;
    let _second = broker().await;
    node.await_ready().await;
    until("both are present again", || async {
        let stats = api.call("presence_stats", &json!({"channel": channel})).await;
        if stats["result"]["num_clients"] == 2 { Ok(()) } else { Err(stats.to_string()) }
    })
    .await;
    ann.ok("publish", json!({"channel": channel, "data": "still here"})).await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.publication(&channel).await["data"], "still here");
        client.fence().await;
        client.assert_none("an unsubscribe", |m| m["push"].get("unsubscribe").is_some());
    }
}

#[tokio::test]
async fn a_node_with_another_secret_is_not_let_in() {
    let (broker_port, node_port) = (Port::free(), Port::free());
    let broker = Spec::text("broker", conf::broker()).start(&[("broker.listen", &broker_port)]).await;
    let node = Spec::text("node", conf::node(broker_port.addr()))
        .set("node.broker_secret", "another-secret-of-32-bytes-or-so")
        .launch(&[("node.listen", &node_port)]);
    until("it was refused", || async {
        let refused = broker.metric("weir_broker_links_refused_total", &[]).await;
        if refused >= 1.0 { Ok(()) } else { Err(refused.to_string()) }
    })
    .await;
    let ready = weir_tests::http::get(node.admin(), "/ready").await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(broker.metric("weir_broker_nodes", &[]).await < 1.0);
}
