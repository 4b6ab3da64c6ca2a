//! Time, the network, and what happens next.

use super::check::Check;
use super::client::Clients;
use super::group::{Ask, Group};
use super::host::Host;
use super::{FAULTS_FOR, HEAL_WITHIN, MS, Micros, Setup};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap};
use weir_wire::codec;
use weir_wire::id::BrokerId;
use weir_wire::replica::Message;

#[derive(Clone, Debug)]
pub enum Event {
    /// To one run of a host: `(host, run)`.
    To(usize, u64, HostEvent),
    Ask(BrokerId, Ask),
    LeaseAsked {
        host: usize,
        run: u64,
        asked: Micros,
    },
    GroupTick,
    Client(super::client::Event),
    Nemesis,
    Heal,
    Wake(usize),
    Restart(usize),
    Links,
}

#[derive(Clone, Debug)]
pub enum HostEvent {
    Message {
        from: BrokerId,
        to: BrokerId,
        message: Message,
    },
    Link {
        peer: BrokerId,
        up: bool,
    },
    Tick,
    Beat,
    AskLease,
    Lease {
        asked: Micros,
        version: u64,
    },
    Learn,
    /// For which replica of this process, and up to which write.
    Persisted(u64, u64),
    TakeSnapshot,
    Propose {
        client: usize,
        token: u64,
        payload: u64,
    },
}

#[derive(Debug)]
struct Due(Micros, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World {
    pub setup: Setup,
    pub rng: SmallRng,
    pub now: Micros,
    seq: u64,
    due: BinaryHeap<Reverse<Due>>,
    pub hosts: Vec<Host>,
    pub group: Group,
    pub clients: Clients,
    pub check: Check,
    /// What does not get through, by direction. The group is host number `setup.hosts`.
    pub cuts: BTreeSet<(usize, usize)>,
    pub healing: bool,
    pub trace: Vec<String>,
    pub steps: u64,
}

/// How a run went well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub steps: u64,
    pub committed: u64,
    pub acked: u64,
    pub epochs: u64,
    pub installs: u64,
    pub resets: u64,
    pub healed_in: Micros,
}

impl World {
    pub fn new(setup: Setup) -> World {
        let mut rng = SmallRng::seed_from_u64(setup.seed ^ 0x5eed);
        let hosts: Vec<_> = (0..setup.hosts).map(|n| Host::new(n, &setup, &mut rng)).collect();
        let ids: Vec<_> = hosts.iter().map(|h| h.id).collect();
        let group = Group::new(&setup, &ids, &mut rng);
        let mut world = World {
            rng,
            now: 0,
            seq: 0,
            due: BinaryHeap::new(),
            hosts,
            group,
            clients: Clients::new(3),
            check: Check::default(),
            cuts: BTreeSet::new(),
            healing: false,
            trace: Vec::new(),
            steps: 0,
            setup,
        };
        for host in 0..world.setup.hosts {
            world.start(host);
        }
        for client in 0..3 {
            world.at(5 * MS, Event::Client(super::client::Event::Next(client)));
        }
        world.at(0, Event::GroupTick);
        world.at(100 * MS, Event::Nemesis);
        world.at(0, Event::Links);
        world.at(FAULTS_FOR, Event::Heal);
        world
    }

    pub fn at(&mut self, after: Micros, event: Event) {
        self.seq += 1;
        self.due.push(Reverse(Due(self.now + after, self.seq, event)));
    }

    pub fn to(&mut self, after: Micros, host: usize, event: HostEvent) {
        let run = self.hosts[host].run;
        self.at(after, Event::To(host, run, event));
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.setup.trace {
            let line = format!("{:>9.3} ms  {}", self.now as f64 / 1000.0, text());
            self.trace.push(line);
        }
    }

    pub fn run(&mut self) -> Result<Outcome, String> {
        while let Some(Reverse(Due(time, _, event))) = self.due.pop() {
            self.now = time;
            self.steps += 1;
            self.step(event);
            self.look()?;
            if self.healing && self.is_well() {
                self.look_back()?;
                return Ok(self.outcome());
            }
            if time > FAULTS_FOR + HEAL_WITHIN {
                return Err(format!("not well {} ms after the last fault: {}", HEAL_WITHIN / MS, self.why()));
            }
        }
        Err("nothing left to happen".into())
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            steps: self.steps,
            committed: self.check.committed(self.group.now().resets) as u64,
            acked: self.clients.acked(),
            epochs: self.group.now().epoch.0,
            installs: self.check.installs,
            resets: self.group.now().resets,
            healed_in: self.now - FAULTS_FOR,
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::To(host, run, event) => {
                let h = &mut self.hosts[host];
                if h.run != run || !h.up {
                    return;
                }
                match h.paused {
                    true => h.stalled.push(event),
                    false => self.host_event(host, event),
                }
            }
            Event::Ask(from, ask) => self.group_asked(from, ask),
            Event::LeaseAsked { host, run, asked } => self.lease_asked(host, run, asked),
            Event::GroupTick => self.group_tick(),
            Event::Client(event) => self.client_event(event),
            Event::Nemesis => self.nemesis(),
            Event::Heal => self.heal(),
            Event::Wake(host) => self.wake(host),
            Event::Restart(host) => self.restart(host),
            Event::Links => self.links(),
        }
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub fn host_of(&self, id: BrokerId) -> Option<usize> {
        self.hosts.iter().position(|h| h.id == id)
    }

    pub fn delay(&mut self) -> Micros {
        match self.rng.random_range(0..100) {
            0 => self.rng.random_range(5 * MS..60 * MS),
            1..20 => self.rng.random_range(MS..5 * MS),
            _ => self.rng.random_range(50..MS),
        }
    }

    /// Whether something gets lost that is sent now.
    pub fn is_lost(&mut self, from: usize, to: usize) -> bool {
        let loss = if self.healing { 0.0 } else { self.setup.loss };
        self.is_cut(from, to) || self.rng.random_bool(loss)
    }

    pub fn send(&mut self, from: usize, to: BrokerId, message: Message) {
        let id = self.hosts[from].id;
        let Some(host) = self.host_of(to) else { return };
        if self.is_lost(from, host) {
            return;
        }
        // Now and then through the codec, as between real processes.
        let message = match self.rng.random_range(0..16) {
            0 => codec::decode(&codec::encode(&message).unwrap()[codec::HEADER..]).unwrap(),
            _ => message,
        };
        if !self.healing && self.rng.random_bool(self.setup.doubled) {
            let after = self.delay();
            self.to(after, host, HostEvent::Message { from: id, to, message: message.clone() });
        }
        let mut after = self.delay();
        if !self.setup.reorder {
            // One after the other on each link, each no earlier than the one before.
            let last = &mut self.hosts[from].last_arrival[host];
            *last = (*last).max(self.now + after);
            after = *last - self.now;
        }
        self.to(after, host, HostEvent::Message { from: id, to, message });
    }

    /// Each end's own view of its links, late and not of every flap.
    fn links(&mut self) {
        self.at(20 * MS, Event::Links);
        for from in 0..self.setup.hosts {
            for to in 0..self.setup.hosts {
                let (there, peer) = (&self.hosts[to], self.hosts[to].id);
                let up = there.up && !self.is_cut(from, to) && !self.is_cut(to, from);
                let known = self.hosts[from].links[to];
                if from == to || known == (up, peer) || self.rng.random_bool(0.5) {
                    continue;
                }
                self.hosts[from].links[to] = (up, peer);
                self.to(0, from, HostEvent::Link { peer, up });
            }
        }
    }
}
