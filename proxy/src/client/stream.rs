//! What carries a client's bytes: a socket with TLS or without, a stream of HTTP/2 or /3, or a session of
//! WebTransport.

use super::session::SessionStream;
use crate::delegate::delegate;
use crate::front::stream::RequestStream;
use crate::tunnel::flushed::Flushed;
use crate::tunnel::presence::{self, End, Peer, Presence};
use std::pin::Pin;
use std::task::Context;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// TLS over a client's socket.
pub type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

#[derive(Debug)]
pub enum ClientStream {
    Tcp(TcpStream),
    /// Boxed, as the next one, so that plain tunnels do not pay for its size.
    Tls(Box<Flushed<TlsStream>>),
    Stream(Box<RequestStream>),
    Session(Box<SessionStream>),
}

impl From<TlsStream> for ClientStream {
    fn from(tls: TlsStream) -> ClientStream {
        ClientStream::Tls(Box::new(Flushed::new(tls)))
    }
}

impl ClientStream {
    /// The socket below, where it is this stream's alone.
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            ClientStream::Tcp(tcp) => Some(tcp),
            ClientStream::Tls(tls) => Some(tls.get_ref().get_ref().0),
            ClientStream::Stream(_) | ClientStream::Session(_) => None,
        }
    }
}

delegate!(ClientStream { Tcp, Tls, Stream, Session }, vectored: Tcp, Tls);

impl Peer for ClientStream {
    fn presence(&mut self, cx: &mut Context<'_>) -> Presence {
        match self {
            ClientStream::Stream(stream) => stream.presence(cx),
            ClientStream::Session(stream) => stream.presence(cx),
            _ => self.socket().map_or(Presence::There, presence::of_tcp),
        }
    }

    fn end(&mut self, end: End, cx: &mut Context<'_>) {
        // What cannot be sent now is not waited for.
        let _sent_or_not = match self {
            ClientStream::Session(stream) => return stream.end(end, cx),
            ClientStream::Tcp(_) => return,
            _ if !end.whole => return,
            other => Pin::new(other).poll_shutdown(cx),
        };
    }

    fn closed(&self) -> Option<u32> {
        match self {
            ClientStream::Session(stream) => stream.closed(),
            _ => None,
        }
    }

    fn reset_on_close(&mut self) {
        match self {
            ClientStream::Stream(stream) => stream.reset_on_close(),
            ClientStream::Session(stream) => stream.reset_on_close(),
            _ => drop(self.socket().map(presence::reset_tcp)),
        }
    }
}
