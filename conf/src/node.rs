//! `[node]`: tier 2.

use crate::section::keys;
use crate::units::{self, Bytes, Cidr, Secret};
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub listen: SocketAddr,
    /// Shown by `info`; empty: host name and port.
    pub name: String,
    /// Peers whose forwarded headers count: the proxies.
    pub trusted: Vec<Cidr>,
    /// `Origin` values that may open WebSockets, `*` as a wildcard. Empty: the request's own host only.
    pub allowed_origins: Vec<String>,
    /// Key of the server HTTP API; unset: the API is off.
    pub api_key: Secret,
    /// Largest body of an API request.
    pub api_body_size: usize,
    pub token: Token,
    /// Clients without a token may connect, with an empty user.
    pub anonymous: bool,
    /// The unidirectional WebSocket at `/connection/uni_websocket`.
    pub uni_websocket: bool,
    /// Sessions of WebTransport at `/connection/webtransport`, where the proxy speaks HTTP/3.
    pub webtransport: bool,
    /// The demo page at `/`.
    pub demo_page: bool,
    /// 0: no limit, for both.
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    /// Connections of one user on this node; over it 3504. 0: no limit.
    pub max_connections_per_user: usize,
    pub channels_per_client: usize,
    pub channel_name_size: usize,
    /// Largest message from a client; over it 1009.
    pub message_size: usize,
    /// From a message's first byte to its last; over it 1008.
    pub message_timeout: Duration,
    /// Bytes that may wait for one client; over it 3008.
    pub outbox_size: usize,
    pub write_timeout: Duration,
    pub handshake_timeout: Duration,
    /// Server pings; zero: none.
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    /// Time to the connect command; over it 3502.
    pub stale_timeout: Duration,
    /// Grace after a token's expiry for the refresh to come.
    pub expired_grace: Duration,
    /// Publications returned by one history call, and in the reply of one recovery; the rest of that follows.
    pub history_limit: u32,
    /// Bytes of one reply about history or presence.
    pub reply_size: usize,
    /// Bytes of all replies together that are larger than their clients' outboxes; over it 3008 for the slowest.
    pub replies_memory: usize,
    /// Brokers to attach to, tried in order from a random start; only without the broker role here.
    pub brokers: Vec<String>,
    pub broker_secret: Secret,
    /// PEM files for TLS on those links, all or none: this node's certificate and key, and the
    /// authorities that its brokers' certificates come from.
    pub broker_tls_cert: String,
    pub broker_tls_key: String,
    pub broker_tls_ca: String,
    /// Deadline of each call to the broker.
    pub bus_timeout: Duration,
    /// Events that may wait for this node at its bus; over it a resync.
    pub inbox_size: usize,
    /// Joins and leaves of one channel are told together, once in this time; zero: each at once.
    pub join_leave_window: Duration,
    pub rate: Rate,
    pub drain: Drain,
}

/// What clients may ask for; over it error 111, and 3013 for whoever goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// So much time's worth may come at once.
    pub burst: Duration,
    pub connection: Rates,
    /// Of one user, all his connections to this node together.
    pub user: Rates,
}

/// `None`: no limit ("0/s").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub commands: Option<units::Rate>,
    pub publications: Option<units::Rate>,
    pub subscribes: Option<units::Rate>,
    pub new_channels: Option<units::Rate>,
    pub reads: Option<units::Rate>,
    pub rpcs: Option<units::Rate>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// HS256, HS384, HS512.
    pub hmac_secret: Secret,
    /// Verified too while a rotation lasts.
    pub hmac_previous_secret: Secret,
    /// PEM public keys; unset: that family is refused.
    pub rsa_public_key: Secret,
    pub ecdsa_public_key: Secret,
    /// Required `aud` and `iss`; empty: not checked.
    pub audience: String,
    pub issuer: String,
    /// What clocks may differ by, for `nbf` and `iat`.
    pub leeway: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drain {
    /// Clients told to go, per second.
    pub rate: units::Rate,
    pub timeout: Duration,
}

/// The shortest deadline that makes sense; a deadline is never off.
const TICK: Duration = Duration::from_millis(1);

keys!(Node {
    listen,
    name,
    trusted,
    allowed_origins,
    api_key,
    api_body_size as Bytes in Bytes(1)..=Bytes(1 << 28),
    token,
    anonymous,
    uni_websocket,
    webtransport,
    demo_page,
    max_connections,
    max_connections_per_ip,
    max_connections_per_user,
    channels_per_client in 1..,
    channel_name_size in 1..=65_535,
    message_size as Bytes in Bytes(1)..=Bytes(1 << 28),
    message_timeout in TICK..,
    outbox_size as Bytes in Bytes(1024)..,
    write_timeout in TICK..,
    handshake_timeout in TICK..,
    ping_interval,
    pong_timeout in TICK..,
    stale_timeout in TICK..,
    expired_grace,
    history_limit in 1..,
    reply_size as Bytes in Bytes(1024)..=Bytes(1 << 30),
    replies_memory as Bytes in Bytes(1024)..,
    brokers,
    broker_secret,
    broker_tls_cert,
    broker_tls_key,
    broker_tls_ca,
    bus_timeout in TICK..,
    inbox_size in 1..,
    join_leave_window in Duration::ZERO..=Duration::from_secs(10),
    rate,
    drain,
});

keys!(Rate { burst in TICK..=Duration::from_secs(3600), connection, user });

keys!(Rates { commands, publications, subscribes, new_channels, reads, rpcs });

keys!(Token {
    hmac_secret,
    hmac_previous_secret,
    rsa_public_key,
    ecdsa_public_key,
    audience,
    issuer,
    leeway,
});

keys!(Drain { rate, timeout });
