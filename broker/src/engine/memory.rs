//! What all channels of this broker take together, and who gives first where memory is short: the heaviest channels,
//! each its oldest publications. This broker's own matter, which other holders of a shard need not follow.

use super::cluster::Moment;
use super::shard::Shard;
use super::{Conf, Engine, lock};
use crate::state::State;
use crate::state::groups::{Groups, Usage};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// This part of the limit is freed beyond what is needed, so that not each publication over it
/// looks at all shards; and no more than this, so that the one which does it takes no long time.
const SPARE: usize = 64;
const MAX_SPARE: usize = 256 << 10;

/// Of `broker.history_memory`, for keys: they cannot be dropped before their time.
const KEYS_SHARE: usize = 2;
/// A channel may take so many times as much for its keys as is left for all: whoever takes much is refused first, and
/// something is left for whoever takes little.
const KEYS_OF_ONE: usize = 4;

/// Namespaces that may take but a part of what the broker has, in percent; `None`: channels without a namespace.
pub type Share = (Option<String>, u8);

/// What is taken, by the groups of channels that are counted together, and what may be.
pub struct Accounts {
    groups: Arc<Groups>,
    percent: Vec<u8>,
    bytes: usize,
    streams: usize,
    taken: Vec<Taken>,
}

#[derive(Default)]
struct Taken {
    bytes: AtomicUsize,
    key_bytes: AtomicUsize,
    streams: AtomicUsize,
}

impl Accounts {
    pub fn new(conf: &Conf, shares: &[Share]) -> Accounts {
        let groups = Groups::new(shares.iter().map(|(name, _)| name.clone()));
        Accounts {
            percent: std::iter::once(100).chain(shares.iter().map(|(_, percent)| *percent)).collect(),
            bytes: conf.history_memory,
            streams: conf.max_channels,
            taken: (0..groups.count()).map(|_| Taken::default()).collect(),
            groups: Arc::new(groups),
        }
    }

    pub fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }

    fn of(&self, group: usize) -> Usage {
        let taken = &self.taken[group];
        Usage {
            bytes: taken.bytes.load(Relaxed),
            key_bytes: taken.key_bytes.load(Relaxed),
            streams: taken.streams.load(Relaxed),
        }
    }

    pub fn all(&self) -> Usage {
        let mut all = Usage::default();
        (0..self.taken.len()).for_each(|group| all.add(self.of(group)));
        all
    }

    /// All that there is a limit for: `None`, all channels together, and groups with a share.
    pub fn limited(&self) -> impl Iterator<Item = Option<usize>> {
        std::iter::once(None).chain((1..self.taken.len()).map(Some))
    }

    /// What is taken of it, and what may be.
    pub fn balance(&self, group: Option<usize>) -> (Usage, Usage) {
        let percent = group.map_or(100, |group| usize::from(self.percent[group]));
        let part = |of: usize| (of / 100).saturating_mul(percent) + of % 100 * percent / 100;
        let (bytes, streams) = (part(self.bytes), part(self.streams).max(1));
        let may = Usage { bytes, key_bytes: bytes / KEYS_SHARE, streams };
        (group.map_or_else(|| self.all(), |group| self.of(group)), may)
    }

    /// What may limit this channel.
    pub fn limits_of(&self, channel: &str) -> impl Iterator<Item = Option<usize>> {
        let group = self.groups.of(channel);
        std::iter::once(None).chain((group > 0).then_some(Some(group)))
    }

    /// What the shard's state takes by now.
    fn report(&self, shard: &mut Shard) {
        let Shard { state, reported, .. } = shard;
        for ((taken, before), after) in self.taken.iter().zip(reported).zip(state.usage_by_group()) {
            if *before != *after {
                // Wrapping arithmetic: a sum that goes down by one goes up by usize::MAX.
                taken.bytes.fetch_add(after.bytes.wrapping_sub(before.bytes), Relaxed);
                taken.key_bytes.fetch_add(after.key_bytes.wrapping_sub(before.key_bytes), Relaxed);
                taken.streams.fetch_add(after.streams.wrapping_sub(before.streams), Relaxed);
                *before = *after;
            }
        }
    }
}

impl Engine {
    /// Holds a shard; keeps the sums right around a change of it.
    pub(super) fn with<T>(&self, number: u16, change: impl FnOnce(&mut Shard, Moment) -> T) -> T {
        let mut shard = lock(&self.shards[usize::from(number)]);
        // After the lock: a call that waited for it must not act on a lease that has ended.
        let moment = self.moment();
        let result = change(&mut shard, moment);
        self.accounts.report(&mut shard);
        result
    }

    /// The heaviest channels go first; of a namespace that is over its share, its own ones.
    pub(super) fn keep_within_memory(&self) {
        for group in self.accounts.limited() {
            let (taken, may) = self.accounts.balance(group);
            if taken.bytes > may.bytes {
                self.drop_heaviest(group, may.bytes);
            }
        }
    }

    fn drop_heaviest(&self, group: Option<usize>, limit: usize) {
        let heaviest = |n: u16| lock(&self.shards[usize::from(n)]).state.heaviest(group);
        let mut all: BinaryHeap<_> = self.numbers().filter_map(|n| Some((heaviest(n)?, n))).collect();
        let enough = limit - (limit / SPARE).min(MAX_SPARE);
        while let Some((_, number)) = all.pop() {
            let over = self.accounts.balance(group).0.bytes.saturating_sub(enough);
            if over == 0 {
                return;
            }
            // Several at once, as long as no other shard has a heavier one.
            let next = all.peek().map(|(weight, _)| *weight);
            let (dropped, left) = self.with(number, |shard, _| {
                let (before, state) = (shard.state.usage().bytes, &mut shard.state);
                let more = |s: &State| before - s.usage().bytes < over;
                let drops = (0..).take_while(|_| more(state) && state.drop_heaviest(group, next));
                (drops.count(), state.heaviest(group))
            });
            self.metrics.evicted.inc_by(dropped as u64);
            all.extend(left.map(|weight| (weight, number)));
        }
    }

    /// Whether there is room for another key of this channel.
    pub(super) fn has_room_for_key(&self, shard: &Shard, channel: &str) -> bool {
        let own = shard.state.key_bytes_of(channel);
        let left = |group| {
            let (taken, may) = self.accounts.balance(group);
            may.key_bytes.saturating_sub(taken.key_bytes)
        };
        self.accounts.limits_of(channel).all(|group| own < left(group).saturating_mul(KEYS_OF_ONE))
    }
}
