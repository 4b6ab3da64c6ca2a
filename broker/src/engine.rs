//! The broker's heart: shards of channels behind mutexes, the places of attached nodes, and the
//! way of a delivery through the router to them.
//!
//! A publication is appended and sent to the router while its shard is held, so one channel's
//! deliveries leave in the order of their offsets. Where something cannot be delivered (a full
//! inbox, too much in flight, a router that was rebuilt), the node is marked as *lost*: nothing
//! more goes to it until it has room, then it gets the positions of all its interest (a resync)
//! and deliveries go on. The mark is taken away *before* the positions are read, so whatever is
//! dropped after that marks it again: no loss stays silent.

mod attachment;
mod calls;
mod cluster;
mod interest;
mod memory;
mod peers;
mod receive;
mod refusals;
mod room;
mod shard;
mod slots;
mod survey;
mod sweep;

pub use attachment::Attachment;
pub use cluster::{Alone, Ask, Change, Clock, Cluster, Found, Moment, SHARDS, Store, Submitted, Surveyed};
pub use interest::Slot;
pub use memory::Share;
pub use peers::NotDone;

use crate::metrics::Metrics;
use crate::outlet::Outlet;
use crate::router::{Ended, Receiver, Router};
use bytes::Bytes;
use interest::Interest;
use memory::Accounts;
use refusals::Refusals;
use shard::Shard;
use slots::Slots;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use survey::Surveys;
use tokio::sync::Notify;
use weir_conf::broker::Broker as Conf;
use weir_core::drain::Drain;
use weir_core::sync::lock;
use weir_wire::codec;
use weir_wire::id::{BrokerId, NodeId, ShardEpoch};
use weir_wire::peer::{Bye, FromBroker, Outcome};

/// How often leases and ages are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Channels looked at in one tick and shard, so that no tick holds a shard for long.
const SWEEP_BUDGET: usize = 256;
/// So much of a node's interest ends at once when it is gone; more, bit by bit.
const AT_ONCE: usize = 256;

/// Long work of the engine's own lets others in after this.
const TURN: Duration = Duration::from_millis(1);

/// A stretch of work between two awaits.
struct Turn(Instant);

impl Turn {
    fn begin() -> Turn {
        Turn(Instant::now())
    }

    /// To be called between the parts of long work, with nothing held.
    async fn may_end(&mut self) {
        if self.0.elapsed() >= TURN {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}

pub struct Engine {
    conf: Conf,
    run_id: u64,
    cluster: Arc<dyn Cluster>,
    shards: Vec<Mutex<Shard>>,
    accounts: Accounts,
    refusals: Refusals,
    started: Instant,
    /// Milliseconds since then, before which no idle streams are looked for again.
    search_again: AtomicU64,
    /// Members that left because their node is gone, since it was last looked at.
    left: AtomicUsize,
    slots: Slots,
    router: Router,
    wake: Notify,
    any_lost: AtomicBool,
    surveys: Surveys,
    metrics: Metrics,
}

/// A call that was not taken; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    MaxChannels,
    TooLarge,
    /// Keys of the last minutes take all the memory that they may.
    Keys,
}

impl Refusal {
    /// The key of the conf that it is because of.
    fn key(self) -> &'static str {
        match self {
            Refusal::MaxChannels => "broker.max_channels",
            Refusal::TooLarge => "broker.message_size",
            Refusal::Keys => "broker.history_memory",
        }
    }
}

impl From<Refusal> for Submitted {
    fn from(refusal: Refusal) -> Submitted {
        Submitted::Now(Outcome::Limit(refusal.key().into()))
    }
}

impl Engine {
    /// One broker by itself. Blocks for a moment while the router starts.
    pub fn new(conf: Conf, shares: &[Share], metrics: Metrics) -> Result<(Arc<Engine>, Receiver), Ended> {
        Engine::of(conf, shares, metrics, |run_id| Arc::new(Alone::new(BrokerId(run_id))))
    }

    /// One of several; `cluster` is made from the number of this run.
    pub fn of(
        conf: Conf,
        shares: &[Share],
        metrics: Metrics,
        cluster: impl FnOnce(u64) -> Arc<dyn Cluster>,
    ) -> Result<(Arc<Engine>, Receiver), Ended> {
        let (router, receiver) = Router::start()?;
        let run_id = rand::random();
        let cluster = cluster(run_id);
        let accounts = Accounts::new(&conf, shares);
        let shard = |n| Mutex::new(Shard::new(n, accounts.groups().clone()));
        let engine = Engine {
            run_id,
            shards: (0..cluster.shards().max(1)).map(shard).collect(),
            accounts,
            refusals: Refusals::default(),
            started: Instant::now(),
            search_again: AtomicU64::new(0),
            left: AtomicUsize::new(0),
            slots: Slots::new(conf.max_nodes),
            router,
            wake: Notify::new(),
            any_lost: AtomicBool::new(false),
            surveys: Surveys::default(),
            metrics,
            conf,
            cluster,
        };
        if let Some(assignment) = engine.cluster.assigned() {
            engine.numbers().for_each(|number| engine.assign(number, &assignment));
        }
        Ok((Arc::new(engine), receiver))
    }

    pub fn conf(&self) -> &Conf {
        &self.conf
    }

    /// Whether other brokers hold shards, too.
    pub fn has_others(&self) -> bool {
        self.cluster.needs_bytes()
    }

    /// One run of one broker process.
    pub fn run_id(&self) -> u64 {
        self.run_id
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// An outlet has room again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Gives a node a place. An older attachment of the same node is taken away.
    pub fn attach(
        self: &Arc<Self>,
        node: NodeId,
        name: &str,
        outlet: Arc<dyn Outlet>,
    ) -> Result<Attachment, Bye> {
        if let Some(older) = self.slots.find(node) {
            older.outlet.close(Bye::Replaced);
            self.detach(older.slot, node, false);
        }
        let held = self.slots.take(node, name, outlet, self.moment().ms).ok_or(Bye::Full)?;
        self.metrics.nodes.set(self.slots.attached() as i64);
        tracing::info!(%node, name, slot = held.slot.0, "node attached");
        Ok(Attachment::new(self.clone(), held))
    }

    /// Ends an attachment; the members stay for `node_lease`, or leave at once.
    fn detach(self: &Arc<Self>, slot: Slot, node: NodeId, leave: bool) {
        let Some(held) = self.slots.release(slot, node, Instant::now()) else { return };
        let interest = held.take_interest();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if interest.len() > AT_ONCE => {
                runtime.spawn(self.clone().clear(slot, interest));
            }
            _ => {
                interest.iter().for_each(|channel| self.unsubscribe(slot, channel));
                self.cleared(slot);
            }
        }
        if leave && let Some(holder) = self.slots.end_lease(node) {
            self.members_gone(holder);
        }
        self.metrics.nodes.set(self.slots.attached() as i64);
        tracing::info!(%node, name = held.name, leave, "node detached");
    }

    /// Ends very much interest without keeping others waiting.
    async fn clear(self: Arc<Self>, slot: Slot, interest: HashSet<Arc<str>>) {
        let mut turn = Turn::begin();
        for channel in interest {
            self.unsubscribe(slot, &channel);
            turn.may_end().await;
        }
        self.cleared(slot);
    }

    fn cleared(&self, slot: Slot) {
        self.slots.cleared(slot);
        self.send_marker(slot);
    }

    /// The place is used again when this came back: then nothing for its last holder is on its way.
    fn send_marker(&self, slot: Slot) {
        let _again_at_the_next_tick = self.router.send(&self.slots.topic(slot), Bytes::new());
    }

    /// Sends a frame to every attached node, in the order of such frames.
    pub fn to_all(&self, frame: Bytes) {
        if !self.router.send(&self.slots.control_topic(), frame) {
            // Control has no history to be fetched from; the router is overloaded or being rebuilt.
            self.metrics.control_dropped.inc();
        }
    }

    /// Encoded once for all who are interested.
    fn deliver(&self, shard: u16, epoch: ShardEpoch, interest: &Interest, frame: &FromBroker) {
        let FromBroker::Deliver(delivery) = frame else { return };
        let Some(who) = interest.get(&delivery.channel) else { return };
        match codec::encode(frame) {
            Ok(frame) => {
                self.to_slots(&who.nodes, &frame);
                if !who.brokers.is_empty() {
                    self.cluster.deliver(shard, epoch, &who.brokers, &delivery.channel, &frame);
                }
            }
            // Refused before it comes to this.
            Err(error) => tracing::error!(%error, "a delivery cannot be sent"),
        }
    }

    fn to_slots(&self, slots: &[Slot], frame: &Bytes) {
        for slot in slots {
            let Some(held) = self.slots.get(*slot) else { continue };
            if held.is_lost() {
                self.metrics.dropped("lost");
            } else if !self.router.send(&held.topic, frame.clone()) {
                self.mark_lost(&held, "in_flight");
            }
        }
    }

    fn mark_lost(&self, held: &slots::Held, cause: &'static str) {
        self.metrics.dropped(cause);
        if !held.lost.swap(true, Relaxed) {
            self.metrics.resync(cause);
            tracing::warn!(node = %held.node, name = held.name, cause, "a node falls behind: it will be resynced");
        }
        self.any_lost.store(true, Relaxed);
        self.wake();
    }

    fn moment(&self) -> Moment {
        self.cluster.moment()
    }

    fn numbers(&self) -> std::ops::Range<u16> {
        0..self.shards.len() as u16
    }

    /// Leases and ages; until the drain is stopped.
    pub async fn tick(self: Arc<Self>, drain: Drain) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.stopped() => return,
            }
            let now = Instant::now();
            for holder in self.slots.end_leases(now, self.conf.node_lease) {
                self.members_gone(holder);
            }
            for slot in self.slots.draining() {
                self.send_marker(slot);
            }
            let (mut channels, mut interest, mut turn) = (0, 0, Turn::begin());
            for number in self.numbers() {
                let (known, wanted) = self.with(number, |shard, moment| {
                    self.sweep(shard, moment, SWEEP_BUDGET);
                    (shard.state.channels(), shard.interest.len())
                });
                // Those with a stream, keys or interest; most often the same ones.
                (channels, interest) = (channels + known.max(wanted), interest + wanted);
                turn.may_end().await;
            }
            self.keep_room_for_streams();
            self.tell_refusals(now);
            let all = self.accounts.all();
            self.metrics.channels.set(channels as i64);
            self.metrics.interest.set(interest as i64);
            self.metrics.streams.set(all.streams as i64);
            self.metrics.history_bytes.set(all.bytes as i64);
            self.metrics.key_bytes.set(all.key_bytes as i64);
        }
    }
}

#[cfg(test)]
#[path = "engine/tests.rs"]
mod tests;
#[cfg(test)]
#[path = "engine/trio_tests.rs"]
mod trio;
