//! A node's bus and a broker of another process, over loopback, through a relay that can be cut.

#![allow(clippy::unwrap_used)]

use prometheus_client::registry::Registry;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weir_broker::{Broker, Bus, BusError, Event, Inbox, RemoteBus};
use weir_conf::units::Secret;
use weir_conf::{broker, node};
use weir_core::drain::Drain;
use weir_wire::codec;
use weir_wire::envelope::{Body, ClientInfo, HistoryQuery, Member, Publish, StreamOptions};
use weir_wire::id::NodeId;
use weir_wire::peer::{Bye, FromBroker, FromNode, Hello, Op, Outcome};

const STREAM: StreamOptions = StreamOptions { size: 1000, ttl_ms: 60_000, meta_ttl_ms: 60_000 };

/// Far above what anything here takes; only a hang gets there.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("hangs")
}

fn broker_conf(listen: SocketAddr, secret: &str) -> broker::Broker {
    broker::Broker {
        listen,
        secret: Secret::new(secret.into()),
        max_nodes: 4,
        message_size: 1 << 20,
        history_memory: 64 << 20,
        max_channels: 1000,
        node_lease: Duration::from_secs(2),
        survey_timeout: Duration::from_millis(500),
        ..weir_conf::Config::default().broker
    }
}

fn node_conf(broker: SocketAddr, secret: &str, inbox_size: usize) -> node::Node {
    node::Node {
        brokers: vec![broker.to_string()],
        broker_secret: Secret::new(secret.into()),
        inbox_size,
        ..weir_conf::Config::default().node
    }
}

struct Running {
    addr: SocketAddr,
    drain: Drain,
    task: JoinHandle<()>,
    registry: Registry,
}

impl Running {
    async fn start(listen: SocketAddr, secret: &str) -> Running {
        Running::with(broker_conf(listen, secret)).await
    }

    async fn with(conf: broker::Broker) -> Running {
        let mut registry = Registry::default();
        let broker = Broker::bind(&conf, &weir_conf::Config::default().channel, &mut registry).await.unwrap();
        let (addr, drain) = (broker.local_addr(), Drain::new());
        let task = tokio::spawn(broker.run(drain.clone()));
        Running { addr, drain, task, registry }
    }

    async fn any(secret: &str) -> Running {
        Running::start("127.0.0.1:0".parse().unwrap(), secret).await
    }

    async fn stop(self) {
        self.drain.begin();
        soon(self.task).await.unwrap();
    }
}

/// The value of a metric, 0 without one.
fn metric(registry: &Registry, name: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

async fn at_least(registry: &Registry, name: &str, value: u64) {
    soon(async {
        while metric(registry, name) < value {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Passes bytes on; while cut, there are no connections.
struct Relay {
    addr: SocketAddr,
    open: watch::Sender<bool>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Relay {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, (open, watch)) = (socket.local_addr().unwrap(), watch::channel(true));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = socket.accept().await {
                let mut watch = watch.clone();
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                            _ = watch.wait_for(|open| !open) => {}
                        }
                    }
                });
            }
        });
        Relay { addr, open }
    }
}

struct Node {
    bus: Arc<dyn Bus>,
    inbox: Inbox,
    drain: Drain,
    registry: Registry,
}

impl Node {
    fn start(id: u64, broker: SocketAddr, secret: &str, inbox_size: usize) -> Node {
        let (conf, drain) = (node_conf(broker, secret, inbox_size), Drain::new());
        let mut registry = Registry::default();
        let (bus, inbox) =
            RemoteBus::start(&conf, NodeId(id), &format!("n{id}"), &mut registry, drain.clone()).unwrap();
        Node { bus, inbox, drain, registry }
    }

    async fn up(id: u64, broker: SocketAddr, secret: &str) -> Node {
        let mut node = Node::start(id, broker, secret, 1000);
        assert_eq!(node.next().await, Event::Resync(vec![]));
        assert_eq!(node.next().await, Event::Link(true));
        assert!(node.bus.is_up());
        node
    }

    async fn next(&mut self) -> Event {
        soon(self.inbox.next()).await.expect("the inbox ended")
    }

    /// Offset and data of the next event, which has to be a publication.
    async fn publication(&mut self) -> (u64, String) {
        match self.next().await {
            Event::Deliver(delivery) => match delivery.body {
                Body::Publication(p) => (p.offset, String::from_utf8(p.data.to_vec()).unwrap()),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    async fn publish(&self, data: &str) -> u64 {
        soon(self.bus.publish(publish(data))).await.unwrap().unwrap().offset
    }
}

fn publish(data: &str) -> Publish {
    Publish {
        channel: "news".into(),
        data: data.to_owned().into(),
        stream: Some(STREAM),
        ..Default::default()
    }
}

fn member(client: &str) -> Member {
    let info = ClientInfo { client: client.into(), user: client.into(), ..ClientInfo::default() };
    Member { info, listed: true, announced: false }
}

async fn members(bus: &Arc<dyn Bus>) -> Vec<String> {
    let mut members: Vec<_> =
        soon(bus.presence("news".into())).await.unwrap().into_iter().map(|m| m.info.client).collect();
    members.sort();
    members
}

#[tokio::test]
async fn two_nodes_exchange_messages() {
    // A lease that does not end here: who leaves has left by himself.
    let conf = broker_conf("127.0.0.1:0".parse().unwrap(), "s3cret");
    let broker = Running::with(broker::Broker { node_lease: Duration::from_secs(300), ..conf }).await;
    let (mut a, mut b) = (Node::up(1, broker.addr, "s3cret").await, Node::up(2, broker.addr, "s3cret").await);
    for node in [&a, &b] {
        assert_eq!(soon(node.bus.subscribe("news".into(), Some(STREAM))).await.unwrap().unwrap().offset, 0);
    }
    // Pipelined: many under way at once.
    let texts: Vec<_> = (0..500).map(|i| format!("message {i}")).collect();
    let calls = texts.iter().map(|text| a.bus.publish(publish(text)));
    let offsets = soon(futures_util::future::try_join_all(calls)).await.unwrap();
    assert!(offsets.iter().map(|p| p.unwrap().offset).eq(1..=500));
    for node in [&mut a, &mut b] {
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(node.publication().await, (i as u64 + 1, text.clone()));
        }
    }
    soon(a.bus.join("news".into(), member("ann"))).await.unwrap();
    assert_eq!(members(&b.bus).await, ["ann"]);
    // A node that stops takes its members along at once.
    a.drain.stop();
    assert_eq!(soon(a.inbox.next()).await, None);
    soon(async {
        while !members(&b.bus).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_history_larger_than_one_frame_comes_whole() {
    let broker = Running::any("").await;
    let a = Node::up(1, broker.addr, "").await;
    let large = "x".repeat(900 << 10);
    for _ in 0..12 {
        a.publish(&large).await;
    }
    let query = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
    let history = soon(a.bus.history("news".into(), query, STREAM)).await.unwrap();
    assert!(history.publications.iter().map(|p| p.offset).eq(1..=12) && history.top.offset == 12);
    broker.stop().await;
}

#[tokio::test]
async fn a_cut_link_comes_back_with_a_resync_and_history_has_the_rest() {
    let broker = Running::any("").await;
    let relay = Relay::to(broker.addr).await;
    let (mut a, b) = (Node::up(1, relay.addr, "").await, Node::up(2, broker.addr, "").await);
    let start = soon(a.bus.subscribe("news".into(), Some(STREAM))).await.unwrap().unwrap();
    for client in ["stays", "leaves"] {
        soon(a.bus.join("news".into(), member(client))).await.unwrap();
    }
    relay.open.send_replace(false);
    assert_eq!(a.next().await, Event::Link(false));
    assert!(!a.bus.is_up());
    assert!(matches!(soon(a.bus.publish(publish("lost"))).await, Err(BusError::Unavailable(_))));
    assert!(matches!(soon(a.bus.subscribe("x".into(), None)).await, Err(BusError::Unavailable(_))));
    soon(a.bus.leave("news".into(), "leaves".into())).await.unwrap();
    soon(a.bus.join("news".into(), member("comes"))).await.unwrap();
    b.publish("one").await;
    b.publish("two").await;
    assert_eq!(members(&b.bus).await, ["leaves", "stays"], "under their lease");
    relay.open.send_replace(true);
    let Event::Resync(positions) = a.next().await else { panic!() };
    assert_eq!((positions.len(), positions[0].0.as_str()), (1, "news"));
    let top = positions[0].1.unwrap();
    assert_eq!((top.epoch, top.offset), (start.epoch, 2));
    assert_eq!(a.next().await, Event::Link(true));
    let query = HistoryQuery { since: Some(start), limit: u32::MAX, reverse: false };
    let missed = soon(a.bus.history("news".into(), query, STREAM)).await.unwrap();
    assert!(missed.publications.iter().map(|p| &p.data[..]).eq([&b"one"[..], b"two"]));
    assert_eq!(members(&a.bus).await, ["comes", "stays"]);
    assert_eq!(b.publish("three").await, 3);
    assert_eq!(a.publication().await, (3, "three".into()));
    broker.stop().await;
}

#[tokio::test]
async fn another_broker_on_the_same_port_has_another_epoch() {
    let broker = Running::any("s").await;
    let addr = broker.addr;
    let mut a = Node::up(1, addr, "s").await;
    let before = soon(a.bus.subscribe("news".into(), Some(STREAM))).await.unwrap().unwrap();
    broker.stop().await;
    assert_eq!(a.next().await, Event::Link(false));
    let broker = Running::start(addr, "s").await;
    let Event::Resync(positions) = a.next().await else { panic!() };
    let after = positions[0].1.unwrap();
    assert!(after.epoch != before.epoch && after.offset == 0);
    assert_eq!(a.next().await, Event::Link(true));
    assert_eq!(a.publish("again").await, 1);
    assert_eq!(a.publication().await, (1, "again".into()));
    broker.stop().await;
}

#[tokio::test]
async fn without_the_secret_there_is_no_link() {
    let (keyed, open) = (Running::any("right").await, Running::any("").await);
    let nodes = [
        Node::start(1, keyed.addr, "wrong", 10),
        Node::start(2, keyed.addr, "", 10),
        // A broker that cannot prove itself is as good as a stranger.
        Node::start(3, open.addr, "right", 10),
    ];
    for node in &nodes {
        at_least(&node.registry, "weir_bus_link_failures_total{cause=\"secret\"}", 1).await;
    }
    for broker in [&keyed, &open] {
        at_least(&broker.registry, "weir_broker_links_refused_total{cause=\"secret\"}", 1).await;
    }
    let good = Node::up(4, keyed.addr, "right").await;
    for mut node in nodes {
        assert!(!node.bus.is_up() && node.inbox.try_next().is_none());
    }
    drop(good);
    keyed.stop().await;
    open.stop().await;
}

#[tokio::test]
async fn garbage_and_length_bombs_are_cut_off() {
    let broker = Running::any("").await;
    let bomb = [&u32::MAX.to_le_bytes()[..], &[0xb7, 1], &[0; 100]].concat();
    let nonsense = [&100u32.to_le_bytes()[..], &[0xb7, 1], &[0xff; 98]].concat();
    let mut next_version = nonsense.clone();
    next_version[5] = 2;
    for bytes in [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), bomb, nonsense, next_version] {
        let mut stream = TcpStream::connect(broker.addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        // The end comes, by a reset if our bytes were not all read.
        let mut rest = Vec::new();
        let _end = soon(stream.read_to_end(&mut rest)).await;
    }
    assert_eq!(metric(&broker.registry, "weir_broker_links_refused_total{cause=\"protocol\"}"), 3);
    assert_eq!(metric(&broker.registry, "weir_broker_links_refused_total{cause=\"version\"}"), 1);
    Node::up(1, broker.addr, "").await;
    broker.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_read_holds_up_nobody_and_gets_one_resync() {
    let broker = Running::any("").await;
    let (mut slow, mut quick) = (Node::start(1, broker.addr, "", 8), Node::up(2, broker.addr, "").await);
    assert_eq!(slow.next().await, Event::Resync(vec![]));
    for node in [&slow, &quick] {
        soon(node.bus.subscribe("news".into(), Some(STREAM))).await.unwrap();
    }
    for i in 1..=200 {
        assert_eq!(quick.publish("x").await, i);
        assert_eq!(quick.publication().await.0, i);
    }
    assert_eq!(slow.next().await, Event::Link(true));
    for i in 1..=8 {
        assert_eq!(slow.publication().await.0, i);
    }
    let Event::Resync(positions) = slow.next().await else { panic!() };
    assert_eq!(positions[0].1.unwrap().offset, 200);
    quick.publish("live again").await;
    assert_eq!(slow.publication().await, (201, "live again".into()));
    broker.stop().await;
}

/// A peer that speaks frames by hand.
struct Peer {
    stream: TcpStream,
    buffer: bytes::BytesMut,
}

impl Peer {
    async fn proven(id: u64, broker: SocketAddr) -> Peer {
        let stream = TcpStream::connect(broker).await.unwrap();
        let mut peer = Peer { stream, buffer: bytes::BytesMut::new() };
        peer.say(FromNode::Hello(Hello { node: NodeId(id), name: "peer".into(), nonce: [0; 32], inbox: 8 }))
            .await;
        assert!(matches!(peer.hear().await, Some(FromBroker::Challenge(_))));
        peer.say(FromNode::Proof(vec![])).await;
        peer
    }

    async fn say(&mut self, frame: FromNode) {
        self.stream.write_all(&codec::encode(&frame).unwrap()).await.unwrap();
    }

    async fn hear(&mut self) -> Option<FromBroker> {
        loop {
            if let Some(body) = codec::take_frame(&mut self.buffer, codec::MAX_FRAME).unwrap() {
                return Some(codec::decode(&body).unwrap());
            }
            if soon(self.stream.read_buf(&mut self.buffer)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

#[tokio::test]
async fn a_silent_peer_has_heartbeats_and_then_its_end() {
    let broker = Running::any("").await;
    let mut peer = Peer::proven(1, broker.addr).await;
    assert!(matches!(peer.hear().await, Some(FromBroker::Welcome(w)) if w.lease_ms == 2000));
    let mut heard = 0;
    let end = loop {
        match peer.hear().await {
            Some(FromBroker::Heartbeat) => heard += 1,
            end => break end,
        }
    };
    assert_eq!(end, Some(FromBroker::Bye(Bye::Timeout)));
    assert!((3..=4).contains(&heard), "{heard}");
    broker.stop().await;
}

#[tokio::test]
async fn a_newer_link_of_the_same_node_takes_over() {
    let broker = Running::any("").await;
    let mut old = Peer::proven(1, broker.addr).await;
    assert!(matches!(old.hear().await, Some(FromBroker::Welcome(_))));
    let mut new = Peer::proven(1, broker.addr).await;
    assert!(matches!(new.hear().await, Some(FromBroker::Welcome(_))));
    assert_eq!(old.hear().await, Some(FromBroker::Bye(Bye::Replaced)));
    assert_eq!(old.hear().await, None);
    new.say(FromNode::Restored).await;
    assert_eq!(new.hear().await, Some(FromBroker::Resync { positions: vec![], last: true }));
    broker.stop().await;
}

#[tokio::test]
async fn too_many_nodes_are_refused() {
    let broker = Running::any("").await;
    let mut nodes = vec![];
    for id in 1..=4 {
        nodes.push(Node::up(id, broker.addr, "").await);
    }
    let fifth = Node::start(5, broker.addr, "", 10);
    at_least(&fifth.registry, "weir_bus_link_failures_total{cause=\"max_nodes\"}", 1).await;
    drop(nodes.pop());
    soon(async {
        while !fifth.bus.is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn replies_far_beyond_what_may_wait_all_come() {
    let broker = Running::any("").await;
    let writer = Node::up(1, broker.addr, "").await;
    let large = "x".repeat(1000 << 10);
    for _ in 0..3 {
        writer.publish(&large).await;
    }
    let mut peer = Peer::proven(2, broker.addr).await;
    peer.say(FromNode::Restored).await;
    // 120 MB of replies: far more than may wait.
    let query = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
    for id in 0..40 {
        let op = Op::History { channel: "news".into(), query, stream: STREAM };
        peer.say(FromNode::Request { id, op }).await;
    }
    let mut replies = 0;
    while replies < 40 {
        match peer.hear().await.expect("the link ended") {
            FromBroker::Reply { id, result: Outcome::History { history, more: false } } => {
                assert_eq!((id, history.publications.len()), (replies, 3));
                replies += 1;
            }
            FromBroker::Welcome(_) | FromBroker::Resync { .. } | FromBroker::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_frame_out_of_turn_ends_the_link() {
    let broker = Running::any("").await;
    for frame in [
        FromNode::Proof(vec![]),
        FromNode::Consumed(1),
        FromNode::Request { id: 1, op: Op::HistoryRemove { channel: "c".into() } },
    ] {
        let mut peer = Peer::proven(1, broker.addr).await;
        peer.say(frame).await;
        assert!(matches!(peer.hear().await, Some(FromBroker::Welcome(_))));
        assert_eq!(peer.hear().await, Some(FromBroker::Bye(Bye::Protocol)));
    }
    broker.stop().await;
}
