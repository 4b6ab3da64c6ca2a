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
mod receive;
mod slots;
mod survey;

pub use attachment::Attachment;

use crate::metrics::Metrics;
use crate::outlet::Outlet;
use crate::router::{Ended, Receiver, Router};
use crate::shard::{Holder, Now, Refusal, Shard, Slot};
use bytes::Bytes;
use slots::Slots;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use survey::Surveys;
use tokio::sync::Notify;
use weir_conf::broker::Broker as Conf;
use weir_core::drain::Drain;
use weir_wire::envelope::{HistoryQuery, Publish, Published, StreamOptions};
use weir_wire::id::{Epoch, NodeId};
use weir_wire::peer::Bye;

const SHARDS: usize = 64;
/// How often leases and ages are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Channels looked at in one tick and shard, so that no tick holds a shard for long.
const SWEEP_BUDGET: usize = 256;

pub struct Engine {
    conf: Conf,
    run_id: u64,
    shards: Vec<Mutex<Shard>>,
    /// Sums over all shards.
    bytes: AtomicUsize,
    streams: AtomicUsize,
    slots: Slots,
    router: Router,
    wake: Notify,
    any_lost: AtomicBool,
    surveys: Surveys,
    metrics: Metrics,
}

/// A poisoned lock means that a panic happened while it was held; what it guards is still
/// consistent enough to serve the others, and the panic was reported where it happened.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Blocks for a moment while the router starts.
    pub fn new(conf: Conf, metrics: Metrics) -> Result<(Arc<Engine>, Receiver), Ended> {
        let (router, receiver) = Router::start()?;
        let engine = Engine {
            run_id: rand::random(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            bytes: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            slots: Slots::new(conf.max_nodes),
            router,
            wake: Notify::new(),
            any_lost: AtomicBool::new(false),
            surveys: Surveys::default(),
            metrics,
            conf,
        };
        Ok((Arc::new(engine), receiver))
    }

    pub fn conf(&self) -> &Conf {
        &self.conf
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
        let held = self.slots.take(node, name, outlet).ok_or(Bye::Full)?;
        self.metrics.nodes.set(self.slots.attached() as i64);
        tracing::info!(%node, name, slot = held.slot.0, "node attached");
        Ok(Attachment::new(self.clone(), held))
    }

    /// Ends an attachment; the members stay for `node_lease`, or leave at once.
    fn detach(&self, slot: Slot, node: NodeId, leave: bool) {
        let Some(held) = self.slots.release(slot, node, Instant::now()) else { return };
        for channel in held.take_interest() {
            self.with(&channel, |shard| shard.unsubscribe(slot, &channel));
        }
        self.send_marker(slot);
        if leave && let Some(holder) = self.slots.end_lease(node) {
            self.remove_members_before(holder);
        }
        self.metrics.nodes.set(self.slots.attached() as i64);
        tracing::info!(%node, name = held.name, leave, "node detached");
    }

    /// The place is used again when this came back: then nothing for its last holder is on its way.
    fn send_marker(&self, slot: Slot) {
        let _again_at_the_next_tick = self.router.send(&self.slots.topic(slot), Bytes::new());
    }

    fn remove_members_before(&self, holder: Holder) {
        let mut left = 0;
        for shard in &self.shards {
            left += lock(shard).remove_members_before(holder, &mut |slots, frame| self.deliver(slots, frame));
        }
        if left > 0 {
            tracing::info!(node = %holder.node, left, "members that a node holds no more left");
        }
    }

    pub fn publish(&self, publish: Publish) -> Result<Published, Refusal> {
        if publish.data.len() + publish.channel.len() > self.conf.message_size {
            return Err(Refusal::TooLarge);
        }
        self.metrics.publications.inc();
        self.metrics.bytes_in.inc_by(publish.data.len() as u64);
        let channel = publish.channel.clone();
        let now = self.now();
        let result = self.with(&channel, |shard| {
            shard.publish(now, publish, &mut |slots, frame| self.deliver(slots, frame))
        });
        self.keep_within_memory(now.at);
        result
    }

    /// At most `max_bytes` of data, at least one publication; true if there would be more.
    pub fn history(
        &self,
        channel: &str,
        query: &HistoryQuery,
        options: &StreamOptions,
        max_bytes: usize,
    ) -> Result<(weir_wire::envelope::History, bool), Refusal> {
        let now = self.now();
        let mut history = self.with(channel, |shard| shard.history(now, channel, query, options))?;
        let mut bytes = 0;
        let fits = history.publications.iter().take_while(|p| {
            let first = bytes == 0;
            bytes += p.data.len() + 64;
            first || bytes <= max_bytes
        });
        let fits = fits.count();
        let more = fits < history.publications.len();
        history.publications.truncate(fits);
        Ok((history, more))
    }

    /// Sends a frame to every attached node, in the order of such frames.
    pub fn to_all(&self, frame: Bytes) {
        if !self.router.send(&self.slots.control_topic(), frame) {
            // Control has no history to be fetched from; the router is overloaded or being rebuilt.
            self.metrics.control_dropped.inc();
        }
    }

    fn deliver(&self, slots: &[Slot], frame: Bytes) {
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

    fn now(&self) -> Now {
        Now {
            at: Instant::now(),
            epoch: Epoch(rand::random()),
            room: self.streams.load(Relaxed) < self.conf.max_channels,
        }
    }

    fn shard(&self, channel: &str) -> &Mutex<Shard> {
        // Seeds of the default hasher are fixed, so a channel stays with its shard.
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        &self.shards[hasher.finish() as usize % SHARDS]
    }

    fn with<T>(&self, channel: &str, change: impl FnOnce(&mut Shard) -> T) -> T {
        self.counted(self.shard(channel), change)
    }

    /// Keeps the sums right around a change of one shard.
    fn counted<T>(&self, shard: &Mutex<Shard>, change: impl FnOnce(&mut Shard) -> T) -> T {
        let mut shard = lock(shard);
        let (bytes, streams) = (shard.bytes(), shard.streams());
        let result = change(&mut shard);
        // Wrapping arithmetic: a sum that goes down by one goes up by usize::MAX.
        self.bytes.fetch_add(shard.bytes().wrapping_sub(bytes), Relaxed);
        self.streams.fetch_add(shard.streams().wrapping_sub(streams), Relaxed);
        result
    }

    /// The oldest publications of all channels go first, and no more of them than needed.
    fn keep_within_memory(&self, now: Instant) {
        loop {
            let over = self.bytes.load(Relaxed).saturating_sub(self.conf.history_memory);
            if over == 0 {
                return;
            }
            let mut ages: Vec<(Instant, &Mutex<Shard>)> =
                self.shards.iter().filter_map(|s| lock(s).oldest().map(|at| (at, s))).collect();
            ages.sort_unstable_by_key(|(at, _)| *at);
            let Some((_, shard)) = ages.first() else { return };
            // Several at once, as long as no other shard has an older one.
            let next = ages.get(1).map(|(at, _)| *at);
            let dropped = self.counted(shard, |s| {
                let before = s.bytes();
                (0..).take_while(|_| before - s.bytes() < over && s.drop_oldest(now, next)).count()
            });
            self.metrics.evicted.inc_by(dropped as u64);
        }
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
                self.remove_members_before(holder);
            }
            for slot in self.slots.draining() {
                self.send_marker(slot);
            }
            for shard in &self.shards {
                self.counted(shard, |s| s.sweep(now, SWEEP_BUDGET));
            }
            self.metrics.channels.set(self.shards.iter().map(|s| lock(s).channels() as i64).sum());
            self.metrics.history_bytes.set(self.bytes.load(Relaxed) as i64);
        }
    }
}

#[cfg(test)]
#[path = "engine/tests.rs"]
mod tests;
