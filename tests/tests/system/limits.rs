//! What is refused, and how the client is told.

use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::http;
use weir_tests::client::{Client, Open, PATH};
use weir_tests::echo::{self, EchoServer};
use weir_tests::http::{Response, get, raw};
use weir_tests::ports::Port;
use weir_tests::process::Spec;
use weir_tests::systems::Embedded;
use weir_tests::{conf, unique, until, within};

type Refusal = http::Response<Option<Vec<u8>>>;

fn refused(outcome: Result<Client, Refusal>) -> Refusal {
    match outcome {
        Ok(_) => panic!("was let in"),
        Err(refusal) => refusal,
    }
}

fn retry_after(refusal: &Refusal) -> u64 {
    let text = refusal.headers().get("retry-after").unwrap_or_else(|| panic!("no Retry-After: {refusal:?}"));
    text.to_str().unwrap().parse().expect("whole seconds")
}

fn from(weir: &Embedded, last: u8) -> Open {
    weir.client().from(Ipv4Addr::new(127, 0, 0, last))
}

#[tokio::test]
async fn handshakes_over_the_rate_are_told_when_to_come_back() {
    let limits = [("proxy.handshake_rate", "1/s"), ("proxy.handshake_burst", "3")];
    let weir = Embedded::start_with(&limits).await;
    let mut refusal = None;
    // Tokens come back while this runs: more than the burst, less than a storm.
    for _ in 0..20 {
        if let Err(answer) = from(&weir, 2).try_open().await {
            refusal = Some(answer);
            break;
        }
    }
    let refusal = refusal.expect("twenty handshakes passed a burst of three");
    assert_eq!(refusal.status(), 429);
    assert_eq!(retry_after(&refusal), 1);
    assert!(from(&weir, 3).try_open().await.is_ok(), "another address pays for it");
    until("it may come again", || async {
        from(&weir, 2).try_open().await.map(|_| ()).map_err(|r| r.status().to_string())
    })
    .await;
    assert!(weir.process.metric("weir_proxy_refused_total", &["rate"]).await >= 1.0);
}

#[tokio::test]
async fn connections_over_the_limit_of_an_address() {
    let weir = Embedded::start_with(&[("proxy.max_connections_per_ip", "2")]).await;
    let (first, second) = (from(&weir, 2).open().await, from(&weir, 2).open().await);
    let refusal = refused(from(&weir, 2).try_open().await);
    assert_eq!(refusal.status(), 503);
    assert!(retry_after(&refusal) > 0);
    let mut other = from(&weir, 3).connect().await;
    drop(first);
    until("a place is free again", || async {
        from(&weir, 2).try_open().await.map(|_| ()).map_err(|r| r.status().to_string())
    })
    .await;
    other.fence().await;
    drop(second);
}

#[tokio::test]
async fn connections_over_the_limit_of_the_process() {
    let weir = Embedded::start_with(&[("proxy.max_connections", "2")]).await;
    let (_first, mut second) = (from(&weir, 2).open().await, from(&weir, 3).connect().await);
    let refusal = refused(from(&weir, 4).try_open().await);
    assert_eq!(refusal.status(), 503);
    assert!(retry_after(&refusal) > 0);
    second.fence().await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_431() {
    let weir = Embedded::start().await;
    let long = format!("GET {PATH} HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(raw(weir.proxy(), long.as_bytes()).await.status, 431);
    let many = format!("GET {PATH} HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-A: b\r\n".repeat(500));
    assert_eq!(raw(weir.proxy(), many.as_bytes()).await.status, 431);
}

#[tokio::test]
async fn a_head_that_drips_is_408_after_the_whole_time() {
    let weir = Embedded::start_with(&[("proxy.head_timeout", "1s")]).await;
    let start = Instant::now();
    let answer = within("the answer to a head that drips", drip(weir.proxy())).await;
    assert_eq!(answer.status, 408);
    assert!(start.elapsed() >= Duration::from_millis(900), "after {:?}", start.elapsed());
}

/// A byte now and then, for ever: no pause is long.
async fn drip(addr: std::net::SocketAddr) -> Response {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {PATH} HTTP/1.1\r\nX-Slow: ").as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut answer = Vec::new();
    let _end = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer).await;
    dripping.abort();
    Response::parse(&answer)
}

#[tokio::test]
async fn what_no_route_names_is_404() {
    let weir = Embedded::start_with(&[]).await;
    // The test conf sends everything to the node, which knows its paths.
    assert_eq!(get(weir.proxy(), "/connection/no-such-thing").await.status, 404);
    let refusal = refused(weir.client().target("/ws").try_open().await);
    assert_eq!(refusal.status(), 404);
}

#[tokio::test]
async fn a_message_over_the_size_is_1009_and_ends_nobody_else() {
    let weir = Embedded::start().await;
    let (mut big, mut other) = (weir.client().connect().await, weir.client().connect().await);
    let channel = unique("chat:");
    big.subscribe(&channel).await;
    other.subscribe(&channel).await;
    let fits = "x".repeat(60_000);
    big.ok("publish", json!({"channel": channel, "data": fits})).await;
    assert_eq!(other.publication(&channel).await["data"], fits);
    let publish = json!({"id": 9, "publish": {"channel": channel, "data": "x".repeat(70_000)}});
    let _may_be_cut_short = big.try_raw(Message::text(publish.to_string())).await;
    assert_eq!(big.expect_close().await.0, 1009);
    other.fence().await;
    other.assert_none("the oversized message", |m| m["push"].get("pub").is_some());
}

#[tokio::test]
async fn subscriptions_over_the_limit_are_106() {
    let weir = Embedded::start_with(&[("node.channels_per_client", "2")]).await;
    let mut client = weir.client().connect().await;
    for _ in 0..2 {
        client.subscribe(&unique("chat:")).await;
    }
    assert_eq!(client.refused("subscribe", json!({"channel": unique("chat:")})).await, 106);
    client.fence().await;
}

#[tokio::test]
async fn one_user_over_his_connections_is_3504() {
    let weir = Embedded::start_with(&[("node.max_connections_per_user", "1")]).await;
    let connect = json!({"token": weir_tests::conf::jwt(&json!({"sub": "ann"}))});
    let mut first = weir.client().open().await;
    first.connect(connect.clone()).await;
    let mut second = weir.client().open().await;
    second.send(json!({"id": 1, "connect": connect})).await;
    assert_eq!(second.expect_close().await.0, 3504);
    first.fence().await;
}

/// 150 people with three tabs each, behind one address, whose connections broke together. Limits are those that ship.
#[tokio::test(flavor = "multi_thread")]
async fn an_office_comes_back_at_once() {
    let (ports, addrs) = echo::ports(4);
    let mut servers = Vec::new();
    for port in &ports {
        servers.push(EchoServer::start(port, "a").await);
    }
    let listen = Port::free();
    let process = Spec::text("proxy", conf::proxy("app", &addrs)).start(&[("proxy.listen", &listen)]).await;
    let mut coming = tokio::task::JoinSet::new();
    for tab in 0..450 {
        let tab = Open::to(listen.addr()).from(Ipv4Addr::new(127, 0, 0, 5)).target(&format!("/?key={tab}"));
        coming.spawn(async move { tab.try_open().await.map_err(|refusal| refusal.status()) });
    }
    let mut tabs = Vec::new();
    while let Some(tab) = coming.join_next().await {
        tabs.push(tab.unwrap().unwrap_or_else(|status| panic!("tab {} was refused: {status}", tabs.len())));
    }
    assert_eq!(process.metric("weir_proxy_refused_total", &[]).await, 0.0);
}

/// Of a conf, set to these values.
type Keys = &'static [(&'static str, &'static str)];

/// Whatever refuses somebody is found in the log, by the key that did it; a flood of it takes a few lines.
#[tokio::test]
async fn each_refusal_names_its_key_in_the_log() {
    let table: [(&str, Keys, &str); 6] = [
        ("connections_per_ip", &[("proxy.max_connections_per_ip", "1")], "proxy.max_connections_per_ip"),
        ("connections", &[("proxy.max_connections", "1")], "proxy.max_connections"),
        ("denied", &[("proxy.deny", "[\"127.0.0.2\"]")], "proxy.allow, proxy.deny"),
        ("rate", &[("proxy.handshake_rate", "1/h"), ("proxy.handshake_burst", "1")], "proxy.handshake_rate"),
        (
            "budget",
            &[
                ("proxy.admission.rate", "1/h"),
                ("proxy.admission.burst", "1"),
                ("proxy.admission.wait", "0s"),
            ],
            "proxy.admission.rate",
        ),
        ("address_full", &[("node.max_connections_per_ip", "1")], "node.max_connections_per_ip"),
    ];
    for (cause, set, key) in table {
        let weir = Embedded::start_with(set).await;
        let _first = from(&weir, 2).try_open().await;
        for _ in 0..30 {
            refused(from(&weir, 2).try_open().await);
        }
        let is_it = |line: &str| line.contains(&format!("cause=\"{cause}\"")) && line.contains("key=");
        let line = weir.process.logged(cause, is_it).await;
        assert!(line.contains(&format!("key=\"{key}")) && line.contains("client=127.0.0.2"), "{line}");
        let lines = weir.process.log().lines().filter(|line| is_it(line)).count();
        assert!(lines <= 10, "{lines} lines of {cause}");
    }
}
