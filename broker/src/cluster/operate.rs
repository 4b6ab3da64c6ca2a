//! What operators ask of a broker in a cluster, and what they see. JSON, for the admin listener.

use super::world::World;
use crate::disk::State;
use crate::meta::group::Status;
use crate::meta::{Command, Meta, Settings};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::Instant;
use weir_wire::id::BrokerId;

/// For whatever an operator waits.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);

/// A handle for operators.
#[derive(Clone)]
pub struct Control {
    world: Arc<World>,
    settings: Settings,
}

impl Control {
    pub(super) fn new(world: Arc<World>, settings: Settings) -> Control {
        Control { world, settings }
    }

    /// Members, shards, links, and whether all is well.
    pub async fn status(&self) -> Value {
        let (world, group) = (&self.world, &self.world.group);
        let status = group.status(Instant::now() + LOOK).await;
        let meta = group.watch().borrow().clone();
        let (health, holdings) = (meta.health(), world.engine().map(|e| e.holdings()).unwrap_or_default());
        let links = world.mesh.get().map(|mesh| mesh.peers()).unwrap_or_default();
        let disk = world.disk.as_ref();
        let serves_all = holdings.owned == holdings.serving
            && holdings.owned == meta.shards.iter().filter(|s| s.owner == Some(world.me)).count();
        let healthy = health.is_good()
            && serves_all
            && world.has_lease()
            && status.leader.is_some()
            && status.stopped.is_none()
            && health.moving == 0
            && world.interests.waiting() == 0
            && meta.brokers.keys().all(|id| self.is_linked(*id))
            && disk.is_none_or(|d| d.state() == State::Ok);
        json!({
            "id": status.me.to_string(),
            "name": meta.name(world.me),
            "wire": meta.wire(),
            "cluster": status.cluster.map(|id| id.to_string()),
            "leader": status.leader.map(|id| meta.name(id)),
            "term": status.term,
            "revision": status.revision,
            "lease_left_ms": millis(status.lease_left),
            "complete": status.complete,
            "stopped": status.stopped,
            "healthy": healthy,
            "members": self.members(&status, &meta),
            "shards": {
                "total": health.shards,
                "without_owner": health.without_owner,
                "short_of_copies": health.short_of_copies,
                "moving": health.moving,
                "owned": holdings.owned,
                "held": holdings.held,
                "serving": holdings.serving,
                "lagging": holdings.lagging,
                "max_lag": holdings.max_lag,
            },
            "interest": { "channels": holdings.channels, "brokers": holdings.brokers },
            "peers": links.iter().map(|link| json!({
                "id": link.id.to_string(),
                "name": link.name,
                "addr": link.addr,
                "linked": link.up.is_some(),
                "up_s": link.up.map(|up| up.as_secs()),
                "rtt_us": link.rtt.map(|rtt| rtt.as_micros().min(u128::from(u64::MAX)) as u64),
                "wire": link.wire,
                "untaken_bytes": link.untaken,
                "queued_bytes": link.queued.iter().map(|(_, bytes)| *bytes).sum::<usize>(),
                "behind": link.behind,
                "unanswered": link.unanswered,
                "error": link.error,
            })).collect::<Vec<_>>(),
            "disk": {
                "state": disk.map_or("none".into(), |d| format!("{:?}", d.state()).to_lowercase()),
                "waiting_bytes": disk.map_or(0, |d| d.waiting_bytes()),
                "log_bytes": disk.map_or(0, |d| d.counts().log_bytes.load(Relaxed)),
                "segments": disk.map_or(0, |d| d.counts().segments.load(Relaxed)),
                "written_bytes": disk.map_or(0, |d| d.counts().written_bytes.load(Relaxed)),
                "syncs": disk.map_or(0, |d| d.counts().syncs.load(Relaxed)),
                "errors": disk.map_or(0, |d| d.counts().errors.load(Relaxed)),
            },
        })
    }

    fn members(&self, status: &Status, meta: &Meta) -> Vec<Value> {
        let world = &self.world;
        let members = status.members.iter().map(|m| {
            json!({
                "id": m.id.to_string(),
                "name": m.broker.name,
                "addr": m.broker.addr,
                "state": format!("{:?}", m.broker.state).to_lowercase(),
                "voter": m.broker.voter,
                "me": m.id == world.me,
                "linked": self.is_linked(m.id),
                "owned": meta.shards.iter().filter(|s| s.owner == Some(m.id)).count(),
                "held": meta.shards.iter().filter(|s| s.holds(m.id)).count(),
                "last_heard_ms": m.last_heard.map(millis),
            })
        });
        members.collect()
    }

    /// Which broker owns and holds which shard.
    pub fn shards(&self) -> Value {
        let meta = self.meta();
        let names = |ids: &[BrokerId]| ids.iter().map(|id| meta.name(*id)).collect::<Vec<_>>();
        let shards = meta.shards.iter().enumerate().map(|(n, s)| {
            json!({
                "shard": n,
                "epoch": s.epoch.0,
                "owner": s.owner.map(|id| meta.name(id)),
                "in_sync": names(&s.in_sync),
                "catching_up": names(&s.catching_up),
                "hand_to": s.hand_to.map(|id| meta.name(id)),
                "resets": s.resets,
            })
        });
        shards.collect()
    }

    /// Begins a new cluster with this broker as its first.
    pub async fn bootstrap(&self) -> Result<Value, String> {
        let cluster = self.world.group.bootstrap(self.settings.clone(), Instant::now() + PATIENCE).await;
        cluster.map(|id| json!({ "cluster": id.to_string() })).map_err(|error| error.to_string())
    }

    /// Joins the cluster of the broker at this address.
    pub async fn join(&self, seed: &str) -> Result<Value, String> {
        let seeds = [seed.to_owned()];
        let joined = tokio::time::timeout(PATIENCE, self.world.group.join(&seeds)).await;
        let joined = joined.map_err(|_| format!("no cluster was found at {seed} in {PATIENCE:?}"))?;
        joined.map(|id| json!({ "cluster": id.to_string() })).map_err(|error| error.to_string())
    }

    /// Gives everything to the others and leaves the cluster.
    pub async fn leave(&self) -> Result<Value, String> {
        self.world.group.leave(Instant::now() + PATIENCE).await.map_err(|error| error.to_string())?;
        Ok(json!({ "left": true }))
    }

    /// Gives up what this broker owns; it stays a member and a copy.
    pub async fn drain(&self) -> Result<Value, String> {
        self.world.group.drain(Instant::now() + PATIENCE).await.map_err(|error| error.to_string())?;
        Ok(json!({ "drained": true }))
    }

    /// Asks a shard's owner to hand it to another broker that is in sync.
    pub async fn hand(&self, shard: u16, to: &str) -> Result<Value, String> {
        let meta = self.meta();
        let to = by_name(&meta, to)?;
        let version = version(&meta, shard)?;
        self.submit(Command::HandOver { shard, version, to: Some(to) }).await?;
        let mut watch = self.world.group.watch();
        let owned = |meta: &Arc<Meta>| meta.shards.get(usize::from(shard)).and_then(|s| s.owner) == Some(to);
        let moved = tokio::time::timeout(PATIENCE, watch.wait_for(owned)).await;
        moved
            .map_err(|_| format!("the shard was not handed over in {PATIENCE:?}"))?
            .map_err(|e| e.to_string())?;
        Ok(json!({ "shard": shard, "owner": self.meta().name(to) }))
    }

    /// What the brokers in sync with a shard hold is given up: they will not return.
    pub async fn give_up(&self, shard: u16) -> Result<Value, String> {
        let version = version(&self.meta(), shard)?;
        self.submit(Command::GiveUp { shard, version }).await?;
        Ok(json!({ "shard": shard, "given_up": true }))
    }

    /// Whether this broker may serve what it owns: for readiness.
    pub fn is_ready(&self) -> bool {
        self.world.has_lease()
    }

    fn is_linked(&self, id: BrokerId) -> bool {
        id == self.world.me || self.world.mesh.get().is_some_and(|mesh| mesh.is_linked(id))
    }

    fn meta(&self) -> Arc<Meta> {
        self.world.group.watch().borrow().clone()
    }

    async fn submit(&self, command: Command) -> Result<(), String> {
        let replies = self.world.group.submit(vec![command], Instant::now() + PATIENCE).await;
        let reply = replies.map_err(|error| error.to_string())?.into_iter().next();
        reply.unwrap_or(Ok(())).map_err(|refusal| refusal.to_string())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn by_name(meta: &Meta, name: &str) -> Result<BrokerId, String> {
    let found = meta.brokers.iter().find(|(id, b)| b.name == name || id.to_string() == name);
    found.map(|(id, _)| *id).ok_or_else(|| format!("there is no broker {name:?} in the cluster"))
}

fn version(meta: &Meta, shard: u16) -> Result<u64, String> {
    let known = meta.shards.get(usize::from(shard));
    known.map(|s| s.version).ok_or_else(|| format!("there is no shard {shard}"))
}
