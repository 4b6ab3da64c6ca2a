//! The seam between a front and whatever takes WebSockets: a request head, a way to answer it,
//! and then a byte stream. Free of the HTTP version: an HTTP/1.1 Upgrade and an extended CONNECT
//! of HTTP/2 or /3 look the same from here.

use bytes::Bytes;
use std::any::Any;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weir_wire::id::ConnId;

/// A WebSocket handshake that was admitted by a front and awaits its answer.
pub struct Request {
    /// Method, target and headers as the client sent them, after the front's rewriting of the
    /// headers in [`weir_wire::hop`].
    pub head: http::request::Parts,
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
    /// Switches protocols. `response` has the headers of the handshake's answer, for HTTP/1.1
    /// including `Sec-WebSocket-Accept`; the front sets status, `Connection` and `Upgrade`.
    fn accept(self: Box<Self>, headers: http::HeaderMap) -> ExchangeFuture<Box<dyn Stream>>;

    /// Answers with an ordinary response, and closes.
    fn refuse(self: Box<Self>, response: http::Response<Bytes>) -> ExchangeFuture<()>;
}

/// The bytes of an accepted WebSocket, whatever carries them.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket itself, if nothing lies between it and the WebSocket's bytes: then the taker
    /// can write to it with fewer steps. The bytes are what was read ahead of the handshake's end.
    fn into_tcp(self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>>;
}

/// Takes WebSockets from a front. The node is one; the proxy knows only this.
pub trait Acceptor: Send + Sync + 'static {
    /// Must not block: the taker answers in a task of its own, on its own runtime.
    fn accept(&self, request: Request);
}
