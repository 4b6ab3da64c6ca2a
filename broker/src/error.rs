//! What can go wrong before a broker serves.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("broker.listen = \"{addr}\": {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    /// A stranger could reach the bus.
    #[error(
        "broker.listen = \"{0}\" is not loopback: set broker.secret (and node.broker_secret on the nodes), or TLS (broker.tls_cert, tls_key, tls_ca)"
    )]
    SecretNeeded(SocketAddr),
    /// Of the broker's part in a cluster, or of its data directory.
    #[error("{0}")]
    Cluster(String),
    #[error("{key} = {file:?}: {why}")]
    Tls { key: &'static str, file: String, why: String },
    #[error("broker router: {0}")]
    Router(String),
}
