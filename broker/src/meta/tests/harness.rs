//! Brokers, the network between them, and stand-ins for the engines above.

use crate::meta::command::Command;
use crate::meta::controller::Policy;
use crate::meta::group::Clock;
use crate::meta::store::{Saved, Slot};
use crate::meta::{
    Conf, Group, Introduction, MemoryStore, Meta, MetaStore, PeerError, Peers, Settings, Versions,
};
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use weir_wire::id::BrokerId;

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn within(n: u64) -> Instant {
    Instant::now() + ms(n)
}

/// Calls take 0.2 to `delay` ms each way; directions can be cut.
pub struct Net {
    pub rng: Mutex<SmallRng>,
    pub delay: Mutex<Duration>,
    pub loss: Mutex<f64>,
    groups: Mutex<BTreeMap<String, Group>>,
    cuts: Mutex<BTreeSet<(String, String)>>,
}

impl Net {
    pub fn new(seed: u64) -> Arc<Net> {
        Arc::new(Net {
            rng: Mutex::new(SmallRng::seed_from_u64(seed)),
            delay: Mutex::new(ms(1)),
            loss: Mutex::new(0.0),
            groups: Mutex::default(),
            cuts: Mutex::default(),
        })
    }

    pub fn cut(&self, from: &str, to: &str) {
        self.cuts.lock().unwrap().insert((from.into(), to.into()));
    }

    /// Both ways, from all others.
    pub fn isolate(&self, one: &str, others: &[&str]) {
        for other in others {
            self.cut(one, other);
            self.cut(other, one);
        }
    }

    pub fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cuts.lock().unwrap().contains(&(from.to_owned(), to.to_owned()))
    }

    fn way(&self) -> Option<Duration> {
        let mut rng = self.rng.lock().unwrap();
        let lost = rng.random::<f64>() < *self.loss.lock().unwrap();
        let micros = self.delay.lock().unwrap().as_micros() as u64;
        (!lost).then(|| Duration::from_micros(rng.random_range(micros / 5..=micros)))
    }

    async fn carry(&self, from: &str, to: &str, deadline: Instant) -> Result<(), PeerError> {
        match self.way().filter(|_| !self.is_cut(from, to)) {
            Some(way) => sleep(way).await,
            None => sleep_until(deadline).await,
        }
        if Instant::now() >= deadline { Err(PeerError::NoAnswer("in time".into())) } else { Ok(()) }
    }

    pub fn has(&self, addr: &str) -> bool {
        self.groups.lock().unwrap().contains_key(addr)
    }
}

struct Mesh {
    net: Arc<Net>,
    from: String,
}

#[async_trait]
impl Peers for Mesh {
    async fn call(
        &self,
        _: Option<BrokerId>,
        addr: &str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, PeerError> {
        let gone = || PeerError::Unreachable("connection refused".into());
        self.net.carry(&self.from, addr, deadline).await?;
        // Killed: what it sends arrives nowhere either.
        if !self.net.has(&self.from) {
            return Err(gone());
        }
        let group = self.net.groups.lock().unwrap().get(addr).cloned().ok_or_else(gone)?;
        let answer = group.serve(request).await;
        if !self.net.has(addr) {
            sleep_until(deadline).await;
        }
        self.net.carry(addr, &self.from, deadline).await?;
        Ok(answer)
    }
}

/// A broker, with a stand-in for the engine: it acts on what it owns, hands over when asked,
/// takes in who catches up, and drops from sync who is not there.
pub struct Node {
    pub name: String,
    pub group: Group,
    yielded: Arc<Mutex<BTreeSet<(u16, u64)>>>,
    engine: AbortHandle,
}

pub struct Start<'a> {
    pub name: &'a str,
    pub store: Arc<dyn MetaStore>,
    /// How fast its clock goes.
    pub speed: f64,
    pub policy: Policy,
    pub wire: Versions,
    pub snapshot_after: u64,
}

impl Start<'_> {
    pub fn named(name: &str) -> Start<'_> {
        let wire = Versions { min: 1, max: 1 };
        let (store, policy) = (Arc::new(MemoryStore), Policy::default());
        Start { name, store, speed: 1.0, policy, wire, snapshot_after: 2000 }
    }

    pub async fn start(self, net: &Arc<Net>) -> Node {
        let (name, addr) = (self.name.to_owned(), self.name.to_owned());
        let who = Introduction { name: name.clone(), addr, wire: self.wire };
        let mut conf = Conf::new(who);
        (conf.policy, conf.clock) = (self.policy, skewed(self.speed));
        conf.snapshot_after = self.snapshot_after;
        let mesh = Arc::new(Mesh { net: net.clone(), from: name.clone() });
        let group = Group::start(conf, self.store, mesh).await.unwrap();
        net.groups.lock().unwrap().insert(name.clone(), group.clone());
        let yielded = Arc::new(Mutex::new(BTreeSet::new()));
        let engine = tokio::spawn(engine(net.clone(), group.clone(), yielded.clone())).abort_handle();
        Node { name, group, yielded, engine }
    }
}

fn skewed(speed: f64) -> Clock {
    let base = Instant::now();
    Arc::new(move || base.into_std() + base.elapsed().mul_f64(speed))
}

/// What a disk keeps, across restarts of one broker.
#[derive(Default)]
pub struct Disk(Mutex<(BTreeMap<Slot, Bytes>, BTreeMap<u64, Bytes>)>);

#[async_trait]
impl MetaStore for Disk {
    async fn load(&self) -> io::Result<Saved> {
        let (slots, entries) = self.0.lock().unwrap().clone();
        Ok(Saved { slots: slots.into_iter().collect(), entries: entries.into_iter().collect() })
    }

    async fn set(&self, slot: Slot, value: Bytes) -> io::Result<()> {
        self.0.lock().unwrap().0.insert(slot, value);
        Ok(())
    }

    async fn append(&self, entries: Vec<(u64, Bytes)>) -> io::Result<()> {
        self.0.lock().unwrap().1.extend(entries);
        Ok(())
    }

    async fn truncate(&self, from: u64) -> io::Result<()> {
        self.0.lock().unwrap().1.split_off(&from);
        Ok(())
    }

    async fn purge(&self, to: u64) -> io::Result<()> {
        let entries = &mut self.0.lock().unwrap().1;
        *entries = entries.split_off(&(to + 1));
        Ok(())
    }
}

impl Node {
    /// Without a word to anybody.
    pub fn kill(self, net: &Net) {
        net.groups.lock().unwrap().remove(&self.name);
        self.engine.abort();
        let group = self.group;
        tokio::spawn(async move { group.stop().await });
    }

    /// In order, after it has given up what it should.
    pub async fn stop(self, net: &Net) {
        net.groups.lock().unwrap().remove(&self.name);
        self.engine.abort();
        self.group.stop().await;
    }

    pub fn id(&self) -> BrokerId {
        self.group.id()
    }

    pub fn meta(&self) -> Arc<Meta> {
        self.group.watch().borrow().clone()
    }

    /// Whether it would acknowledge for this shard at this moment.
    pub fn acts_on(&self, shard: u16, meta: &Meta) -> bool {
        let now = &meta.shards[usize::from(shard)];
        let yielded = self.yielded.lock().unwrap().contains(&(shard, now.epoch.0));
        now.owner == Some(self.id()) && !yielded && self.group.lease().holds(self.group.now())
    }

    pub async fn leads(&self) -> bool {
        self.group.status(within(100)).await.leader == Some(self.id())
    }

    pub async fn until(&self, what: &str, limit: u64, done: impl Fn(&Meta) -> bool) -> Arc<Meta> {
        let mut watch = self.group.watch();
        let reached = tokio::time::timeout(ms(limit), watch.wait_for(|meta| done(meta))).await;
        match reached {
            Ok(meta) => meta.unwrap().clone(),
            Err(_) => panic!("{}: not {what} in {limit} ms: {:#?}", self.name, self.meta()),
        }
    }
}

async fn engine(net: Arc<Net>, group: Group, yielded: Arc<Mutex<BTreeSet<(u16, u64)>>>) {
    let mut watch = group.watch();
    let mut missing: BTreeMap<BrokerId, Instant> = BTreeMap::new();
    loop {
        let meta = watch.borrow_and_update().clone();
        let me = group.id();
        for (id, broker) in &meta.brokers {
            if net.has(&broker.addr) {
                missing.remove(id);
            } else {
                missing.entry(*id).or_insert_with(Instant::now);
            }
        }
        let away = |id: &BrokerId| {
            !meta.is_member(*id) || missing.get(id).is_some_and(|since| since.elapsed() > ms(500))
        };
        let mut commands = Vec::new();
        for (shard, now) in (0..).zip(&meta.shards).filter(|(_, s)| s.owner == Some(me)) {
            let (version, without): (_, Vec<_>) =
                (now.version, now.in_sync.iter().copied().filter(|id| *id != me && away(id)).collect());
            if !without.is_empty() {
                commands.push(Command::Shrink { shard, version, by: me, without });
            } else if let Some(to) = now.hand_to {
                yielded.lock().unwrap().insert((shard, now.epoch.0));
                commands.push(Command::Move { shard, version, by: me, to });
            } else if let Some(add) = now.catching_up.iter().find(|id| !away(id)).copied() {
                commands.push(Command::Grow { shard, version, by: me, add });
            }
        }
        if !commands.is_empty() && group.lease().holds(group.now()) {
            sleep(ms(5)).await;
            let _ = group.submit(commands, within(500)).await;
        }
        tokio::select! {
            _ = watch.changed() => {}
            () = sleep(ms(50)) => {}
        }
    }
}

pub fn settings(shards: u16) -> Settings {
    Settings { shards, ..Settings::default() }
}

/// As many brokers, in one cluster, everything placed.
pub async fn cluster(net: &Arc<Net>, names: &[&str], shards: u16) -> Vec<Node> {
    let mut nodes = Vec::new();
    for name in names {
        let node = Start::named(name).start(net).await;
        if nodes.is_empty() {
            node.group.bootstrap(settings(shards), within(5000)).await.unwrap();
        } else {
            node.group.join(&[names[0].to_owned()]).await.unwrap();
        }
        nodes.push(node);
    }
    for node in &nodes {
        node.until("settled", 20_000, |meta| settled(meta, names.len()) && meta.health().is_good()).await;
    }
    nodes
}

pub fn count_voters(meta: &Meta) -> usize {
    meta.brokers.values().filter(|b| b.voter).count()
}

/// Every shard owned, with all copies in sync, and nothing under way.
pub fn settled(meta: &Meta, members: usize) -> bool {
    let copies = usize::from(meta.settings.copies).min(members);
    meta.brokers.len() == members
        && meta.shards.iter().all(|s| {
            s.owner.is_some() && s.in_sync.len() == copies && s.catching_up.is_empty() && s.hand_to.is_none()
        })
}

pub async fn leader(nodes: &[Node]) -> usize {
    for _ in 0..1000 {
        for (n, node) in nodes.iter().enumerate() {
            if node.leads().await {
                return n;
            }
        }
        sleep(ms(10)).await;
    }
    panic!("nobody leads");
}

/// At most one acts on a shard, at every moment. Runs until aborted.
pub fn check_owners(nodes: &[Node], seed: u64) -> tokio::task::JoinHandle<()> {
    let seen: Vec<_> = nodes
        .iter()
        .map(|n| Node {
            name: n.name.clone(),
            group: n.group.clone(),
            yielded: n.yielded.clone(),
            engine: n.engine.clone(),
        })
        .collect();
    tokio::spawn(async move {
        loop {
            let metas: Vec<_> = seen.iter().map(Node::meta).collect();
            for shard in 0..metas[0].shards.len() as u16 {
                let acts = |(n, meta): &(&Node, &Arc<Meta>)| {
                    usize::from(shard) < meta.shards.len() && n.acts_on(shard, meta)
                };
                let acting: Vec<_> = seen.iter().zip(&metas).filter(acts).map(|(n, _)| &n.name).collect();
                assert!(acting.len() <= 1, "seed {seed}: {acting:?} act on shard {shard} at once");
            }
            sleep(ms(3)).await;
        }
    })
}
