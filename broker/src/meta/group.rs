//! A broker's part in the group: the handle for the layers above, and its tasks.
//!
//! | task | |
//! |---|---|
//! | `leader::run` | while this broker leads: decides and proposes |
//! | `leader::confirm` | confirms that it leads, for all who wait for a lease at once |
//! | `renew::run` | asks the leader for this broker's lease |
//!
//! They end with the last handle.

mod join;
mod leader;
pub mod leave;
mod renew;
mod serve;
mod status;
mod submit;

use super::call::{Answer, Ask, Call, No, decode, encode};
use super::command::{Command, Reply};
use super::controller::Policy;
use super::lease::{Lease, Timing};
use super::peers::{PeerError, Peers};
use super::raft::log::{Log, slot};
use super::raft::machine::Machine;
use super::raft::network::Network;
use super::raft::{Raft, Term};
use super::state::{ClusterId, Introduction, Meta, Settings};
use super::store::{MetaStore, Slot};
use bytes::Bytes;
use leader::Leading;
use openraft::{Config, ServerState, SnapshotPolicy};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use weir_core::sync::lock;
use weir_wire::id::BrokerId;

pub use join::JoinError;
pub use status::Status;
pub use submit::SubmitError;

#[derive(Clone)]
pub struct Conf {
    pub who: Introduction,
    pub timing: Timing,
    pub policy: Policy,
    /// The log is cut off at a snapshot after so many entries; a snapshot is as long as a few hundred.
    pub snapshot_after: u64,
    /// Monotonic; another one in tests.
    pub clock: Clock,
}

pub type Clock = Arc<dyn Fn() -> std::time::Instant + Send + Sync>;

impl Conf {
    pub fn new(who: Introduction) -> Conf {
        let (timing, policy) = (Timing::default(), Policy::default());
        Conf { who, timing, policy, snapshot_after: 2000, clock: monotonic() }
    }
}

/// The machine's monotonic clock (tokio's, which tests can hold).
pub fn monotonic() -> Clock {
    Arc::new(|| Instant::now().into_std())
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the state of the group cannot be read: {0}")]
    Store(#[from] io::Error),
    #[error("{0}")]
    Raft(String),
}

#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
    _tasks: Arc<Tasks>,
}

struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

struct Inner {
    me: BrokerId,
    conf: Conf,
    raft: Raft,
    peers: Arc<dyn Peers>,
    meta: watch::Receiver<Arc<Meta>>,
    lease: Arc<Lease>,
    leading: Mutex<Option<Leading>>,
    renewals: mpsc::Sender<Renewal>,
    would_bootstrap: AtomicBool,
    /// The revision that the layer above has acted on; its maximum where there is no such layer.
    followed: watch::Sender<u64>,
    /// The state as of this process's first lease.
    registered: watch::Sender<Option<Arc<Meta>>>,
}

/// Somebody who wants a lease.
struct Renewal {
    id: BrokerId,
    answer: oneshot::Sender<Answer>,
}

/// Who may wait for a lease at once: some for each broker that a cluster may have.
const RENEWALS: usize = 256;
/// Longest time for a snapshot of the state, at most a few hundred kilobytes.
const SNAPSHOT: Duration = Duration::from_secs(5);

impl Group {
    /// Starts this broker's part. It belongs to no cluster until it bootstraps one or joins one,
    /// except that one with a state of before goes on.
    pub async fn start(
        conf: Conf,
        store: Arc<dyn MetaStore>,
        peers: Arc<dyn Peers>,
    ) -> Result<Group, StartError> {
        let saved = store.load().await?;
        let me = match slot(&saved, Slot::Identity)? {
            Some(id) => id,
            None => {
                let id = BrokerId(rand::random());
                store.set(Slot::Identity, super::raft::log::encode(&id)?).await?;
                id
            }
        };
        let log = Log::open(&saved, store.clone())?;
        let (machine, meta) = Machine::open(me, &saved, store)?;
        let network = Network { me, meta: meta.clone(), peers: peers.clone() };
        let config = Arc::new(raft_config(&conf)?);
        let raft = Raft::new(me.0, config, network, log, machine).await;
        let raft = raft.map_err(|e| StartError::Raft(e.to_string()))?;
        let lease = Arc::new(Lease::new((conf.clock)()));
        let (renewals, waiting) = mpsc::channel(RENEWALS);
        let (leading, would_bootstrap) = (Mutex::new(None), AtomicBool::new(false));
        let inner = Arc::new(Inner {
            me,
            conf,
            raft,
            peers,
            meta,
            lease,
            leading,
            renewals,
            would_bootstrap,
            followed: watch::Sender::new(u64::MAX),
            registered: watch::Sender::new(None),
        });
        let tasks = vec![
            tokio::spawn(leader::run(inner.clone())).abort_handle(),
            tokio::spawn(leader::confirm(inner.clone(), waiting)).abort_handle(),
            tokio::spawn(renew::run(inner.clone())).abort_handle(),
        ];
        Ok(Group { inner, _tasks: Arc::new(Tasks(tasks)) })
    }

    /// This incarnation.
    pub fn id(&self) -> BrokerId {
        self.inner.me
    }

    /// The state, in the order in which it changes (some versions may be skipped).
    pub fn watch(&self) -> watch::Receiver<Arc<Meta>> {
        self.inner.meta.clone()
    }

    /// Until when this broker may act as the owner that the state says it is.
    pub fn lease(&self) -> Arc<Lease> {
        self.inner.lease.clone()
    }

    /// From now on a lease counts only when the layer above says, by [`Group::followed`], that it
    /// acts on a state as new as the lease was granted on.
    pub fn follow(&self) {
        self.inner.followed.send_replace(0);
    }

    pub fn followed(&self, revision: u64) {
        self.inner.followed.send_replace(revision);
    }

    /// The state as of the first lease that this process was granted: whatever was decided for a
    /// process before it is in there.
    pub async fn registered(&self) -> Arc<Meta> {
        let mut registered = self.inner.registered.subscribe();
        loop {
            if let Some(meta) = registered.borrow_and_update().clone() {
                return meta;
            }
            if registered.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The clock that [`Group::lease`] goes by.
    pub fn now(&self) -> std::time::Instant {
        (self.inner.conf.clock)()
    }

    /// Changes the state, by whoever leads. A reply for each command.
    pub async fn submit(&self, commands: Vec<Command>, deadline: Instant) -> Result<Vec<Reply>, SubmitError> {
        self.inner.submit(commands, deadline).await
    }

    /// Stops this broker's part. What it holds of the group's state stays in its store.
    pub async fn stop(&self) {
        self.inner.lease.end();
        if self.inner.raft.shutdown().await.is_err() {
            tracing::warn!("this broker's part in the group had stopped in disorder");
        }
    }

    /// Why this broker's part in the group has ended, if it has.
    pub fn stopped(&self) -> Option<String> {
        self.inner.stopped()
    }

    /// Answers what a peer asked by [`Peers::call`].
    pub async fn serve(&self, request: Bytes) -> Bytes {
        encode(&self.inner.serve(&request).await)
    }
}

fn raft_config(conf: &Conf) -> Result<Config, StartError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let timing = &conf.timing;
    let config = Config {
        cluster_name: "weir".into(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        install_snapshot_timeout: ms(SNAPSHOT),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(conf.snapshot_after),
        max_in_snapshot_log_to_keep: conf.snapshot_after / 4,
        // Who lags by more than is kept gets the snapshot.
        replication_lag_threshold: conf.snapshot_after * 2,
        ..Config::default()
    };
    config.validate().map_err(|e| StartError::Raft(e.to_string()))
}

impl Inner {
    fn now(&self) -> std::time::Instant {
        (self.conf.clock)()
    }

    fn meta(&self) -> Arc<Meta> {
        self.meta.borrow().clone()
    }

    fn leading(&self) -> MutexGuard<'_, Option<Leading>> {
        lock(&self.leading)
    }

    /// The term in which this broker leads, as far as it knows.
    fn term(&self) -> Option<Term> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leads = metrics.state == ServerState::Leader && metrics.vote.is_committed();
        leads.then(|| Term { number: metrics.vote.leader_id.term, leader: metrics.vote.leader_id.node_id })
    }

    /// Who leads and where, if known. Not this broker unless it leads.
    fn leader(&self) -> Option<(BrokerId, String)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        let meta = self.meta.borrow();
        let addr = meta.brokers.get(&BrokerId(id)).map(|b| b.addr.clone());
        let addr = addr.or_else(|| {
            let mut nodes = metrics.membership_config.nodes();
            nodes.find(|(other, _)| **other == id).map(|(_, node)| node.addr.clone())
        });
        Some((BrokerId(id), addr?))
    }

    fn stopped(&self) -> Option<String> {
        self.raft.metrics().borrow().running_state.as_ref().err().map(ToString::to_string)
    }

    async fn ask(
        &self,
        to: Option<BrokerId>,
        addr: &str,
        ask: Ask,
        deadline: Instant,
    ) -> Result<Result<Answer, No>, PeerError> {
        let cluster = self.meta.borrow().cluster;
        let call = Call { from: self.me, to, cluster, ask };
        let answer = timeout_at(deadline, self.peers.call(to, addr, encode(&call), deadline)).await;
        let answer = answer.unwrap_or_else(|_| Err(PeerError::NoAnswer("in time".into())))?;
        Ok(match decode(&answer) {
            Ok(Answer::No(no)) => Err(no),
            Ok(answer) => Ok(answer),
            Err(no) => Err(no),
        })
    }
}

impl Group {
    /// Makes a new cluster with this broker as its first. Not again once it is in one.
    pub async fn bootstrap(&self, settings: Settings, deadline: Instant) -> Result<ClusterId, JoinError> {
        self.inner.bootstrap(settings, deadline).await
    }

    /// Becomes a member of the cluster that one of the seeds belongs to, however long that takes.
    /// This broker itself may be among the seeds. Fails only for what waiting would not change.
    pub async fn join(&self, seeds: &[String]) -> Result<ClusterId, JoinError> {
        self.inner.enter(seeds, None).await
    }

    /// As [`Group::join`], but makes a new cluster as soon as most of the seeds, counting this
    /// broker, say that they belong to none. So a first broker that lost its state does not make
    /// a second cluster beside the one that goes on without it.
    pub async fn join_or_bootstrap(
        &self,
        seeds: &[String],
        settings: Settings,
    ) -> Result<ClusterId, JoinError> {
        self.inner.would_bootstrap.store(true, Ordering::Relaxed);
        let entered = self.inner.enter(seeds, Some(settings)).await;
        self.inner.would_bootstrap.store(false, Ordering::Relaxed);
        entered
    }

    /// What an operator wants to see. Asks the leader for what only it knows.
    pub async fn status(&self, deadline: Instant) -> Status {
        self.inner.status(deadline).await
    }
}
