//! Which nodes are attached anywhere: each broker tells the others which ones it has, now and then.
//! Members of a node of which nobody has told for `broker.node_lease` leave; so do those that a node
//! held by an earlier link and has not told again.
//!
//! Whoever drops members remembers up to which link they are void. A broker that tells of a node by an
//! earlier link hears so in the answer, and makes the node tell again: one that was taken for gone while
//! it was not (a link that was down one way, a process that had no CPU for seconds) is not absent for good.

use super::world::World;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weir_core::sync::lock;
use weir_wire::entry::Holder;
use weir_wire::id::{BrokerId, NodeId};
use weir_wire::mesh::{Reply, Request};

/// Between two tellings.
const TELL: Duration = Duration::from_secs(1);
/// Nodes of one broker that are taken; conf allows no more.
const MAX_NODES: usize = 65_536;

/// What was dropped is remembered for so long, and of so many nodes.
const REMEMBER: Duration = Duration::from_secs(3600);
const MAX_VOID: usize = 4096;

#[derive(Default)]
pub struct Nodes(Mutex<Known>);

#[derive(Default)]
struct Known {
    nodes: HashMap<NodeId, Heard>,
    /// When each broker told last.
    told: HashMap<BrokerId, Instant>,
    /// Up to which links what nodes told of was dropped.
    void: HashMap<NodeId, (u64, Instant)>,
}

struct Heard {
    broker: BrokerId,
    link: u64,
    /// Since when it has this link, as far as is known here.
    since: Instant,
    at: Instant,
}

impl Nodes {
    /// All nodes of a broker. Returns those that have to tell again.
    pub fn told(&self, from: BrokerId, nodes: &[Holder], now: Instant) -> Vec<Holder> {
        let mut all = lock(&self.0);
        all.told.insert(from, now);
        let mut again = Vec::new();
        for holder in nodes.iter().take(MAX_NODES) {
            all.heard(from, *holder, now);
            match all.void.get(&holder.node) {
                // 0: it is not attached, and will tell when it is.
                Some((link, _)) if holder.link < *link && holder.link > 0 => {
                    again.push(Holder { node: holder.node, link: *link });
                }
                Some((link, _)) if holder.link >= *link => drop(all.void.remove(&holder.node)),
                _ => {}
            }
        }
        again
    }

    /// One node of a broker.
    pub fn heard(&self, from: BrokerId, holder: Holder, now: Instant) {
        lock(&self.0).heard(from, holder, now);
    }

    /// What a node told of before this link was dropped here.
    pub fn void(&self, before: Holder, now: Instant) {
        let mut all = lock(&self.0);
        let room = all.void.len() < MAX_VOID || all.void.contains_key(&before.node);
        let void = all.void.entry(before.node).or_insert((0, now));
        *void = (void.0.max(before.link), now);
        if !room && let Some(oldest) = all.void.iter().min_by_key(|(_, (_, at))| *at).map(|(node, _)| *node) {
            all.void.remove(&oldest);
        }
    }

    /// `linked`: whether a broker is heard at all. While one is, and has not told again, its nodes are where they
    /// were: it has no CPU, or we have none.
    fn expire(&self, now: Instant, lease: Duration, linked: impl Fn(BrokerId) -> bool) {
        let Known { nodes, told, void } = &mut *lock(&self.0);
        nodes.retain(|_, heard| {
            let silent = told.get(&heard.broker).is_none_or(|at| *at <= heard.at) && linked(heard.broker);
            now.saturating_duration_since(heard.at) < lease || silent
        });
        told.retain(|_, at| now.saturating_duration_since(*at) < REMEMBER);
        void.retain(|_, (_, at)| now.saturating_duration_since(*at) < REMEMBER);
    }

    /// By which link a node is attached; 0: nothing is known to be void yet.
    fn link(&self, node: NodeId, now: Instant, lease: Duration) -> Option<u64> {
        let all = lock(&self.0);
        let heard = all.nodes.get(&node)?;
        // It has told all that it holds by then.
        let told = now.saturating_duration_since(heard.since) >= lease;
        Some(if told { heard.link } else { 0 })
    }

    pub fn by_broker(&self) -> BTreeMap<BrokerId, Vec<NodeId>> {
        let all = lock(&self.0);
        let mut brokers: BTreeMap<BrokerId, Vec<NodeId>> = BTreeMap::new();
        for (node, heard) in &all.nodes {
            brokers.entry(heard.broker).or_default().push(*node);
        }
        brokers
    }
}

impl Known {
    fn heard(&mut self, from: BrokerId, Holder { node, link }: Holder, now: Instant) {
        let new = Heard { broker: from, link, since: now, at: now };
        let known = self.nodes.entry(node).or_insert(new);
        if link > known.link {
            *known = Heard { broker: from, link, since: now, at: now };
        } else if known.broker == from || link == known.link {
            known.at = now;
        }
    }
}

/// Until it is aborted.
pub async fn run(world: Arc<World>, lease: Duration) {
    let mut ticks = interval(TELL.min(lease / 3));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (Some(engine), Some(mesh)) = (world.engine(), world.mesh.get()) else { return };
        let (now, here) = (Instant::now(), engine.nodes());
        let again = world.nodes.told(world.me, &here, now);
        for void in again {
            engine.void(void);
        }
        let linked = mesh.linked();
        world.nodes.expire(now, lease, |broker| broker == world.me || linked.contains(&broker));
        // Not awaited: one that hangs must not keep the others from hearing of it.
        tokio::spawn(tell(world.clone(), here, now + TELL));
        for before in engine.sweep_members(lease * 2, &|node| world.nodes.link(node, now, lease)) {
            world.nodes.void(before, now);
        }
    }
}

async fn tell(world: Arc<World>, here: Vec<Holder>, deadline: Instant) {
    let (Some(engine), Some(mesh)) = (world.engine(), world.mesh.get()) else { return };
    for (_, answer) in mesh.fan_out(Request::Nodes(here), deadline).await {
        // One that was not reached is told again soon.
        if let Ok(Reply::Void(again)) = answer {
            for void in again {
                engine.void(void);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn known() -> (Nodes, impl Fn(u64) -> Instant) {
        let begun = Instant::now();
        (Nodes::default(), move |s| begun + Duration::from_secs(s))
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_moves_is_known_by_its_newest_link_and_one_that_is_silent_is_forgotten() {
        let (nodes, at) = known();
        let (a, b, node) = (BrokerId(1), BrokerId(2), NodeId(7));
        nodes.told(a, &[Holder { node, link: 100 }], at(0));
        assert_eq!(nodes.link(node, at(1), LEASE), Some(0), "it may still tell what it holds");
        nodes.told(a, &[Holder { node, link: 100 }], at(9));
        assert_eq!(nodes.link(node, at(11), LEASE), Some(100));
        nodes.told(b, &[Holder { node, link: 200 }], at(12));
        // The broker before still believes in its lease.
        nodes.told(a, &[Holder { node, link: 0 }], at(21));
        nodes.expire(at(22), LEASE, |_| false);
        assert_eq!(nodes.link(node, at(22), LEASE), None, "nobody has told of its newest link");
    }

    #[tokio::test(start_paused = true)]
    async fn the_nodes_of_a_broker_that_is_slow_to_tell_are_not_gone() {
        let (nodes, at) = known();
        let (a, node) = (BrokerId(1), NodeId(7));
        nodes.told(a, &[Holder { node, link: 100 }], at(0));
        nodes.expire(at(30), LEASE, |_| true);
        assert_eq!(nodes.link(node, at(30), LEASE), Some(100));
        nodes.told(a, &[], at(31));
        nodes.expire(at(31), LEASE, |_| true);
        assert_eq!(nodes.link(node, at(31), LEASE), None, "it has told, and has it no more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_dropped_and_is_there_has_to_tell_again_until_it_has() {
        let (nodes, at) = known();
        let (a, b, node) = (BrokerId(1), BrokerId(2), NodeId(7));
        let void = Holder { node, link: 201 };
        nodes.void(void, at(0));
        assert_eq!(nodes.told(a, &[Holder { node, link: 0 }], at(1)), [], "it is not attached");
        assert_eq!(nodes.told(b, &[Holder { node, link: 200 }], at(1)), [void]);
        assert_eq!(nodes.told(b, &[Holder { node, link: 200 }], at(2)), [void], "the answer may be lost");
        assert_eq!(nodes.told(b, &[Holder { node, link: 201 }], at(3)), []);
        assert_eq!(nodes.told(b, &[Holder { node, link: 200 }], at(4)), [], "it has told again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_dropped_is_remembered_of_so_many_nodes() {
        let (nodes, at) = known();
        for n in 0..MAX_VOID as u64 + 10 {
            nodes.void(Holder { node: NodeId(n), link: 5 }, at(n));
        }
        let told = |n| nodes.told(BrokerId(1), &[Holder { node: NodeId(n), link: 1 }], at(5_000)).len();
        assert_eq!((told(9), told(10), lock(&nodes.0).void.len()), (0, 1, MAX_VOID));
    }
}
