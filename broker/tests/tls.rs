//! A node's bus and a broker of another process, in TLS.

#![allow(clippy::unwrap_used)]

mod certs;

use certs::{Authority, Files};
use prometheus_client::registry::Registry;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_broker::{BindError, Broker, Bus, Event, Inbox, RemoteBus};
use weir_conf::Config;
use weir_conf::units::Secret;
use weir_core::drain::Drain;
use weir_wire::envelope::{Body, Delivery, HistoryQuery, Publish, StreamOptions};
use weir_wire::id::NodeId;

const STREAM: StreamOptions = StreamOptions { size: 1000, ttl_ms: 60_000, meta_ttl_ms: 60_000 };
/// Of a handshake, as the broker has it.
const DEADLINE: Duration = Duration::from_secs(3);

/// Far above what anything here takes; only a hang gets there.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("hangs")
}

struct Running {
    addr: SocketAddr,
    drain: Drain,
    registry: Registry,
}

async fn broker(files: Option<&Files>, secret: &str) -> Running {
    let mut conf = Config::default().broker;
    conf.listen = "127.0.0.1:0".parse().unwrap();
    conf.secret = Secret::new(secret.into());
    if let Some(files) = files {
        files.set_broker(&mut conf);
    }
    let mut registry = Registry::default();
    let broker = Broker::bind(&conf, &weir_conf::Config::default().channel, &mut registry).await.unwrap();
    let (addr, drain) = (broker.local_addr(), Drain::new());
    tokio::spawn(broker.run(drain.clone()));
    Running { addr, drain, registry }
}

struct Node {
    bus: Arc<dyn Bus>,
    inbox: Inbox,
    registry: Registry,
    drain: Drain,
}

fn node(id: u64, addr: SocketAddr, files: Option<&Files>, secret: &str) -> Result<Node, BindError> {
    let mut conf = Config::default().node;
    conf.brokers = vec![addr.to_string()];
    conf.broker_secret = Secret::new(secret.into());
    if let Some(files) = files {
        files.set_node(&mut conf);
    }
    let (mut registry, drain) = (Registry::default(), Drain::new());
    let (bus, inbox) = RemoteBus::start(&conf, NodeId(id), "n", &mut registry, drain.clone())?;
    Ok(Node { bus, inbox, registry, drain })
}

async fn until(node: &mut Node, wanted: impl Fn(&Event) -> bool) {
    while !wanted(&soon(node.inbox.next()).await.expect("the inbox ended")) {}
}

async fn counted(registry: &Registry, name: &str) {
    soon(async {
        loop {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            if text.lines().any(|line| line.starts_with(name) && !line.ends_with(" 0")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn publish(data: &str) -> Publish {
    Publish {
        channel: "news".into(),
        data: data.to_owned().into(),
        stream: Some(STREAM),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_work_over_tls_with_and_without_a_secret_and_are_told_the_end() {
    let authority = Authority::new("ours");
    for secret in ["", "s3cret"] {
        let broker = broker(Some(&authority.files()), secret).await;
        // A node needs no name that anyone connects to.
        let files = [authority.files(), authority.files_for("node-2.internal")];
        let mut a = node(1, broker.addr, Some(&files[0]), secret).unwrap();
        let mut b = node(2, broker.addr, Some(&files[1]), secret).unwrap();
        for node in [&mut a, &mut b] {
            until(node, |e| *e == Event::Link(true)).await;
        }
        soon(b.bus.subscribe("news".into(), Some(STREAM))).await.unwrap();
        // More than TLS and the kernel hold back together.
        let large = "x".repeat(60 << 10);
        let calls = (0..200).map(|_| a.bus.publish(publish(&large)));
        soon(futures_util::future::try_join_all(calls)).await.unwrap();
        until(&mut b, |e| match e {
            Event::Deliver(Delivery { body: Body::Publication(p), .. }) => p.offset == 200,
            // It may have been too much at once.
            Event::Resync(to) => to.iter().any(|(_, at)| at.is_some_and(|at| at.offset == 200)),
            _ => false,
        })
        .await;
        let query = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
        let history = soon(b.bus.history("news".into(), query, STREAM)).await.unwrap();
        assert!(history.publications.iter().map(|p| p.offset).eq(1..=200));
        broker.drain.begin();
        until(&mut a, |e| *e == Event::Link(false)).await;
        counted(&a.registry, "weir_bus_link_failures_total{cause=\"bye\"}").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_certified_gets_no_link_and_both_sides_count_it() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = || Some(ours.files());
    for (what, node_files, broker_files) in [
        ("another authority", Some(theirs.files()), good()),
        ("the node's certificate from there", Some(theirs.files().trust(&ours)), good()),
        ("the broker's from there", good(), Some(theirs.files().trust(&ours))),
        ("another host", good(), Some(ours.files_for("elsewhere.test"))),
        ("an expired node", Some(ours.expired()), good()),
        ("an expired broker", good(), Some(ours.expired())),
        ("plain to TLS", None, good()),
        ("TLS to plain", good(), None),
    ] {
        let (broker, start) = (broker(broker_files.as_ref(), "s").await, Instant::now());
        let mut node = node(1, broker.addr, node_files.as_ref(), "s").unwrap();
        counted(&node.registry, "weir_bus_link_failures_total{cause=\"tls\"}").await;
        counted(&broker.registry, "weir_broker_links_refused_total{cause=\"tls\"}").await;
        assert!(start.elapsed() < DEADLINE, "{what}: {:?}", start.elapsed());
        assert!(!node.bus.is_up() && node.inbox.try_next().is_none(), "{what}");
        node.drain.stop();
        broker.drain.begin();
    }
}

#[tokio::test]
async fn with_tls_the_secret_is_still_asked_for() {
    let authority = Authority::new("ours");
    let files = [authority.files(), authority.files()];
    let broker = broker(Some(&files[0]), "right").await;
    let node = node(1, broker.addr, Some(&files[1]), "wrong").unwrap();
    counted(&node.registry, "weir_bus_link_failures_total{cause=\"secret\"}").await;
    counted(&broker.registry, "weir_broker_links_refused_total{cause=\"secret\"}").await;
    assert!(!node.bus.is_up());
}

#[tokio::test]
async fn a_bad_file_is_known_before_anything_is_served() {
    let authority = Authority::new("ours");
    let (files, other) = (authority.files(), authority.files());
    files.replace_one("key.pem", &other);
    let error = node(1, "127.0.0.1:1".parse().unwrap(), Some(&files), "").err().unwrap().to_string();
    assert!(error.starts_with(&format!("node.broker_tls_key = {:?}: ", files.key())), "{error}");
    let mut conf = Config::default().broker;
    files.set_broker(&mut conf);
    conf.listen = "127.0.0.1:0".parse().unwrap();
    let error = Broker::bind(&conf, &weir_conf::Config::default().channel, &mut Registry::default())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.starts_with(&format!("broker.tls_key = {:?}: ", files.key())), "{error}");
}
