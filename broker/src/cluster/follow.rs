//! Between the group and the engine: assignments in the order of their versions, and the engine's
//! own wishes for its shards; the clock that replicas need; what the disk has done.

use super::world::World;
use crate::disk::{Event, Events, State};
use crate::engine::{Ask, SHARDS};
use crate::meta::{Command, Group, Meta};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weir_wire::id::BrokerId;

/// Replicas look at their deadlines this often: less than half of `Limits::resend`.
const TICK: Duration = Duration::from_millis(40);
/// A heartbeat of all shards goes out with each so many ticks.
const BEAT: u32 = 2;
/// Gauges are set with each so many ticks.
const GAUGES: u32 = 25;
/// Wishes that are submitted together, and for how long one tries.
const BATCH: usize = 512;
const SUBMIT: Duration = Duration::from_secs(2);

/// Until it is aborted.
pub async fn assignments(world: Arc<World>) {
    let mut watch = world.group.watch();
    let mut seen = vec![(0, 0); usize::from(SHARDS)];
    let mut was_member = false;
    loop {
        let meta = watch.borrow_and_update().clone();
        if meta.cluster.is_some() {
            apply(&world, &meta, &mut seen);
            let is_member = meta.is_member(world.me);
            if was_member && !is_member {
                tracing::warn!("this broker is no longer a member of the cluster; a restart joins it anew");
            }
            was_member = is_member;
        }
        world.group.followed(meta.revision);
        world.turns.send_modify(|turn| *turn += 1);
        if watch.changed().await.is_err() {
            return;
        }
    }
}

fn apply(world: &World, meta: &Meta, seen: &mut [(u64, u64)]) {
    let (Some(engine), Some(mesh)) = (world.engine(), world.mesh.get()) else { return };
    mesh.set_cluster(meta.cluster.map_or(0, |id| id.0));
    let members: Vec<(BrokerId, String)> = meta.brokers.iter().map(|(id, b)| (*id, b.addr.clone())).collect();
    mesh.set_members(&members);
    world.set_wire(meta.wire());
    for (number, assignment) in (0..).zip(&meta.shards) {
        let Some((version, epoch)) = seen.get_mut(usize::from(number)) else { return };
        if *version == assignment.version {
            continue;
        }
        let moved = *epoch != assignment.epoch.0;
        (*version, *epoch) = (assignment.version, assignment.epoch.0);
        // Before the engine acts on it: what it delivers then is of this epoch.
        world.set_owner(number, assignment.owner, assignment.epoch);
        if !assignment.holds(world.me) {
            world.forget_found(number);
        }
        engine.assign(number, assignment);
        if moved {
            world.interests.mark(number);
        }
    }
}

/// Passes on what the engine wants of the group. Until it is aborted.
pub async fn wishes(world: Arc<World>, mut asks: mpsc::Receiver<(u16, Ask)>) {
    let mut batch = Vec::new();
    while asks.recv_many(&mut batch, BATCH).await > 0 {
        // Of each shard the last one counts.
        let mut last: BTreeMap<u16, Command> = BTreeMap::new();
        for (shard, ask) in batch.drain(..) {
            last.insert(shard, command(shard, world.me, ask));
        }
        submit(&world.group, last.into_values().collect()).await;
    }
}

fn command(shard: u16, by: BrokerId, ask: Ask) -> Command {
    match ask {
        Ask::Shrink { version, without } => Command::Shrink { shard, version, by, without },
        Ask::Grow { version, add } => Command::Grow { shard, version, by, add },
        Ask::Move { version, to } if to == by => Command::Restart { shard, version, by },
        Ask::Move { version, to } => Command::Move { shard, version, by, to },
    }
}

async fn submit(group: &Group, commands: Vec<Command>) {
    match group.submit(commands.clone(), Instant::now() + SUBMIT).await {
        Ok(replies) => {
            for (command, reply) in commands.iter().zip(replies) {
                if let Err(refusal) = reply {
                    tracing::debug!(?command, %refusal, "the group did not change a shard");
                }
            }
        }
        // Asked again by the replicas, as long as they want it.
        Err(error) => tracing::debug!(%error, "the group could not be asked to change shards"),
    }
}

/// Until it is aborted.
pub async fn ticks(world: Arc<World>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 0_u32.. {
        ticks.tick().await;
        let (Some(engine), Some(mesh)) = (world.engine(), world.mesh.get()) else { return };
        engine.tick_replicas();
        world.note_lease();
        if count % BEAT == 0 {
            for peer in mesh.linked() {
                let beats = engine.beats(peer);
                if !beats.is_empty() {
                    // One that finds no room is followed by another.
                    let _sent = mesh.send_beats(peer, beats);
                }
            }
        }
        if count % GAUGES == 0 {
            gauges(&world);
        }
    }
}

fn gauges(world: &World) {
    let Some(engine) = world.engine() else { return };
    let meta = world.group.watch().borrow().clone();
    let (m, holdings, health) = (&world.metrics, engine.holdings(), meta.health());
    m.lease.set(i64::from(world.has_lease()));
    m.members.set(meta.brokers.len() as i64);
    m.held.set(holdings.held as i64);
    m.owned.set(holdings.owned as i64);
    m.serving.set(holdings.serving as i64);
    m.lagging.set(holdings.lagging as i64);
    m.max_lag.set(i64::try_from(holdings.max_lag).unwrap_or(i64::MAX));
    m.without_owner.set(health.without_owner as i64);
    m.short_of_copies.set(health.short_of_copies as i64);
    let disk = world.disk.as_ref();
    m.disk_waiting.set(disk.map_or(0, |d| d.waiting_bytes()) as i64);
    m.disk_ok.set(i64::from(disk.is_none_or(|d| d.state() == State::Ok)));
}

/// What the disk has done, and what it wants. Until it is aborted.
pub async fn disk(world: Arc<World>, mut events: Events) {
    loop {
        let events = events.next().await;
        let (Some(engine), Some(disk)) = (world.engine(), &world.disk) else { return };
        for event in events {
            match event {
                Event::Persisted { shard, write } => engine.persisted(shard, write),
                Event::SnapshotWanted { shard } => {
                    engine.keep_state(shard, |at, data| disk.snapshot(shard, at, data));
                }
                Event::State(State::Closed) => return,
                Event::State(State::Ok) => tracing::info!("broker.data_dir can be written again"),
                Event::State(state) => {
                    tracing::error!(?state, "broker.data_dir cannot be written: publications are refused");
                }
            }
        }
    }
}
