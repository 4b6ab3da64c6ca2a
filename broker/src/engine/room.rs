//! Room for streams: at `broker.max_channels`, or at its share of a namespace, those go first that have no
//! publications, are wanted by nobody, and were not used for the longest time. The owner of their shard decides it,
//! by an entry of the shard's log. Only where there are none, a new stream is refused.

use super::shard::Shard;
use super::{Engine, TICK, lock};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering::Relaxed;
use weir_wire::entry::Op;

/// This part of the limit is kept free, so that nobody has to wait for an entry that makes room.
const SPARE: usize = 32;
/// Streams that end at once: no more than an entry holds easily, and nobody waits long.
const AT_ONCE: usize = 256;
/// … and with one tick.
const WITH_A_TICK: usize = 16 << 10;
/// Looks into shards in one search: each may pass over some streams that are wanted.
const LOOKS: usize = 512;

impl Engine {
    /// Now and then.
    pub(super) fn keep_room_for_streams(&self) {
        for group in self.accounts.limited() {
            let (taken, may) = self.accounts.balance(group);
            let over = taken.streams.saturating_sub(may.streams - may.streams / SPARE);
            if over > 0 {
                self.end_idle_streams(group, over.min(WITH_A_TICK));
            }
        }
    }

    /// Before a call that may begin a stream of this channel.
    pub(super) fn make_room_for(&self, channel: &str) {
        for group in self.accounts.limits_of(channel) {
            let (taken, may) = self.accounts.balance(group);
            if taken.streams >= may.streams && self.may_search() {
                let spare = (may.streams / SPARE).clamp(1, AT_ONCE);
                if self.end_idle_streams(group, taken.streams - may.streams + spare) == 0 {
                    self.search_again.store(self.since_start(TICK), Relaxed);
                }
            }
        }
    }

    /// Whether the channel has a stream, or may get one.
    pub(super) fn has_room(&self, shard: &Shard, channel: &str) -> bool {
        let room = |group| {
            let (taken, may) = self.accounts.balance(group);
            taken.streams < may.streams
        };
        shard.state.has_stream(channel) || self.accounts.limits_of(channel).all(room)
    }

    /// All shards were looked through in vain: not with each call.
    fn may_search(&self) -> bool {
        self.since_start(std::time::Duration::ZERO) >= self.search_again.load(Relaxed)
    }

    fn since_start(&self, and: std::time::Duration) -> u64 {
        u64::try_from((self.started.elapsed() + and).as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns how many were found.
    fn end_idle_streams(&self, group: Option<usize>, count: usize) -> usize {
        let (begun, mut found) = (self.moment().ms, 0);
        let idle_since = |shard: &Shard| shard.state.idle_since(group).filter(|since| *since < begun);
        let of = |n: u16| Some(Reverse((idle_since(&lock(&self.shards[usize::from(n)]))?, n)));
        let mut all: BinaryHeap<_> = self.numbers().filter_map(of).collect();
        for _ in 0..LOOKS {
            let Some(Reverse((_, number))) = all.pop().filter(|_| found < count) else { break };
            // Several at once, as long as none of another shard was unused for longer.
            let until = all.peek().map_or(begun, |Reverse((since, _))| *since);
            let most = (count - found).min(AT_ONCE);
            let (ended, left) = self.with(number, |shard, moment| {
                if !shard.state.is_seeded() || self.has_others() && !self.is_settled(shard, moment) {
                    return (0, None);
                }
                let Shard { state, interest, .. } = &mut *shard;
                let is_wanted = |channel: &str| interest.has(channel);
                let idle = (0..most).map_while(|_| state.idle(group, moment.ms, until, &is_wanted));
                let streams: Vec<_> = idle.map(|idle| (idle.channel.to_string(), idle.at)).collect();
                let ended = streams.len();
                if ended > 0 {
                    self.propose_quietly(shard, moment, Op::Evict { streams });
                }
                (ended, idle_since(shard))
            });
            self.metrics.streams_evicted.inc_by(ended as u64);
            found += ended;
            all.extend(left.map(|since| Reverse((since, number))));
        }
        found
    }
}
