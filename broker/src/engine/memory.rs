//! Keeping the history of all shards within `broker.history_memory`: this broker's own matter, which
//! other holders of a shard need not follow.

use super::cluster::Moment;
use super::shard::Shard;
use super::{Engine, lock};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// This part of the limit is freed beyond what is needed, so that not each publication over it
/// looks at all shards; and no more than this, so that the one which does it takes no long time.
const SPARE: usize = 64;
const MAX_SPARE: usize = 256 << 10;

impl Engine {
    /// Holds a shard; keeps the sums right around a change of it.
    pub(super) fn with<T>(&self, number: u16, change: impl FnOnce(&mut Shard, Moment) -> T) -> T {
        let mut shard = lock(&self.shards[usize::from(number)]);
        // After the lock: a call that waited for it must not act on a lease that has ended.
        let moment = self.moment();
        let before = sizes(&shard);
        let result = change(&mut shard, moment);
        let after = sizes(&shard);
        for (sum, (before, after)) in self.sums().into_iter().zip(before.into_iter().zip(after)) {
            if before != after {
                // Wrapping arithmetic: a sum that goes down by one goes up by usize::MAX.
                sum.fetch_add(after.wrapping_sub(before), Relaxed);
            }
        }
        result
    }

    fn sums(&self) -> [&AtomicUsize; 3] {
        [&self.bytes, &self.key_bytes, &self.streams]
    }

    /// The oldest publications of all channels go first.
    pub(super) fn keep_within_memory(&self) {
        let limit = self.conf.history_memory;
        if self.bytes.load(Relaxed) <= limit {
            return;
        }
        let oldest = |n: u16| lock(&self.shards[usize::from(n)]).state.oldest();
        let mut ages: BinaryHeap<Reverse<(u64, u16)>> =
            self.numbers().filter_map(|n| Some(Reverse((oldest(n)?, n)))).collect();
        let enough = limit - (limit / SPARE).min(MAX_SPARE);
        while let Some(Reverse((_, number))) = ages.pop() {
            let over = self.bytes.load(Relaxed).saturating_sub(enough);
            if over == 0 {
                return;
            }
            // Several at once, as long as no other shard has an older one.
            let next = ages.peek().map(|Reverse((at, _))| *at);
            let (dropped, left) = self.with(number, |shard, _| {
                let (before, state) = (shard.state.bytes(), &mut shard.state);
                let more = |s: &crate::state::State| before - s.bytes() < over;
                let dropped = (0..).take_while(|_| more(state) && state.drop_oldest(next)).count();
                (dropped, state.oldest())
            });
            self.metrics.evicted.inc_by(dropped as u64);
            ages.extend(left.map(|at| Reverse((at, number))));
        }
    }
}

fn sizes(shard: &Shard) -> [usize; 3] {
    [shard.state.bytes(), shard.state.key_bytes(), shard.state.streams()]
}
