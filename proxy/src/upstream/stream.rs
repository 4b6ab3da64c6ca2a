//! A connection to a server, whatever it goes over.

use crate::tunnel::flushed::Flushed;
use crate::tunnel::presence;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

#[derive(Debug)]
pub enum ServerStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, so that tunnels without TLS do not pay for its size.
    Tls(Box<Flushed<TlsStream<Socket>>>),
}

/// What TLS runs over.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<Socket> for ServerStream {
    fn from(socket: Socket) -> ServerStream {
        match socket {
            Socket::Tcp(tcp) => ServerStream::Tcp(tcp),
            Socket::Unix(unix) => ServerStream::Unix(unix),
        }
    }
}

impl From<TlsStream<Socket>> for ServerStream {
    fn from(stream: TlsStream<Socket>) -> ServerStream {
        ServerStream::Tls(Box::new(Flushed::new(stream)))
    }
}

impl ServerStream {
    /// Lets the kernel notice a server that vanished without a word.
    pub fn watch_peer(&self, conf: &weir_conf::proxy::Proxy) -> io::Result<()> {
        self.socket(|tcp| presence::watch_peer(tcp, conf), |_unix| Ok(()))
    }

    /// Asks the socket below.
    pub fn socket<T>(&self, tcp: impl FnOnce(&TcpStream) -> T, unix: impl FnOnce(&UnixStream) -> T) -> T {
        match self {
            ServerStream::Tcp(stream) => tcp(stream),
            ServerStream::Unix(stream) => unix(stream),
            ServerStream::Tls(tls) => match tls.get_ref().get_ref().0 {
                Socket::Tcp(stream) => tcp(stream),
                Socket::Unix(stream) => unix(stream),
            },
        }
    }
}

macro_rules! each {
    ($this:expr, $stream:ident => $call:expr) => {
        match &mut *$this {
            Self::Tcp($stream) => $call,
            Self::Unix($stream) => $call,
            Self::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

macro_rules! both {
    ($this:expr, $stream:ident => $call:expr) => {
        match &mut *$this {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        both!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        both!(self, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        both!(self, stream => Pin::new(stream).poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
