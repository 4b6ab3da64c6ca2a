//! A model of the metadata group: one place that decides, heard late and in order. It takes a
//! shard from its owner only when the owner gave it up or its lease has surely run out.

use super::super::Assignment;
use super::world::{Event, HostEvent, World};
use super::{DRIFT, LEASE, MS, Micros, Setup};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use weir_wire::id::{BrokerId, ShardEpoch};

/// How long nobody in sync may be there before the shard begins anew without.
const UNCLEAN_AFTER: Micros = 500 * MS;

#[derive(Clone, Debug)]
pub enum Ask {
    Shrink { version: u64, without: Vec<BrokerId> },
    Grow { version: u64, add: BrokerId },
    Move { version: u64, to: BrokerId },
}

pub struct Group {
    history: Vec<Assignment>,
    /// Until when a broker may act at most, by the group's own clock.
    leases: BTreeMap<BrokerId, Micros>,
    rate: f64,
    orphan_since: Option<Micros>,
    pub next_id: u64,
}

impl Group {
    pub fn new(setup: &Setup, ids: &[BrokerId], rng: &mut SmallRng) -> Group {
        let first = Assignment {
            epoch: ShardEpoch(1),
            version: 1,
            owner: Some(ids[0]),
            in_sync: vec![ids[0]],
            catching_up: ids[1..setup.copies].to_vec(),
            ..Assignment::default()
        };
        Group {
            history: vec![first],
            leases: BTreeMap::new(),
            rate: 1.0 + rng.random_range(-DRIFT..DRIFT),
            orphan_since: None,
            next_id: 100,
        }
    }

    pub fn now(&self) -> &Assignment {
        &self.history[self.history.len() - 1]
    }

    pub fn version(&self, version: u64) -> Option<&Assignment> {
        self.history.get(version.checked_sub(1)? as usize)
    }

    fn clock(&self, now: Micros) -> Micros {
        (now as f64 * self.rate) as Micros
    }

    fn has_lease(&self, id: BrokerId, now: Micros) -> bool {
        self.leases.get(&id).is_some_and(|until| *until > self.clock(now))
    }
}

impl World {
    pub fn lease_asked(&mut self, n: usize, run: u64, asked: Micros) {
        let host = &self.hosts[n];
        if host.run != run || !host.up {
            return;
        }
        // By the slowest clock there may be, and a little more.
        let longest = (LEASE as f64 * (1.0 + 3.0 * DRIFT)) as Micros + MS;
        self.group.leases.insert(host.id, self.group.clock(self.now) + longest);
        let version = self.group.now().version;
        if !self.is_lost(self.setup.hosts, n) {
            let after = self.delay();
            self.to(after, n, HostEvent::Lease { asked, version });
        }
    }

    fn decide(&mut self, change: impl FnOnce(&mut Assignment)) {
        let mut next = self.group.now().clone();
        change(&mut next);
        next.version += 1;
        if next.owner != self.group.now().owner {
            next.hand_to = None;
        }
        self.note(|| format!("group decides {next:?}"));
        self.group.history.push(next);
        for n in 0..self.setup.hosts {
            let after = if self.rng.random_bool(0.05) { 150 * MS } else { self.delay() };
            self.to(after, n, HostEvent::Learn);
        }
    }

    pub fn group_asked(&mut self, from: BrokerId, ask: Ask) {
        let now = self.group.now().clone();
        if now.owner != Some(from) {
            return;
        }
        match ask {
            Ask::Shrink { version, without } if version == now.version => self.decide(|a| {
                a.in_sync.retain(|id| *id == from || !without.contains(id));
            }),
            Ask::Grow { version, add } if version == now.version && now.catching_up.contains(&add) => {
                self.decide(|a| {
                    a.catching_up.retain(|id| *id != add);
                    a.in_sync.push(add);
                });
            }
            Ask::Move { version, to } if version == now.version && now.in_sync.contains(&to) => {
                self.decide(|a| {
                    a.owner = Some(to);
                    a.epoch.0 += 1;
                    a.hand_to = None;
                });
            }
            _ => {}
        }
    }

    pub fn group_tick(&mut self) {
        self.at(10 * MS, Event::GroupTick);
        let (now, time) = (self.group.now().clone(), self.now);
        let alive: Vec<_> =
            self.hosts.iter().map(|h| h.id).filter(|id| self.group.has_lease(*id, time)).collect();
        if now.owner.is_none_or(|owner| !alive.contains(&owner)) {
            return self.promote(&now, &alive);
        }
        self.group.orphan_since = None;
        self.place(&now, &alive);
    }

    fn promote(&mut self, now: &Assignment, alive: &[BrokerId]) {
        // At the beginning nobody had time to ask for a lease.
        if self.now < LEASE * 2 && now.version == 1 {
            return;
        }
        let fit = |id: &&BrokerId| self.setup.promote_anyone || now.in_sync.contains(id);
        let candidates: Vec<_> = alive.iter().filter(fit).copied().collect();
        if let Some(&owner) = candidates.choose(&mut self.rng) {
            self.group.orphan_since = None;
            return self.decide(|a| {
                a.epoch.0 += 1;
                a.owner = Some(owner);
                // Only where a fault is planted is there anything to do.
                a.catching_up.retain(|id| *id != owner);
                if !a.in_sync.contains(&owner) {
                    a.in_sync.push(owner);
                }
            });
        }
        if now.owner.is_some() {
            return self.decide(|a| {
                a.epoch.0 += 1;
                a.owner = None;
            });
        }
        let since = *self.group.orphan_since.get_or_insert(self.now);
        if self.setup.unclean && self.now - since > UNCLEAN_AFTER {
            let Some(&owner) = alive.choose(&mut self.rng) else { return };
            self.group.orphan_since = None;
            self.decide(|a| {
                a.epoch.0 += 1;
                a.resets += 1;
                a.owner = Some(owner);
                a.in_sync = vec![owner];
                a.catching_up.retain(|id| *id != owner);
            });
        }
    }

    /// Enough holders that live, and not too many.
    fn place(&mut self, now: &Assignment, alive: &[BrokerId]) {
        let dead = |id: &BrokerId| !alive.contains(id);
        if now.catching_up.iter().any(dead) {
            return self.decide(|a| a.catching_up.retain(|id| alive.contains(id)));
        }
        let holders = now.in_sync.len() + now.catching_up.len();
        if holders < self.setup.copies {
            let free: Vec<_> = alive.iter().filter(|id| !now.holds(**id)).copied().collect();
            if let Some(&add) = free.choose(&mut self.rng) {
                self.decide(|a| a.catching_up.push(add));
            }
        } else if holders > self.setup.copies {
            let surplus = now.catching_up.last().or(now.in_sync.iter().find(|id| now.owner != Some(**id)));
            let surplus = surplus.copied();
            self.decide(|a| {
                a.catching_up.retain(|id| Some(*id) != surplus);
                a.in_sync.retain(|id| Some(*id) != surplus);
            });
        }
    }

    /// A holder is no longer wanted; often enough it is the next that is.
    pub fn drop_one(&mut self) {
        let now = self.group.now().clone();
        let all: Vec<_> = now.in_sync.iter().chain(&now.catching_up).copied().collect();
        if let Some(&id) = all.choose(&mut self.rng)
            && now.owner.is_some_and(|owner| owner != id)
        {
            self.decide(|a| {
                a.in_sync.retain(|other| *other != id);
                a.catching_up.retain(|other| *other != id);
            });
        }
    }

    /// An operator moves the shard, or changes who holds it.
    pub fn rebalance(&mut self) {
        let now = self.group.now().clone();
        let others: Vec<_> = now.in_sync.iter().filter(|id| now.owner != Some(**id)).copied().collect();
        let free: Vec<_> = self.hosts.iter().map(|h| h.id).filter(|id| !now.holds(*id)).collect();
        match (others.choose(&mut self.rng), free.choose(&mut self.rng)) {
            (Some(&to), _) if now.owner.is_some() && self.rng.random_bool(0.6) => {
                self.decide(|a| a.hand_to = Some(to));
            }
            (_, Some(&add)) => self.decide(|a| a.catching_up.push(add)),
            _ => {}
        }
    }
}
