//! What goes wrong, and how it ends.

use super::super::Floor;
use super::world::{Event, World};
use super::{MS, Micros};
use rand::Rng;
use weir_wire::id::BrokerId;

impl World {
    pub fn nemesis(&mut self) {
        if self.healing {
            return;
        }
        let n = self.rng.random_range(0..self.setup.hosts);
        match self.rng.random_range(0..100) {
            0..18 => self.pause(n),
            18..38 => self.crash(n),
            38..48 => self.cut(&[(n, self.other(n))]),
            48..56 => self.cut_off(n),
            // From the group, in one direction or both: the lease runs out.
            56..66 => {
                let group = self.setup.hosts;
                let both = [(n, group), (group, n)];
                let from = self.rng.random_range(0..3);
                self.cut(&both[from.min(1)..from.max(1)]);
                if from == 1 {
                    self.cut(&both);
                }
            }
            66..76 => self.cuts.clear(),
            76..83 => self.drop_one(),
            _ => self.rebalance(),
        }
        let after = self.rng.random_range(15 * MS..150 * MS);
        self.at(after, Event::Nemesis);
    }

    fn other(&self, n: usize) -> usize {
        (n + 1 + (self.now as usize % (self.setup.hosts - 1))) % self.setup.hosts
    }

    fn cut(&mut self, ways: &[(usize, usize)]) {
        self.note(|| format!("cut {ways:?}"));
        self.cuts.extend(ways);
    }

    fn cut_off(&mut self, n: usize) {
        let all = 0..self.setup.hosts;
        let out = all.clone().filter(|o| *o != n).map(|o| (n, o));
        let ways: Vec<_> = out.chain(all.filter(|o| *o != n).map(|o| (o, n))).collect();
        self.cut(&ways);
    }

    fn pause(&mut self, n: usize) {
        if !self.hosts[n].up || self.hosts[n].paused {
            return;
        }
        let long: Micros = if self.rng.random_bool(0.5) { 30 * MS } else { 500 * MS };
        let after = self.rng.random_range(MS..long);
        self.note(|| format!("pause {n} for {} ms", after / MS));
        self.hosts[n].paused = true;
        self.at(after, Event::Wake(n));
    }

    pub fn wake(&mut self, n: usize) {
        if !std::mem::take(&mut self.hosts[n].paused) {
            return;
        }
        self.note(|| format!("wake {n}"));
        for event in std::mem::take(&mut self.hosts[n].stalled) {
            self.host_event(n, event);
        }
    }

    /// Whether it is the last one that has everything. In memory that loses the shard, which is
    /// allowed, but is not to happen in each run.
    fn is_last(&self, n: usize) -> bool {
        let in_sync = &self.group.now().in_sync;
        let others = self.hosts.iter().filter(|h| h.n != n && h.up && in_sync.contains(&h.id));
        in_sync.contains(&self.hosts[n].id) && others.count() == 0
    }

    fn crash(&mut self, n: usize) {
        let spared = self.hosts[n].disk.is_none() && self.is_last(n) && self.rng.random_bool(0.95);
        if !self.hosts[n].up || spared {
            return;
        }
        let id = self.hosts[n].id;
        self.note(|| format!("crash {n} ({id})"));
        let more = self.rng.random_range(0..6);
        self.hosts[n].die(more);
        let after = self.rng.random_range(5 * MS..300 * MS);
        self.at(after, Event::Restart(n));
    }

    /// Starts, once the group can be asked where it stands.
    pub fn restart(&mut self, n: usize) {
        let group = self.setup.hosts;
        if self.hosts[n].up {
            return;
        }
        if self.is_cut(n, group) || self.is_cut(group, n) {
            return self.at(20 * MS, Event::Restart(n));
        }
        let now = self.group.now();
        let floor = Floor { epoch: now.epoch, version: now.version };
        // Some that were decided before are told again.
        let seen = (now.version - 1).saturating_sub(self.rng.random_range(0..4));
        self.group.next_id += 1;
        let (id, compact) = (BrokerId(self.group.next_id), self.rng.random_range(0..100));
        self.hosts[n].begin(id, floor, seen, compact);
        let id = self.hosts[n].id;
        self.note(|| format!("restart {n} as {id} above {floor:?}"));
        self.start(n);
    }

    pub fn heal(&mut self) {
        self.note(|| "heal".into());
        self.healing = true;
        self.cuts.clear();
        for n in 0..self.setup.hosts {
            self.wake(n);
            self.restart(n);
        }
    }
}
