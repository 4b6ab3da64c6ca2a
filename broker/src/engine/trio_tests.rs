//! Three engines in one process, joined by a cluster of memory alone: messages are carried when the
//! test says so, assignments are given by the test, and time is what it says.

use super::*;
use crate::bus::local::LocalBus;
use crate::engine::cluster::{Ask, Change, Store};
use crate::engine::tests::{Nowhere, conf, member};
use crate::replica::{Assignment, Limits, Now};
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot::error::TryRecvError;
use weir_wire::entry::{Call, Holder, shard_of};
use weir_wire::envelope::{HistoryQuery, Position, Publish, StreamOptions};
use weir_wire::id::ShardEpoch;
use weir_wire::peer::Op;
use weir_wire::replica::Message;

const SHARDS: u16 = 4;
const STREAM: StreamOptions = StreamOptions { size: 100, ttl_ms: 60_000, meta_ttl_ms: 60_000 };
const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
const TIMEOUT: Duration = Duration::from_millis(500);

/// What one broker puts on its way.
enum Item {
    Message(u16, BrokerId, Message),
    Deliver(BrokerId, Bytes),
    Forward(Call, tokio::sync::oneshot::Sender<Outcome>),
}

struct Memory {
    me: BrokerId,
    begun: Instant,
    /// Milliseconds; the same for all three, unless a test says otherwise.
    clock: Arc<AtomicU64>,
    lease: AtomicU64,
    small_window: bool,
    out: Mutex<VecDeque<Item>>,
    changes: Mutex<Vec<String>>,
    asks: Mutex<Vec<String>>,
}

impl Cluster for Memory {
    fn me(&self) -> BrokerId {
        self.me
    }
    fn shards(&self) -> u16 {
        SHARDS
    }
    fn limits(&self) -> Limits {
        let kept_entries = if self.small_window { 4 } else { 1000 };
        Limits { kept_entries, replica_timeout: TIMEOUT, ..Limits::default() }
    }
    fn moment(&self) -> Moment {
        let ms = self.clock.load(Relaxed);
        let at = |ms| self.begun + Duration::from_millis(ms);
        Moment { now: Now { at: at(ms), lease: at(self.lease.load(Relaxed)) }, ms: 1_000_000 + ms }
    }
    fn needs_bytes(&self) -> bool {
        true
    }
    fn send(&self, shard: u16, to: BrokerId, message: Message) {
        lock(&self.out).push_back(Item::Message(shard, to, message));
    }
    fn store(&self, _: u16, store: Store) {
        assert!(!matches!(store, Store::Append { .. }), "there is no disk");
    }
    fn ask(&self, _: u16, ask: Ask) {
        lock(&self.asks).push(format!("{ask:?}"));
    }
    fn changed(&self, _: u16, change: Change) {
        lock(&self.changes).push(format!("{change:?}"));
    }
    fn deliver(&self, _: u16, _: ShardEpoch, to: &[BrokerId], _: &str, frame: &Bytes) {
        let all = to.iter().map(|to| Item::Deliver(*to, frame.clone()));
        lock(&self.out).extend(all);
    }
    fn unwanted(&self, _: u16, channel: &str) {
        let (answer, _) = tokio::sync::oneshot::channel();
        lock(&self.out).push_back(Item::Forward(Call::Unsubscribe { channel: channel.into() }, answer));
    }
    fn forward(&self, _: u16, call: Call) -> Submitted {
        let (answer, later) = tokio::sync::oneshot::channel();
        lock(&self.out).push_back(Item::Forward(call, answer));
        Submitted::Later(later)
    }
}

struct Trio {
    brokers: Vec<(Arc<Memory>, Arc<Engine>, Receiver)>,
    clock: Arc<AtomicU64>,
    /// Nothing is carried from or to these.
    dead: Vec<usize>,
    assignment: Assignment,
    /// Forwarded calls that their owner has not answered yet.
    forwarded: Vec<(tokio::sync::oneshot::Receiver<Outcome>, tokio::sync::oneshot::Sender<Outcome>)>,
}

fn id(n: usize) -> BrokerId {
    BrokerId(n as u64 + 1)
}

impl Trio {
    fn start(owner: usize, in_sync: &[usize], catching_up: &[usize], small_window: bool) -> Trio {
        let (clock, begun) = (Arc::new(AtomicU64::new(1)), Instant::now());
        let broker = |n: usize| {
            let memory = Arc::new(Memory {
                me: id(n),
                begun,
                clock: clock.clone(),
                lease: AtomicU64::new(u64::from(u32::MAX)),
                small_window,
                out: Mutex::default(),
                changes: Mutex::default(),
                asks: Mutex::default(),
            });
            let metrics = Metrics::register(&mut Default::default());
            let (engine, receiver) = Engine::of(conf(1 << 20), &[], metrics, |_| memory.clone()).unwrap();
            (memory, engine, receiver)
        };
        let brokers = (0..3).map(broker).collect();
        let mut trio =
            Trio { brokers, clock, dead: vec![], assignment: Assignment::default(), forwarded: vec![] };
        trio.assign(owner, in_sync, catching_up, 0);
        trio
    }

    fn assign(&mut self, owner: usize, in_sync: &[usize], catching_up: &[usize], resets: u64) {
        let before = &self.assignment;
        let same = before.owner == Some(id(owner));
        self.assignment = Assignment {
            epoch: ShardEpoch(before.epoch.0 + u64::from(!same)),
            version: before.version + 1,
            owner: Some(id(owner)),
            in_sync: in_sync.iter().map(|n| id(*n)).collect(),
            catching_up: catching_up.iter().map(|n| id(*n)).collect(),
            resets,
            ..Assignment::default()
        };
        for (n, (_, engine, _)) in self.brokers.iter().enumerate() {
            if !self.dead.contains(&n) {
                (0..SHARDS).for_each(|shard| engine.assign(shard, &self.assignment));
            }
        }
        self.carry();
    }

    fn engine(&self, n: usize) -> &Arc<Engine> {
        &self.brokers[n].1
    }

    /// Where the stream stands in this broker's copy.
    fn top(&self, n: usize) -> Option<Position> {
        lock(&self.engine(n).shards[usize::from(shard_of("ch", SHARDS))]).state.position("ch")
    }

    fn has_stream(&self, n: usize) -> bool {
        lock(&self.engine(n).shards[usize::from(shard_of("ch", SHARDS))]).state.has_stream("ch")
    }

    /// Channels that this broker takes for wanted.
    fn interest(&self, n: usize) -> usize {
        self.engine(n).holdings().channels
    }

    /// The next forwarded call of a broker, taken out of its way.
    fn taken_out(&self, n: usize) -> (Call, tokio::sync::oneshot::Sender<Outcome>) {
        let mut out = lock(&self.brokers[n].0.out);
        let at = out.iter().position(|item| matches!(item, Item::Forward(..))).expect("a forwarded call");
        match out.remove(at) {
            Some(Item::Forward(call, answer)) => (call, answer),
            _ => unreachable!("it was one"),
        }
    }

    fn alive(&self, n: usize) -> bool {
        !self.dead.contains(&n)
    }

    /// Everything that is on its way, and what comes of it.
    fn carry(&mut self) {
        while self.carry_one() {}
    }

    fn carry_one(&mut self) -> bool {
        let owner = (0..3).find(|n| Some(id(*n)) == self.assignment.owner).unwrap();
        let next = (0..3).find_map(|n| Some((n, lock(&self.brokers[n].0.out).pop_front()?)));
        let Some((from, item)) = next else { return false };
        let to = match &item {
            Item::Message(_, to, _) | Item::Deliver(to, _) => to.0 as usize - 1,
            Item::Forward(..) => owner,
        };
        if !self.alive(from) || !self.alive(to) {
            return true;
        }
        let engine = self.engine(to).clone();
        match item {
            Item::Message(shard, _, message) => engine.receive_from(id(from), shard, message),
            Item::Deliver(_, frame) => {
                let delivery = delivery(&frame);
                engine.delivered(&delivery.channel, &frame);
            }
            Item::Forward(call, answer) => match engine.forwarded(id(from), call) {
                Ok(Submitted::Now(outcome)) => drop(answer.send(outcome)),
                Ok(Submitted::Later(later)) => self.forwarded.push((later, answer)),
                Ok(Submitted::Subscribing(..)) => panic!("no node of this broker asks"),
                Err(_) => drop(answer.send(Outcome::Unavailable)),
            },
        }
        for (mut later, answer) in std::mem::take(&mut self.forwarded) {
            match later.try_recv() {
                Ok(outcome) => drop(answer.send(outcome)),
                Err(TryRecvError::Empty) => self.forwarded.push((later, answer)),
                Err(TryRecvError::Closed) => {}
            }
        }
        true
    }

    fn pass(&mut self, ms: u64) {
        self.clock.fetch_add(ms, Relaxed);
        (0..3).filter(|n| self.alive(*n)).for_each(|n| self.engine(n).tick_replicas());
        self.carry();
    }

    /// What a call comes to when all messages have been carried.
    fn done(&mut self, submitted: Submitted) -> Outcome {
        self.carry();
        // A commit is told to the others with the next message or beat.
        self.pass(60);
        match submitted {
            Submitted::Now(outcome) => outcome,
            Submitted::Later(mut later) => later.try_recv().expect("it is answered"),
            Submitted::Subscribing(mut later, attempt) => {
                let outcome = later.try_recv().expect("it is answered");
                attempt.end(&outcome);
                outcome
            }
        }
    }

    fn publish(&mut self, n: usize, data: &str, key: Option<&str>) -> Outcome {
        let submitted = self.engine(n).publish(publish(data, key));
        self.done(submitted)
    }

    fn history(&mut self, n: usize) -> (Vec<(u64, String)>, Position) {
        let submitted =
            self.engine(n).call(Call::History { channel: "ch".into(), query: ALL, stream: STREAM });
        let Outcome::History { history, more: false } = self.done(submitted) else { panic!("no history") };
        let text = |d: &Bytes| String::from_utf8(d.to_vec()).unwrap();
        (history.publications.iter().map(|p| (p.offset, text(&p.data))).collect(), history.top)
    }

    fn members(&mut self, n: usize) -> Vec<String> {
        let submitted = self.engine(n).call(Call::Presence { channel: "ch".into() });
        let Outcome::Members(members) = self.done(submitted) else { panic!("no members") };
        let mut clients: Vec<_> = members.into_iter().map(|m| m.info.client).collect();
        clients.sort();
        clients
    }

    fn beat(&mut self) {
        for from in (0..3).filter(|n| self.alive(*n)) {
            for to in (0..3).filter(|n| *n != from) {
                for (shard, beat) in self.engine(from).beats(id(to)) {
                    self.brokers[from].0.send(shard, id(to), Message::Beat(beat));
                }
            }
        }
        self.carry();
    }

    fn changes(&self, n: usize) -> Vec<String> {
        std::mem::take(&mut *lock(&self.brokers[n].0.changes))
    }

    /// Offsets that have come out of a broker's router, up to so many.
    async fn delivered(&mut self, n: usize, count: usize) -> Vec<u64> {
        let mut offsets = Vec::new();
        while offsets.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(10), self.brokers[n].2.next());
            let Ok(Ok(crate::router::Item::Frame { payload, .. })) = next.await else { panic!("no frame") };
            if let weir_wire::envelope::Body::Publication(p) = delivery(&payload).body {
                offsets.push(p.offset);
            }
        }
        offsets
    }
}

fn delivery(frame: &Bytes) -> weir_wire::envelope::Delivery {
    match codec::decode(&frame[codec::HEADER..]) {
        Ok(FromBroker::Deliver(delivery)) => delivery,
        other => panic!("{other:?}"),
    }
}

fn publish(data: &str, key: Option<&str>) -> Publish {
    Publish {
        channel: "ch".into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        stream: Some(STREAM),
        idempotency_key: key.map(str::to_owned),
        ..Default::default()
    }
}

fn position(outcome: &Outcome) -> Position {
    match outcome {
        Outcome::Published(Some(position)) | Outcome::Subscribed(Some(position)) => *position,
        other => panic!("{other:?}"),
    }
}

fn is_waiting(submitted: &mut Submitted) -> bool {
    match submitted {
        Submitted::Now(_) => false,
        Submitted::Later(later) | Submitted::Subscribing(later, _) => {
            later.try_recv() == Err(TryRecvError::Empty)
        }
    }
}

#[tokio::test]
async fn a_publication_is_acknowledged_and_delivered_when_all_in_sync_have_it() {
    let mut trio = Trio::start(0, &[0, 1, 2], &[], false);
    let node = trio.engine(0).attach(NodeId(1), "test", Arc::new(Nowhere)).unwrap();
    let subscribed = node.submit(Op::Subscribe { channel: "ch".into(), stream: Some(STREAM) });
    let start = position(&trio.done(subscribed));
    let mut first = trio.engine(0).publish(publish("1", None));
    assert!(is_waiting(&mut first));
    assert_eq!(trio.history(0).0, [], "not before it is committed");
    assert_eq!(position(&trio.done(first)), Position { offset: 1, ..start }, "carried meanwhile");
    assert_eq!(trio.history(0).0, [(1, "1".into())]);
    // One holder alone does not do.
    trio.dead = vec![2];
    let mut second = trio.engine(0).publish(publish("2", None));
    trio.carry();
    assert!(is_waiting(&mut second));
    assert_eq!(trio.top(0).unwrap().offset, 1, "nor is it served");
    // It leaves the set, and the rest goes on.
    trio.pass(TIMEOUT.as_millis() as u64 / 3);
    (0..4).for_each(|_| trio.pass(TIMEOUT.as_millis() as u64 / 3));
    assert!(lock(&trio.brokers[0].0.asks).iter().any(|a| a.starts_with("Shrink")));
    trio.assign(0, &[0, 1], &[], 0);
    let second = trio.done(second);
    assert_eq!(position(&second), Position { offset: 2, ..start });
    assert_eq!(trio.delivered(0, 2).await, [1, 2]);
    trio.beat();
    assert_eq!(trio.top(1).unwrap().offset, 2, "applied by the other");
}

#[tokio::test]
async fn another_owner_goes_on_where_the_first_one_ended() {
    let mut trio = Trio::start(0, &[0, 1, 2], &[], false);
    let node = trio.engine(0).attach(NodeId(1), "test", Arc::new(Nowhere)).unwrap();
    let joined = node.submit(Op::Join { channel: "ch".into(), member: member("c1") });
    assert_eq!(trio.done(joined), Outcome::Done);
    let first = position(&trio.publish(0, "1", Some("k1")));
    // Its acknowledgement is lost with the owner, the entry is not.
    let mut unknown = trio.engine(0).publish(publish("2", Some("k2")));
    while is_waiting(&mut unknown) && trio.carry_one() {}
    trio.dead = vec![0];
    trio.assign(1, &[1, 2], &[], 0);
    trio.pass(60);
    assert_eq!(trio.changes(1), ["Serving { epoch: ShardEpoch(2), fresh: false }"; SHARDS as usize]);
    assert_eq!(position(&trio.publish(1, "1", Some("k1"))), first);
    assert_eq!(position(&trio.publish(1, "2", Some("k2"))), Position { offset: 2, ..first });
    assert_eq!(position(&trio.publish(1, "3", None)), Position { offset: 3, ..first });
    let all = [(1, "1".into()), (2, "2".into()), (3, "3".into())];
    assert_eq!(trio.history(1), (all.to_vec(), Position { offset: 3, ..first }));
    assert_eq!(trio.members(1), ["c1"]);
    // What the node does not tell again leaves everywhere.
    trio.engine(1).drop_members(Holder { node: NodeId(1), link: u64::MAX });
    trio.carry();
    assert_eq!(trio.members(1), [] as [&str; 0]);
    trio.beat();
    assert!(
        !lock(&trio.engine(2).shards[usize::from(shard_of("ch", SHARDS))]).state.has_members_of(NodeId(1))
    );
}

#[tokio::test]
async fn a_node_of_this_process_that_was_taken_for_gone_tells_again() {
    let mut trio = Trio::start(1, &[0, 1], &[], false);
    let (bus, _inbox) = LocalBus::attach(trio.engine(0), NodeId(1), "test", 10).unwrap();
    let link = |trio: &Trio| trio.engine(0).slots.find(NodeId(1)).unwrap().link();
    let join = tokio::spawn(async move { bus.join("ch".into(), member("c1")).await.map(|()| bus) });
    tokio::task::yield_now().await;
    trio.carry();
    trio.pass(60);
    let _bus = join.await.unwrap().unwrap();
    assert_eq!(trio.members(1), ["c1"]);
    let void = Holder { node: NodeId(1), link: link(&trio) + 10 };
    trio.engine(1).drop_members(void);
    trio.carry();
    assert_eq!(trio.members(1), [] as [&str; 0]);
    assert!(trio.engine(0).void(void) && link(&trio) > void.link);
    assert!(!trio.engine(0).void(void), "it is about to");
    tokio::task::yield_now().await;
    trio.carry();
    trio.pass(60);
    assert_eq!(trio.members(1), ["c1"]);
}

#[tokio::test]
async fn a_call_at_another_broker_is_forwarded_and_its_nodes_get_one_copy() {
    let mut trio = Trio::start(0, &[0, 1], &[], false);
    let node = trio.engine(2).attach(NodeId(1), "test", Arc::new(Nowhere)).unwrap();
    let subscribed = node.submit(Op::Subscribe { channel: "ch".into(), stream: Some(STREAM) });
    let start = position(&trio.done(subscribed));
    assert_eq!(position(&trio.publish(2, "1", None)), Position { offset: 1, ..start });
    assert_eq!(position(&trio.publish(0, "2", None)), Position { offset: 2, ..start });
    assert_eq!(trio.history(1).0.len(), 2);
    assert_eq!(trio.delivered(2, 2).await, [1, 2]);
    // Forwarded once: who is not the owner either does not pass it on.
    let call = Call::Presence { channel: "ch".into() };
    assert!(matches!(trio.engine(1).forwarded(id(2), call), Err(NotDone::NotOwner)));
    node.submit(Op::Unsubscribe { channel: "ch".into() });
    trio.carry();
    assert!(!lock(&trio.engine(0).shards[usize::from(shard_of("ch", SHARDS))]).interest.has("ch"));
}

#[tokio::test]
async fn a_newcomer_gets_the_state_and_can_own_it() {
    let mut trio = Trio::start(0, &[0, 1], &[], true);
    let first = position(&trio.publish(0, "0", Some("k")));
    for n in 1..50 {
        trio.publish(0, &n.to_string(), None);
    }
    trio.assign(0, &[0, 1], &[2], 0);
    (0..4).for_each(|_| trio.pass(110));
    assert!(lock(&trio.brokers[0].0.asks).iter().any(|a| a.starts_with("Grow")));
    trio.assign(0, &[0, 1, 2], &[], 0);
    trio.dead = vec![0, 1];
    trio.assign(2, &[2], &[], 0);
    assert_eq!(position(&trio.publish(2, "again", Some("k"))), first);
    assert_eq!(position(&trio.publish(2, "new", None)), Position { offset: 51, ..first });
    assert_eq!(trio.history(2).0.len(), 51);
}

#[tokio::test]
async fn who_has_no_lease_neither_serves_nor_acknowledges() {
    let mut trio = Trio::start(0, &[0, 1, 2], &[], false);
    trio.publish(0, "1", None);
    let mut waiting = trio.engine(0).publish(publish("2", None));
    assert!(is_waiting(&mut waiting));
    trio.brokers[0].0.lease.store(0, Relaxed);
    let live = trio.engine(0).publish(Publish { stream: None, ..publish("live", None) });
    assert_eq!(trio.done(live), Outcome::Unavailable, "nobody else serves it");
    let history = Call::History { channel: "ch".into(), query: ALL, stream: STREAM };
    let history = trio.engine(0).call(history);
    assert_eq!(trio.done(history), Outcome::Unavailable);
    assert_eq!(trio.done(waiting), Outcome::Unavailable, "unknown");
}

#[tokio::test]
async fn an_owner_that_begins_without_what_was_acknowledged_says_so_by_its_epochs() {
    let mut trio = Trio::start(0, &[0], &[], false);
    let before = position(&trio.publish(0, "1", None));
    trio.dead = vec![0];
    trio.assign(1, &[1, 2], &[], 1);
    trio.pass(60);
    assert!(trio.changes(1).contains(&"Serving { epoch: ShardEpoch(2), fresh: true }".into()));
    assert_ne!(position(&trio.publish(1, "2", None)).epoch, before.epoch);
}

#[tokio::test]
async fn a_stream_ends_everywhere_when_nobody_is_interested() {
    let mut trio = Trio::start(0, &[0, 1, 2], &[], false);
    trio.publish(0, "1", None);
    for wanted in [true, false] {
        let node = trio.engine(0).attach(NodeId(1), "test", Arc::new(Nowhere)).unwrap();
        if wanted {
            let submitted = node.submit(Op::Subscribe { channel: "ch".into(), stream: Some(STREAM) });
            assert!(matches!(trio.done(submitted), Outcome::Subscribed(Some(_))));
        }
        trio.carry();
        trio.pass(200_000);
        for number in 0..SHARDS {
            let engine = trio.engine(0).clone();
            engine.with(number, |shard, moment| engine.sweep(shard, moment, 100));
        }
        trio.carry();
        trio.beat();
        for n in 0..3 {
            assert_eq!(trio.has_stream(n), wanted, "at {n}");
        }
    }
}

/// Whatever becomes of a call to subscribe: who is not told that it is subscribed leaves nothing behind, neither at
/// the broker of its node nor at the owner.
#[tokio::test]
async fn what_is_not_subscribed_leaves_no_interest_behind() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum End {
        Subscribed,
        Refused,
        /// The owner has noted it, but its answer is lost.
        AnswerLost,
        /// Nobody waits for the answer any more, which comes yet.
        GivenUp,
        Detached,
    }
    for end in [End::Subscribed, End::Refused, End::AnswerLost, End::GivenUp, End::Detached] {
        let mut trio = Trio::start(0, &[0, 1, 2], &[], false);
        let node = trio.engine(1).attach(NodeId(1), "test", Arc::new(Nowhere)).unwrap();
        let subscribe =
            |node: &Attachment| node.submit(Op::Subscribe { channel: "ch".into(), stream: Some(STREAM) });
        let mut submitted = subscribe(&node);
        assert!(is_waiting(&mut submitted) && trio.interest(1) == 1, "{end:?}: noted before the answer");
        match end {
            End::Subscribed => {
                assert!(matches!(trio.done(submitted), Outcome::Subscribed(Some(_))));
                assert_eq!((trio.interest(0), trio.interest(1)), (1, 1));
                node.submit(Op::Unsubscribe { channel: "ch".into() });
            }
            End::Refused => {
                let (_, answer) = trio.taken_out(1);
                answer.send(Outcome::Limit("broker.max_channels".into())).unwrap();
                assert!(matches!(trio.done(submitted), Outcome::Limit(_)));
            }
            End::AnswerLost => {
                let (call, answer) = trio.taken_out(1);
                assert!(trio.engine(0).forwarded(id(1), call).is_ok() && trio.interest(0) == 1);
                answer.send(Outcome::Unavailable).unwrap();
                assert_eq!(trio.done(submitted), Outcome::Unavailable);
            }
            End::GivenUp => drop(submitted),
            End::Detached => {
                trio.carry();
                drop(node);
            }
        }
        trio.carry();
        assert_eq!((trio.interest(0), trio.interest(1)), (0, 0), "{end:?}");
    }
}

#[tokio::test]
async fn a_late_answer_takes_nothing_from_a_newer_attempt() {
    let mut trio = Trio::start(0, &[0, 1, 2], &[], false);
    let node = trio.engine(1).attach(NodeId(1), "test", Arc::new(Nowhere)).unwrap();
    let subscribe = || node.submit(Op::Subscribe { channel: "ch".into(), stream: Some(STREAM) });
    let first = subscribe();
    let (_, late) = trio.taken_out(1);
    node.submit(Op::Unsubscribe { channel: "ch".into() });
    let second = subscribe();
    late.send(Outcome::Unavailable).unwrap();
    assert_eq!(trio.done(first), Outcome::Unavailable);
    assert!(matches!(trio.done(second), Outcome::Subscribed(Some(_))));
    assert_eq!((trio.interest(0), trio.interest(1)), (1, 1));
    drop(node);
    trio.carry();
    assert_eq!((trio.interest(0), trio.interest(1)), (0, 0));
}

/// Epochs of streams without publications are the same ones whoever owns the shard, and other ones once something may
/// be lost.
#[tokio::test]
async fn a_silent_channel_keeps_its_epoch_over_a_promotion_and_not_over_a_loss() {
    let mut trio = Trio::start(0, &[0, 1], &[2], false);
    let at = |trio: &Trio, n: usize, channel: &str| {
        let shard = lock(&trio.engine(n).shards[usize::from(shard_of(channel, SHARDS))]);
        shard.state.position(channel).unwrap()
    };
    trio.pass(60);
    trio.assign(0, &[0, 1, 2], &[], 0);
    trio.pass(60);
    let silent = at(&trio, 0, "silent");
    trio.publish(0, "1", None);
    trio.dead = vec![0];
    trio.assign(1, &[1, 2], &[], 0);
    trio.pass(60);
    trio.publish(1, "2", None);
    assert_eq!((at(&trio, 1, "silent"), at(&trio, 2, "silent")), (silent, silent));
    trio.dead = vec![0, 1];
    trio.assign(2, &[2], &[], 1);
    trio.pass(60);
    assert_ne!(at(&trio, 2, "silent").epoch, silent.epoch);
}
