//! What can go wrong before a broker serves.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("broker.listen = \"{addr}\": {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    /// A stranger could reach the bus.
    #[error(
        "broker.listen = \"{0}\" is not loopback: set broker.secret (and node.broker_secret on the nodes)"
    )]
    SecretNeeded(SocketAddr),
    #[error("broker router: {0}")]
    Router(String),
}
