//! Which segments are still needed, and by which shard: kept by the writer, rebuilt at a start.

use super::record::Record;
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Default)]
pub struct Ledger {
    shards: BTreeMap<u16, Shard>,
}

#[derive(Debug, Default)]
struct Shard {
    /// Segments with entries, and the largest index in each.
    spans: VecDeque<(u64, u64)>,
    /// Where the parts of the last whole state begin, and its bytes.
    state: Option<(u64, usize)>,
    /// Where a reset stands that no state after it repeats.
    reset: Option<u64>,
    /// A state that is being written: its id, where it begins, its bytes.
    coming: Option<(u64, u64, usize)>,
    resets: u64,
    /// Written since the last state.
    since: usize,
}

impl Shard {
    fn from(&self) -> Option<u64> {
        let span = self.spans.front().map(|(segment, _)| *segment);
        let (state, coming) = (self.state.map(|(s, _)| s), self.coming.map(|(_, s, _)| s));
        [span, state, coming, self.reset].into_iter().flatten().min()
    }

    fn entry(&mut self, segment: u64, index: u64, bytes: usize) {
        self.since += bytes;
        match self.spans.back_mut() {
            Some((last, max)) if *last == segment => *max = (*max).max(index),
            _ => self.spans.push_back((segment, index)),
        }
    }
}

impl Ledger {
    pub fn entry(&mut self, segment: u64, shard: u16, index: u64, bytes: usize) {
        self.shards.entry(shard).or_default().entry(segment, index, bytes);
    }

    pub fn part(&mut self, segment: u64, shard: u16, id: u64, bytes: usize) {
        let shard = self.shards.entry(shard).or_default();
        match &mut shard.coming {
            Some((known, _, sum)) if *known == id => *sum += bytes,
            coming => *coming = Some((id, segment, bytes)),
        }
    }

    /// A record in a segment. Those of the group do not count: each segment begins with all of it.
    pub fn note(&mut self, segment: u64, record: &Record) {
        match record {
            Record::Entry { shard, at, data } => self.entry(segment, *shard, at.index, data.len()),
            Record::Part { shard, id, data } => self.part(segment, *shard, *id, data.len()),
            Record::Truncate { shard, after } => {
                let shard = self.shards.entry(*shard).or_default();
                shard.spans.iter_mut().for_each(|(_, max)| *max = (*max).min(*after));
            }
            Record::State { shard, id, at, resets, install, .. } => {
                let shard = self.shards.entry(*shard).or_default();
                let (begun, bytes) = match shard.coming.take() {
                    Some((known, begun, bytes)) if known == *id => (begun, bytes),
                    _ => (segment, 0),
                };
                (shard.state, shard.reset, shard.since) = (Some((begun, bytes)), None, 0);
                shard.resets = *resets;
                while shard.spans.front().is_some_and(|(_, max)| *install || *max <= at.index) {
                    shard.spans.pop_front();
                }
            }
            Record::Reset { shard, resets, keep } => {
                let shard = self.shards.entry(*shard).or_default();
                if !keep {
                    *shard = Shard::default();
                }
                (shard.resets, shard.reset) = (*resets, Some(segment));
            }
            Record::Retire { shard } => {
                self.shards.remove(shard);
            }
            _ => {}
        }
    }

    /// Segments before this one may go.
    pub fn oldest(&self, active: u64) -> u64 {
        self.shards.values().filter_map(Shard::from).min().map_or(active, |s| s.min(active))
    }

    /// Who still needs a segment up to this one.
    pub fn holding(&self, segment: u64) -> impl Iterator<Item = u16> {
        let held = self.shards.iter().filter(move |(_, s)| s.from().is_some_and(|from| from <= segment));
        held.map(|(shard, _)| *shard)
    }

    /// The number of times that the shard began anew.
    pub fn resets(&self, shard: u16) -> u64 {
        self.shards.get(&shard).map_or(0, |s| s.resets)
    }

    /// Whether more was written since the last state than `limit`, and than the state is large:
    /// so states cost at most as much as entries.
    pub fn is_long(&self, shard: u16, limit: usize) -> bool {
        let state = |s: &Shard| s.state.map_or(0, |(_, bytes)| bytes);
        self.shards.get(&shard).is_some_and(|s| s.since > limit.max(state(s)))
    }

    /// Bytes of the states: what any log of these shards takes at least.
    pub fn state_bytes(&self) -> u64 {
        self.shards.values().filter_map(|s| s.state).map(|(_, bytes)| bytes as u64).sum()
    }

    pub fn shards(&self) -> impl Iterator<Item = u16> {
        self.shards.keys().copied()
    }
}
