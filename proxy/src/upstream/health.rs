//! One server and what its connections tell about it: passive health, by a breaker.

use crate::metrics::{Metrics, ServerLabels, UpstreamFailure};
use prometheus_client::metrics::gauge::Gauge;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use weir_core::breaker::{Breaker, Settings, State, Verdict};

pub struct Server {
    upstream: Arc<str>,
    /// Ways to reach it; the name on the ring and in metrics is the first one.
    addrs: Vec<SocketAddr>,
    preferred: AtomicUsize,
    breaker: Mutex<Breaker>,
    state: Gauge,
    metrics: Metrics,
}

impl Server {
    pub fn new(
        upstream: &str,
        addrs: Vec<SocketAddr>,
        conf: &weir_conf::proxy::Proxy,
        metrics: &Metrics,
    ) -> Server {
        let settings = Settings {
            failures: conf.breaker.failures,
            open_for: conf.breaker.open_for,
            open_max: conf.breaker.open_max,
            // Longer than any handshake may take, so that only a lost probe runs into it.
            probe_timeout: conf.connect_timeout + conf.handshake_timeout + Duration::from_secs(1),
        };
        let labels = ServerLabels { upstream: upstream.into(), server: addrs[0].to_string() };
        Server {
            upstream: upstream.into(),
            addrs,
            preferred: AtomicUsize::new(0),
            breaker: Mutex::new(Breaker::new(settings)),
            state: metrics.breaker_state.get_or_create(&labels).clone(),
            metrics: metrics.clone(),
        }
    }

    /// Asks the breaker; a refusal says after what time to ask again.
    pub fn attempt(server: &Arc<Server>, now: Instant) -> Result<Attempt, Duration> {
        let verdict = server.breaker().allow(now);
        server.show();
        let probe = match verdict {
            Verdict::Pass => false,
            Verdict::Probe => true,
            Verdict::Refuse(wait) => return Err(wait),
        };
        Ok(Attempt { server: server.clone(), probe, settled: false })
    }

    /// In logs, metrics and cookies.
    pub fn name(&self) -> SocketAddr {
        self.addrs[0]
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing that holds it can panic half way; and if it could, the breaker stays usable.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self) {
        self.state.set(match self.breaker().state() {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        });
    }

    fn addr(&self) -> SocketAddr {
        self.addrs[self.preferred.load(Ordering::Relaxed) % self.addrs.len()]
    }
}

/// A try of one server. Its outcome must be told; one that is dropped before (the client left)
/// counts as never made.
pub struct Attempt {
    server: Arc<Server>,
    probe: bool,
    settled: bool,
}

impl Attempt {
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The server's name in logs and metrics.
    pub fn name(&self) -> SocketAddr {
        self.server.addrs[0]
    }

    /// Opens a connection, over any of its addresses.
    pub async fn connect(&self, timeout: Duration) -> io::Result<TcpStream> {
        let any = async {
            let mut result = Err(io::Error::other("no address"));
            for _ in 0..self.server.addrs.len() {
                result = TcpStream::connect(self.addr()).await;
                if result.is_ok() {
                    break;
                }
                self.other_address();
            }
            result
        };
        tokio::time::timeout(timeout, any).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The next connection goes to another of its addresses, if there is one.
    pub fn other_address(&self) {
        if self.server.addrs.len() > 1 {
            self.server.preferred.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn succeed(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            self.server.breaker().success();
            self.server.show();
        }
    }

    /// `cause` is a metric's label: `refused`, `timeout`, `handshake_timeout`, `error`.
    pub fn fail(&mut self, now: Instant, cause: &'static str) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let (before, after) = {
            let mut breaker = self.server.breaker();
            let before = breaker.state();
            breaker.failure(now);
            (before, breaker.state())
        };
        self.server.show();
        let (upstream, server) = (&self.server.upstream, self.server.addrs[0]);
        let failure = UpstreamFailure { upstream: upstream.to_string(), server: server.to_string(), cause };
        self.server.metrics.upstream_failures.get_or_create(&failure).inc();
        if before == State::Closed && after == State::Open {
            tracing::warn!(%upstream, %server, cause, "server taken out: its breaker has opened");
        }
    }

    /// Neither good nor bad: the outcome says nothing about the server.
    pub fn give_up(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.settled, true) && self.probe {
            self.server.breaker().abandon(now);
            self.server.show();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.give_up(Instant::now());
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
            io::ErrorKind::ConnectionRefused => "refused",
            io::ErrorKind::TimedOut => "timeout",
            _ => "error",
        }),
    }
}
