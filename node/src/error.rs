//! Errors of this crate that leave it.

use std::io;
use std::net::SocketAddr;

/// Why a node cannot start. Texts name the conf key to change.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("node.listen: cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("node.token.{key}: {reason}")]
    Token { key: &'static str, reason: String },
}
