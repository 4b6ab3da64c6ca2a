//! What must hold after each step, and what must have come of it at the end.

use super::host::{Applied, Host};
use super::world::World;
use super::{FAULTS_FOR, MS};
use std::collections::{BTreeMap, BTreeSet};
use weir_wire::id::ShardEpoch;
use weir_wire::replica::Place;

#[derive(Default)]
pub struct Check {
    /// What was committed, by resets: it is the same everywhere.
    logs: BTreeMap<u64, Vec<Applied>>,
    /// The newest epoch that somebody served in.
    serving: ShardEpoch,
    pub installs: u64,
    failure: Option<String>,
    answered_at_heal: Option<u64>,
}

impl Check {
    fn fail(&mut self, text: String) {
        self.failure.get_or_insert(text);
    }

    pub fn committed(&self, resets: u64) -> usize {
        self.logs.get(&resets).map_or(0, Vec::len)
    }

    /// An owner began without what others had.
    pub fn begun(&mut self, resets: u64, state: &[Applied], keep: bool) {
        if keep {
            self.logs.entry(resets).or_insert_with(|| state.to_vec());
        }
    }

    pub fn serving(&mut self, n: usize, epoch: ShardEpoch) {
        if epoch < self.serving {
            self.fail(format!("{n} begins to serve in {epoch:?}, after {:?}", self.serving));
        }
        self.serving = self.serving.max(epoch);
    }

    pub fn committed_at(&mut self, host: &Host, at: Place, payload: u64, acknowledged: bool) {
        let n = host.n;
        if at.index != host.state.len() as u64 {
            return self.fail(format!("{n} commits {at:?}, but applied {} before", host.state.len() - 1));
        }
        let applied = Applied { epoch: at.epoch, payload };
        let log = self.logs.entry(host.resets).or_default();
        match log.get(at.index as usize - 1) {
            Some(known) if *known != applied => {
                let known = *known;
                return self.fail(format!("{n} commits {applied:?} at {}, others {known:?}", at.index));
            }
            Some(_) => {}
            None if at.index == log.len() as u64 + 1 => log.push(applied),
            None => return self.fail(format!("{n} commits {at:?} after a hole")),
        }
        let epoch = host.replica.as_ref().map_or(ShardEpoch(0), |r| r.core.epoch);
        if acknowledged && epoch < self.serving {
            self.fail(format!("{n} acknowledges {at:?} in {epoch:?}, {:?} serves", self.serving));
        }
    }

    pub fn installed(&mut self, host: &Host, at: Place) {
        self.installs += 1;
        let log = self.logs.entry(host.resets).or_default();
        if host.state.len() as u64 != at.index || log.get(..host.state.len()) != Some(&host.state[..]) {
            self.fail(format!("{} installs a state at {at:?} that is none", host.n));
        }
    }
}

impl World {
    pub fn look(&mut self) -> Result<(), String> {
        if let Some(failure) = self.check.failure.take() {
            return Err(failure);
        }
        self.nothing_is_lost()?;
        self.one_serves()?;
        self.all_is_bounded()
    }

    /// Everybody in sync has all that was committed.
    fn nothing_is_lost(&self) -> Result<(), String> {
        let a = self.group.now();
        let Some(last) = self.check.logs.get(&a.resets).and_then(|log| log.last()) else { return Ok(()) };
        let index = self.check.logs[&a.resets].len() as u64;
        for host in self.hosts.iter().filter(|h| a.in_sync.contains(&h.id)) {
            let there = match (&host.disk, &host.replica) {
                (Some(disk), _) => disk.epoch_at(index),
                (None, Some(replica)) if replica.core.log.base() < index => replica.core.log.epoch_at(index),
                (None, _) => host.state.get(index as usize - 1).map(|a| a.epoch),
            };
            let gone = host.disk.is_none() && !host.up;
            if !gone && there != Some(last.epoch) {
                let n = host.n;
                return Err(format!("{n} is in sync, but at {index} has {there:?} in place of {last:?}"));
            }
        }
        Ok(())
    }

    fn one_serves(&self) -> Result<(), String> {
        let mut serving = self.hosts.iter().filter(|h| h.may_serve(self.now));
        let Some(host) = serving.next() else { return Ok(()) };
        if let Some(other) = serving.next() {
            return Err(format!("{} and {} both serve", host.n, other.n));
        }
        let (has, all) = (host.state.len(), self.check.committed(self.group.now().resets));
        if host.resets != self.group.now().resets || has != all {
            return Err(format!("{} answers a read with {has} of {all}", host.n));
        }
        Ok(())
    }

    fn all_is_bounded(&self) -> Result<(), String> {
        for host in &self.hosts {
            let Some(replica) = &host.replica else { continue };
            let (limits, log) = (&replica.core.limits, &replica.core.log);
            // A state has 16 bytes for each entry.
            let state = host.state.len() * 16;
            if log.kept().1 > limits.kept_bytes * 2 + limits.tail_bytes + state {
                return Err(format!("{} keeps {:?}", host.n, log.kept()));
            }
            if log.commit() != host.state.len() as u64 {
                return Err(format!("{} applied {}, committed {}", host.n, host.state.len(), log.commit()));
            }
            if let Some(durable) = host.disk.as_ref().and_then(|d| d.disagrees_with(replica)) {
                return Err(format!("{} takes {durable} for durable", host.n));
            }
        }
        Ok(())
    }

    /// After the faults: as many copies as wished, one serves, all have the same, and clients
    /// that kept on publishing were answered.
    pub fn is_well(&mut self) -> bool {
        let answered = self.clients.answered;
        let before = *self.check.answered_at_heal.get_or_insert(answered);
        self.now > FAULTS_FOR + 50 * MS && answered > before + 20 && self.why().is_empty()
    }

    pub fn why(&self) -> String {
        let a = self.group.now();
        if a.in_sync.len() < self.setup.copies.min(self.setup.hosts) || !a.catching_up.is_empty() {
            return format!("copies are missing: {a:?}");
        }
        if !self.hosts.iter().any(|h| h.may_serve(self.now)) {
            return format!("nobody serves: {a:?}");
        }
        let all = self.check.committed(a.resets);
        match self.hosts.iter().find(|h| a.in_sync.contains(&h.id) && h.state.len() + 40 < all) {
            Some(h) => format!("{} has {} of {all}", h.n, h.state.len()),
            None => String::new(),
        }
    }

    /// What was acknowledged is there, in the order of each publisher that waited for its answers.
    pub fn look_back(&self) -> Result<(), String> {
        let a = self.group.now();
        let log = &self.check.logs[&a.resets];
        let there: BTreeSet<u64> = log.iter().map(|a| a.payload).collect();
        let missing = self.clients.acknowledged.iter().find(|p| !there.contains(p));
        if let (0, Some(missing)) = (a.resets, missing) {
            return Err(format!("{missing:#x} was acknowledged and is gone"));
        }
        for host in self.hosts.iter().filter(|h| h.resets == a.resets) {
            if log.get(..host.state.len()) != Some(&host.state[..]) {
                return Err(format!("{} has another state than the others", host.n));
            }
        }
        let (mut seen, mut last) = (BTreeSet::new(), BTreeMap::new());
        for payload in log.iter().map(|a| a.payload).filter(|p| a.resets == 0 && p >> 32 > 0) {
            let before = last.entry(payload >> 32).or_insert(0);
            if seen.insert(payload) && payload < std::mem::replace(before, payload) {
                return Err(format!("{payload:#x} came out of order"));
            }
        }
        Ok(())
    }
}
