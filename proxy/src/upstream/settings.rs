//! What the conf says of an upstream, ready for use.

use super::attempt::Judge;
use super::tls;
use std::net::SocketAddr;
use std::time::Duration;
use weir_conf::proxy::{Balance, Health};
use weir_core::breaker::{Ratio, Settings as Breaker};

/// Probes that must succeed until a breaker closes: one, then two at once, then four.
const PROBES: u32 = 7;

pub struct Settings {
    pub balance: Balance,
    pub load_factor: f64,
    pub slow_start: Duration,
    pub max_connections: usize,
    pub max_handshakes: usize,
    pub queue: usize,
    pub queue_timeout: Duration,
    pub retry_budget: f64,
    pub tries: u32,
    pub send_proxy_protocol: bool,
    pub tls: Option<tls::Client>,
    pub health: Option<Health>,
    pub breaker: Breaker,
    pub judge: Judge,
    pub dns_servers: Vec<SocketAddr>,
    pub dns_ttl: (Duration, Duration),
}

impl Settings {
    /// Without TLS, which takes files.
    pub fn plain(of: &weir_conf::proxy::Upstream, conf: &weir_conf::proxy::Proxy) -> Settings {
        let breaker = &conf.breaker;
        let ratio = (breaker.failure_ratio > 0.0).then_some(Ratio {
            failed: breaker.failure_ratio,
            window: breaker.window,
            min_volume: breaker.min_volume,
        });
        Settings {
            balance: of.balance,
            load_factor: of.load_factor,
            slow_start: of.slow_start,
            max_connections: of.max_connections,
            max_handshakes: of.max_handshakes,
            queue: of.queue,
            queue_timeout: of.queue_timeout,
            retry_budget: of.retry_budget,
            tries: conf.connect_tries.max(1),
            send_proxy_protocol: of.send_proxy_protocol,
            tls: None,
            health: of.health.clone(),
            breaker: Breaker {
                failures: breaker.failures,
                ratio,
                open_for: breaker.open_for,
                open_max: breaker.open_max,
                // Longer than any handshake may take, so that only a lost probe runs into it.
                probe_timeout: conf.connect_timeout + conf.handshake_timeout + Duration::from_secs(1),
                probes: PROBES,
            },
            judge: Judge { slow: breaker.slow_handshake, server_errors: breaker.server_errors },
            dns_servers: conf.dns_servers.clone(),
            dns_ttl: (conf.dns_min_ttl, conf.dns_max_ttl),
        }
    }

    pub fn is_limited(&self) -> bool {
        self.max_connections > 0 || self.max_handshakes > 0
    }

    /// Of one server.
    pub fn is_at_limit(&self, open: usize, handshakes: usize) -> bool {
        let reached = |count: usize, limit: usize| limit > 0 && count >= limit;
        reached(open, self.max_connections) || reached(handshakes, self.max_handshakes)
    }
}
