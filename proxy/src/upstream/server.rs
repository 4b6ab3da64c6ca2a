//! One server, and what is known of it whatever the conf says.

use super::address::Entry;
use super::dial::Dial;
use super::places::Places;
use super::silence::{Look, Silence, Waiting, Watch};
use crate::metrics::{Metrics, ServerLabels, UpstreamFailure};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use weir_core::breaker::{Breaker, By, Settings, State, Verdict};
use weir_core::sync::lock;

/// The share of a server at the beginning of its slow start.
const LEAST_SHARE: f64 = 0.1;

/// A server as one conf has it.
pub struct Server {
    pub shared: Arc<Shared>,
    pub entry: Entry,
    pub dial: Dial,
}

/// What outlives confs and lookups, as long as anything of it is open.
pub struct Shared {
    pub upstream: Arc<str>,
    pub name: Arc<str>,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    /// What each address holds of these, where they have a limit.
    pub places: Mutex<Places>,
    breaker: Mutex<Breaker>,
    silence: Mutex<Silence>,
    /// Somebody waits with less patience than the others.
    pub sooner: Notify,
    /// By active checks.
    healthy: AtomicBool,
    /// Checks in a row that spoke against `healthy`.
    against: AtomicUsize,
    /// When it was new, or came back.
    came: Mutex<Option<Instant>>,
    last_failure: Mutex<Option<(&'static str, Instant)>>,
    figures: Figures,
    metrics: Metrics,
}

/// By upstream and name; the way from one conf to the next.
pub type Known = Arc<Mutex<BTreeMap<(Arc<str>, Arc<str>), Weak<Shared>>>>;

struct Figures {
    open: Gauge,
    breaker: Gauge,
    healthy: Gauge,
    handshake: Histogram,
}

impl Shared {
    /// The one of this name, new or not. A new one starts slowly from `came` on.
    pub fn of(
        upstream: &Arc<str>,
        name: &str,
        breaker: Settings,
        came: Option<Instant>,
        metrics: &Metrics,
    ) -> Arc<Shared> {
        let mut known = lock(&metrics.servers);
        let key = (upstream.clone(), Arc::from(name));
        if let Some(shared) = known.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        let labels = ServerLabels { upstream: upstream.to_string(), server: name.to_owned() };
        let figures = Figures {
            open: metrics.upstream_connections.get_or_create(&labels).clone(),
            breaker: metrics.breaker_state.get_or_create(&labels).clone(),
            healthy: metrics.upstream_healthy.get_or_create(&labels).clone(),
            handshake: metrics.upstream_handshakes.0.get_or_create(&labels).clone(),
        };
        figures.healthy.set(1);
        let shared = Arc::new(Shared {
            upstream: upstream.clone(),
            name: key.1.clone(),
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            places: Mutex::default(),
            breaker: Mutex::new(Breaker::new(breaker)),
            silence: Mutex::default(),
            sooner: Notify::new(),
            healthy: AtomicBool::new(true),
            against: AtomicUsize::new(0),
            came: Mutex::new(came),
            last_failure: Mutex::new(None),
            figures,
            metrics: metrics.clone(),
        });
        known.insert(key, Arc::downgrade(&shared));
        shared
    }

    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Relaxed)
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    pub fn breaker_state(&self) -> State {
        lock(&self.breaker).state()
    }

    /// By the settings of the conf that asks: one that never comes into force changes nothing.
    pub fn allow(&self, settings: Settings, now: Instant) -> Verdict {
        let verdict = {
            let mut breaker = lock(&self.breaker);
            breaker.set(settings);
            breaker.allow(now)
        };
        self.show();
        verdict
    }

    pub fn last_failure(&self) -> Option<(&'static str, Instant)> {
        *lock(&self.last_failure)
    }

    /// It is back: its share grows from here on.
    pub fn came(&self, now: Instant) {
        *lock(&self.came) = Some(now);
    }

    /// Of its weight, while it starts slowly.
    pub fn share(&self, slow_start: Duration, now: Instant) -> f64 {
        if slow_start.is_zero() {
            return 1.0;
        }
        let Some(came) = *lock(&self.came) else { return 1.0 };
        let done = now.saturating_duration_since(came).as_secs_f64() / slow_start.as_secs_f64();
        done.clamp(LEAST_SHARE, 1.0)
    }

    /// The outcome of an active check. True: it is up again.
    pub fn checked(&self, outcome: Result<(), &'static str>, rise: u32, fall: u32, now: Instant) -> bool {
        let healthy = self.is_healthy();
        if let Err(cause) = outcome {
            *lock(&self.last_failure) = Some((cause, now));
        }
        if outcome.is_ok() == healthy {
            self.against.store(0, Relaxed);
            return false;
        }
        let needed = if healthy { fall } else { rise };
        if self.against.fetch_add(1, Relaxed) + 1 < needed as usize {
            return false;
        }
        self.against.store(0, Relaxed);
        self.healthy.store(!healthy, Relaxed);
        self.figures.healthy.set(i64::from(!healthy));
        let (upstream, server) = (&self.upstream, &self.name);
        match outcome {
            Ok(()) => {
                tracing::info!(%upstream, %server, "server is well again: its checks succeed");
                self.came(now);
                true
            }
            Err(cause) => {
                tracing::warn!(%upstream, %server, cause, "server taken out: its checks fail");
                false
            }
        }
    }

    /// One more open tunnel or request.
    pub fn enter(&self) {
        self.open.fetch_add(1, Relaxed);
        self.figures.open.inc();
    }

    pub fn leave(&self) {
        self.open.fetch_sub(1, Relaxed);
        self.figures.open.dec();
    }

    pub fn handshake_begins(&self) {
        self.handshakes.fetch_add(1, Relaxed);
    }

    pub fn handshake_ends(&self) {
        self.handshakes.fetch_sub(1, Relaxed);
    }

    pub fn answered_after(&self, took: Duration) {
        self.figures.handshake.observe(took.as_secs_f64());
    }

    /// True: it may be that others who wait can be let in now.
    pub fn succeeded(&self, now: Instant, by: By) -> bool {
        let (before, after) = {
            let mut breaker = lock(&self.breaker);
            let before = breaker.state();
            breaker.success(now, by);
            (before, breaker.state())
        };
        if before == State::Closed {
            return false;
        }
        self.show();
        if after == State::Closed {
            let (upstream, server) = (&self.upstream, &self.name);
            tracing::info!(%upstream, %server, "server is back: its breaker has closed");
            self.came(now);
        }
        true
    }

    /// `cause` is one of [`CAUSES`].
    pub fn failed(&self, now: Instant, by: By, cause: &'static str) {
        let (before, after) = {
            let mut breaker = lock(&self.breaker);
            let before = breaker.state();
            breaker.failure(now, by);
            (before, breaker.state())
        };
        self.show();
        *lock(&self.last_failure) = Some((cause, now));
        let ServerLabels { upstream, server } = self.labels();
        if before == State::Closed && after == State::Open {
            tracing::warn!(upstream, server, cause, "server taken out: its breaker has opened");
        }
        let failure = UpstreamFailure { upstream, server, cause };
        self.metrics.upstream_failures.get_or_create(&failure).inc();
    }

    pub fn abandoned(&self, by: By) {
        lock(&self.breaker).abandon(by);
    }

    /// A request waits for its answer. True: nobody looks after it yet.
    pub fn waits(&self, waiting: Waiting) -> Option<(u64, bool)> {
        let (id, watch) = lock(&self.silence).begin(waiting)?;
        if watch == Watch::Sooner {
            self.sooner.notify_one();
        }
        Some((id, watch == Watch::Begin))
    }

    /// It has ended without an answer. `None`: it was cleared or counted before, or will be.
    pub fn waits_no_more(&self, id: u64, now: Instant) -> Option<By> {
        lock(&self.silence).end(id, now)
    }

    pub fn asked(&self, at: Option<Instant>) {
        lock(&self.silence).asked(at);
    }

    /// A head has come from it, or an answer to us: it lives, whatever others wait for. That is what trials were to
    /// show, too.
    pub fn word(&self, now: Instant) -> bool {
        let cleared = lock(&self.silence).word();
        let trials = cleared.into_iter().filter(|by| *by == By::Probe);
        trials.fold(false, |closed, by| closed | self.succeeded(now, by))
    }

    /// Counts what silence says against it, and tells when to look again.
    pub fn look(&self, now: Instant) -> Look {
        let look = lock(&self.silence).look(now);
        self.count(&look, now);
        look
    }

    /// A request's time ran out, which alone says nothing of the server.
    pub fn was_late(&self, id: Option<u64>, now: Instant) {
        self.metrics.upstream_slow.get_or_create(&self.labels()).inc();
        let Some(id) = id else { return };
        let judged = {
            let mut silence = lock(&self.silence);
            silence.expire(id, now);
            silence.judge(now)
        };
        self.count(&judged, now);
    }

    fn count(&self, look: &Look, now: Instant) {
        look.failed.iter().for_each(|(by, cause)| self.failed(now, *by, cause));
        look.dropped.iter().for_each(|by| self.abandoned(*by));
    }

    fn show(&self) {
        self.figures.breaker.set(match self.breaker_state() {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        });
    }

    fn labels(&self) -> ServerLabels {
        ServerLabels { upstream: self.upstream.to_string(), server: self.name.to_string() }
    }
}

/// Why an attempt failed, as a metric's label.
const CAUSES: [&str; 8] = [
    "refused",
    "timeout",
    "error",
    "tls",
    "handshake_timeout",
    "slow_handshake",
    "server_error",
    "answer_timeout",
];

impl Drop for Shared {
    /// Names come and go with lookups; what is shown of them must not pile up.
    fn drop(&mut self) {
        let key = (self.upstream.clone(), self.name.clone());
        let mut known = lock(&self.metrics.servers);
        if known.get(&key).is_none_or(|other| other.strong_count() > 0) {
            return; // another one of this name has come in between
        }
        known.remove(&key);
        let labels = self.labels();
        self.metrics.upstream_connections.remove(&labels);
        self.metrics.breaker_state.remove(&labels);
        self.metrics.upstream_healthy.remove(&labels);
        self.metrics.upstream_slow.remove(&labels);
        self.metrics.upstream_handshakes.0.remove(&labels);
        let ServerLabels { upstream, server } = labels;
        for cause in CAUSES {
            let failure = UpstreamFailure { upstream: upstream.clone(), server: server.clone(), cause };
            self.metrics.upstream_failures.remove(&failure);
        }
    }
}
