//! What only shows with several shards, links and leases; the rest is in the suite of the bus.

use super::cluster::{Ask, Change, Store};
use super::*;
use crate::replica::{Assignment, Limits};
use std::sync::atomic::AtomicU64;
use weir_conf::units::Secret;
use weir_wire::entry::{Call, Holder};
use weir_wire::envelope::{
    Body, ClientInfo, Delivery, HistoryQuery, Member, Position, PresenceStats, Publish, StreamOptions,
};
use weir_wire::peer::{FromBroker, Op, Outcome, Restore};
use weir_wire::replica::Message;

const A: NodeId = NodeId(1);
const LEASE: Duration = Duration::from_secs(5);

/// An engine whose tasks do not run: what goes into its router is read with `sent`.
fn engine(history_memory: usize) -> (Arc<Engine>, Receiver) {
    let metrics = Metrics::register(&mut Default::default());
    let stepping = |id| Arc::new(Stepping(Alone::new(BrokerId(id)), 0.into()));
    Engine::of(conf(history_memory), &[], metrics, |id| stepping(id)).unwrap()
}

pub fn conf(history_memory: usize) -> Conf {
    Conf {
        listen: ([127, 0, 0, 1], 0).into(),
        secret: Secret::default(),
        max_nodes: 4,
        message_size: 1 << 20,
        history_memory,
        max_channels: 1000,
        node_lease: LEASE,
        survey_timeout: Duration::from_secs(1),
        ..weir_conf::Config::default().broker
    }
}

/// One broker, on whose clock no two things happen in the same millisecond.
struct Stepping(Alone, AtomicU64);

impl Cluster for Stepping {
    fn moment(&self) -> Moment {
        Moment { ms: 1_000_000 + self.1.fetch_add(1, Relaxed), ..self.0.moment() }
    }
    fn me(&self) -> BrokerId {
        self.0.me()
    }
    fn shards(&self) -> u16 {
        self.0.shards()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn needs_bytes(&self) -> bool {
        false
    }
    fn assigned(&self) -> Option<Assignment> {
        self.0.assigned()
    }
    fn send(&self, _: u16, _: BrokerId, _: Message) {}
    fn store(&self, _: u16, _: Store) {}
    fn ask(&self, _: u16, _: Ask) {}
    fn changed(&self, _: u16, _: Change) {}
    fn deliver(&self, _: u16, _: ShardEpoch, _: &[BrokerId], _: &str, _: &Bytes) {}
    fn forward(&self, shard: u16, call: Call) -> Submitted {
        self.0.forward(shard, call)
    }
}

/// What is there at once, as it is with one broker.
fn now(submitted: Submitted) -> Outcome {
    match submitted {
        Submitted::Now(outcome) => outcome,
        Submitted::Later(_) | Submitted::Subscribing(..) => panic!("it waits"),
    }
}

pub struct Nowhere;

impl Outlet for Nowhere {
    fn offer(&self, _: &Bytes) -> bool {
        true
    }
    fn resync(&self, _: Vec<(String, Option<Position>)>) {}
    fn has_room(&self) -> bool {
        true
    }
    fn close(&self, _: Bye) {}
    fn tell_again(&self) {}
}

fn attach(engine: &Arc<Engine>, node: NodeId) -> Attachment {
    engine.attach(node, "test", Arc::new(Nowhere)).unwrap()
}

pub fn member(client: &str) -> Member {
    let info = ClientInfo { client: client.into(), ..ClientInfo::default() };
    Member { info, listed: true, announced: true }
}

async fn join(node: &Attachment, client: &str) {
    node.call(Op::Join { channel: "ch".into(), member: member(client) }).await;
}

fn restored(clients: &[&str]) -> Restore {
    let members = clients.iter().map(|c| ("ch".to_owned(), member(c))).collect();
    Restore { members, ..Restore::default() }
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
            stream: Some(stream),
            ..Default::default()
        };
        assert!(matches!(now(engine.publish(publish)), Outcome::Published(Some(_))));
        let bytes = engine.accounts.all().bytes;
        assert!(bytes <= 20_000 && (i < 20 || bytes > 18_500), "{bytes} bytes after {i}");
    }
    let all = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
    let mut kept = Vec::new();
    for i in 0..7 {
        let call = Call::History { channel: channel(i), query: all, stream };
        let Outcome::History { history, .. } = now(engine.call(call)) else { panic!("no history") };
        kept.extend(history.publications.iter().map(|p| p.data[0]));
    }
    kept.sort_unstable();
    assert_eq!(kept, (100 - kept.len() as u8..100).collect::<Vec<_>>(), "the youngest are there");
}

#[tokio::test]
async fn keys_are_refused_over_their_share_and_never_forgotten_before_their_time() {
    let (engine, _receiver) = engine(20_000);
    let keyed = |key: usize| Publish {
        channel: format!("channel {}", key % 5),
        data: Bytes::from_static(b"x"),
        stream: Some(StreamOptions { size: 10, ttl_ms: 60_000, meta_ttl_ms: 60_000 }),
        idempotency_key: Some(format!("key {key}")),
        ..Default::default()
    };
    let publish = |key| now(engine.publish(keyed(key)));
    let first = publish(0);
    let taken = (1..1000).take_while(|key| matches!(publish(*key), Outcome::Published(Some(_)))).count();
    assert!((60..90).contains(&taken), "{taken}");
    assert_eq!(publish(5000), Outcome::Limit("broker.history_memory".into()));
    assert_eq!(publish(0), first, "a repeat is no new key");
    let plain = Publish { idempotency_key: None, ..keyed(0) };
    assert!(matches!(now(engine.publish(plain)), Outcome::Published(Some(_))), "nor is none");
}

const STREAM: StreamOptions = StreamOptions { size: 1000, ttl_ms: 60_000, meta_ttl_ms: 60_000 };

fn message(channel: &str, size: usize) -> Publish {
    let (channel, data) = (channel.to_owned(), vec![1; size].into());
    Publish { channel, data, stream: Some(STREAM), ..Default::default() }
}

fn kept(engine: &Arc<Engine>, channel: &str) -> usize {
    let query = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
    let call = Call::History { channel: channel.into(), query, stream: STREAM };
    let Outcome::History { history, .. } = now(engine.call(call)) else { panic!("no history") };
    history.publications.len()
}

#[tokio::test]
async fn one_heavy_publisher_does_not_push_out_what_others_have() {
    let (engine, _receiver) = engine(1 << 20);
    for _ in 0..10 {
        now(engine.publish(message("light", 1000)));
    }
    for n in 0..5000 {
        now(engine.publish(message(if n % 2 == 0 { "heavy" } else { "other heavy" }, 10_000)));
    }
    assert_eq!(kept(&engine, "light"), 10);
    assert!(kept(&engine, "heavy") > 10 && engine.accounts.all().bytes <= 1 << 20);
}

#[tokio::test]
async fn a_namespace_keeps_to_its_share() {
    let metrics = Metrics::register(&mut Default::default());
    let shares = [(Some("chat".to_owned()), 25)];
    let conf = Conf { max_channels: 40, ..conf(1 << 20) };
    let (engine, _receiver) =
        Engine::of(conf, &shares, metrics, |id| Arc::new(Stepping(Alone::new(BrokerId(id)), 0.into())))
            .unwrap();
    for n in 0..1000 {
        now(engine.publish(message(&format!("chat:{}", n % 5), 1000)));
        now(engine.publish(message("other", 500)));
    }
    let taken = |group| engine.accounts.balance(group).0;
    assert!(taken(Some(1)).bytes <= 1 << 18 && taken(None).bytes > 1 << 19);
    assert_eq!(kept(&engine, "other"), 1000, "nothing of it had to go");
    let refused = |channel: &str| {
        now(engine.publish(message(channel, 1))) == Outcome::Limit("broker.max_channels".into())
    };
    let streams = (5..100).take_while(|n| !refused(&format!("chat:{n}"))).count();
    assert_eq!((streams, refused("chat:new"), refused("new")), (5, true, false), "a quarter of 40");
}

#[tokio::test]
async fn names_come_and_go_without_a_trace_and_come_back_to_the_same_epoch() {
    let (engine, _receiver) = engine(1 << 20);
    let node = attach(&engine, A);
    let subscribe = |channel: &str| {
        let (channel, stream) = (channel.to_owned(), Some(STREAM));
        match now(node.submit(Op::Subscribe { channel, stream })) {
            Outcome::Subscribed(Some(position)) => position,
            other => panic!("{other:?}"),
        }
    };
    let silent = subscribe("silent");
    for n in 0..50_000 {
        let name = format!("name {n}");
        subscribe(&name);
        now(node.submit(Op::Unsubscribe { channel: name }));
    }
    now(node.submit(Op::Unsubscribe { channel: "silent".into() }));
    let (channels, interest) = engine.shards.iter().map(lock).fold((0, 0), |(channels, interest), shard| {
        (channels + shard.state.channels(), interest + shard.interest.len())
    });
    assert_eq!((channels, interest, engine.accounts.all().streams), (0, 0, 0));
    assert_eq!(subscribe("silent"), silent, "nothing was missed");
    let first = now(engine.publish(message("silent", 1)));
    assert_eq!(first, Outcome::Published(Some(Position { offset: 1, ..silent })));
}

#[tokio::test]
async fn at_the_limit_of_streams_idle_ones_make_room_and_refusing_is_the_last_resort() {
    let (engine, _receiver) = engine(1 << 20);
    let node = attach(&engine, A);
    let short =
        |channel: &str| Publish { stream: Some(StreamOptions { size: 0, ..STREAM }), ..message(channel, 1) };
    let wanted = Op::Subscribe { channel: "wanted".into(), stream: Some(STREAM) };
    let published = |publish| matches!(now(engine.publish(publish)), Outcome::Published(Some(_)));
    assert!(published(short("wanted")) && matches!(now(node.submit(wanted)), Outcome::Subscribed(Some(_))));
    let place = engine.position("wanted");
    for n in 0..5000 {
        assert!(published(short(&format!("idle {n}"))), "stream {n}");
    }
    assert_eq!(engine.position("wanted"), place, "it is wanted");
    assert!(engine.accounts.all().streams <= 1000);
    // All full of what is kept: then a new one is refused, and nobody loses anything.
    let full = (0..5000).take_while(|n| published(message(&format!("kept {n}"), 1))).count();
    assert_eq!((full, kept(&engine, "kept 0")), (999, 1));
    assert!(published(message("kept 5", 1)), "one that is there goes on");
}

#[tokio::test]
async fn who_has_many_keys_is_refused_before_who_has_few() {
    let (engine, _receiver) = engine(100_000);
    let keyed = |channel: &str, key: usize| {
        let publish = Publish { idempotency_key: Some(format!("key {key}")), ..message(channel, 1) };
        matches!(now(engine.publish(publish)), Outcome::Published(Some(_)))
    };
    let heavy = (0..10_000).take_while(|key| keyed("heavy", *key)).count();
    assert!((200..300).contains(&heavy), "{heavy} of 373 that all keys together may be");
    assert!((0..20).all(|key| keyed("light", key)) && !keyed("heavy", 10_000));
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
    over.into_iter().for_each(|h| engine.members_gone(h));
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
    over.into_iter().for_each(|h| engine.members_gone(h));
    assert_eq!(clients(&back).await, 1);
    assert!(engine.slots.end_leases(Instant::now() + LEASE, LEASE).is_empty(), "and it is not gone");
}

#[tokio::test]
async fn the_end_of_a_lease_spares_what_a_node_told_elsewhere_since() {
    let (engine, _receiver) = engine(1 << 20);
    let first = attach(&engine, A);
    let link = engine.slots.find(A).unwrap().link();
    drop(first);
    // Elsewhere it has a later link by now, and here others have still later ones.
    let _other = attach(&engine, NodeId(9));
    let over = engine.slots.end_leases(Instant::now() + LEASE, LEASE);
    assert_eq!(over, [Holder { node: A, link: link + 1 }]);
}

#[tokio::test]
async fn links_are_later_than_those_of_other_brokers_however_the_clocks_stand() {
    let (engine, _receiver) = engine(1 << 20);
    let elsewhere = Holder { node: A, link: u64::MAX / 2 };
    engine.heard_of(&[elsewhere]);
    let _here = attach(&engine, A);
    assert!(engine.slots.find(A).unwrap().link() > elsewhere.link);
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
    fn tell_again(&self) {}
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

/// Not a test of anything: prints how many publications one thread makes in a second.
#[tokio::test]
#[ignore = "a measurement"]
async fn publish_rate() {
    let (engine, _receiver) = engine(1 << 30);
    let stream = StreamOptions { size: 100, ttl_ms: 60_000, meta_ttl_ms: 60_000 };
    for (name, stream, keyed) in
        [("history", Some(stream), false), ("keyed", Some(stream), true), ("live", None, false)]
    {
        let mut best = 0.0_f64;
        for round in 0..5 {
            let count = 200_000;
            let begun = Instant::now();
            for i in 0..count {
                let publish = Publish {
                    channel: format!("channel {}", i % 500),
                    data: vec![i as u8; 100].into(),
                    stream,
                    idempotency_key: keyed.then(|| format!("{round}-{i}")),
                    ..Default::default()
                };
                assert!(matches!(now(engine.publish(publish)), Outcome::Published(_)));
            }
            best = best.max(f64::from(count) / begun.elapsed().as_secs_f64());
        }
        println!("{name}: {best:.0}/s");
    }
}
