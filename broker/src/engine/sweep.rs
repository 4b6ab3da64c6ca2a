//! What time brings to a shard that is served here: the seed of its epochs, and the end of streams and keys.

use super::Engine;
use super::cluster::Moment;
use super::shard::{Shard, Then};
use std::sync::Arc;
use weir_wire::entry::{Op, SEEDED};

impl Engine {
    /// From the first moment at which all brokers understand it.
    pub(super) fn seed(&self, shard: &mut Shard, moment: Moment) {
        if !shard.state.is_seeded() && self.cluster.wire() >= SEEDED {
            // What is proposed twice counts once.
            let op = Op::Seed { seed: rand::random() };
            let _again_with_the_next_sweep = self.append(shard, moment, op, Then::Nothing, 0);
        }
    }

    /// Streams and keys whose time is over.
    pub(super) fn sweep(&self, shard: &mut Shard, moment: Moment, budget: usize) {
        let mut due: Vec<Arc<str>> = Vec::new();
        let keys = shard.state.sweep(moment.ms, budget, &mut due);
        if shard.serving.is_none() {
            return;
        }
        self.seed(shard, moment);
        let settled = self.is_settled(shard, moment);
        let ends = due.iter().filter(|c| settled && !shard.interest.has(c));
        let channels: Vec<String> = ends.map(|c| c.to_string()).collect();
        if keys || !channels.is_empty() {
            self.propose_quietly(shard, moment, Op::Expire { channels });
        } else {
            self.carry_out(shard, moment);
        }
    }

    /// Whether it is known what nobody wants: after a change of the owner, nodes have to tell first.
    pub(super) fn is_settled(&self, shard: &Shard, moment: Moment) -> bool {
        let told = 2 * self.conf.node_lease;
        shard.serving.is_some_and(|since| moment.now.at.saturating_duration_since(since) >= told)
    }
}
