//! One holder's log of a shard: a window of committed entries, kept for those who are behind, and
//! the tail that is not committed yet. Both are bounded, the window here and the tail by the owner.
//!
//! ```text
//!   base │ kept … │ commit │ tail … │ last          durable: anywhere; what lies on disk
//! ```

use super::{Action, Limits};
use bytes::Bytes;
use std::collections::VecDeque;
use weir_wire::id::ShardEpoch;
use weir_wire::replica::{Entry, Place};

/// What an entry costs beyond its bytes.
const OVERHEAD: usize = 64;

pub(super) fn cost(data: &Bytes) -> usize {
    data.len() + OVERHEAD
}

#[derive(Debug)]
pub(super) struct Log {
    /// The last entry before the window.
    base: Place,
    entries: VecDeque<Entry>,
    commit: u64,
    kept_bytes: usize,
    tail_bytes: usize,
    /// Without a disk everything is as durable as it gets at once.
    disk: bool,
    durable: u64,
    /// The number of the last write handed out, and for each one under way how far the log is
    /// durable after it.
    written: u64,
    writes: VecDeque<(u64, u64)>,
}

impl Log {
    pub fn new(disk: bool) -> Log {
        Log {
            base: Place::default(),
            entries: VecDeque::new(),
            commit: 0,
            kept_bytes: 0,
            tail_bytes: 0,
            disk,
            durable: 0,
            written: 0,
            writes: VecDeque::new(),
        }
    }

    /// With what was found on disk. `applied` is what the state found there contains.
    pub fn restore(base: Place, entries: Vec<Entry>, applied: u64) -> Log {
        let mut log = Log { base, commit: base.index, ..Log::new(true) };
        log.tail_bytes = entries.iter().map(|e| cost(&e.data)).sum();
        log.entries = entries.into();
        log.durable = log.last().index;
        while log.commit < applied && log.commit_next().is_some() {}
        log
    }

    pub fn last(&self) -> Place {
        let index = self.base.index + self.entries.len() as u64;
        self.entries.back().map_or(self.base, |e| Place { epoch: e.epoch, index })
    }

    pub fn base(&self) -> u64 {
        self.base.index
    }

    pub fn commit(&self) -> u64 {
        self.commit
    }

    pub fn durable(&self) -> u64 {
        if self.disk { self.durable } else { self.last().index }
    }

    /// Entries and bytes that are not committed.
    pub fn tail(&self) -> (usize, usize) {
        ((self.last().index - self.commit) as usize, self.tail_bytes)
    }

    #[cfg(test)]
    pub fn kept(&self) -> (usize, usize) {
        ((self.commit - self.base.index) as usize, self.kept_bytes)
    }

    pub fn get(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.base.index + 1)?;
        self.entries.get(at as usize)
    }

    /// `None` for what is not in the window.
    pub fn place(&self, index: u64) -> Option<Place> {
        if index == self.base.index {
            return Some(self.base);
        }
        self.get(index).map(|e| Place { epoch: e.epoch, index })
    }

    pub fn has(&self, place: Place) -> bool {
        self.place(place.index) == Some(place)
    }

    pub fn push<T>(&mut self, entry: Entry, out: &mut Vec<Action<T>>) -> u64 {
        let at = Place { epoch: entry.epoch, index: self.last().index + 1 };
        if self.disk {
            let write = self.write(at.index);
            out.push(Action::Write { write, at, data: entry.data.clone() });
        }
        self.tail_bytes += cost(&entry.data);
        self.entries.push_back(entry);
        at.index
    }

    /// Cuts off what is after `after`; nothing committed is ever cut.
    pub fn truncate<T>(&mut self, after: u64, out: &mut Vec<Action<T>>) {
        let after = after.max(self.commit);
        while self.last().index > after {
            let Some(entry) = self.entries.pop_back() else { break };
            self.tail_bytes -= cost(&entry.data);
        }
        self.unwritten(after);
        if self.disk {
            let write = self.write(after);
            out.push(Action::Truncate { write, after });
        }
    }

    /// Begins anew after a state that was installed, or from nothing. The number of the write.
    pub fn reset(&mut self, base: Place) -> u64 {
        self.unwritten(self.commit.min(base.index));
        *self = Log {
            base,
            commit: base.index,
            durable: self.durable,
            written: self.written,
            writes: std::mem::take(&mut self.writes),
            ..Log::new(self.disk)
        };
        self.write(base.index)
    }

    /// Commits one more entry, and returns it.
    pub fn commit_next(&mut self) -> Option<(Place, Bytes)> {
        let index = self.commit + 1;
        let entry = self.get(index)?;
        let (place, data) = (Place { epoch: entry.epoch, index }, entry.data.clone());
        self.commit = index;
        self.tail_bytes -= cost(&data);
        self.kept_bytes += cost(&data);
        Some((place, data))
    }

    /// Lets go of the oldest committed entries over the limits. While a state is on its way, what
    /// follows it is needed after it: twice the bytes, and as many more as the state has. If that
    /// does not do, more is published than can be transferred.
    pub fn trim(&mut self, limits: &Limits, state: Option<usize>) {
        let (entries, bytes) = match state {
            None => (limits.kept_entries, limits.kept_bytes),
            Some(state) => (usize::MAX, limits.kept_bytes * 2 + state),
        };
        while self.base.index < self.commit
            && ((self.commit - self.base.index) as usize > entries || self.kept_bytes > bytes)
        {
            let Some(entry) = self.entries.pop_front() else { break };
            self.base = Place { epoch: entry.epoch, index: self.base.index + 1 };
            self.kept_bytes -= cost(&entry.data);
        }
    }

    /// A number for a write after which the log is durable up to `index`.
    pub fn write(&mut self, index: u64) -> u64 {
        self.written += 1;
        if self.disk {
            self.writes.push_back((self.written, index));
        }
        self.written
    }

    /// All writes up to this one are on disk.
    pub fn persisted(&mut self, write: u64) {
        while let Some((_, index)) = self.writes.pop_front_if(|(number, _)| *number <= write) {
            self.durable = index;
        }
    }

    /// What is after `after` will not stay, so it does not count as durable, on disk or on its way.
    fn unwritten(&mut self, after: u64) {
        self.durable = self.durable.min(after);
        for (_, index) in &mut self.writes {
            *index = (*index).min(after);
        }
    }

    pub fn epoch_at(&self, index: u64) -> Option<ShardEpoch> {
        self.place(index).map(|p| p.epoch)
    }
}
