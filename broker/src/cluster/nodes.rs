//! Which nodes are attached anywhere: each broker tells the others which ones it has, now and then.
//! Members of a node of which nobody has told for `broker.node_lease` leave; so do those that a node
//! held by an earlier link and has not told again.

use super::world::World;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weir_core::sync::lock;
use weir_wire::entry::Holder;
use weir_wire::id::{BrokerId, NodeId};
use weir_wire::mesh::Request;

/// Between two tellings.
const TELL: Duration = Duration::from_secs(1);
/// Nodes of one broker that are taken; conf allows no more.
const MAX_NODES: usize = 65_536;

#[derive(Default)]
pub struct Nodes(Mutex<HashMap<NodeId, Heard>>);

struct Heard {
    broker: BrokerId,
    link: u64,
    /// Since when it has this link, as far as is known here.
    since: Instant,
    at: Instant,
}

impl Nodes {
    pub fn heard(&self, from: BrokerId, nodes: &[Holder], now: Instant) {
        let mut all = lock(&self.0);
        for Holder { node, link } in nodes.iter().take(MAX_NODES) {
            let new = Heard { broker: from, link: *link, since: now, at: now };
            let known = all.entry(*node).or_insert(new);
            if *link > known.link {
                *known = Heard { broker: from, link: *link, since: now, at: now };
            } else if known.broker == from || *link == known.link {
                known.at = now;
            }
        }
    }

    fn expire(&self, now: Instant, lease: Duration) {
        let mut all = lock(&self.0);
        all.retain(|_, heard| now.saturating_duration_since(heard.at) < lease);
    }

    /// By which link a node is attached; 0: nothing is known to be void yet.
    fn link(&self, node: NodeId, now: Instant, lease: Duration) -> Option<u64> {
        let all = lock(&self.0);
        let heard = all.get(&node)?;
        // It has told all that it holds by then.
        let told = now.saturating_duration_since(heard.since) >= lease;
        Some(if told { heard.link } else { 0 })
    }

    pub fn by_broker(&self) -> BTreeMap<BrokerId, Vec<NodeId>> {
        let all = lock(&self.0);
        let mut brokers: BTreeMap<BrokerId, Vec<NodeId>> = BTreeMap::new();
        for (node, heard) in all.iter() {
            brokers.entry(heard.broker).or_default().push(*node);
        }
        brokers
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
        world.nodes.heard(world.me, &here, now);
        world.nodes.expire(now, lease);
        // Not awaited: one that hangs must not keep the others from hearing of it.
        let (telling, request) = (mesh.clone(), Request::Nodes(here));
        tokio::spawn(async move { telling.fan_out(request, now + TELL).await });
        engine.sweep_members(lease * 2, &|node| world.nodes.link(node, now, lease));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_node_that_moves_is_known_by_its_newest_link_and_one_that_is_silent_is_forgotten() {
        let (nodes, begun) = (Nodes::default(), Instant::now());
        let at = |s| begun + Duration::from_secs(s);
        let (a, b, node) = (BrokerId(1), BrokerId(2), NodeId(7));
        nodes.heard(a, &[Holder { node, link: 100 }], at(0));
        assert_eq!(nodes.link(node, at(1), LEASE), Some(0), "it may still tell what it holds");
        nodes.heard(a, &[Holder { node, link: 100 }], at(9));
        assert_eq!(nodes.link(node, at(11), LEASE), Some(100));
        nodes.heard(b, &[Holder { node, link: 200 }], at(12));
        // The broker before still believes in its lease.
        nodes.heard(a, &[Holder { node, link: 0 }], at(21));
        nodes.expire(at(22), LEASE);
        assert_eq!(nodes.link(node, at(22), LEASE), None, "nobody has told of its newest link");
    }
}
