//! The way of one request through the servers of its upstream: whom to try, how often, and whether to
//! wait.

use super::attempt::Attempt;
use super::balance::{Candidate, Choice};
use super::desk::{Inner, State, Waiter};
use super::proxy_protocol::{self, Ends};
use super::server::Server;
use super::{Set, Upstream};
use crate::metrics::UpstreamLabels;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;
use weir_core::breaker;

/// What the next client is told when every server was tried and none could be reached.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);
/// Clients that found no place are told times that differ by up to this, so as not to come all at once.
const RETRY_SPREAD: Duration = Duration::from_secs(4);

pub struct Plan {
    upstream: Arc<Upstream>,
    key: Vec<u8>,
    prefer: Option<Box<str>>,
    ends: Option<Ends>,
    tries_left: u32,
    /// Failed for this request.
    tried: Vec<Arc<str>>,
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
            tries_left: upstream.settings.tries,
            tried: Vec::new(),
            begun: false,
            soonest: None,
        }
    }

    /// For whom the connection will be, where servers are to know.
    pub fn on_behalf_of(mut self, ends: Ends) -> Plan {
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
        if self.tries_left == 0 {
            return Err(self.exhausted("unreachable"));
        }
        let (mut servers, full) = self.candidates(&set, &inner, now);
        let lines_up = waiter.is_none() && settings.is_limited() && !inner.queue.is_idle();
        let mut paid = self.tried.is_empty();
        while !lines_up && let Some(index) = self.choose(&set, &mut inner, &servers) {
            if !std::mem::replace(&mut paid, true) {
                self.spend_retry(&mut inner, now)?;
            }
            let server = &set.servers[index];
            match server.shared.allow(settings.breaker, now).leave() {
                Ok(by) => {
                    self.tries_left -= 1;
                    self.tried.push(server.shared.name.clone());
                    let header =
                        settings.send_proxy_protocol.then(|| proxy_protocol::header(self.ends.as_ref()));
                    let desk = &upstream.desk;
                    return Ok(Some(Attempt::new(server, desk, settings.judge, by, header, now)));
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
        match upstream.desk.wait(&mut inner, waiter, settings.queue) {
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
        if self.tried.last().is_some_and(|last| **last == *server) {
            self.tried.pop();
            self.tries_left += 1;
        }
    }

    /// And whether any is passed over for its limits alone.
    fn candidates(&self, set: &Set, inner: &Inner, now: Instant) -> (Vec<Candidate>, bool) {
        let settings = &self.upstream.settings;
        let mut full = false;
        let one = |server: &Arc<Server>| {
            let shared = &server.shared;
            let up = shared.is_healthy() && inner.state(&shared.name, &server.entry.text) == State::Up;
            let tried = self.tried.contains(&shared.name);
            let at_limit = settings.is_at_limit(shared.open(), shared.handshakes());
            full |= up && !tried && at_limit;
            Candidate {
                weight: server.entry.weight,
                open: shared.open(),
                share: shared.share(settings.slow_start, now),
                in_service: up && shared.breaker_state() == breaker::State::Closed,
                usable: up && !tried && !at_limit,
            }
        };
        (set.servers.iter().map(one).collect(), full)
    }

    fn choose(&self, set: &Set, inner: &mut Inner, servers: &[Candidate]) -> Option<usize> {
        let preferred = self.prefer.as_deref().and_then(|name| {
            let is_it = |server: &Arc<Server>| *server.shared.name == *name;
            set.servers.iter().position(is_it).filter(|index| servers[*index].usable)
        });
        let choice = Choice {
            key: &self.key,
            load_factor: self.upstream.settings.load_factor,
            chance: rand::random(),
        };
        preferred.or_else(|| set.balance.choose(&mut inner.turns, &choice, servers))
    }

    fn spend_retry(&self, inner: &mut Inner, now: Instant) -> Result<(), Exhausted> {
        let metrics = &self.upstream.metrics;
        let labels = UpstreamLabels { upstream: self.upstream.name.to_string() };
        if inner.budget.retry(now, self.upstream.settings.retry_budget) {
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
