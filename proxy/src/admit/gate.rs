//! What one route asks for: its lists, origins and token, and its own counts and rates.

use super::budget::Slot;
use super::counts::{Counts, KeyPlace, Tallied, Tally};
use super::key::{self, Key};
use super::origin::Origins;
use super::rates::Rates;
use super::{Admit, Refused, is_listed, renewed};
use crate::token::{Proof, Verifier};
use http::request::Parts;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use weir_conf::proxy::{Route, RouteLimits};
use weir_conf::units::Cidr;

/// What a route asks for, by one conf.
pub struct Gate {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
    origins: Origins,
    token: Option<Arc<Verifier>>,
    state: Arc<RouteState>,
}

/// A route's limits of one conf, and what passes on to the same route in the next.
#[derive(Default)]
pub struct RouteState {
    limits: RouteLimits,
    open: Tally,
    per_ip: Arc<Counts>,
    per_key: Arc<Counts>,
    handshakes: Option<Arc<Rates>>,
    keys: Option<Arc<Rates>>,
    requests: Option<Arc<Rates>>,
}

pub type StickyKey<'a> = dyn Fn(&Parts, Option<&Map<String, Value>>) -> Option<Vec<u8>> + Sync + 'a;

/// A request at the gate.
pub struct AtGate<'a> {
    pub head: &'a mut Parts,
    pub client: IpAddr,
    pub websocket: bool,
    /// The sticky key that the request brings itself, by its claims among others.
    pub sticky: &'a StickyKey<'a>,
}

/// Let in.
#[derive(Default)]
pub struct Admitted {
    /// Held as long as it lasts.
    pub held: Held,
    /// What its token proves, where the route asks for one.
    pub proof: Option<Proof>,
    /// Held until the server has answered the handshake.
    pub handshake: Option<Slot>,
}

/// Its places in the route, where that has limits. Small: every tunnel has one.
pub type Held = Option<Box<(Option<Tallied>, Option<KeyPlace>, Option<KeyPlace>)>>;

/// What makes a route the same one in the next conf: its name, what requests must fit, what it does.
pub fn identity(route: &Route) -> String {
    let fits = (&route.host, &route.path, &route.path_exact, &route.path_regex);
    let fits_too = (&route.header, &route.method, &route.websocket);
    format!("{:?} {fits:?} {fits_too:?} {:?}", route.name, route.action)
}

impl RouteState {
    pub fn new(limits: &RouteLimits, old: Option<&RouteState>, now: Instant) -> RouteState {
        let rates = |of: fn(&RouteState) -> &Option<Arc<Rates>>, rate, burst| {
            renewed(old.and_then(|old| of(old).as_ref()), rate, burst, now)
        };
        RouteState {
            limits: *limits,
            open: old.map(|old| old.open.clone()).unwrap_or_default(),
            per_ip: old.map(|old| old.per_ip.clone()).unwrap_or_default(),
            per_key: old.map(|old| old.per_key.clone()).unwrap_or_default(),
            handshakes: rates(|old| &old.handshakes, limits.handshake_rate, limits.handshake_burst),
            keys: rates(|old| &old.keys, limits.key_rate, limits.key_burst),
            requests: rates(|old| &old.requests, limits.request_rate, limits.request_burst),
        }
    }

    pub fn rates(&self) -> impl Iterator<Item = &Arc<Rates>> {
        [&self.handshakes, &self.keys, &self.requests].into_iter().flatten()
    }

    fn places(&self, address: Key, key: Key) -> Result<Held, Refused> {
        let limits = &self.limits;
        let open =
            self.open.place(limits.max_connections).map_err(|()| Refused::full("route_connections"))?;
        let per_ip = self.per_ip.place(address, limits.max_connections_per_ip);
        let per_ip = per_ip.map_err(|()| Refused::full("route_connections_per_ip"))?;
        let per_key = self.per_key.place(key, limits.max_connections_per_key);
        let per_key = per_key.map_err(|()| Refused::full("connections_per_key"))?;
        let counted = open.is_some() || per_ip.is_some() || per_key.is_some();
        Ok(counted.then(|| Box::new((open, per_ip, per_key))))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.open.open() == 0 && self.per_ip.is_empty() && self.per_key.is_empty()
    }
}

impl Gate {
    pub fn new(conf: &weir_conf::proxy::Gate, token: Option<Arc<Verifier>>, state: Arc<RouteState>) -> Gate {
        Gate {
            allow: conf.allow.clone(),
            deny: conf.deny.clone(),
            origins: Origins::new(&conf.origins, conf.origin_required),
            token,
            state,
        }
    }

    /// Lets everybody in.
    #[cfg(test)]
    pub fn open() -> Gate {
        Gate::new(&Default::default(), None, Arc::default())
    }

    /// Lets a request in, or says why not. May wait: for the token's keys, for its turn.
    pub async fn admit(&self, admit: &Admit, at: AtGate<'_>) -> Result<Admitted, Refused> {
        if at.websocket && !self.origins.allow(&at.head.headers) {
            return Err(Refused::forbidden("origin"));
        }
        if !is_listed(at.client, &self.allow, &self.deny) {
            return Err(Refused::forbidden("denied"));
        }
        let proof = match &self.token {
            Some(token) => Some(token.verify(at.head, SystemTime::now()).await?),
            None => None,
        };
        let address = admit.key(at.client);
        let subject = proof.as_ref().and_then(Proof::subject).map(|sub| sub.as_bytes().to_vec());
        let sticky = || (at.sticky)(at.head, proof.as_ref().map(|proof| &proof.claims));
        let key = match subject.or_else(sticky) {
            Some(key) => key::of_bytes(&key, &admit.lasting.secret),
            None => address,
        };
        let held = self.state.places(address, key)?;
        let handshake = match at.websocket {
            true => self.handshake(admit, address, key).await?,
            false => {
                let mut spent = Spent::default();
                spent.take(self.state.requests.as_ref(), address, Instant::now(), "request_rate")?;
                None
            }
        };
        Ok(Admitted { held, proof, handshake })
    }

    async fn handshake(&self, admit: &Admit, address: Key, key: Key) -> Result<Option<Slot>, Refused> {
        let now = Instant::now();
        let mut spent = Spent::default();
        let taken = spent
            .take(self.state.keys.as_ref(), key, now, "key_rate")
            .and_then(|()| spent.take(self.state.handshakes.as_ref(), address, now, "route_rate"))
            .and_then(|()| spent.take(admit.handshakes.as_ref(), address, now, "rate"));
        let turn = match taken {
            Ok(()) => admit.turn(address, now).await,
            Err(refused) => Err(refused),
        };
        turn.inspect_err(|_| spent.give_back())
    }
}

/// What was taken from rates on the way in.
#[derive(Default)]
struct Spent<'a>(Vec<(&'a Rates, Key)>);

impl<'a> Spent<'a> {
    fn take(
        &mut self,
        rates: Option<&'a Arc<Rates>>,
        key: Key,
        now: Instant,
        cause: &'static str,
    ) -> Result<(), Refused> {
        let Some(rates) = rates else { return Ok(()) };
        rates.take(key, now).map_err(|wait| Refused::too_fast(cause, wait))?;
        self.0.push((rates, key));
        Ok(())
    }

    fn give_back(&self) {
        for (rates, key) in &self.0 {
            rates.give_back(*key);
        }
    }
}
