//! `[proxy.upstream.NAME]`: servers of one app, and how clients are spread over them.

mod server;

pub use server::{Check, Health, Server, Statuses, Tls};

use crate::section::{Field, Section, Value};
use crate::write::{Writer, quote};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    pub servers: Vec<Server>,
    pub balance: Balance,
    /// No server holds more than this times its fair share, where keys choose it; 0: no bound.
    pub load_factor: f64,
    /// A server that is new or comes back gets its full share after this. Zero: at once.
    pub slow_start: Duration,
    /// Open tunnels and requests of one server. 0: no limit.
    pub max_connections: usize,
    /// Handshakes under way with one server. 0: no limit.
    pub max_handshakes: usize,
    /// Clients that may wait for a server below its limits; over it 503.
    pub queue: usize,
    pub queue_timeout: Duration,
    /// The share of the places above, and of the queue, that one address may have.
    pub max_share_per_ip: f64,
    /// A kept connection to a server is closed after so long without a request. Zero: none is kept.
    pub keepalive_timeout: Duration,
    /// Connect retries, as a share of requests.
    pub retry_budget: f64,
    /// PROXY protocol v2 in front of each connection.
    pub send_proxy_protocol: bool,
    pub tls: Option<Tls>,
    /// Active checks; `None`: only what clients meet counts.
    pub health: Option<Health>,
}

/// How the server for a client is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Balance {
    /// By the route's sticky key, on a ketama ring.
    #[default]
    Hash,
    /// By the route's sticky key, by the highest weight of key and server.
    Rendezvous,
    /// The one with the fewest connections.
    Least,
    /// One after the other.
    RoundRobin,
}

const BALANCES: [(&str, Balance); 4] = [
    ("hash", Balance::Hash),
    ("rendezvous", Balance::Rendezvous),
    ("least", Balance::Least),
    ("round_robin", Balance::RoundRobin),
];

impl Default for Upstream {
    /// What a key that is left out says; `weir.toml` documents the same.
    fn default() -> Upstream {
        Upstream {
            servers: Vec::new(),
            balance: Balance::Hash,
            load_factor: 0.0,
            slow_start: Duration::ZERO,
            max_connections: 0,
            max_handshakes: 0,
            queue: 100,
            queue_timeout: Duration::from_secs(5),
            max_share_per_ip: 0.5,
            keepalive_timeout: Duration::from_secs(4),
            retry_budget: 0.2,
            send_proxy_protocol: false,
            tls: None,
            health: None,
        }
    }
}

impl Upstream {
    /// These servers, and everything else as it is if left out.
    pub fn of<S: Into<String>>(servers: impl IntoIterator<Item = S>) -> Upstream {
        let servers = servers.into_iter().map(|address| Server { address: address.into(), weight: 1 });
        Upstream { servers: servers.collect(), ..Upstream::default() }
    }

    fn read(s: &mut Section<'_, '_>) -> Upstream {
        let d = Upstream::default();
        let factor = |f: &f64| *f == 0.0 || (1.0..=1000.0).contains(f);
        Upstream {
            servers: s
                .need("servers", "a list of \"HOST:PORT\", such as [\"127.0.0.1:3000\"]")
                .unwrap_or_default(),
            balance: s.find("balance").unwrap_or(d.balance),
            load_factor: held(s, "load_factor", d.load_factor, factor, "1 to 1000, or 0 for no bound"),
            slow_start: s.find("slow_start").unwrap_or(d.slow_start),
            max_connections: s.find("max_connections").unwrap_or(d.max_connections),
            max_handshakes: s.find("max_handshakes").unwrap_or(d.max_handshakes),
            queue: s.find("queue").unwrap_or(d.queue),
            queue_timeout: held(s, "queue_timeout", d.queue_timeout, |t| !t.is_zero(), "1ms or more"),
            max_share_per_ip: within(s, "max_share_per_ip", d.max_share_per_ip, 0.0..=1.0),
            keepalive_timeout: s.find("keepalive_timeout").unwrap_or(d.keepalive_timeout),
            retry_budget: within(s, "retry_budget", d.retry_budget, 0.0..=10.0),
            send_proxy_protocol: s.find("send_proxy_protocol").unwrap_or(d.send_proxy_protocol),
            tls: s.find("tls").unwrap_or(d.tls),
            health: s.given("health").map(|_| s.section("health", Health::read)),
        }
    }

    fn write(&self, w: &mut Writer<'_>) {
        w.value("servers", self.servers.write());
        w.value("balance", self.balance.write());
        w.value("load_factor", self.load_factor.write());
        w.value("slow_start", self.slow_start.write());
        w.value("max_connections", self.max_connections.write());
        w.value("max_handshakes", self.max_handshakes.write());
        w.value("queue", self.queue.write());
        w.value("queue_timeout", self.queue_timeout.write());
        w.value("max_share_per_ip", self.max_share_per_ip.write());
        w.value("keepalive_timeout", self.keepalive_timeout.write());
        w.value("retry_budget", self.retry_budget.write());
        w.value("send_proxy_protocol", self.send_proxy_protocol.write());
        w.value("tls", self.tls.write());
        if let Some(health) = &self.health {
            w.section("health", |w| health.write(w));
        }
    }
}

/// A key that may be left out, within a range.
fn within<T: Value + PartialOrd>(
    s: &mut Section<'_, '_>,
    key: &'static str,
    default: T,
    range: RangeInclusive<T>,
) -> T {
    let accepted = format!("{} to {}", range.start().write(), range.end().write());
    held(s, key, default, |value| range.contains(value), &accepted)
}

fn held<T: Value>(
    s: &mut Section<'_, '_>,
    key: &'static str,
    default: T,
    holds: impl FnOnce(&T) -> bool,
    accepted: &str,
) -> T {
    match s.find::<T>(key) {
        Some(value) if holds(&value) => value,
        Some(value) => {
            let (path, place) = (s.path(key), s.place_of(key));
            let text = format!("{} does not fit; accepted: {accepted}", value.write());
            s.reader.mistake(&place, &path, text);
            default
        }
        None => default,
    }
}

impl Value for Balance {
    fn read(
        item: &crate::tree::Item,
        path: &str,
        reader: &mut crate::section::Reader<'_>,
    ) -> Option<Balance> {
        let known = item.as_text().and_then(|text| BALANCES.iter().find(|(name, _)| *name == text));
        match known {
            Some((_, balance)) => Some(*balance),
            None => {
                let names: Vec<String> = BALANCES.iter().map(|(name, _)| quote(name)).collect();
                reader.refuse(item, path, "a way to balance", &names.join(", "))
            }
        }
    }

    fn write(&self) -> String {
        let name = BALANCES.iter().find(|(_, balance)| balance == self);
        quote(name.map_or("hash", |(name, _)| name))
    }
}

/// `[proxy.upstream.NAME]`
impl Field for BTreeMap<String, Upstream> {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Self {
        let path = section.path(key);
        let Some(item) = section.given(key) else { return BTreeMap::new() };
        let Some(table) = item.as_table() else {
            let _: Option<()> =
                section.reader.refuse(item, &path, "a table", "[proxy.upstream.NAME] with servers");
            return BTreeMap::new();
        };
        let defaults = section.reader.defaults;
        let mut upstreams = BTreeMap::new();
        for (name, item) in table {
            let path = format!("{path}.{name}");
            if !is_name(name) {
                let text = format!(
                    "{name:?} is not an upstream's name; accepted: letters, digits, - and _, 64 at most"
                );
                section.reader.mistake(&item.key_place, &path, text);
            }
            upstreams.insert(name.clone(), section.table(Some(item), path, defaults, Upstream::read));
        }
        upstreams
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        for (name, upstream) in self {
            writer.section(&format!("{key}.{name}"), |w| upstream.write(w));
        }
    }
}

/// Short, and safe in metrics and variables.
pub(super) fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}
