//! The seam between a front and whatever takes WebSockets and WebTransport sessions: a request head, a way
//! to answer it, and then a byte stream. Free of the HTTP version: an HTTP/1.1 Upgrade and an extended
//! CONNECT of HTTP/2 or /3 look the same from here.

use bytes::Bytes;
use std::any::Any;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weir_wire::id::ConnId;

/// How a client came; the value of the `transport` label in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTP/1.1: the connection is the WebSocket's, with TLS or without.
    H1,
    /// A stream of HTTP/2 (RFC 8441 where it is a WebSocket).
    H2,
    /// A stream of HTTP/3 (RFC 9220).
    H3,
    /// A session of WebTransport over HTTP/3.
    WebTransport,
}

impl Transport {
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::H1 => "h1",
            Transport::H2 => "h2",
            Transport::H3 => "h3",
            Transport::WebTransport => "webtransport",
        }
    }
}

/// A handshake that was admitted by a front and awaits its answer.
pub struct Request {
    /// Method, target and headers as the client sent them, after the front's rewriting of the
    /// headers in [`weir_wire::hop`]. An extended CONNECT has its `:path` as the target.
    pub head: http::request::Parts,
    /// [`Transport::WebTransport`] asks for a session; all others ask for a WebSocket.
    pub transport: Transport,
    /// The client's address, after the rules for trusted peers were applied.
    pub client: IpAddr,
    /// The connection's name in the logs.
    pub conn: ConnId,
    pub exchange: Box<dyn Exchange>,
    /// Held as long as the connection lives, then dropped: that is how the front counts it.
    pub permit: Permit,
}

/// Released by dropping it.
pub type Permit = Box<dyn Any + Send>;

pub type ExchangeFuture<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// How a handshake is answered: exactly one of the two is called. A dropped one closes the
/// connection (the stream) without an answer.
pub trait Exchange: Send {
    /// Switches protocols. `headers` are those of the handshake's answer, for HTTP/1.1
    /// including `Sec-WebSocket-Accept`; the front sets status, `Connection` and `Upgrade`.
    fn accept(self: Box<Self>, headers: http::HeaderMap) -> ExchangeFuture<Box<dyn Stream>>;

    /// Answers with an ordinary response, and closes.
    fn refuse(self: Box<Self>, response: http::Response<Bytes>) -> ExchangeFuture<()>;
}

/// The bytes of an accepted WebSocket, whatever carries them. Of a WebTransport session: those of the first
/// bidirectional stream that the client opens; until it does, reading and writing wait.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket itself, if nothing lies between it and the WebSocket's bytes: then the taker
    /// can write to it with fewer steps. The bytes are what was read ahead of the handshake's end.
    fn into_tcp(self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>>;

    /// What a WebTransport session has besides its stream.
    fn session(&self) -> Option<Arc<dyn Session>> {
        None
    }
}

/// A WebTransport session. It ends when its stream is dropped, too; then without a code.
pub trait Session: Send + Sync + 'static {
    /// Never waits. Where the connection cannot send at once, older datagrams make room for newer ones.
    fn send_datagram(&self, datagram: Bytes) -> Result<(), NoDatagram>;

    /// Ends the session with a code and a reason that the client gets to see (`WebTransport.closed`), after
    /// what was written to the stream is sent.
    fn close(&self, code: u32, reason: &str);
}

/// Why a datagram was not sent; the stream can carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDatagram {
    /// Larger than what the path takes now.
    TooLarge,
    /// The client takes none.
    Unsupported,
    /// The session has ended.
    Closed,
}

/// Takes WebSockets from a front. The node is one; the proxy knows only this.
pub trait Acceptor: Send + Sync + 'static {
    /// Must not block: the taker answers in a task of its own, on its own runtime.
    fn accept(&self, request: Request);
}
