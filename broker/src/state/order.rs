//! Which channels are next: the heaviest, where memory is short; those without publications that were not used for
//! the longest time, where there are too many streams; and those of which something is over by the clock.
//!
//! A heap for each, with one valid item per channel. Items may be early (of more weight, of an earlier time), never
//! late; an early one is put back. Void ones are skipped, and taken out when there are too many.

use super::channel::Channel;
use super::groups::Usage;
use super::log::ChannelLog;
use super::{RECHECK, RECHECK_TIME, State};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use weir_wire::envelope::Position;

/// What a channel's publications take, in classes a quarter of an octave wide; among equals the one with the oldest
/// publication comes first.
pub type Weight = (u8, Reverse<u64>);

/// Wanted channels that are passed over in one search for an idle stream.
const SKIPPED: usize = 32;

/// The earliest comes first.
type ByTime = BinaryHeap<Reverse<(u64, Arc<str>)>>;

#[derive(Debug, Default)]
pub struct Order {
    /// By groups.
    by_weight: Vec<BinaryHeap<(Weight, Arc<str>)>>,
    by_idleness: Vec<ByTime>,
    by_deadline: ByTime,
}

/// A stream that may end before its time.
#[derive(Debug)]
pub struct Idle {
    pub channel: Arc<str>,
    pub at: Position,
}

impl Order {
    pub fn new(groups: usize) -> Order {
        let by_weight = (0..groups).map(|_| BinaryHeap::new()).collect();
        let by_idleness = (0..groups).map(|_| BinaryHeap::new()).collect();
        Order { by_weight, by_idleness, by_deadline: BinaryHeap::new() }
    }

    fn idle_since(&self, group: usize) -> Option<u64> {
        self.by_idleness.get(group)?.peek().map(|Reverse((since, _))| *since)
    }

    #[cfg(test)]
    pub fn items(&self) -> usize {
        let weights: usize = self.by_weight.iter().map(BinaryHeap::len).sum();
        weights + self.by_idleness.iter().map(BinaryHeap::len).sum::<usize>() + self.by_deadline.len()
    }
}

pub fn weight(log: &ChannelLog) -> Option<Weight> {
    let bytes = (log.bytes() as u64).max(4);
    let octave = bytes.ilog2();
    Some(((octave * 4 + (bytes >> (octave - 2) & 3) as u32) as u8, Reverse(log.oldest()?)))
}

impl State {
    /// No channel of the group (of any) is heavier.
    pub fn heaviest(&self, group: Option<usize>) -> Option<Weight> {
        self.groups_in(group).filter_map(|g| Some(self.order.by_weight.get(g)?.peek()?.0)).max()
    }

    /// Drops the oldest publication of the heaviest channel of the group. False: there is none of at least `until`.
    pub fn drop_heaviest(&mut self, group: Option<usize>, until: Option<Weight>) -> bool {
        while let Some(heaviest) = self.heaviest(group).filter(|w| until.is_none_or(|until| *w >= until)) {
            let mut heaps = self.groups_in(group);
            let at = heaps.find(|g| self.order.by_weight[*g].peek().is_some_and(|(w, _)| *w == heaviest));
            let Some((weight, key)) = at.and_then(|g| self.order.by_weight[g].pop()) else { return false };
            let Some(channel) = self.channels.get_mut(&key) else { continue };
            if channel.in_weight != Some(weight) {
                continue;
            }
            channel.in_weight = None;
            let dropped = self.change(&key, |c| match &mut c.log {
                Some(log) if self::weight(log) == Some(weight) => {
                    log.drop_front();
                    true
                }
                _ => false,
            });
            if dropped {
                return true;
            }
        }
        false
    }

    /// Since when at most a stream of the group (of any) is idle.
    pub fn idle_since(&self, group: Option<usize>) -> Option<u64> {
        self.groups_in(group).filter_map(|g| self.order.idle_since(g)).min()
    }

    /// The stream without publications here that was not used for the longest time, unless one is idle only since
    /// after `until`; the wanted ones count as used now. It is not named again for a while.
    pub fn idle(
        &mut self,
        group: Option<usize>,
        now: u64,
        until: u64,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Option<Idle> {
        for _ in 0..SKIPPED {
            let since = self.idle_since(group).filter(|since| *since <= until)?;
            let at = self.groups_in(group).find(|g| self.order.idle_since(*g) == Some(since))?;
            let Reverse((_, key)) = self.order.by_idleness[at].pop()?;
            let Some(channel) = self.channels.get_mut(&key).filter(|c| c.in_idleness == Some(since)) else {
                continue;
            };
            channel.in_idleness = None;
            let wanted = is_wanted(&key);
            let Some(log) = channel.log.as_mut().filter(|log| log.oldest().is_none()) else { continue };
            let is_next = !wanted && log.used_at() <= since;
            if is_next || wanted {
                log.note_use(now);
            }
            let at = log.position();
            self.change(&key, |_| ());
            if is_next {
                return Some(Idle { channel: key, at });
            }
        }
        None
    }

    fn groups_in(&self, group: Option<usize>) -> std::ops::Range<usize> {
        group.map_or(0..self.usage.len(), |group| group..group + 1)
    }

    /// Frees what is over by the clock of this holder, at most `budget` channels. `due` gets the
    /// streams that may end now, for their owner to decide. True: keys end when the shard's time
    /// goes on.
    pub fn sweep(&mut self, now: u64, budget: usize, due: &mut Vec<Arc<str>>) -> bool {
        let mut behind = false;
        self.drop_void_items();
        for _ in 0..budget {
            match self.order.by_deadline.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((at, key))) = self.order.by_deadline.pop() else { break };
            let time = self.time;
            let Some(channel) = self.channels.get_mut(&key) else { continue };
            if channel.in_deadline != Some(at) {
                continue;
            }
            channel.in_deadline = None;
            let before = channel.usage();
            channel.expire(now, time);
            let dead = channel.log.as_ref().is_some_and(|log| log.is_dead(now));
            let keys_due = channel.keys.as_ref().and_then(|k| k.end()).is_some_and(|end| end <= now);
            behind |= keys_due;
            let recheck = if keys_due { RECHECK_TIME } else { RECHECK };
            if dead {
                due.push(key.clone());
            }
            let unused = channel.is_unused();
            self.settle(&key, before, now.saturating_add(recheck), now);
            if unused {
                self.remove(&key);
            }
        }
        behind
    }

    /// After a change: the sums, and the channel's items in the heaps. A deadline that is behind is looked at again
    /// `later`.
    pub(super) fn settle(&mut self, key: &str, before: Usage, later: u64, now: u64) {
        let Some(channel) = self.channels.get_mut(key) else { return };
        self.usage[channel.group].replace(before, channel.usage());
        let group = channel.group;
        let weight = channel.weight().filter(|w| !channel.covers(w));
        channel.in_weight = weight.or(channel.in_weight);
        let idle = channel.idle_since().filter(|_| channel.in_idleness.is_none());
        channel.in_idleness = idle.or(channel.in_idleness);
        let mut deadline = None;
        if channel.in_deadline.is_none() {
            deadline = channel.deadline().map(|at| if at <= now { later } else { at });
            channel.in_deadline = deadline;
        }
        if (weight, idle, deadline) == (None, None, None) {
            return;
        }
        let Some(name) = self.name(key) else { return };
        if let Some(weight) = weight {
            self.order.by_weight[group].push((weight, name.clone()));
        }
        if let Some(since) = idle {
            self.order.by_idleness[group].push(Reverse((since, name.clone())));
        }
        if let Some(at) = deadline {
            self.order.by_deadline.push(Reverse((at, name)));
        }
    }

    /// Items of channels that ended do not pile up in the heaps, nor does the room that they took.
    fn drop_void_items(&mut self) {
        let most = 2 * self.channels.len() + 64;
        let channels = &self.channels;
        let valid = |name: &str, is: &dyn Fn(&Channel) -> bool| channels.get(name).is_some_and(is);
        for heap in self.order.by_weight.iter_mut().filter(|heap| heap.len() > most) {
            heap.retain(|(weight, name)| valid(name, &|c| c.in_weight == Some(*weight)));
            heap.shrink_to(most);
        }
        for heap in self.order.by_idleness.iter_mut().filter(|heap| heap.len() > most) {
            heap.retain(|Reverse((at, name))| valid(name, &|c| c.in_idleness == Some(*at)));
            heap.shrink_to(most);
        }
        let heap = &mut self.order.by_deadline;
        if heap.len() > most {
            heap.retain(|Reverse((at, name))| valid(name, &|c| c.in_deadline == Some(*at)));
            heap.shrink_to(most);
        }
    }
}
