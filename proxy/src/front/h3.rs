//! A client's HTTP/3 connection (RFC 9114) around a `quinn::Connection`: from its streams to a request's head
//! and an [`H3Stream`], which is content for plain requests and a byte stream for tunnels (RFC 9220), or becomes
//! a session of WebTransport. What the bytes mean is `weir-h3`'s; sockets, Retry and admission of connections
//! are left to the QUIC endpoint, requests to the [`Handler`].
//!
//! A connection has one task, which accepts; each request has its own, from its head to its end.
//!
//! | what the client does | what ends | with |
//! |---|---|---|
//! | a head that does not come in time, or after GOAWAY | the stream | H3_REQUEST_REJECTED |
//! | no request for too long, whatever else it sends | the connection | GOAWAY, H3_NO_ERROR |
//! | a head that is too large | the request | 431 |
//! | early data that is neither GET nor HEAD | the request | 425 |
//! | a malformed message | the stream | H3_MESSAGE_ERROR |
//! | another stream of a session, or one of no session | the stream | WT_BUFFERED_STREAM_REJECTED |
//! | frames, settings, streams, datagrams against the rules | the connection | the rule's code |
//! | empty frames, cancelled requests in great numbers | the connection | H3_EXCESSIVE_LOAD |

mod connection;
mod io;
mod request;
mod session;
mod sessions;
mod shared;
mod stream;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod uni;
#[cfg(test)]
mod webtransport_tests;

pub use session::WebTransportStream;
pub use stream::H3Stream;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use weir_core::drain::Drain;

/// Takes a connection's requests.
pub trait Handler: Send + Sync + 'static {
    /// Runs in a task of its own, until it returns. What is wrong with a request by HTTP's rules does not come
    /// here; whether there is something at its path, and who may have it, is decided here.
    fn request(&self, head: http::request::Parts, stream: H3Stream) -> impl Future<Output = ()> + Send;

    /// The client broke a rule, or met a limit: one of few texts.
    fn refused(&self, cause: &'static str);
}

/// What one connection may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a field section, as RFC 9114 counts (4.2.2).
    pub max_field_section: u32,
    /// For a request's head, and for whatever else a stream begins with.
    pub head_timeout: Duration,
    /// A connection without a request is closed after this; before its first one, after `head_timeout`.
    pub idle_timeout: Duration,
    /// For what we write, without any progress.
    pub write_timeout: Duration,
    /// Sessions of WebTransport at a time; 0 offers none.
    pub max_sessions: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_field_section: 16 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            max_sessions: 16,
        }
    }
}

/// Serves one connection to its end. A drain sends GOAWAY and waits for the requests that were taken; its stop
/// closes at once.
pub async fn serve<H: Handler>(conn: quinn::Connection, handler: Arc<H>, limits: Limits, drain: Drain) {
    connection::serve(conn, handler, limits, drain).await;
}
