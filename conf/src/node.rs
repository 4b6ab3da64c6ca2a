//! `[node]`: tier 2.

use crate::units::{Cidr, Rate, Secret};
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
    /// Publications returned by one history call or recovery.
    pub history_limit: u32,
    /// Brokers to attach to, tried in order from a random start; only without the broker role here.
    pub brokers: Vec<String>,
    pub broker_secret: Secret,
    /// Deadline of each call to the broker.
    pub bus_timeout: Duration,
    /// Events that may wait for this node at its bus; over it a resync.
    pub inbox_size: usize,
    pub drain: Drain,
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
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drain {
    /// Clients told to go, per second.
    pub rate: Rate,
    pub timeout: Duration,
}
