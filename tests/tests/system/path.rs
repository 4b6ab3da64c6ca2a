//! A message's path through the tiers: in one process, and in four.

use serde_json::json;
use std::net::Ipv4Addr;
use weir_tests::client::Open;
use weir_tests::process::Spec;
use weir_tests::systems::{Embedded, Shipped};
use weir_tests::{conf, http, unique};

#[tokio::test]
async fn one_process_client_to_client_and_backend_to_client() {
    let weir = Embedded::start().await;
    let (mut ann, mut bob) = (weir.client().connect().await, weir.client().connect().await);
    let channel = unique("chat:");
    let epoch = ann.subscribe(&channel).await["epoch"].clone();
    bob.subscribe(&channel).await;
    ann.ok("publish", json!({"channel": channel, "data": {"n": 1}})).await;
    let result = weir.api().publish(&channel, json!({"n": 2})).await;
    assert_eq!(result, json!({"offset": 2, "epoch": epoch}));
    for client in [&mut ann, &mut bob] {
        for n in [1, 2] {
            let publication = client.publication(&channel).await;
            assert_eq!(publication["data"], json!({"n": n}));
            assert_eq!(publication["offset"], n);
        }
    }
}

#[tokio::test]
async fn one_process_a_token_says_who_a_client_is() {
    let weir = Embedded::start().await;
    let mut ann = weir.client().open().await;
    let token = conf::jwt(&json!({"sub": "ann", "exp": conf::in_seconds(600)}));
    ann.connect(json!({"token": token})).await;
    let channel = unique("chat:");
    ann.subscribe(&channel).await;
    let presence = ann.ok("presence", json!({"channel": channel})).await;
    assert_eq!(presence["presence"][&ann.id]["user"], "ann");
    let mut eve = weir.client().open().await;
    let forged = conf::jwt_by("another-secret-of-thirty-two-bytes!", &json!({"sub": "ann"}));
    eve.send(json!({"id": 1, "connect": {"token": forged}})).await;
    assert_eq!(eve.expect_close().await.0, 3500);
}

#[tokio::test]
async fn the_demo_serves_its_page_through_the_proxy_and_takes_its_key() {
    let demo = Embedded::start_spec(Spec::demo()).await;
    let page = http::get(demo.proxy(), "/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("<title>Weir demo</title>"), "{page:?}");
    let mut reader = demo.client().connect().await;
    reader.subscribe("chat:lobby").await;
    let api = http::Api { addr: demo.proxy(), key: "demo".to_owned() };
    api.publish("chat:lobby", json!({"text": "hello"})).await;
    assert_eq!(reader.publication("chat:lobby").await["data"]["text"], "hello");
    let wrong = http::Api { addr: demo.proxy(), key: "domo".to_owned() };
    assert_eq!(wrong.post("info", "{}").await.status, 401);
}

/// What the shipped confs promise: a client of each address, wherever it landed, has what was published at
/// node A with the same offset; and what a client says reaches the clients of the other node.
#[tokio::test]
async fn four_processes_by_the_shipped_confs() {
    let system = Shipped::start().await;
    let channel = unique("chat:");
    let mut clients = Vec::new();
    for n in 2..18 {
        let mut client = system.client().from(Ipv4Addr::new(127, 0, 0, n)).open().await;
        client.connect(json!({"token": Shipped::token(&format!("user-{n}"))})).await;
        client.subscribe(&channel).await;
        clients.push(client);
    }
    for node in &system.nodes {
        assert!(node.metric("weir_node_connections", &[]).await >= 1.0, "all clients are on one node");
    }
    let first = system.api(0).publish(&channel, json!("from A")).await;
    let second = system.api(1).publish(&channel, json!("from B")).await;
    assert_eq!((first["offset"].as_u64(), second["offset"].as_u64()), (Some(1), Some(2)));
    assert_eq!(first["epoch"], second["epoch"]);
    clients[0].ok("publish", json!({"channel": channel, "data": "from a client"})).await;
    for client in &mut clients {
        for (offset, data) in [(1, "from A"), (2, "from B"), (3, "from a client")] {
            let publication = client.publication(&channel).await;
            assert_eq!((&publication["offset"], &publication["data"]), (&json!(offset), &json!(data)));
        }
    }
    let stats = system.api(1).ok("presence_stats", json!({"channel": channel})).await;
    assert_eq!(stats, json!({"num_clients": 16, "num_users": 16}));
    assert_eq!(system.api(0).ok("info", json!({})).await["nodes"].as_array().map(Vec::len), Some(2));

    // A user is disconnected wherever he is.
    system.api(0).ok("disconnect", json!({"user": "user-2"})).await;
    system.api(0).ok("disconnect", json!({"user": "user-3"})).await;
    for client in &mut clients[..2] {
        assert_eq!(client.expect_close().await.0, 3503);
    }
}

/// Nobody comes in without a token, and the API is not for the public.
#[tokio::test]
async fn the_shipped_confs_let_nobody_in_who_was_not_let_in() {
    let system = Shipped::start().await;
    let mut nobody = system.client().open().await;
    nobody.send(json!({"id": 1, "connect": {}})).await;
    assert_eq!(nobody.expect_close().await.0, 3501);
    let proxy = system.proxy_addr();
    assert_eq!(http::get(proxy, "/api/info").await.status, 404);
    let api = http::Api { addr: proxy, key: system.api(0).key };
    assert_eq!(api.post("info", "{}").await.status, 404);
    let mut wrong = system.api(0);
    wrong.key = "change-ma".to_owned();
    assert_eq!(wrong.post("info", "{}").await.status, 401);
}

/// One id in the lines of both processes, and the client's own address, not the proxy's.
#[tokio::test]
async fn one_connection_has_one_id_in_all_logs() {
    let system = Shipped::start().await;
    let source = Ipv4Addr::new(127, 0, 0, 77);
    let client = system.client().from(source);
    let mut client = Open::open(&client).await;
    client.connect(json!({"token": Shipped::token("ann")})).await;
    drop(client);
    let address = source.to_string();
    let proxy = system.proxy.logged("of the tunnel", |l| l.contains(&address) && l.contains("conn=")).await;
    let id = proxy.split("conn=").nth(1).and_then(|r| r.split([' ', '}']).next()).unwrap().to_owned();
    let has = |l: &str| l.contains(&format!("conn={id}")) && l.contains(&address);
    tokio::select! {
        _ = system.nodes[0].logged("with the same id", has) => {}
        _ = system.nodes[1].logged("with the same id", has) => {}
    }
}

#[tokio::test]
async fn a_client_that_only_listens() {
    let weir = Embedded::start().await;
    let channel = unique("chat:");
    let token = conf::jwt(&json!({"sub": "ann", "channels": [channel]}));
    let mut client = weir.client().target("/connection/uni_websocket").open().await;
    client.send(json!({"token": token})).await;
    client.expect("connect", |m| m.get("connect").is_some()).await;
    weir.api().publish(&channel, json!("hi")).await;
    let publication = client.expect("the publication", |m| m.get("pub").is_some()).await;
    assert_eq!((&publication["channel"], &publication["pub"]["data"]), (&json!(channel), &json!("hi")));
}
