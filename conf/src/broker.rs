//! `[broker]`: tier 3.

use crate::section::keys;
use crate::units::{Bytes, Secret};
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Broker {
    /// For nodes in other processes.
    pub listen: SocketAddr,
    /// Shared with `node.broker_secret`; needed when `listen` is not loopback. Empty: no proof asked.
    pub secret: Secret,
    /// Attached nodes, at most.
    pub max_nodes: usize,
    /// Largest publication, data and envelope together.
    pub message_size: usize,
    /// Memory for history of all channels; the oldest publications go first.
    pub history_memory: usize,
    /// Streams kept at once; over it a publish that would make a new one is refused.
    pub max_channels: usize,
    /// A node that is away for longer loses its members.
    pub node_lease: Duration,
    /// How long answers to a survey are awaited.
    pub survey_timeout: Duration,
}

keys!(Broker {
    listen,
    secret,
    max_nodes in 1..,
    message_size as Bytes in Bytes(1024)..=Bytes(1 << 28),
    history_memory as Bytes in Bytes(1 << 16)..,
    max_channels in 1..,
    node_lease in Duration::from_millis(100)..,
    survey_timeout in Duration::from_millis(1)..,
});
