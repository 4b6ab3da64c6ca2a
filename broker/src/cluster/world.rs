//! What the engine hands out. Nothing here waits: it is called while a shard is held.

use super::forward::Forwards;
use super::interest::Interests;
use super::metrics::Metrics;
use super::nodes::Nodes;
use crate::disk::{Disk, Shard as OnDisk};
use crate::engine::{Ask, Change, Clock, Cluster, Engine, Found, Moment, SHARDS, Store, Submitted, Surveyed};
use crate::mesh::{ForwardError, Mesh, NotSent};
use crate::meta::{Group, Lease, Meta};
use crate::replica::{Floor, Limits, Now};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weir_core::sync::lock;
use weir_wire::entry::{Call, Holder};
use weir_wire::envelope::{Control, Question, Survey};
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::mesh::{Delivery, Reply, Request};
use weir_wire::peer::Outcome;
use weir_wire::replica::Message;

/// Questions of the engine to the group that may wait. They are asked again until they are answered.
pub const ASKS: usize = 4 * SHARDS as usize;
/// A fan-out to all brokers is awaited so long, on top of what the nodes may take.
const FAN_OUT: Duration = Duration::from_secs(2);

pub struct World {
    itself: Weak<World>,
    pub me: BrokerId,
    pub group: Group,
    /// Set right after they are made: they need this.
    pub mesh: OnceLock<Mesh>,
    pub engine: OnceLock<Weak<Engine>>,
    pub disk: Option<Disk>,
    pub limits: Limits,
    pub survey_timeout: Duration,
    lease: Arc<Lease>,
    clock: Clock,
    /// When there was a lease last, by the clock; at first the start.
    leased: AtomicU64,
    found: Mutex<BTreeMap<u16, OnDisk>>,
    /// The state at this process's first lease, where it is one that goes on.
    floor: OnceLock<Arc<Meta>>,
    owners: Vec<AtomicU64>,
    epochs: Vec<AtomicU64>,
    /// The wire version that all members speak.
    wire: AtomicU16,
    /// Changes with each assignment that was followed, and when a shard is served.
    pub turns: watch::Sender<u64>,
    asks: mpsc::Sender<(u16, Ask)>,
    pub interests: Interests,
    pub forwards: Forwards,
    pub nodes: Nodes,
    pub metrics: Metrics,
}

/// What [`World::new`] needs.
pub struct Ground {
    pub group: Group,
    pub disk: Option<Disk>,
    pub found: BTreeMap<u16, OnDisk>,
    pub limits: Limits,
    pub survey_timeout: Duration,
    pub metrics: Metrics,
}

impl World {
    pub fn new(ground: Ground) -> (Arc<World>, mpsc::Receiver<(u16, Ask)>) {
        let (asks, receiver) = mpsc::channel(ASKS);
        let Ground { group, disk, found, limits, survey_timeout, metrics } = ground;
        let clock = Clock::start();
        let none = || (0..SHARDS).map(|_| AtomicU64::new(0)).collect();
        let world = Arc::new_cyclic(|itself| World {
            itself: itself.clone(),
            me: group.id(),
            lease: group.lease(),
            mesh: OnceLock::new(),
            engine: OnceLock::new(),
            disk,
            limits,
            survey_timeout,
            leased: AtomicU64::new(clock.ms(group.now())),
            clock,
            group,
            found: Mutex::new(found),
            floor: OnceLock::new(),
            owners: none(),
            epochs: none(),
            wire: AtomicU16::new(0),
            turns: watch::Sender::new(0),
            asks,
            interests: Interests::default(),
            forwards: Forwards::default(),
            nodes: Nodes::default(),
            metrics,
        });
        (world, receiver)
    }

    pub fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    pub fn owner(&self, shard: u16) -> Option<BrokerId> {
        let owner = self.owners.get(usize::from(shard))?.load(Relaxed);
        (owner != 0).then_some(BrokerId(owner))
    }

    /// The newest epoch of a shard that was followed here.
    pub fn epoch(&self, shard: u16) -> ShardEpoch {
        ShardEpoch(self.epochs.get(usize::from(shard)).map_or(0, |e| e.load(Relaxed)))
    }

    pub fn set_owner(&self, shard: u16, owner: Option<BrokerId>, epoch: ShardEpoch) {
        if let (Some(o), Some(e)) = (self.owners.get(usize::from(shard)), self.epochs.get(usize::from(shard)))
        {
            o.store(owner.map_or(0, |id| id.0), Relaxed);
            e.store(epoch.0, Relaxed);
        }
    }

    pub fn set_wire(&self, version: Option<u16>) {
        self.wire.store(version.unwrap_or(0), Relaxed);
    }

    pub fn set_floor(&self, meta: Arc<Meta>) {
        let _set_once = self.floor.set(meta);
    }

    /// What is on disk of a shard that this broker does not hold any more.
    pub fn forget_found(&self, shard: u16) {
        let found = lock(&self.found).remove(&shard);
        if let (Some(_), Some(disk)) = (found, &self.disk) {
            disk.retire(shard);
        }
    }

    /// How long this broker has been without a lease: unreachable for the others, without a
    /// majority, or (from its start on) in no cluster.
    pub fn without_lease_for(&self) -> Duration {
        let now = self.group.now();
        let last = self.leased.load(Relaxed).max(self.lease.until().map_or(0, |until| self.clock.ms(until)));
        Duration::from_millis(self.clock.ms(now).saturating_sub(last))
    }

    /// Called now and then: a lease that was ended on purpose has no end to look at.
    pub fn note_lease(&self) {
        if self.has_lease() {
            self.leased.fetch_max(self.clock.ms(self.group.now()), Relaxed);
        }
    }

    pub fn has_lease(&self) -> bool {
        self.lease.holds(self.group.now())
    }

    fn tell_all(&self, request: Request) {
        if let Some(mesh) = self.mesh.get().cloned() {
            // In the order of these calls: they are put on their way when the future is first polled.
            tokio::spawn(async move {
                let answers = mesh.fan_out(request, Instant::now() + FAN_OUT).await;
                for (broker, answer) in answers {
                    if let Err(error) = answer {
                        tracing::debug!(%broker, %error, "a broker could not be told");
                    }
                }
            });
        }
    }
}

impl Cluster for World {
    fn me(&self) -> BrokerId {
        self.me
    }

    fn shards(&self) -> u16 {
        SHARDS
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn moment(&self) -> Moment {
        let at = self.group.now();
        Moment { now: Now { at, lease: self.lease.until().unwrap_or(at) }, ms: self.clock.ms(at) }
    }

    fn needs_bytes(&self) -> bool {
        true
    }

    fn wire(&self) -> u16 {
        self.wire.load(Relaxed)
    }

    fn floor(&self, shard: u16) -> Floor {
        let at = self.floor.get().and_then(|meta| meta.shards.get(usize::from(shard)));
        at.map(|a| Floor { epoch: a.epoch, version: a.version }).unwrap_or_default()
    }

    fn found(&self, shard: u16) -> Found {
        let found = lock(&self.found).remove(&shard);
        let Some(OnDisk { restored, state }) = found else { return Found::default() };
        Found { log: Some(restored), state: (!state.is_empty()).then_some(state) }
    }

    fn admit(&self) -> Result<(), &'static str> {
        self.disk.as_ref().map_or(Ok(()), |disk| disk.admit().map_err(|_| "broker.data_dir"))
    }

    fn send(&self, shard: u16, to: BrokerId, message: Message) {
        if let Some(mesh) = self.mesh.get() {
            // Without a link, or room, it is lost, and sent again.
            let _sent = mesh.send_replica(to, shard, message);
        }
    }

    fn store(&self, shard: u16, store: Store) {
        let Some(disk) = &self.disk else { return };
        match store {
            Store::Append { write, at, data } => disk.write(shard, write, at, data),
            Store::Truncate { write, after } => disk.truncate(shard, write, after),
            Store::Install { write, at, resets, data } => disk.install(shard, write, at, resets, data),
            Store::Reset { write, resets, keep } => disk.reset(shard, write, resets, keep),
            Store::Retire => disk.retire(shard),
        }
    }

    fn ask(&self, shard: u16, ask: Ask) {
        if self.asks.try_send((shard, ask)).is_err() {
            self.metrics.asks_dropped.inc();
        }
    }

    fn changed(&self, shard: u16, change: Change) {
        match change {
            Change::Serving { epoch, fresh } => {
                tracing::debug!(shard, epoch = epoch.0, "serving a shard");
                if fresh {
                    tracing::warn!(
                        shard,
                        "a shard begins anew: what was acknowledged before may be missing, and clients are told"
                    );
                }
                self.interests.mark(shard);
                self.turns.send_modify(|turn| *turn += 1);
            }
            Change::Stopped { epoch } => tracing::debug!(shard, epoch = epoch.0, "no longer serving a shard"),
            Change::Retired => tracing::debug!(shard, "no longer a holder of a shard"),
            Change::Broken => drop(self.metrics.broken.inc()),
        }
    }

    fn deliver(&self, shard: u16, epoch: ShardEpoch, to: &[BrokerId], channel: &str, frame: &Bytes) {
        let Some(mesh) = self.mesh.get() else { return };
        for broker in to {
            let (channel, frame) = (channel.to_owned(), frame.clone());
            // Where there is no room, it is told to resync when there is.
            let _sent = mesh.deliver(*broker, Delivery { shard, epoch, channel, frame });
        }
    }

    fn forward(&self, shard: u16, call: Call) -> Submitted {
        match self.itself.upgrade() {
            Some(world) => self.forwards.begin(&world, shard, call),
            None => Outcome::Unavailable.into(),
        }
    }

    fn overtake(&self, call: &Call) {
        self.forwards.overtake(call);
    }

    fn unwanted(&self, shard: u16, channel: &str) {
        if let (Some(mesh), Some(owner)) = (self.mesh.get(), self.owner(shard)) {
            let call = Call::Unsubscribe { channel: channel.to_owned() };
            // Sent on the call. Where that fails all is told anew; the end of a link ends interest too.
            let told = mesh.forward(owner, Request::Call(call), Instant::now() + FAN_OUT);
            let (Some(world), Ok(runtime)) = (self.itself.upgrade(), Handle::try_current()) else { return };
            runtime.spawn(async move {
                match told.await {
                    Ok(Reply::Outcome(_)) | Err(ForwardError::NotSent(NotSent::NoLink | NotSent::Broke)) => {}
                    Ok(_) | Err(_) => world.interests.mark_unwanted(shard),
                }
            });
        }
    }

    fn recheck(&self, shard: u16) {
        self.interests.mark(shard);
    }

    fn members_gone(&self, before: Holder) {
        self.nodes.void(before, Instant::now());
        self.tell_all(Request::MembersGone(before));
    }

    fn control(&self, control: &Control) {
        self.tell_all(Request::Control(control.clone()));
    }

    fn survey(&self, question: &Question) -> Surveyed {
        let nothing = Survey { answers: Vec::new(), missing: Vec::new() };
        let Some(mesh) = self.mesh.get().cloned() else { return Box::pin(std::future::ready(nothing)) };
        let deadline = Instant::now() + self.survey_timeout + FAN_OUT / 4;
        let (request, nodes) = (Request::Survey(question.clone()), self.nodes.by_broker());
        Box::pin(async move {
            let mut sum = nothing;
            for (broker, answer) in mesh.fan_out(request, deadline).await {
                match answer {
                    Ok(Reply::Outcome(Outcome::Survey(survey))) => {
                        sum.answers.extend(survey.answers);
                        sum.missing.extend(survey.missing);
                    }
                    // Nothing is known of the nodes that were attached there.
                    _ => sum.missing.extend(nodes.get(&broker).into_iter().flatten()),
                }
            }
            let answered: Vec<_> = sum.answers.iter().map(|(node, _)| *node).collect();
            // One that has moved meanwhile is asked at both brokers.
            sum.missing.retain(|node| !answered.contains(node));
            sum
        })
    }
}
