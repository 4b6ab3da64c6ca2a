//! Who may come in: by address, by count, by rate, by the budget of the whole process, and what
//! each route asks for besides (`admit/gate.rs`). Every address counts alike, loopback too.
//!
//! The order of checks: lists of addresses and places at accept, before a byte is read; then by
//! request: lists and places of the client that a trusted peer speaks for, the route's origins,
//! lists, token, places and rates, the address's rate, and last the budget. Who is refused by a
//! later one gets back what the earlier ones took.
//!
//! Limits belong to one conf. Counts, and rates and the budget whose settings are the same, pass on
//! to the next: a reload gives nobody a fresh burst.

pub mod budget;
pub mod counts;
pub mod gate;
pub mod key;
mod origin;
pub mod rates;
pub mod refused;

use crate::error::BindError;
use crate::metrics::Metrics;
use crate::token::Verifier;
use budget::{Budget, Slot};
use counts::{Counts, KeyPlace, Place, Tallied, Tally};
use gate::{Gate, RouteState};
use key::Key;
use prometheus_client::metrics::gauge::Gauge;
use rates::{Quota, Rates};
pub use refused::{Refused, log_bad};
use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_conf::units::{Cidr, Rate};
use weir_core::descriptors::{self, Descriptor, fit, lowered};
use weir_core::unproven::{self, Room, Unproven};

/// A connection that has asked for nothing is left alone for so long: many may come at once, and be slow together.
const FAIR: Duration = Duration::from_secs(1);
/// Refused ones that are answered with patience (`answer.rs`) at once. Beyond it connections are just
/// closed, so that a flood costs an accept each and holds no sockets.
const MAX_LINGERING: usize = 1024;

/// Limits of one conf, over what outlives it.
pub struct Admit {
    lasting: Arc<Lasting>,
    max: Most,
    ipv6_prefix: u8,
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
    handshakes: Option<Arc<Rates>>,
    /// Handshakes of an address that the budget refuses, by the same quota as those that it lets in:
    /// they cost it none of those, and it can't make the line look longer than that.
    put_off: Option<Arc<Rates>>,
    tls_handshakes: Option<Arc<Rates>>,
    budget: Option<Arc<Budget>>,
    tokens: BTreeMap<String, Arc<Verifier>>,
    routes: HashMap<String, Arc<RouteState>>,
}

/// Numbers of the conf, lowered where the process has too few descriptors for them. 0: no limit.
struct Most {
    connections: usize,
    connections_per_ip: usize,
    requests: usize,
    requests_per_ip: usize,
}

impl Most {
    fn of(conf: &weir_conf::proxy::Proxy, budget: usize) -> Most {
        let (wanted, part) = fit([conf.max_connections, conf.max_requests], budget);
        let lowered = |number: usize| if number == 0 { 0 } else { lowered(number, part) };
        Most {
            connections: wanted[0],
            connections_per_ip: lowered(conf.max_connections_per_ip),
            requests: wanted[1],
            requests_per_ip: lowered(conf.max_requests_per_ip),
        }
    }
}

/// A request under way to a server: its place among all and among those of its address, and its descriptor.
pub struct UnderWay {
    _total: Place,
    _own: Option<KeyPlace>,
    _socket: Descriptor,
}

struct Lasting {
    total: Gauge,
    per_address: Arc<Counts>,
    requests: Gauge,
    requests_per_address: Arc<Counts>,
    /// Connections that have asked for nothing yet: when all places are taken these go.
    silent: Unproven,
    lingering: Tally,
    secret: RandomState,
}

impl Admit {
    pub fn new(conf: &weir_conf::proxy::Proxy, metrics: &Metrics) -> Result<Admit, BindError> {
        let lasting = Lasting {
            total: metrics.connections.clone(),
            per_address: Arc::default(),
            requests: metrics.under_way.clone(),
            requests_per_address: Arc::default(),
            silent: Unproven::new(Room::unlimited(FAIR), Room::unlimited(FAIR)),
            lingering: Tally::default(),
            secret: RandomState::new(),
        };
        Admit::build(conf, Arc::new(lasting), None, metrics)
    }

    /// The limits of another conf, over the same counts.
    pub fn renew(&self, conf: &weir_conf::proxy::Proxy, metrics: &Metrics) -> Result<Admit, BindError> {
        Admit::build(conf, self.lasting.clone(), Some(self), metrics)
    }

    fn build(
        conf: &weir_conf::proxy::Proxy,
        lasting: Arc<Lasting>,
        before: Option<&Admit>,
        metrics: &Metrics,
    ) -> Result<Admit, BindError> {
        let now = Instant::now();
        let mut tokens = BTreeMap::new();
        for (name, token) in &conf.token {
            let old = before.and_then(|b| b.tokens.get(name));
            tokens.insert(name.clone(), Verifier::build(name, token, old, metrics)?);
        }
        let handshakes =
            |old: Option<&Arc<Rates>>| renewed(old, conf.handshake_rate, conf.handshake_burst, now);
        let routes = conf.route.iter().map(|route| {
            let name = gate::identity(route);
            let old = before.and_then(|b| b.routes.get(&name));
            (name, Arc::new(RouteState::new(&route.limits, old.map(|old| &**old), now)))
        });
        let same_budget = before.and_then(|b| b.budget.as_ref()).filter(|b| b.conf() == conf.admission);
        Ok(Admit {
            max: Most::of(conf, descriptors::budget(descriptors::limit())),
            ipv6_prefix: conf.ipv6_prefix,
            allow: conf.allow.clone(),
            deny: conf.deny.clone(),
            handshakes: handshakes(before.and_then(|b| b.handshakes.as_ref())),
            put_off: handshakes(before.and_then(|b| b.put_off.as_ref())),
            tls_handshakes: renewed(
                before.and_then(|b| b.tls_handshakes.as_ref()),
                conf.tls.handshake_rate,
                conf.tls.handshake_burst,
                now,
            ),
            budget: same_budget.cloned().or_else(|| Budget::new(conf.admission, now).map(Arc::new)),
            routes: routes.collect(),
            lasting,
            tokens,
        })
    }

    /// What a route asks for.
    pub fn gate(&self, route: &weir_conf::proxy::Route) -> Gate {
        let token = route.gate.token.as_ref().and_then(|name| self.tokens.get(name));
        let state = self.routes.get(&gate::identity(route));
        Gate::new(&route.gate, token.cloned(), state.cloned().unwrap_or_default())
    }

    /// By the lists of the whole proxy.
    pub fn listed(&self, ip: IpAddr) -> Result<(), Refused> {
        match is_listed(ip, &self.allow, &self.deny) {
            true => Ok(()),
            false => Err(Refused::forbidden("denied")),
        }
    }

    /// A place among all connections.
    pub fn connection(&self) -> Result<Place, Refused> {
        Place::among(&self.lasting.total, self.max.connections).ok_or(Refused::full("connections"))
    }

    /// The same for one that has a socket of its own. Where there is none, somebody who has asked for nothing goes,
    /// and is gone in a moment.
    pub fn socket(&self, silent: &unproven::Place) -> Result<Place, Refused> {
        let socket = descriptors::take().ok_or(Refused::full("descriptors"))?;
        let place = match self.connection() {
            Err(_) if self.lasting.silent.make_room(silent) => Place::among(&self.lasting.total, 0),
            place => Some(place?),
        };
        Ok(place.ok_or(Refused::full("connections"))?.with(socket))
    }

    /// A connection that has asked for nothing yet.
    pub fn silent(&self, ip: IpAddr) -> Result<unproven::Place, Refused> {
        self.lasting.silent.enter(ip, false).map(|(place, _)| place).map_err(|_| Refused::full("connections"))
    }

    /// A request of this address is about to go to a server. `None`: the address has no limit.
    pub fn request(&self, ip: Option<IpAddr>) -> Result<UnderWay, Refused> {
        let own = match ip {
            Some(ip) => {
                let own = self.lasting.requests_per_address.place(self.key(ip), self.max.requests_per_ip);
                own.map_err(|()| Refused::too_many("requests_per_ip"))?
            }
            None => None,
        };
        let total = Place::among(&self.lasting.requests, self.max.requests);
        let total = total.ok_or(Refused::full("requests"))?;
        let socket = descriptors::take().ok_or(Refused::full("descriptors"))?;
        Ok(UnderWay { _total: total, _own: own, _socket: socket })
    }

    /// A place among the connections of this address; `None` if they are not limited.
    pub fn address(&self, ip: IpAddr) -> Result<Option<KeyPlace>, Refused> {
        let place = self.lasting.per_address.place(self.key(ip), self.max.connections_per_ip);
        place.map_err(|()| Refused::full("connections_per_ip"))
    }

    /// One TLS handshake of this address.
    pub fn tls_handshake(&self, ip: IpAddr) -> Result<(), Refused> {
        let Some(rates) = &self.tls_handshakes else { return Ok(()) };
        rates.take(self.key(ip), Instant::now()).map_err(|wait| Refused::too_fast("tls_handshake_rate", wait))
    }

    /// Whether this address has had all that it may have now.
    pub fn owes_tls_handshakes(&self, ip: IpAddr) -> bool {
        self.tls_handshakes.as_ref().is_some_and(|rates| rates.owes(self.key(ip), Instant::now()))
    }

    /// Leave to answer a refused connection with patience.
    pub fn linger(&self) -> Option<Tallied> {
        self.lasting.lingering.place(MAX_LINGERING).ok().flatten()
    }

    /// Forgets addresses and keys that have no debt. To be called every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        let own = [&self.handshakes, &self.put_off, &self.tls_handshakes].into_iter().flatten();
        for rates in own.chain(self.routes.values().flat_map(|route| route.rates())) {
            rates.sweep(now);
        }
    }

    fn key(&self, ip: IpAddr) -> Key {
        key::of_ip(ip, self.ipv6_prefix)
    }

    /// The budget's turn for one handshake, and its place among those under way.
    async fn turn(&self, address: Key, now: Instant) -> Result<Option<Slot>, Refused> {
        let Some(budget) = &self.budget else { return Ok(None) };
        let later = |cause| {
            if let Some(Err(wait)) = self.put_off.as_ref().map(|rates| rates.take(address, now)) {
                return Refused::too_fast("rate", wait);
            }
            let wait = budget.later(Instant::now(), rand::random());
            Refused { status: 503, cause, retry_after: Some(wait) }
        };
        let Some(turn) = budget.turn(now) else { return Err(later("budget")) };
        if !turn.is_zero() {
            tokio::time::sleep(turn).await;
        }
        let Ok(slot) = budget.slot(address).await else {
            budget.give_back();
            return Err(later("budget_handshakes"));
        };
        let late = budget.leave(Instant::now());
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        Ok(slot)
    }
}

/// The same rates if their quota is the same, with all debts.
fn renewed(old: Option<&Arc<Rates>>, rate: Option<Rate>, burst: u32, now: Instant) -> Option<Arc<Rates>> {
    let quota = Quota::new(rate?.per_second, burst)?;
    let same = old.filter(|old| old.quota() == quota).cloned();
    Some(same.unwrap_or_else(|| Arc::new(Rates::new(quota, now))))
}

/// `allow` empty: everybody, less those on `deny`.
fn is_listed(ip: IpAddr, allow: &[Cidr], deny: &[Cidr]) -> bool {
    let on = |list: &[Cidr]| list.iter().any(|range| range.contains(ip));
    !on(deny) && (allow.is_empty() || on(allow))
}

#[cfg(test)]
mod tests;
