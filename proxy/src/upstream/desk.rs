//! What all choices of one upstream share, and what outlives its conf: who waits, whose turn it is, the
//! retry budget, and what operators have said of its servers.

use super::balance::Turns;
use super::budget::Budget;
use super::homes::Homes;
use super::queue::{Full, Lane, Queue};
use crate::metrics::{Metrics, QueueOutcome, UpstreamLabels};
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::oneshot;
use weir_core::sync::lock;

/// What an operator wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Up,
    /// No new clients, none at all; whoever is there stays.
    Draining,
    /// No new clients, and whoever is there goes.
    Down,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Draining => "draining",
            State::Down => "down",
        }
    }
}

impl std::str::FromStr for State {
    type Err = ();

    fn from_str(text: &str) -> Result<State, ()> {
        [State::Up, State::Draining, State::Down].into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

pub struct Desk {
    upstream: Arc<str>,
    inner: Mutex<Inner>,
    /// When it was last logged that somebody has his share of the places.
    pub said: Mutex<Option<Instant>>,
    waiting: Gauge,
    metrics: Metrics,
}

#[derive(Default)]
pub struct Inner {
    pub turns: Turns,
    pub queue: Queue,
    pub budget: Budget,
    /// Where clients are, for those who would be moved because of load.
    pub homes: Homes,
    /// By a server's name, or by its entry in the conf for all that it stands for.
    pub states: BTreeMap<String, State>,
}

impl Inner {
    pub fn state(&self, name: &str, entry: &str) -> State {
        if self.states.is_empty() {
            return State::Up;
        }
        self.states.get(name).or_else(|| self.states.get(entry)).copied().unwrap_or_default()
    }
}

impl Desk {
    pub fn new(upstream: &str, metrics: &Metrics) -> Desk {
        let waiting = metrics.queue.get_or_create(&UpstreamLabels { upstream: upstream.into() }).clone();
        let (inner, said) = (Mutex::default(), Mutex::default());
        Desk { upstream: upstream.into(), inner, said, waiting, metrics: metrics.clone() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds it can panic half way; and if it could, every part stays usable.
        lock(&self.inner)
    }

    /// Something was given back, or a server has come: the first who waits may try.
    pub fn call(&self) {
        let mut inner = self.lock();
        if inner.queue.len() > 0 {
            inner.queue.freed();
            self.show(&inner);
        }
    }

    /// A place at the end of the queue, or back at its front.
    pub fn wait(
        self: &Arc<Self>,
        inner: &mut Inner,
        waiter: &mut Option<Waiter>,
        (lane, tried): (Lane, bool),
        (bound, share): (usize, f64),
    ) -> Result<(), Full> {
        match waiter {
            Some(waiter) => waiter.called = inner.queue.rejoin(lane, waiter.id),
            None => {
                let (id, called) = inner.queue.join((lane, tried), bound, share)?;
                *waiter = Some(Waiter { desk: self.clone(), lane, id, called, outcome: "left" });
            }
        }
        self.show(inner);
        Ok(())
    }

    pub fn count(&self, outcome: &'static str) {
        let labels = QueueOutcome { upstream: self.upstream.to_string(), outcome };
        self.metrics.queue_outcomes.get_or_create(&labels).inc();
    }

    fn show(&self, inner: &Inner) {
        self.waiting.set(i64::try_from(inner.queue.len()).unwrap_or(i64::MAX));
    }
}

/// A place in the queue. Dropped, it is free, and the next one's turn comes if this one had it.
pub struct Waiter {
    desk: Arc<Desk>,
    lane: Lane,
    id: u64,
    pub called: oneshot::Receiver<()>,
    /// `served`, `timeout`, `refused`; `left`: the client has gone.
    pub outcome: &'static str,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut inner = self.desk.lock();
        inner.queue.leave(self.lane, self.id);
        self.desk.show(&inner);
        drop(inner);
        self.desk.count(self.outcome);
    }
}
