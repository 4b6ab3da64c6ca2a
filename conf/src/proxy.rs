//! `[proxy]`: tier 1.

mod acme;
mod admission;
mod http2;
mod quic;
mod route;
pub mod tls;
mod token;
mod tunnel;
mod upstream;

pub use crate::node::Drain;
pub use acme::{Acme, AcmeChallenge, Domains};
pub use admission::{Admission, ForwardedHeader, Gate, ProxyProtocol, RouteLimits};
pub use http2::Http2;
pub use quic::{MAX_SERVER_ID, Quic};
pub(crate) use route::is_token;
pub use route::{
    Action, Affinity, Answer, HeaderEdits, HeaderMatch, HeaderTest, HeaderValues, HostHeader, Part, Pattern,
    Redirect, Rewrite, Route, SameSite, Secure, Sticky, Template, Var,
};
pub use token::{Algorithm, Token, TokenPlace};
pub use tunnel::{Over, Tunnel, TunnelOverride};
pub use upstream::{Balance, Check, Health, Server, Statuses, Tls, Upstream};

use crate::section::keys;
use crate::units::{Bytes, Cidr, Rate, Secret};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    pub listen: Vec<SocketAddr>,
    /// Worker threads; 0: one per core.
    pub threads: usize,
    /// Peers whose forwarded headers count.
    pub trusted: Vec<Cidr>,
    /// Which of those counts.
    pub forwarded_header: ForwardedHeader,
    /// Of trusted peers.
    pub proxy_protocol: ProxyProtocol,
    /// Addresses that may come in; `[]`: all. Others get 403.
    pub allow: Vec<Cidr>,
    /// Goes over `allow`.
    pub deny: Vec<Cidr>,
    /// Open client connections in this process; over it 503 with Retry-After. 0: no limit.
    pub max_connections: usize,
    /// Open client connections per address (IPv6: per `ipv6_prefix`); over it 503. 0: no limit.
    pub max_connections_per_ip: usize,
    /// Requests under way to servers in this process, WebSockets among them; over it 503. 0: no limit.
    pub max_requests: usize,
    /// The same per address; over it 429 with Retry-After. 0: no limit.
    pub max_requests_per_ip: usize,
    /// WebSocket handshakes per address; over it 429 with Retry-After. `None`: no limit ("0/s").
    pub handshake_rate: Option<Rate>,
    /// How many may come at once before the rate counts.
    pub handshake_burst: u32,
    /// Bits of an IPv6 address that make one client.
    pub ipv6_prefix: u8,
    /// Total time for a request head, whatever the drip; over it 408.
    pub head_timeout: Duration,
    /// Over it 431.
    pub head_size: usize,
    /// A kept-alive connection without a request is closed after this.
    pub keepalive_timeout: Duration,
    /// TCP connect to one server.
    pub connect_timeout: Duration,
    /// Servers of the ring tried for one client, the first included.
    pub connect_tries: u32,
    /// From the request sent to a server to the head of its answer.
    pub handshake_timeout: Duration,
    /// Silence of a server over the answer to a plain request; over it 504, or the answer is cut.
    pub read_timeout: Duration,
    /// For a piece of a plain request or its answer to be taken; over it the request ends.
    pub write_timeout: Duration,
    /// Largest body of a plain request; over it 413. 0: no limit.
    pub max_body_size: usize,
    /// Whether servers get `Forwarded` (RFC 7239) besides `X-Forwarded-…`.
    pub forwarded: bool,
    /// Signs the cookies of `sticky = { by = "affinity" }`.
    pub affinity_secret: Secret,
    /// The one before: its cookies are honoured, and replaced as they come.
    pub affinity_previous_secret: Secret,
    /// A connection that is silent for so long is probed by the kernel. Zero: not.
    pub tcp_keepalive: Duration,
    /// A peer that acknowledges nothing for so long is gone. Zero: the system's own patience.
    pub tcp_user_timeout: Duration,
    pub http2: Http2,
    pub tls: tls::Tls,
    pub tunnel: Tunnel,
    pub quic: Quic,
    pub drain: Drain,
    pub admission: Admission,
    pub acme: Acme,
    pub breaker: Breaker,
    pub token: BTreeMap<String, Token>,
    /// Asked for servers' names; empty: those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// A name is looked up again when its answer expires, within these.
    pub dns_min_ttl: Duration,
    pub dns_max_ttl: Duration,
    pub upstream: BTreeMap<String, Upstream>,
    /// First match wins.
    pub route: Vec<Route>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    /// Consecutive failures of one server that open its breaker.
    pub failures: u32,
    /// A share of failures that opens it, of `min_volume` outcomes or more within `window`; 0: off.
    pub failure_ratio: f64,
    pub window: Duration,
    pub min_volume: u32,
    /// A handshake that takes longer counts as a failure. Zero: off.
    pub slow_handshake: Duration,
    /// Answers of 500 and more, and none, count as failures.
    pub server_errors: bool,
    pub open_for: Duration,
    pub open_max: Duration,
}

/// The shortest deadline that makes sense; a deadline is never off.
const TICK: Duration = Duration::from_millis(1);

keys!(Proxy {
    listen,
    threads in 0..=1024,
    trusted,
    forwarded_header,
    proxy_protocol,
    allow,
    deny,
    max_connections,
    max_connections_per_ip,
    max_requests,
    max_requests_per_ip,
    handshake_rate,
    handshake_burst in 1..,
    ipv6_prefix in 1..=128,
    head_timeout in TICK..,
    head_size as Bytes in Bytes(1024)..=Bytes(1 << 20),
    keepalive_timeout in TICK..,
    connect_timeout in TICK..,
    connect_tries in 1..=100,
    handshake_timeout in TICK..,
    read_timeout in TICK..,
    write_timeout in TICK..,
    max_body_size as Bytes,
    forwarded,
    affinity_secret,
    affinity_previous_secret,
    tcp_keepalive,
    tcp_user_timeout,
    http2,
    tls,
    tunnel,
    quic,
    drain,
    admission,
    acme,
    breaker,
    token,
    dns_servers,
    dns_min_ttl in TICK..,
    dns_max_ttl in TICK..,
    upstream,
    route,
});

keys!(Breaker {
    failures in 1..,
    failure_ratio in 0.0..=1.0,
    window in TICK..,
    min_volume in 1..,
    slow_handshake,
    server_errors,
    open_for in TICK..,
    open_max in TICK..,
});
