//! Servers by the name of their upstream. A request's way through them is its plan (`upstream/plan.rs`);
//! here is what an upstream is made of, and how it changes while it lives: by lookups, checks, operators
//! and reloads.

pub mod address;
pub mod attempt;
pub mod balance;
pub mod bound;
mod budget;
mod check;
pub mod desk;
mod dial;
mod dns;
mod homes;
pub mod l4;
mod places;
pub mod plan;
mod probe;
pub mod proxy_protocol;
mod queue;
pub mod server;
mod settings;
mod silence;
mod status;
pub mod stream;
pub mod tls;
pub mod watched;

pub use desk::State;
pub use plan::{Exhausted, Plan};
pub use status::{ServerStatus, UnknownServer};
pub use stream::ServerStream;

use crate::error::BindError;
use crate::metrics::{Metrics, UpstreamLabels};
use address::{Address, Entry, Place};
use arc_swap::ArcSwap;
use balance::Balance;
use desk::Desk;
use dial::Dial;
use dns::Found;
use server::{Server, Shared};
use settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};
use weir_core::sync::lock;

/// A name that was never found is looked up again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// A line that strangers can cause is written this often.
const SAID_AGAIN: Duration = Duration::from_secs(10);

pub struct Upstream {
    pub name: Arc<str>,
    settings: Settings,
    entries: Vec<Entry>,
    /// Addresses of names.
    found: Mutex<BTreeMap<String, Found>>,
    set: ArcSwap<Set>,
    desk: Arc<Desk>,
    metrics: Metrics,
}

/// The servers, as far as they are known.
struct Set {
    servers: Vec<Arc<Server>>,
    balance: Balance,
}

impl Upstream {
    /// The upstream of this name in the conf. `before` is what it was until now, if it was: open counts,
    /// breakers, health, what operators said and who waits are kept, and names that it knows are not
    /// looked up now but when they expire.
    pub fn build(
        name: &str,
        conf: &weir_conf::proxy::Proxy,
        metrics: &Metrics,
        before: Option<&Arc<Upstream>>,
    ) -> Result<Arc<Upstream>, BindError> {
        let of = conf.upstream.get(name).cloned().unwrap_or_default();
        Upstream::new(name, &of, conf, metrics, before).map(Arc::new)
    }

    /// The listener of the node in this process.
    pub fn of_node(addr: SocketAddr, conf: &weir_conf::proxy::Proxy, metrics: &Metrics) -> Upstream {
        let entry =
            Entry { text: addr.to_string().into(), weight: 1, place: Place::At(Address::Tcp(addr, None)) };
        let settings = Settings::plain(&weir_conf::proxy::Upstream::default(), conf);
        Upstream::assemble("node", settings, vec![entry], BTreeMap::new(), metrics, None)
    }

    fn new(
        name: &str,
        of: &weir_conf::proxy::Upstream,
        conf: &weir_conf::proxy::Proxy,
        metrics: &Metrics,
        before: Option<&Arc<Upstream>>,
    ) -> Result<Upstream, BindError> {
        let entries: Vec<Entry> = of.servers.iter().filter_map(Entry::parse).collect();
        if entries.is_empty() {
            return Err(BindError::NoServers { upstream: name.into() });
        }
        let mut settings = Settings::plain(of, conf);
        if let Some(tls) = &of.tls {
            let before = before.and_then(|before| before.settings.tls.as_ref());
            let fail = |source| BindError::Tls { upstream: name.into(), source };
            let client = tls::Client::new(tls, before).map_err(fail)?;
            for entry in &entries {
                client.name(entry.host().as_deref()).map_err(fail)?;
            }
            settings.tls = Some(client);
        }
        let known = before.map(|before| before.found().clone()).unwrap_or_default();
        let found = lookups(name, &entries, known, conf);
        Ok(Upstream::assemble(name, settings, entries, found, metrics, before))
    }

    fn assemble(
        name: &str,
        settings: Settings,
        entries: Vec<Entry>,
        found: BTreeMap<String, Found>,
        metrics: &Metrics,
        before: Option<&Arc<Upstream>>,
    ) -> Upstream {
        let upstream = Upstream {
            name: name.into(),
            settings,
            entries,
            found: Mutex::new(found),
            set: ArcSwap::from_pointee(Set::empty()),
            desk: before.map_or_else(|| Arc::new(Desk::new(name, metrics)), |before| before.desk.clone()),
            metrics: metrics.clone(),
        };
        // At the start all are new, and none of them is to be spared.
        upstream.refresh(before.map(|_| Instant::now()));
        upstream
    }

    /// The names of its servers.
    pub fn servers(&self) -> impl Iterator<Item = String> + use<> {
        let set = self.set.load_full();
        (0..set.servers.len()).map(move |index| set.servers[index].shared.name.to_string())
    }

    /// The way of one request through the servers: `prefer` first, if there is a server of this name,
    /// whatever the key says and however much it holds.
    pub fn plan(self: &Arc<Self>, key: &[u8], prefer: Option<&str>) -> Plan {
        Plan::new(self, key, prefer)
    }

    /// Makes the set of servers from what is known; those that are new start slowly from `came` on.
    fn refresh(&self, came: Option<Instant>) {
        let mut all: Vec<(Address, &Entry)> = Vec::new();
        {
            let found = self.found();
            for entry in &self.entries {
                match &entry.place {
                    Place::At(address) => all.push((address.clone(), entry)),
                    Place::Name { host, port } => {
                        let addrs = found.get(host).map(|found| found.addrs.as_slice()).unwrap_or_default();
                        all.extend(address::group(addrs, *port).into_iter().map(|address| (address, entry)));
                    }
                }
            }
        }
        // The order in the conf means nothing, and a server that two entries lead to is one.
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by_key(|(address, _)| address.to_string());
        let server = |(address, entry): (Address, &Entry)| {
            let shared =
                Shared::of(&self.name, &address.to_string(), self.settings.breaker, came, &self.metrics);
            let tls = self.settings.tls.as_ref().and_then(|client| {
                // The name was found good when the upstream was built.
                Some((client.clone(), client.name(entry.host().as_deref()).ok()?))
            });
            Arc::new(Server { shared, entry: entry.clone(), dial: Dial::new(address, tls) })
        };
        let servers: Vec<_> = all.into_iter().map(server).collect();
        self.set.store(Arc::new(Set::new(servers, self.settings.balance)));
        self.desk.call();
    }

    fn labels(&self) -> UpstreamLabels {
        UpstreamLabels { upstream: self.name.to_string() }
    }

    /// An address that wants more of the servers' places than its share has to wait.
    fn holds_its_share(&self) {
        self.metrics.upstream_share.get_or_create(&self.labels()).inc();
        let now = Instant::now();
        let mut said = lock(&self.desk.said);
        if said.is_none_or(|at| now >= at + SAID_AGAIN) {
            *said = Some(now);
            let upstream = &*self.name;
            tracing::warn!(
                upstream,
                "a client waits though servers have places: its address has its share of them (max_share_per_ip)"
            );
        }
    }

    fn found(&self) -> MutexGuard<'_, BTreeMap<String, Found>> {
        // Replaced entry by entry: whole at any time.
        lock(&self.found)
    }

    fn has_names(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.place, Place::Name { .. }))
    }

    fn next_lookup(&self) -> Instant {
        let soonest = self.found().values().map(|found| found.until).min();
        soonest.unwrap_or_else(Instant::now)
    }

    fn due_lookups(&self, now: Instant) -> Vec<String> {
        self.found().iter().filter(|(_, found)| found.until <= now).map(|(host, _)| host.clone()).collect()
    }

    /// A failed lookup keeps what is known.
    fn looked_up(&self, host: &str, found: io::Result<Found>, now: Instant) {
        let bounds = self.settings.dns_ttl;
        let changed = {
            let mut known = self.found();
            let Some(known) = known.get_mut(host) else { return };
            match found {
                Ok(found) => {
                    known.until = dns::due(found.until, now, bounds);
                    let changed = known.addrs != found.addrs;
                    if changed {
                        let servers: Vec<String> = found.addrs.iter().map(ToString::to_string).collect();
                        tracing::info!(
                            upstream = &*self.name,
                            host,
                            servers = servers.join(" "),
                            "a name has other addresses"
                        );
                    }
                    known.addrs = found.addrs;
                    changed
                }
                Err(error) => {
                    let never = known.addrs.is_empty();
                    known.until = now + if never { AGAIN.min(bounds.0) } else { bounds.0 };
                    let upstream = &*self.name;
                    match never {
                        true => tracing::debug!(upstream, host, %error, "a name is still not found"),
                        false => {
                            tracing::warn!(upstream, host, %error, "a name was not found: its last addresses count");
                        }
                    }
                    false
                }
            }
        };
        if changed {
            self.refresh(Some(now));
        }
    }
}

/// What an upstream does besides serving: lookups and checks, until it is gone.
pub async fn tend(upstream: Weak<Upstream>) {
    tokio::join!(dns::watch(upstream.clone()), check::watch(upstream));
}

/// Looks up the names that are not known yet. One that is not found has no servers until it is: it is looked up
/// again soon, since an app often comes up together with its proxy.
fn lookups(
    upstream: &str,
    entries: &[Entry],
    mut known: BTreeMap<String, Found>,
    conf: &weir_conf::proxy::Proxy,
) -> BTreeMap<String, Found> {
    let names: BTreeSet<&String> = entries
        .iter()
        .filter_map(|entry| match &entry.place {
            Place::Name { host, .. } => Some(host),
            Place::At(_) => None,
        })
        .collect();
    known.retain(|host, _| names.contains(host));
    let hosts: Vec<String> = names.into_iter().filter(|host| !known.contains_key(*host)).cloned().collect();
    let mut found = dns::lookup_all(&hosts, &conf.dns_servers).unwrap_or_else(|error| {
        tracing::error!(upstream, %error, "names cannot be looked up");
        Vec::new()
    });
    found.resize_with(hosts.len(), || Err(io::Error::other("not looked up")));
    for (host, found) in hosts.into_iter().zip(found) {
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(upstream, host, %error, "a name was not found: it has no servers until it is");
            Found { addrs: Vec::new(), until: Instant::now() + AGAIN.min(conf.dns_min_ttl) }
        });
        known.insert(host, found);
    }
    known
}

impl Set {
    fn empty() -> Set {
        Set::new(Vec::new(), weir_conf::proxy::Balance::RoundRobin)
    }

    fn new(servers: Vec<Arc<Server>>, balance: weir_conf::proxy::Balance) -> Set {
        let names: Vec<(&str, u32)> =
            servers.iter().map(|server| (&*server.shared.name, server.entry.weight)).collect();
        let balance = Balance::new(balance, &names);
        Set { servers, balance }
    }
}

#[cfg(test)]
#[path = "upstream/tests.rs"]
mod tests;
