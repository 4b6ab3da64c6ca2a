//! Tells each shard's owner what nodes here want of it, and the nodes where these channels stand:
//! when a shard gets another owner, when a link comes up, when deliveries may have been lost. All
//! that is wanted of a shard is told at once, so nothing depends on what was told before.

use super::world::World;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use weir_core::sync::lock;
use weir_wire::mesh::{Reply, Request};

/// Shards that are told at once.
const AT_ONCE: usize = 32;
const ANSWER: Duration = Duration::from_secs(3);
/// Before a shard is told again that could not be told.
const AGAIN: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Interests {
    /// True: also where nothing is wanted, since the owner may think so.
    marked: Mutex<BTreeMap<u16, bool>>,
    wake: Notify,
}

impl Interests {
    /// To be told (again); at most once for each shard waits.
    pub fn mark(&self, shard: u16) {
        self.put(shard, false);
    }

    /// The owner could not be told that something is wanted no more.
    pub fn mark_unwanted(&self, shard: u16) {
        self.put(shard, true);
    }

    fn put(&self, shard: u16, unwanted: bool) {
        *lock(&self.marked).entry(shard).or_default() |= unwanted;
        self.wake.notify_one();
    }

    fn take(&self, busy: &BTreeSet<u16>) -> Option<(u16, bool)> {
        let mut marked = lock(&self.marked);
        let next = marked.keys().find(|shard| !busy.contains(shard)).copied()?;
        marked.remove_entry(&next)
    }

    pub fn waiting(&self) -> usize {
        lock(&self.marked).len()
    }
}

/// Until it is aborted.
pub async fn run(world: Arc<World>) {
    let (mut busy, mut under_way) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        while under_way.len() < AT_ONCE
            && let Some((shard, unwanted)) = world.interests.take(&busy)
        {
            busy.insert(shard);
            let world = world.clone();
            under_way.push(async move {
                if !tell(&world, shard, unwanted).await {
                    sleep(AGAIN).await;
                    world.interests.put(shard, unwanted);
                }
                shard
            });
        }
        tokio::select! {
            Some(shard) = under_way.next(), if !under_way.is_empty() => drop(busy.remove(&shard)),
            () = world.interests.wake.notified() => {}
        }
    }
}

/// False: to be tried again.
async fn tell(world: &Arc<World>, shard: u16, unwanted: bool) -> bool {
    let (Some(engine), Some(mesh)) = (world.engine(), world.mesh.get()) else { return true };
    let owner = world.owner(shard).filter(|owner| *owner != world.me);
    let deadline = Instant::now() + ANSWER;
    let told = engine.tell_interest(shard, unwanted, |wanted| {
        owner.map(|owner| mesh.forward(owner, Request::Interest { shard, wanted }, deadline))
    });
    let asked = match told {
        None => return true,
        // Wanted, and nobody owns it that is known here.
        Some(None) => return false,
        Some(Some(asked)) => asked,
    };
    match asked.await {
        Ok(Reply::Positions(positions)) => {
            world.metrics.resyncs.inc();
            engine.resync_channels(positions);
            true
        }
        Ok(_) | Err(_) => false,
    }
}
