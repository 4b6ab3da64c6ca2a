//! One broker: a clock that is a little off, a lease, the replica and the state that it applies
//! to, perhaps a disk; and what the layer above the replica has to do.

use super::super::{Action, Floor, Now, Replica};
use super::disk::{Disk, Op};
use super::group::Ask;
use super::world::{Event, HostEvent, World};
use super::{DRIFT, LEASE, MS, Micros, Setup};
use bytes::{BufMut, Bytes, BytesMut};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::replica::{Entry, Message, Place};

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One applied entry: the state is the list of them, so that states can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub epoch: ShardEpoch,
    pub payload: u64,
}

impl Applied {
    pub fn of(entry: &Entry) -> Applied {
        Applied { epoch: entry.epoch, payload: payload(&entry.data) }
    }
}

pub fn payload(data: &[u8]) -> u64 {
    data.first_chunk().map_or(0, |c| u64::from_le_bytes(*c))
}

pub struct Host {
    pub n: usize,
    pub id: BrokerId,
    /// Which process this is; what was meant for an earlier one does not reach it.
    pub run: u64,
    pub up: bool,
    pub paused: bool,
    pub stalled: Vec<HostEvent>,
    rate: f64,
    skew: Micros,
    lease: Micros,
    /// Granted as of a version that this host has not learned yet.
    pending: Vec<(Micros, u64)>,
    pub floor: Floor,
    /// The last assignment learned.
    pub seen: u64,
    pub replica: Option<Replica<u64>>,
    /// How many there were before it.
    replicas: u64,
    pub state: Vec<Applied>,
    pub resets: u64,
    pub disk: Option<Disk>,
    pub last_arrival: Vec<Micros>,
    pub links: Vec<(bool, BrokerId)>,
    limits: super::super::Limits,
    fault: Option<super::super::faults::Fault>,
}

impl Host {
    pub fn new(n: usize, setup: &Setup, rng: &mut SmallRng) -> Host {
        Host {
            n,
            id: BrokerId(n as u64 + 1),
            run: 0,
            up: false,
            paused: false,
            stalled: Vec::new(),
            rate: 1.0 + rng.random_range(-DRIFT..DRIFT),
            skew: rng.random_range(0..1_000_000 * MS),
            lease: 0,
            pending: Vec::new(),
            floor: Floor::default(),
            seen: 0,
            replica: None,
            replicas: 0,
            state: Vec::new(),
            resets: 0,
            disk: setup.limits.disk.then(Disk::default),
            last_arrival: vec![0; setup.hosts],
            links: vec![(true, BrokerId(0)); setup.hosts],
            limits: setup.limits.clone(),
            fault: setup.fault,
        }
    }

    pub fn clock(&self, now: Micros) -> Micros {
        self.skew + (now as f64 * self.rate) as Micros
    }

    pub fn now(&self, now: Micros) -> Now {
        let at = |micros| *ORIGIN + Duration::from_micros(micros);
        Now { at: at(self.clock(now)), lease: at(self.lease) }
    }

    pub fn may_serve(&self, now: Micros) -> bool {
        self.up && !self.paused && self.replica.as_ref().is_some_and(|r| r.may_serve(self.now(now)))
    }

    fn create(&mut self, restored: Option<super::super::Restored>) {
        let mut replica = Replica::new(self.id, self.limits.clone(), restored, self.floor);
        replica.core.fault = self.fault;
        self.replica = Some(replica);
        self.replicas += 1;
    }

    /// Everything in memory is gone.
    pub fn die(&mut self, more_writes: usize) {
        (self.up, self.paused, self.run) = (false, false, self.run + 1);
        self.stalled.clear();
        self.pending.clear();
        self.replica = None;
        self.lease = 0;
        (self.state, self.resets) = (Vec::new(), 0);
        if let Some(disk) = &mut self.disk {
            disk.crash(more_writes);
        }
    }

    /// As the group stands now; `id` is a new one unless there is a disk.
    pub fn begin(&mut self, id: BrokerId, floor: Floor, seen: u64, compact: usize) {
        (self.up, self.floor, self.seen) = (true, floor, seen);
        match self.disk.take() {
            Some(mut disk) if !disk.is_empty() => {
                let (restored, state) = disk.restore(compact);
                (self.state, self.resets) = (state, restored.resets);
                self.disk = Some(disk);
                self.create(Some(restored));
            }
            Some(disk) => self.disk = Some(disk),
            None => self.id = id,
        }
    }

    fn renew(&mut self) {
        let seen = self.seen;
        for (until, _) in self.pending.extract_if(.., |(_, version)| *version <= seen) {
            self.lease = self.lease.max(until);
        }
    }
}

impl World {
    /// The timers of a process that begins.
    pub fn start(&mut self, n: usize) {
        let (floor, seen) = (self.hosts[n].floor, self.hosts[n].seen);
        let id = self.hosts[n].id;
        if !self.hosts[n].up {
            self.hosts[n].begin(id, floor, seen, 0);
        }
        self.hosts[n].links = self.hosts.iter().map(|h| (true, h.id)).collect();
        for event in [HostEvent::Tick, HostEvent::Beat, HostEvent::AskLease] {
            self.to(0, n, event);
        }
        for _ in self.hosts[n].seen..self.group.now().version {
            let after = self.delay();
            self.to(after, n, HostEvent::Learn);
        }
    }

    pub fn host_event(&mut self, n: usize, event: HostEvent) {
        let mut out = Vec::new();
        let global = self.now;
        let now = self.hosts[n].now(global);
        match event {
            HostEvent::Tick => {
                let after = self.rng.random_range(3 * MS..6 * MS);
                self.to(after, n, HostEvent::Tick);
                self.hosts[n].renew();
            }
            HostEvent::Beat => return self.beat(n),
            HostEvent::AskLease => return self.ask_lease(n),
            HostEvent::Lease { asked, version } => {
                let host = &mut self.hosts[n];
                host.pending.push((asked + LEASE, version));
                host.renew();
            }
            HostEvent::Learn => return self.learn(n),
            _ => {}
        }
        let now = Now { lease: self.hosts[n].now(global).lease, ..now };
        let host = &mut self.hosts[n];
        let Some(replica) = &mut host.replica else {
            return self.refuse(n, &event);
        };
        match event {
            HostEvent::Message { from, to, message } if to == host.id => {
                replica.receive(now, from, message, &mut out);
            }
            HostEvent::Link { peer, up } => replica.link(now, peer, up, &mut out),
            HostEvent::Tick => replica.tick(now, &mut out),
            HostEvent::Persisted(which, write) if which == host.replicas => {
                if let Some(disk) = &mut host.disk {
                    disk.persist(write);
                }
                replica.persisted(now, write, &mut out);
            }
            HostEvent::TakeSnapshot => {
                let data = encode(&host.state);
                replica.snapshot(now, host.state.len() as u64, data, &mut out);
            }
            HostEvent::Propose { client, token, payload } => {
                self.propose(n, now, client, token, payload, &mut out);
            }
            _ => {}
        }
        self.act(n, out);
    }

    fn refuse(&mut self, n: usize, event: &HostEvent) {
        if let HostEvent::Propose { client, token, .. } = event {
            self.reply(n, *client, *token, super::client::Reply::Refused);
        }
    }

    fn propose(
        &mut self,
        n: usize,
        now: Now,
        client: usize,
        token: u64,
        payload: u64,
        out: &mut Vec<Action<u64>>,
    ) {
        let padding = self.rng.random_range(0..60);
        let mut data = BytesMut::with_capacity(8 + padding);
        data.put_u64_le(payload);
        data.put_bytes(b'x', padding);
        let flush = self.rng.random_bool(0.7);
        let Some(replica) = &mut self.hosts[n].replica else { return };
        let taken = replica.propose(now, data.freeze(), token, out);
        if flush {
            replica.flush(now, out);
        }
        if taken.is_err() {
            self.reply(n, client, token, super::client::Reply::Refused);
        }
    }

    fn beat(&mut self, n: usize) {
        self.to(15 * MS, n, HostEvent::Beat);
        let ids: Vec<_> = self.hosts.iter().map(|h| h.id).collect();
        for id in ids {
            if let Some(beat) = self.hosts[n].replica.as_ref().and_then(|r| r.beat(id)) {
                self.send(n, id, Message::Beat(beat));
            }
        }
    }

    fn ask_lease(&mut self, n: usize) {
        self.to(LEASE / 5, n, HostEvent::AskLease);
        let group = self.setup.hosts;
        if !self.is_lost(n, group) {
            let (asked, run) = (self.hosts[n].clock(self.now), self.hosts[n].run);
            let after = self.delay();
            self.at(after, Event::LeaseAsked { host: n, run, asked });
        }
    }

    fn learn(&mut self, n: usize) {
        if self.is_cut(self.setup.hosts, n) {
            return self.to(20 * MS, n, HostEvent::Learn);
        }
        let next = self.hosts[n].seen + 1;
        let Some(a) = self.group.version(next).cloned() else { return };
        self.note(|| format!("{n} learns {a:?}"));
        let host = &mut self.hosts[n];
        host.seen = next;
        host.renew();
        if host.replica.is_none() && a.holds(host.id) && a.version >= host.floor.version {
            host.create(None);
        }
        let (now, mut out) = (host.now(self.now), Vec::new());
        if let Some(replica) = &mut host.replica {
            replica.assign(now, &a, &mut out);
        }
        self.act(n, out);
    }

    /// Carries out what the replica wants, as the layer above it has to.
    fn act(&mut self, n: usize, out: Vec<Action<u64>>) {
        for action in out {
            self.note(|| format!("{n} {action:?}"));
            match action {
                Action::Send { to, message } => self.send(n, to, message),
                Action::Commit { at, data, token } => self.committed(n, at, &data, token),
                Action::Unknown { token } => {
                    self.reply(n, token as usize % 4, token, super::client::Reply::Unknown);
                }
                Action::Write { write, at, data } => {
                    self.write(n, write, Op::Append(Entry { epoch: at.epoch, data }));
                }
                Action::Truncate { write, after } => self.write(n, write, Op::Truncate(after)),
                Action::Install { write, at, resets, data } => self.install(n, write, at, resets, &data),
                Action::Reset { write, resets, keep } => {
                    let host = &mut self.hosts[n];
                    host.resets = resets;
                    if !keep {
                        host.state.clear();
                    }
                    self.check.begun(resets, &self.hosts[n].state, keep);
                    self.write(n, write, Op::Reset(resets, keep));
                }
                Action::Snapshot => {
                    let after = self.delay();
                    self.to(after, n, HostEvent::TakeSnapshot);
                }
                Action::Shrink { version, without } => self.ask(n, Ask::Shrink { version, without }),
                Action::Grow { version, add } => self.ask(n, Ask::Grow { version, add }),
                Action::Move { version, to } => self.ask(n, Ask::Move { version, to }),
                Action::Serving { epoch, .. } => self.check.serving(n, epoch),
                Action::Stopped { .. } => {}
                Action::Retire => {
                    let host = &mut self.hosts[n];
                    host.replica = None;
                    (host.state, host.resets) = (Vec::new(), 0);
                    host.disk = host.disk.take().map(|_| Disk::default());
                }
            }
        }
    }

    fn ask(&mut self, n: usize, ask: Ask) {
        if !self.is_lost(n, self.setup.hosts) {
            let after = self.delay();
            self.at(after, Event::Ask(self.hosts[n].id, ask));
        }
    }

    fn write(&mut self, n: usize, write: u64, op: Op) {
        let applied = self.hosts[n].state.len() as u64;
        if let Some(disk) = &mut self.hosts[n].disk {
            disk.write(write, op, applied);
            let after = self.rng.random_range(100..5 * MS);
            let which = self.hosts[n].replicas;
            self.to(after, n, HostEvent::Persisted(which, write));
        }
    }

    fn committed(&mut self, n: usize, at: Place, data: &Bytes, token: Option<u64>) {
        let host = &mut self.hosts[n];
        host.state.push(Applied { epoch: at.epoch, payload: payload(data) });
        self.check.committed_at(host, at, payload(data), token.is_some());
        if let Some(token) = token {
            self.clients.committed(token);
            self.reply(n, token as usize % 4, token, super::client::Reply::Done);
        }
    }

    fn install(&mut self, n: usize, write: u64, at: Place, resets: u64, data: &Bytes) {
        let state = decode(data);
        let host = &mut self.hosts[n];
        (host.state, host.resets) = (state.clone(), resets);
        self.check.installed(host, at);
        self.write(n, write, Op::Install(resets, state));
    }
}

fn encode(state: &[Applied]) -> Bytes {
    let mut data = BytesMut::with_capacity(state.len() * 16);
    for applied in state {
        data.put_u64_le(applied.epoch.0);
        data.put_u64_le(applied.payload);
    }
    data.freeze()
}

fn decode(data: &[u8]) -> Vec<Applied> {
    let (entries, _) = data.as_chunks::<16>();
    let applied = |e: &[u8; 16]| Applied { epoch: ShardEpoch(payload(e)), payload: payload(&e[8..]) };
    entries.iter().map(applied).collect()
}
