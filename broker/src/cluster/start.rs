//! Puts a broker of a cluster together, brings it into the cluster, and out of it.

use super::follow;
use super::interest;
use super::metrics::Metrics;
use super::nodes;
use super::operate::Control;
use super::world::{Ground, World};
use crate::disk::{Disk, Fsync, Identity as DirIdentity, Opened};
use crate::engine::{Ask, Engine, SHARDS, Share};
use crate::error::BindError;
use crate::mesh::{self, Mesh};
use crate::meta::controller::Policy;
use crate::meta::{
    self, BrokerState, Group, Introduction, MemoryStore, Meta, MetaStore, PeerError, Peers, Settings,
    Versions,
};
use crate::metrics::Metrics as BrokerMetrics;
use crate::replica::Limits;
use crate::router::Receiver;
use crate::tls::Tls;
use async_trait::async_trait;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use weir_conf::broker::{Broker as Conf, Fsync as FsyncConf};
use weir_core::drain::Drain;
use weir_wire::entry::SEEDED;
use weir_wire::id::BrokerId;

/// Of this release.
const WIRE: Versions = Versions { min: 1, max: SEEDED };
/// To hand over what this broker owns, or all that it holds, before it stops.
const HAND_OVER: Duration = Duration::from_secs(10);
/// Of that, for a lease: longer than it takes to find another leader. Without one by then there is no majority.
const LEASE_WAIT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// A broker that is on its way into its cluster.
pub struct Started {
    pub engine: Arc<Engine>,
    pub receiver: Receiver,
    pub cluster: Joined,
}

/// This broker's part in the cluster; its tasks end with it.
pub struct Joined {
    pub mesh: Mesh,
    world: Arc<World>,
    conf: Arc<Conf>,
    /// Why it cannot go on.
    failed: watch::Receiver<Option<String>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// `addr` is where the listener is; the mesh ends when `drain` begins.
pub async fn start(
    conf: &Conf,
    shares: Vec<Share>,
    addr: SocketAddr,
    tls: Option<Tls>,
    registry: &mut Registry,
    metrics: BrokerMetrics,
    drain: Drain,
) -> Result<Started, BindError> {
    let failed = |error: &dyn std::fmt::Display| BindError::Cluster(error.to_string());
    let opened = open(conf).await?;
    let (store, disk, events, found, goes_on) = match opened {
        Some(Opened { disk, events, meta, shards, identity, .. }) => {
            (meta, Some(disk), Some(events), shards, identity.is_some())
        }
        None => (Arc::new(MemoryStore) as Arc<dyn MetaStore>, None, None, Default::default(), false),
    };
    let who = Introduction { name: name(conf, addr), addr: address(conf, addr), wire: WIRE };
    let late = Arc::new(Late::default());
    let group = Group::start(group_conf(conf, who.clone()), store, late.clone()).await;
    let group = group.map_err(|error| failed(&error))?;
    group.follow();
    let (id, cluster) = (group.id(), group.watch().borrow().cluster.map_or(0, |id| id.0));
    let (world, asks) = World::new(Ground {
        group,
        limits: limits(conf, disk.is_some()),
        disk,
        found,
        survey_timeout: conf.survey_timeout,
        metrics: Metrics::register(registry),
    });
    let (engine_conf, of) = (conf.clone(), world.clone());
    let made = tokio::task::spawn_blocking(move || Engine::of(engine_conf, &shares, metrics, |_| of)).await;
    let (engine, receiver) = match made {
        Ok(Ok(made)) => made,
        Ok(Err(error)) => return Err(BindError::Router(error.to_string())),
        Err(error) => return Err(BindError::Router(error.to_string())),
    };
    let _set_once = world.engine.set(Arc::downgrade(&engine));
    let identity = mesh::Identity { id, cluster, name: who.name, addr: who.addr, wire: WIRE };
    let mesh_conf = mesh::Conf { tls, ..mesh::Conf::new(conf.secret.clone()) };
    let mesh = Mesh::start(mesh_conf, identity, world.clone(), registry, drain);
    let _set_once = world.mesh.set(mesh.clone());
    let _set_once = late.0.set(mesh.clone());
    let (failure, failed) = watch::channel(None);
    let conf = Arc::new(conf.clone());
    let tasks = spawn(&world, &conf, asks, events, goes_on, failure);
    Ok(Started { engine, receiver, cluster: Joined { mesh, world, conf, failed, tasks } })
}

fn spawn(
    world: &Arc<World>,
    conf: &Arc<Conf>,
    asks: mpsc::Receiver<(u16, Ask)>,
    events: Option<crate::disk::Events>,
    goes_on: bool,
    failure: watch::Sender<Option<String>>,
) -> Vec<AbortHandle> {
    let mut tasks = vec![
        tokio::spawn(enter(world.clone(), conf.clone(), goes_on, failure)).abort_handle(),
        tokio::spawn(follow::wishes(world.clone(), asks)).abort_handle(),
        tokio::spawn(follow::ticks(world.clone())).abort_handle(),
        tokio::spawn(interest::run(world.clone())).abort_handle(),
        tokio::spawn(nodes::run(world.clone(), conf.node_lease)).abort_handle(),
    ];
    if let Some(events) = events {
        tasks.push(tokio::spawn(follow::disk(world.clone(), events)).abort_handle());
    }
    tasks
}

/// Into the cluster, and then along with it.
async fn enter(world: Arc<World>, conf: Arc<Conf>, goes_on: bool, failure: watch::Sender<Option<String>>) {
    let entered = into_cluster(&world, &conf, goes_on).await;
    if let Err(why) = entered {
        tracing::error!(why, "this broker cannot be part of its cluster");
        failure.send_replace(Some(why));
        return;
    }
    tokio::select! {
        () = follow::assignments(world.clone()) => {}
        why = stopped(&world) => {
            tracing::error!(why, "this broker's part in the group of brokers has ended");
            failure.send_replace(Some(why));
        }
    }
}

async fn into_cluster(world: &Arc<World>, conf: &Conf, goes_on: bool) -> Result<(), String> {
    let (seeds, group) = (conf.seeds(), &world.group);
    // Nobody to ask, and something to keep: a cluster of one.
    let begins = conf.bootstrap || seeds.is_empty();
    let joined = match begins {
        true => group.join_or_bootstrap(&seeds, settings(conf)).await,
        false => group.join(&seeds).await,
    };
    let cluster = joined.map_err(|error| error.to_string())?;
    if let Some(disk) = &world.disk {
        let identity = DirIdentity { cluster, broker: world.me };
        disk.claim(identity).map_err(|error| error.to_string())?;
    }
    let meta = group.registered().await;
    if meta.shards.len() != usize::from(SHARDS) {
        return Err(format!("the cluster has {} shards, this version knows {SHARDS}", meta.shards.len()));
    }
    if goes_on {
        world.set_floor(meta);
    }
    Ok(())
}

/// Ends with the group's reason to stop.
async fn stopped(world: &World) -> String {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        if let Some(why) = world.group.stopped() {
            return why;
        }
    }
}

impl Joined {
    pub fn control(&self) -> Control {
        Control::new(self.world.clone(), settings(&self.conf))
    }

    /// Ends with the reason why this broker cannot go on.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        let why = failed.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// Before it stops: what it owns goes to others; so does all that it holds, where it would not
    /// come back with it.
    pub async fn hand_over(&self) {
        let group = &self.world.group;
        let deadline = Instant::now() + HAND_OVER;
        if !self.can_hand_over().await {
            return;
        }
        let handed = async {
            match self.world.disk {
                Some(_) => group.drain(deadline).await,
                None => group.leave(deadline).await,
            }
        };
        let mut watch = group.watch();
        tokio::select! {
            done = handed => match done {
                Ok(()) => tracing::info!("what this broker held is in others' hands"),
                Err(error) => tracing::warn!(%error, "stopping without having handed over everything"),
            },
            _all = watch.wait_for(|meta| meta.is_member(self.world.me) && !self.has_taker(meta)) => {
                tracing::info!("all brokers stop: nothing is handed over");
            }
        }
    }

    /// Whether somebody can take what this broker holds, and it may be given: waits for a lease that is missing just now.
    async fn can_hand_over(&self) -> bool {
        let until = Instant::now() + LEASE_WAIT;
        loop {
            if !self.has_taker(&self.world.group.watch().borrow()) {
                return false;
            }
            if self.world.has_lease() {
                return true;
            }
            if Instant::now() >= until {
                tracing::warn!("stopping without having handed over anything: this broker has no lease");
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Another broker is a member and stays.
    fn has_taker(&self, meta: &Meta) -> bool {
        let me = self.world.me;
        meta.is_member(me) && meta.brokers.iter().any(|(id, b)| *id != me && b.state == BrokerState::Active)
    }

    /// The last thing: nothing is acknowledged any more, and what was is on disk.
    pub async fn stop(self) {
        self.world.group.stop().await;
        let world = self.world.clone();
        drop(self);
        let closed = tokio::task::spawn_blocking(move || world.disk.as_ref().map(Disk::close)).await;
        if closed.is_err() {
            tracing::error!("the data directory was not closed in order");
        }
    }
}

async fn open(conf: &Conf) -> Result<Option<Opened>, BindError> {
    if conf.data_dir.is_empty() {
        return Ok(None);
    }
    let fsync = match conf.fsync {
        FsyncConf::Always => Fsync::Always,
        FsyncConf::Interval => Fsync::Interval(conf.fsync_interval),
        FsyncConf::Never => Fsync::Never,
    };
    let dir = PathBuf::from(&conf.data_dir);
    let opened = tokio::task::spawn_blocking(move || Disk::open(&dir, fsync)).await;
    let opened = opened.map_err(|error| BindError::Cluster(error.to_string()))?;
    let mut opened = opened.map_err(|error| BindError::Cluster(error.to_string()))?;
    let report = &opened.report;
    tracing::info!(
        shards = opened.shards.len(),
        segments = report.segments,
        bytes = report.bytes,
        clean = report.clean,
        "broker.data_dir read"
    );
    if let Some(cut) = &report.cut {
        tracing::warn!(?cut, "a write under way when the last process ended was cut off");
    }
    if report.may_have_lost {
        tracing::warn!(
            "the machine went down without a sync (broker.fsync): this broker comes back as a new one"
        );
        let forgotten = opened.disk.forget_group().await;
        forgotten.map_err(|error| BindError::Cluster(error.to_string()))?;
        opened.identity = None;
    }
    Ok(Some(opened))
}

fn name(conf: &Conf, addr: SocketAddr) -> String {
    if !conf.name.is_empty() {
        return conf.name.clone();
    }
    let host = weir_core::process::host_name();
    format!("{host}:{}", addr.port())
}

fn address(conf: &Conf, addr: SocketAddr) -> String {
    match conf.address.is_empty() {
        true => addr.to_string(),
        false => conf.address.clone(),
    }
}

fn settings(conf: &Conf) -> Settings {
    Settings { shards: SHARDS, copies: conf.copies, lease: conf.lease }
}

fn group_conf(conf: &Conf, who: Introduction) -> meta::Conf {
    let durable = !conf.data_dir.is_empty();
    let policy = Policy {
        unclean_after: conf.unclean_after.or(durable),
        forget_after: conf.forget_after,
        repairs: conf.repairs,
        moves: conf.moves,
    };
    meta::Conf { policy, ..meta::Conf::new(who) }
}

/// There are many shards, and what one keeps for those who are behind is soon replaced by its state.
fn limits(conf: &Conf, disk: bool) -> Limits {
    let most = 2 * conf.message_size + (64 << 10);
    Limits {
        disk,
        tail_entries: 8192,
        tail_bytes: most.max(4 << 20),
        kept_entries: 4096,
        kept_bytes: 512 << 10,
        flight_entries: 4096,
        flight_bytes: most.max(2 << 20),
        ..Limits::default()
    }
}

/// The mesh needs to know who this broker is, which the group says; the group calls over the mesh.
#[derive(Default)]
struct Late(OnceLock<Mesh>);

#[async_trait]
impl Peers for Late {
    async fn call(
        &self,
        to: Option<BrokerId>,
        addr: &str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, PeerError> {
        match self.0.get() {
            Some(mesh) => mesh.call(to, addr, request, deadline).await,
            None => Err(PeerError::Unreachable("this broker is starting".into())),
        }
    }
}
