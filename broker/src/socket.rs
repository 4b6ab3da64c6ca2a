//! A connection's two directions, plain or in TLS.

use crate::link::LinkError;
use crate::tls::Tls;
use socket2::SockRef;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;
use tokio_rustls::TlsStream;

pub enum ReadSide {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

pub enum WriteSide {
    Plain(OwnedWriteHalf),
    /// Keeps back what the kernel did not take, up to a flush.
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

/// What the kernel takes ahead of what it has sent. More would only wait there, where nothing
/// that is in a hurry can overtake it.
const UNSENT: u32 = 128 << 10;

/// The link works without either.
pub fn tune(stream: &TcpStream) {
    let _works_without = stream.set_nodelay(true);
    let _works_without = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
}

/// Of a connection that came.
pub async fn accepted(
    stream: TcpStream,
    tls: Option<&Tls>,
    deadline: Instant,
) -> Result<(ReadSide, WriteSide), LinkError> {
    match tls {
        Some(tls) => Ok(split(tls.accept(stream, deadline).await?)),
        None => Ok(split_plain(stream)),
    }
}

/// Of a connection to this address.
pub async fn connected(
    stream: TcpStream,
    addr: &str,
    tls: Option<&Tls>,
    deadline: Instant,
) -> Result<(ReadSide, WriteSide), LinkError> {
    match tls {
        Some(tls) => Ok(split(tls.connect(stream, addr, deadline).await?)),
        None => Ok(split_plain(stream)),
    }
}

fn split(stream: TlsStream<TcpStream>) -> (ReadSide, WriteSide) {
    let (reader, writer) = tokio::io::split(stream);
    (ReadSide::Tls(reader), WriteSide::Tls(writer))
}

fn split_plain(stream: TcpStream) -> (ReadSide, WriteSide) {
    let (reader, writer) = stream.into_split();
    (ReadSide::Plain(reader), WriteSide::Plain(writer))
}

impl ReadSide {
    pub fn is_plain(&self) -> bool {
        matches!(self, ReadSide::Plain(_))
    }
}

impl AsyncRead for ReadSide {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ReadSide::Plain(reader) => Pin::new(reader).poll_read(context, buffer),
            ReadSide::Tls(reader) => Pin::new(reader).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for WriteSide {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            WriteSide::Plain(writer) => Pin::new(writer).poll_write(context, bytes),
            WriteSide::Tls(writer) => Pin::new(writer).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            WriteSide::Plain(writer) => Pin::new(writer).poll_flush(context),
            WriteSide::Tls(writer) => Pin::new(writer).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            WriteSide::Plain(writer) => Pin::new(writer).poll_shutdown(context),
            WriteSide::Tls(writer) => Pin::new(writer).poll_shutdown(context),
        }
    }
}
