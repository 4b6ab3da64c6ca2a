//! A disk: writes reach it in order and after a while; a crash keeps some of those on their way.

use super::super::{Replica, Restored};
use super::host::Applied;
use std::collections::VecDeque;
use weir_wire::id::ShardEpoch;
use weir_wire::replica::{Entry, Place};

#[derive(Clone, Debug)]
pub enum Op {
    Append(Entry),
    Truncate(u64),
    Install(u64, Vec<Applied>),
    Reset(u64, bool),
}

#[derive(Debug, Default)]
pub struct Disk {
    base: Vec<Applied>,
    entries: Vec<Entry>,
    resets: u64,
    /// How far the state is known to be committed, noted along with each write.
    applied: u64,
    pending: VecDeque<(u64, Op, u64)>,
}

impl Disk {
    pub fn write(&mut self, write: u64, op: Op, applied: u64) {
        self.pending.push_back((write, op, applied));
    }

    pub fn persist(&mut self, write: u64) {
        while let Some((_, op, applied)) = self.pending.pop_front_if(|(number, ..)| *number <= write) {
            self.carry_out(op, applied);
        }
    }

    fn carry_out(&mut self, op: Op, applied: u64) {
        let base = self.base.len() as u64;
        match op {
            Op::Append(entry) => self.entries.push(entry),
            Op::Truncate(after) => self.entries.truncate(after.saturating_sub(base) as usize),
            Op::Install(resets, state) => {
                (self.base, self.resets, self.applied) = (state, resets, 0);
                self.entries.clear();
            }
            Op::Reset(resets, keep) => {
                self.resets = resets;
                if !keep {
                    (self.base, self.applied) = (Vec::new(), 0);
                    self.entries.clear();
                }
            }
        }
        self.applied = self.applied.max(applied).clamp(self.base.len() as u64, self.last());
    }

    fn last(&self) -> u64 {
        (self.base.len() + self.entries.len()) as u64
    }

    pub fn epoch_at(&self, index: u64) -> Option<ShardEpoch> {
        let at = index.checked_sub(1)? as usize;
        match self.base.get(at) {
            Some(applied) => Some(applied.epoch),
            None => self.entries.get(at - self.base.len()).map(|e| e.epoch),
        }
    }

    /// The process died: some more of what was on its way is there.
    pub fn crash(&mut self, more: usize) {
        for (_, op, applied) in std::mem::take(&mut self.pending).into_iter().take(more) {
            self.carry_out(op, applied);
        }
    }

    /// What a start finds; `compact` entries of it only as part of the state.
    pub fn restore(&mut self, compact: usize) -> (Restored, Vec<Applied>) {
        let compact = compact.min(self.applied as usize - self.base.len());
        for entry in self.entries.drain(..compact) {
            self.base.push(Applied::of(&entry));
        }
        let index = self.base.len() as u64;
        let base = Place { epoch: self.base.last().map_or(ShardEpoch(0), |a| a.epoch), index };
        let mut state = self.base.clone();
        state.extend(self.entries.iter().take((self.applied - index) as usize).map(Applied::of));
        let restored =
            Restored { resets: self.resets, base, entries: self.entries.clone(), applied: self.applied };
        (restored, state)
    }

    pub fn is_empty(&self) -> bool {
        self.last() == 0 && self.resets == 0
    }

    /// What is confirmed to a replica must be here.
    pub fn disagrees_with(&self, replica: &Replica<u64>) -> Option<u64> {
        let durable = replica.core.log.durable();
        (durable > self.last()).then_some(durable)
    }
}
