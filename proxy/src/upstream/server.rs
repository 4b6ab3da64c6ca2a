//! One server: what is known of it whatever the conf says, and one attempt to reach it.

use super::address::Entry;
use super::desk::Desk;
use super::dial::Dial;
use super::stream::ServerStream;
use crate::metrics::{Metrics, ServerLabels, UpstreamFailure};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use weir_core::breaker::{Breaker, By, Settings, State, Verdict};

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
    breaker: Mutex<Breaker>,
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

/// What counts as a failure besides a server that cannot be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judge {
    /// Zero: off.
    pub slow: Duration,
    pub server_errors: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these can panic half way; and if it could, what it guards stays usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            lock(&shared.breaker).set(breaker);
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
            breaker: Mutex::new(Breaker::new(breaker)),
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

    pub fn allow(&self, now: Instant) -> Verdict {
        let verdict = lock(&self.breaker).allow(now);
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
        self.metrics.upstream_handshakes.0.remove(&labels);
        let ServerLabels { upstream, server } = labels;
        for cause in CAUSES {
            let failure = UpstreamFailure { upstream: upstream.clone(), server: server.clone(), cause };
            self.metrics.upstream_failures.remove(&failure);
        }
    }
}

/// One open tunnel or request of a server, counted until this is dropped.
pub struct Permit {
    server: Arc<Shared>,
    desk: Arc<Desk>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.server.open.fetch_sub(1, Relaxed);
        self.server.figures.open.dec();
        self.desk.call();
    }
}

/// A handshake under way.
struct Handshake {
    server: Arc<Shared>,
    desk: Arc<Desk>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.server.handshakes.fetch_sub(1, Relaxed);
        self.desk.call();
    }
}

/// A try of one server. Its outcome must be told; one that is dropped before (the client left)
/// counts as never made.
pub struct Attempt {
    server: Arc<Server>,
    judge: Judge,
    by: By,
    settled: bool,
    failed: bool,
    started: Instant,
    header: Option<Vec<u8>>,
    handshake: Option<Handshake>,
    permit: Option<Permit>,
    desk: Arc<Desk>,
}

impl Attempt {
    /// With the breaker's leave. To be called with the desk locked: nobody else is counted in between.
    pub fn new(
        server: &Arc<Server>,
        desk: &Arc<Desk>,
        judge: Judge,
        by: By,
        header: Option<Vec<u8>>,
        now: Instant,
    ) -> Attempt {
        let shared = &server.shared;
        shared.open.fetch_add(1, Relaxed);
        shared.figures.open.inc();
        shared.handshakes.fetch_add(1, Relaxed);
        Attempt {
            server: server.clone(),
            judge,
            by,
            settled: false,
            failed: false,
            started: now,
            header,
            handshake: Some(Handshake { server: shared.clone(), desk: desk.clone() }),
            permit: Some(Permit { server: shared.clone(), desk: desk.clone() }),
            desk: desk.clone(),
        }
    }

    /// The server's name in logs and metrics.
    pub fn name(&self) -> &Arc<str> {
        &self.server.shared.name
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// What goes in front of a connection's bytes.
    pub fn header(&self) -> Option<&[u8]> {
        self.header.as_deref()
    }

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Opens a connection.
    pub async fn connect(&self, timeout: Duration) -> io::Result<ServerStream> {
        let opened = tokio::time::timeout(timeout, self.server.dial.open(self.header())).await;
        opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Others may begin their handshakes: this one's answer takes its time, and no work.
    pub fn begun(&mut self) {
        self.handshake = None;
    }

    /// The server has answered a handshake; `None`: it closed, or made no sense.
    pub fn answered(&mut self, now: Instant, status: Option<u16>) {
        let took = now.saturating_duration_since(self.started);
        self.server.shared.figures.handshake.observe(took.as_secs_f64());
        if !self.judge.slow.is_zero() && took > self.judge.slow {
            return self.fail(now, "slow_handshake");
        }
        self.judge(now, status);
    }

    /// It is there and it talks. That an app closes on, or answers oddly to, what one client asks for
    /// must not take the server from everybody else; unless the conf says so.
    pub fn judge(&mut self, now: Instant, status: Option<u16>) {
        match status {
            None | Some(500..) if self.judge.server_errors => self.fail(now, "server_error"),
            _ => self.succeed(now),
        }
    }

    pub fn succeed(&mut self, now: Instant) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let shared = &self.server.shared;
        let before = shared.breaker_state();
        lock(&shared.breaker).success(now, self.by);
        shared.show();
        self.handshake = None;
        if before != State::Closed && shared.breaker_state() == State::Closed {
            let (upstream, server) = (&shared.upstream, &shared.name);
            tracing::info!(%upstream, %server, "server is back: its breaker has closed");
            shared.came(now);
        }
        if before != State::Closed {
            self.desk.call();
        }
    }

    /// `cause` is one of [`CAUSES`].
    pub fn fail(&mut self, now: Instant, cause: &'static str) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.failed = true;
        let shared = &self.server.shared;
        let (before, after) = {
            let mut breaker = lock(&shared.breaker);
            let before = breaker.state();
            breaker.failure(now, self.by);
            (before, breaker.state())
        };
        shared.show();
        *lock(&shared.last_failure) = Some((cause, now));
        self.handshake = None;
        let ServerLabels { upstream, server } = shared.labels();
        if before == State::Closed && after == State::Open {
            tracing::warn!(upstream, server, cause, "server taken out: its breaker has opened");
        }
        let failure = UpstreamFailure { upstream, server, cause };
        shared.metrics.upstream_failures.get_or_create(&failure).inc();
    }

    /// Neither good nor bad: the outcome says nothing about the server.
    pub fn give_up(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            lock(&self.server.shared.breaker).abandon(self.by);
            self.server.shared.show();
        }
        self.handshake = None;
    }

    /// The place that its connection holds from here on.
    pub fn into_permit(mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// What a failed connect says: `Some` with the cause if it is the server's fault, `None` if
/// this process or machine ran out of something.
pub fn blame(error: &io::Error) -> Option<&'static str> {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const EADDRNOTAVAIL: i32 = 99;
    const ENOBUFS: i32 = 105;
    match error.raw_os_error() {
        Some(ENFILE | EMFILE | EADDRNOTAVAIL | ENOBUFS) => None,
        _ => Some(match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "refused",
            io::ErrorKind::TimedOut => "timeout",
            io::ErrorKind::InvalidData => "tls",
            _ => "error",
        }),
    }
}
