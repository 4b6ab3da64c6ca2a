//! The way of one request through the servers of its upstream: whom to try, how often, and whether to
//! wait.

use super::attempt::{Attempt, Client};
use super::balance::{self, Candidate, Choice};
use super::desk::{Inner, State, Waiter};
use super::places::Held;
use super::proxy_protocol::{self, Ends};
use super::server::Server;
use super::{Set, Upstream};
use crate::admit::key::{self, Key};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;
use weir_conf::proxy::Balance;
use weir_core::breaker;
use weir_core::sync::lock;

/// What the next client is told when every server was tried and none could be reached.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);
/// Clients that found no place are told times that differ by up to this, so as not to come all at once.
const RETRY_SPREAD: Duration = Duration::from_secs(4);

pub struct Plan {
    upstream: Arc<Upstream>,
    key: Vec<u8>,
    prefer: Option<Box<str>>,
    ends: Option<Ends>,
    /// The client's address.
    who: Option<Key>,
    tries_left: u32,
    /// Failed for this request: servers, and the entries of the conf that they stand for.
    tried: Vec<(Arc<str>, Arc<str>)>,
    begun: bool,
    soonest: Option<Duration>,
}

/// No server is left for this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub retry_after: Duration,
    /// `unreachable`: those that were tried failed. `breakers_open`: none was tried, all refused.
    /// `no_server`: none is up. `retry_budget`: one failed, and too many others did before.
    /// `queue_full`, `queue_timeout`: all are at their limits.
    pub cause: &'static str,
}

impl Plan {
    pub fn new(upstream: &Arc<Upstream>, key: &[u8], prefer: Option<&str>) -> Plan {
        Plan {
            upstream: upstream.clone(),
            key: key.to_vec(),
            prefer: prefer.map(Into::into),
            ends: None,
            who: None,
            tries_left: upstream.settings.tries,
            tried: Vec::new(),
            begun: false,
            soonest: None,
        }
    }

    /// For whom the connection will be; servers that are to know are told.
    pub fn on_behalf_of(mut self, ends: Ends) -> Plan {
        self.who = Some(key::of_ip(ends.client.ip(), self.upstream.settings.ipv6_prefix));
        self.ends = Some(ends);
        self
    }

    /// The next server to try, with its breaker's leave. Where all are at their limits, it waits.
    pub async fn next(&mut self) -> Result<Attempt, Exhausted> {
        let mut waiter = None;
        let deadline = tokio::time::Instant::now() + self.upstream.settings.queue_timeout;
        loop {
            match self.pick(Instant::now(), &mut waiter) {
                Ok(Some(attempt)) => {
                    outcome(&mut waiter, "served");
                    return Ok(attempt);
                }
                Ok(None) => {}
                Err(exhausted) => {
                    outcome(&mut waiter, "refused");
                    return Err(exhausted);
                }
            }
            let Some(waiting) = &mut waiter else { return Err(self.exhausted("no_server")) };
            if timeout_at(deadline, &mut waiting.called).await.is_err() {
                outcome(&mut waiter, "timeout");
                return Err(later("queue_timeout"));
            }
        }
    }

    /// `None`: to be asked again when the waiter is called.
    pub fn pick(&mut self, now: Instant, waiter: &mut Option<Waiter>) -> Result<Option<Attempt>, Exhausted> {
        let upstream = self.upstream.clone();
        let (settings, set) = (&upstream.settings, upstream.set.load_full());
        let mut inner = upstream.desk.lock();
        if !std::mem::replace(&mut self.begun, true) {
            inner.budget.request(now);
        }
        let (mut servers, full, at_share) = self.candidates(&set, &inner, now);
        let lines_up = waiter.is_none() && settings.is_limited() && inner.queue.lines_up(self.who);
        let mut paid = self.tried.is_empty();
        while !lines_up && let Some((index, moved)) = self.choose(&set, &mut inner, &servers, now) {
            if !std::mem::replace(&mut paid, true) {
                self.spend_retry(&mut inner, now)?;
            }
            let server = &set.servers[index];
            match server.shared.allow(settings.breaker, now).leave() {
                Ok(by) => {
                    let entry = &server.entry.text;
                    // All addresses of a name are one try.
                    self.tries_left -= u32::from(!self.has_tried(entry));
                    self.tried.push((server.shared.name.clone(), entry.clone()));
                    let header =
                        settings.send_proxy_protocol.then(|| proxy_protocol::header(self.ends.as_ref()));
                    if moved {
                        upstream.metrics.upstream_moves.get_or_create(&upstream.labels()).inc();
                    }
                    let client = Client { who: self.who, home: self.home(), moved };
                    let how = (by, header);
                    return Ok(Some(Attempt::new(&upstream, &mut inner, server, client, how, now)));
                }
                Err(wait) => {
                    self.soonest = Some(self.soonest.map_or(wait, |s| s.min(wait)));
                    servers[index].usable = false;
                }
            }
        }
        if !(lines_up || full) {
            let untried = if self.soonest.is_some() { "breakers_open" } else { "no_server" };
            return Err(self.exhausted(untried));
        }
        if at_share && waiter.is_none() {
            upstream.holds_its_share();
        }
        let lane = (self.who, !lines_up);
        match upstream.desk.wait(&mut inner, waiter, lane, (settings.queue, settings.share_per_ip)) {
            Ok(()) => Ok(None),
            Err(_) => {
                drop(inner);
                upstream.desk.count("full");
                Err(later("queue_full"))
            }
        }
    }

    /// The attempt said nothing about its server (a kept connection had just been closed): it may be
    /// tried again.
    pub fn again(&mut self, server: &str) {
        if let Some((_, entry)) = self.tried.pop_if(|(last, _)| **last == *server) {
            self.tries_left += u32::from(!self.has_tried(&entry));
        }
    }

    fn has_tried(&self, entry: &str) -> bool {
        self.tried.iter().any(|(_, tried)| **tried == *entry)
    }

    /// And whether any is passed over for its limits alone, and for the share of this address in them.
    fn candidates(&self, set: &Set, inner: &Inner, now: Instant) -> (Vec<Candidate>, bool, bool) {
        let settings = &self.upstream.settings;
        let (mut full, mut at_any_share) = (false, false);
        let one = |server: &Arc<Server>| {
            let shared = &server.shared;
            let up = shared.is_healthy() && inner.state(&shared.name, &server.entry.text) == State::Up;
            let spent = self.tries_left == 0 && !self.has_tried(&server.entry.text);
            let tried = spent || self.tried.iter().any(|(name, _)| *name == shared.name);
            let held = Held { open: shared.open(), handshakes: shared.handshakes() };
            let whose = self.who.filter(|_| settings.is_limited());
            let at_share = whose.is_some_and(|who| settings.is_at_share(lock(&shared.places).of(who)));
            let at_limit = at_share || settings.is_at_limit(held);
            full |= up && !tried && at_limit;
            at_any_share |= up && !tried && at_share;
            Candidate {
                weight: server.entry.weight,
                open: shared.open(),
                share: shared.share(settings.slow_start, now),
                in_service: up && shared.breaker_state() == breaker::State::Closed,
                usable: up && !tried && !at_limit,
            }
        };
        let servers = set.servers.iter().map(one).collect();
        (servers, full, at_any_share)
    }

    /// True: it is another one than the key says, because of load.
    fn choose(
        &self,
        set: &Set,
        inner: &mut Inner,
        servers: &[Candidate],
        now: Instant,
    ) -> Option<(usize, bool)> {
        let usable = |name: &str| {
            let is_it = |server: &Arc<Server>| *server.shared.name == *name;
            set.servers.iter().position(is_it).filter(|index| servers[*index].usable)
        };
        let home = || self.home().and_then(|key| inner.homes.of(key, now)).and_then(|name| usable(name));
        if let Some(index) = self.prefer.as_deref().and_then(usable).or_else(home) {
            return Some((index, false));
        }
        let load_factor = self.upstream.settings.load_factor;
        let choice = Choice { key: &self.key, load_factor, chance: rand::random() };
        let index = set.balance.choose(&mut inner.turns, &choice, servers)?;
        let unbounded = Choice { load_factor: 0.0, ..choice };
        let moved = self.home().is_some()
            && set.balance.choose(&mut inner.turns, &unbounded, servers).is_some_and(|first| first != index);
        Some((index, moved))
    }

    /// Its key, where a bound on load could move it.
    fn home(&self) -> Option<u64> {
        let settings = &self.upstream.settings;
        let by_key = matches!(settings.balance, Balance::Hash | Balance::Rendezvous);
        (by_key && settings.load_factor > 0.0).then(|| balance::hash(&self.key))
    }

    fn spend_retry(&self, inner: &mut Inner, now: Instant) -> Result<(), Exhausted> {
        let metrics = &self.upstream.metrics;
        let labels = self.upstream.labels();
        if inner.budget.retry(now, self.upstream.settings.retry_budget, self.who) {
            metrics.retries.get_or_create(&labels).inc();
            return Ok(());
        }
        metrics.retries_denied.get_or_create(&labels).inc();
        Err(later("retry_budget"))
    }

    fn exhausted(&self, untried: &'static str) -> Exhausted {
        let cause = if self.tried.is_empty() { untried } else { "unreachable" };
        Exhausted { retry_after: self.soonest.unwrap_or_default().max(RETRY_UNREACHABLE), cause }
    }
}

fn outcome(waiter: &mut Option<Waiter>, outcome: &'static str) {
    if let Some(mut waiter) = waiter.take() {
        waiter.outcome = outcome;
    }
}

fn later(cause: &'static str) -> Exhausted {
    Exhausted { retry_after: RETRY_UNREACHABLE + RETRY_SPREAD.mul_f64(rand::random()), cause }
}
