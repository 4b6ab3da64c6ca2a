//! What only shows with several shards, links and leases; the rest is in the suite of the bus.

use super::*;
use weir_conf::units::Secret;
use weir_wire::codec;
use weir_wire::envelope::{Body, ClientInfo, Delivery, Member, Position, PresenceStats};
use weir_wire::peer::{FromBroker, Op, Outcome, Restore};

const A: NodeId = NodeId(1);
const LEASE: Duration = Duration::from_secs(5);

/// An engine whose tasks do not run: what goes into its router is read with `sent`.
fn engine(history_memory: usize) -> (Arc<Engine>, Receiver) {
    let conf = Conf {
        listen: ([127, 0, 0, 1], 0).into(),
        secret: Secret::default(),
        max_nodes: 4,
        message_size: 1 << 20,
        history_memory,
        max_channels: 1000,
        node_lease: LEASE,
        survey_timeout: Duration::from_secs(1),
    };
    Engine::new(conf, Metrics::register(&mut Default::default())).unwrap()
}

struct Nowhere;

impl Outlet for Nowhere {
    fn offer(&self, _: &Bytes) -> bool {
        true
    }
    fn resync(&self, _: Vec<(String, Option<Position>)>) {}
    fn has_room(&self) -> bool {
        true
    }
    fn close(&self, _: Bye) {}
}

fn attach(engine: &Arc<Engine>, node: NodeId) -> Attachment {
    engine.attach(node, "test", Arc::new(Nowhere)).unwrap()
}

fn member(client: &str) -> Member {
    let info = ClientInfo { client: client.into(), ..ClientInfo::default() };
    Member { info, listed: true, announced: true }
}

async fn join(node: &Attachment, client: &str) {
    node.call(Op::Join { channel: "ch".into(), member: member(client) }).await;
}

fn restored(clients: &[&str]) -> Restore {
    let members = clients.iter().map(|c| ("ch".to_owned(), member(c))).collect();
    Restore { interest: vec![], members }
}

async fn clients(node: &Attachment) -> u32 {
    match node.call(Op::PresenceStats { channel: "ch".into() }).await {
        Outcome::Stats(PresenceStats { clients, .. }) => clients,
        other => panic!("{other:?}"),
    }
}

/// The next joins and leaves on their way to nodes.
async fn announced(receiver: &mut Receiver, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let Ok(crate::router::Item::Frame { payload, .. }) = receiver.next().await else {
            panic!("no router")
        };
        if let Ok(FromBroker::Deliver(Delivery { body, .. })) =
            codec::decode(&payload[codec::HEADER.min(payload.len())..])
        {
            seen.push(match body {
                Body::Join(info) => format!("+{}", info.client),
                Body::Leave(info) => format!("-{}", info.client),
                Body::Publication(p) => format!("{}", p.offset),
            });
        }
    }
    seen
}

#[tokio::test]
async fn short_memory_costs_the_oldest_of_all_shards_and_no_more() {
    let (engine, _receiver) = engine(20_000);
    let stream = StreamOptions { size: 1000, ttl_ms: 60_000, meta_ttl_ms: 60_000 };
    let channel = |i: usize| format!("channel {}", i % 7);
    for i in 0..100 {
        let publish = Publish {
            channel: channel(i),
            data: vec![i as u8; 1000].into(),
            info: None,
            tags: vec![],
            stream: Some(stream),
            idempotency_key: None,
            version: 0,
            version_epoch: String::new(),
        };
        engine.publish(publish).unwrap();
        let bytes = engine.bytes.load(Relaxed);
        assert!(bytes <= 20_000 && (i < 20 || bytes > 18_500), "{bytes} bytes after {i}");
    }
    let all = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
    let mut kept = Vec::new();
    for i in 0..7 {
        let (history, _) = engine.history(&channel(i), &all, &stream, usize::MAX).unwrap();
        kept.extend(history.publications.iter().map(|p| p.data[0]));
    }
    kept.sort_unstable();
    assert_eq!(kept, (100 - kept.len() as u8..100).collect::<Vec<_>>(), "the youngest are there");
}

#[tokio::test]
async fn members_that_left_while_the_link_was_down_do_not_stay_as_ghosts() {
    let (engine, mut receiver) = engine(1 << 20);
    let watcher = attach(&engine, NodeId(9));
    watcher.call(Op::Subscribe { channel: "ch".into(), stream: None }).await;
    let first = attach(&engine, A);
    join(&first, "c1").await;
    join(&first, "c2").await;
    drop(first);
    assert_eq!(clients(&watcher).await, 2, "under its lease");
    let back = attach(&engine, A);
    back.restore(restored(&["c2"]));
    assert_eq!(clients(&watcher).await, 2, "not before all is told");
    back.resync();
    assert_eq!(clients(&watcher).await, 1);
    assert_eq!(announced(&mut receiver, 3).await, ["+c1", "+c2", "-c1"]);
}

#[tokio::test]
async fn members_announced_as_gone_are_announced_as_back() {
    let (engine, mut receiver) = engine(1 << 20);
    let watcher = attach(&engine, NodeId(9));
    watcher.call(Op::Subscribe { channel: "ch".into(), stream: None }).await;
    let first = attach(&engine, A);
    // The first hello of a node to a broker that never saw it: its members were there before.
    first.restore(restored(&["c1"]));
    first.resync();
    drop(first);
    let over = engine.slots.end_leases(Instant::now() + LEASE, LEASE);
    over.into_iter().for_each(|h| engine.remove_members_before(h));
    let back = attach(&engine, A);
    back.restore(restored(&["c1"]));
    back.resync();
    assert_eq!(announced(&mut receiver, 2).await, ["-c1", "+c1"]);
    assert_eq!(clients(&watcher).await, 1);
}

#[tokio::test]
async fn the_end_of_a_lease_spares_what_a_node_told_since_it_is_back() {
    let (engine, _receiver) = engine(1 << 20);
    let first = attach(&engine, A);
    join(&first, "c1").await;
    drop(first);
    assert!(engine.slots.end_leases(Instant::now(), LEASE).is_empty(), "it has just begun");
    let over = engine.slots.end_leases(Instant::now() + LEASE, LEASE);
    // Back just now, before the members are taken away shard by shard.
    let back = attach(&engine, A);
    join(&back, "c2").await;
    over.into_iter().for_each(|h| engine.remove_members_before(h));
    assert_eq!(clients(&back).await, 1);
    assert!(engine.slots.end_leases(Instant::now() + LEASE, LEASE).is_empty(), "and it is not gone");
}

/// Tells the test what it is given.
struct Told(tokio::sync::mpsc::UnboundedSender<Option<Bytes>>);

impl Outlet for Told {
    fn offer(&self, frame: &Bytes) -> bool {
        self.0.send(Some(frame.clone())).is_ok()
    }
    fn resync(&self, positions: Vec<(String, Option<Position>)>) {
        assert_eq!(positions.len(), 1);
        let _ = self.0.send(None);
    }
    fn has_room(&self) -> bool {
        true
    }
    fn close(&self, _: Bye) {}
}

#[tokio::test]
async fn a_router_that_dies_is_built_anew_and_nodes_are_resynced_before_anything_else() {
    let (engine, receiver) = engine(1 << 20);
    let drain = Drain::new();
    tokio::spawn(engine.clone().receive(receiver, drain.clone()));
    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    let node = engine.attach(A, "test", Arc::new(Told(told))).unwrap();
    node.call(Op::Subscribe { channel: "ch".into(), stream: None }).await;
    let frame = async |tell: &mut tokio::sync::mpsc::UnboundedReceiver<Option<Bytes>>| {
        tokio::time::timeout(Duration::from_secs(10), tell.recv()).await.unwrap().unwrap()
    };
    for _ in 0..3 {
        join(&node, "c1").await;
        assert!(frame(&mut tell).await.is_some());
        engine.router.kill();
        assert_eq!(frame(&mut tell).await, None, "a resync first");
        node.call(Op::Leave { channel: "ch".into(), client: "c1".into() }).await;
        assert!(frame(&mut tell).await.is_some());
    }
    assert_eq!(engine.metrics.router_rebuilds.get(), 3);
    drain.stop();
}
