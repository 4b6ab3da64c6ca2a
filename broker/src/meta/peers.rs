//! The way to other brokers, as the group sees it.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use weir_wire::id::BrokerId;

/// How a broker reaches another one. Carries opaque bytes; proves who is at the other end.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// `to` is known for members; seeds are called by address alone. The other end answers with
    /// what its [`Group::serve`](super::Group::serve) returns.
    async fn call(
        &self,
        to: Option<BrokerId>,
        addr: &str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, PeerError>;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The request was not sent.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// It was sent, and may have been served.
    #[error("no answer: {0}")]
    NoAnswer(String),
}
