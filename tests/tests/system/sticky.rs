//! The same key comes to the same server.

use std::collections::BTreeMap;
use weir_tests::client::Open;
use weir_tests::echo::{self, EchoServer};
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec};
use weir_tests::{conf, until};

const KEYS: usize = 60;

/// Servers that name themselves a, b, c, d, behind a proxy.
struct Apps {
    proxy: Port,
    ports: Vec<Port>,
    servers: Vec<Option<EchoServer>>,
    _process: Process,
}

impl Apps {
    async fn start() -> Apps {
        let (ports, addrs) = echo::ports(4);
        let mut servers = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            servers.push(Some(EchoServer::start(port, name(index)).await));
        }
        let proxy = Port::free();
        let process = Spec::text("proxy", conf::proxy("app", &addrs))
            .set("proxy.handshake_rate", "0/s")
            .set("proxy.breaker.failures", 2)
            .set("proxy.breaker.open_for", "300ms")
            .start(&[("proxy.listen", &proxy)])
            .await;
        Apps { proxy, ports, servers, _process: process }
    }

    /// The server that a client with this key gets.
    async fn server_of(&self, key: usize) -> String {
        let mut client = Open::to(self.proxy.addr()).target(&format!("/ws?key=k{key}")).open().await;
        let hello = client.expect("the server's name", |m| m.get("server").is_some()).await;
        hello["server"].as_str().unwrap().to_owned()
    }

    async fn homes(&self) -> BTreeMap<usize, String> {
        let mut homes = BTreeMap::new();
        for key in 0..KEYS {
            homes.insert(key, self.server_of(key).await);
        }
        homes
    }
}

fn name(index: usize) -> &'static str {
    ["a", "b", "c", "d"][index]
}

#[tokio::test]
async fn two_hundred_reconnects_reach_the_same_server() {
    let apps = Apps::start().await;
    let home = apps.server_of(0).await;
    for reconnect in 0..200 {
        assert_eq!(apps.server_of(0).await, home, "reconnect {reconnect}");
    }
}

#[tokio::test]
async fn a_server_that_goes_moves_only_its_own_keys_and_they_return_with_it() {
    let mut apps = Apps::start().await;
    let homes = apps.homes().await;
    let used: std::collections::BTreeSet<_> = homes.values().map(String::as_str).collect();
    assert_eq!(used.len(), 4, "some server has none of {KEYS} keys: {homes:?}");
    // By design each key finds the same second choice, too: two passes agree.
    apps.servers[1].take().unwrap().stop().await;
    let without = apps.homes().await;
    for (key, home) in &homes {
        match home.as_str() {
            "b" => assert_ne!(without[key], "b"),
            stays => assert_eq!(without[key], stays, "key {key} has moved though its server is there"),
        }
    }
    assert_eq!(apps.homes().await, without);
    let taken_over = homes.iter().filter(|(_, home)| *home == "b").map(|(key, _)| &without[key]);
    assert!(
        taken_over.collect::<std::collections::BTreeSet<_>>().len() > 1,
        "one server took all: {without:?}"
    );

    apps.servers[1] = Some(EchoServer::start(&apps.ports[1], "b").await);
    until("all keys are at home again", || async {
        let now = apps.homes().await;
        if now == homes { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}
