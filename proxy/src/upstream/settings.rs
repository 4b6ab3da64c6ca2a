//! What the conf says of an upstream, ready for use.

use super::attempt::Judge;
use super::places::Held;
use super::tls;
use crate::admit::counts;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use weir_conf::proxy::{Balance, Check, Health};
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
    /// Of the places and of the queue, for one address.
    pub share_per_ip: f64,
    pub keepalive_timeout: Duration,
    pub retry_budget: f64,
    pub tries: u32,
    pub send_proxy_protocol: bool,
    pub tls: Option<tls::Client>,
    pub health: Option<Health>,
    pub breaker: Breaker,
    pub judge: Judge,
    pub question: Arc<Question>,
    /// Bits of an IPv6 address that make one client.
    pub ipv6_prefix: u8,
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
            share_per_ip: of.max_share_per_ip,
            keepalive_timeout: of.keepalive_timeout,
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
            question: Arc::new(Question::new(of)),
            ipv6_prefix: conf.ipv6_prefix,
            dns_servers: conf.dns_servers.clone(),
            dns_ttl: (conf.dns_min_ttl, conf.dns_max_ttl),
        }
    }

    pub fn is_limited(&self) -> bool {
        self.max_connections > 0 || self.max_handshakes > 0
    }

    /// Of one server.
    pub fn is_at_limit(&self, held: Held) -> bool {
        let reached = |count: usize, limit: usize| limit > 0 && count >= limit;
        reached(held.open, self.max_connections) || reached(held.handshakes, self.max_handshakes)
    }

    /// Of one server, by one address.
    pub fn is_at_share(&self, held: Held) -> bool {
        let reached =
            |count: usize, limit: usize| limit > 0 && count >= counts::share(limit, self.share_per_ip);
        reached(held.open, self.max_connections) || reached(held.handshakes, self.max_handshakes)
    }
}

/// What a server is asked by the proxy itself when it is suspected to hang: what its active checks ask for, or else
/// `OPTIONS *`.
#[derive(Debug)]
pub struct Question {
    path: Option<String>,
    host: Option<String>,
    pub proxy_protocol: bool,
}

impl Question {
    fn new(of: &weir_conf::proxy::Upstream) -> Question {
        let asks = of.health.as_ref().filter(|health| health.kind != Check::Tcp);
        Question {
            path: asks.map(|health| health.path.clone()),
            host: asks.and_then(|health| health.host.clone()),
            proxy_protocol: of.send_proxy_protocol,
        }
    }

    pub fn text(&self, authority: &str) -> String {
        let what = self.path.as_ref().map_or_else(|| "OPTIONS *".to_owned(), |path| format!("GET {path}"));
        let host = self.host.as_deref().unwrap_or(authority);
        format!("{what} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weir-probe\r\nConnection: close\r\n\r\n")
    }
}
