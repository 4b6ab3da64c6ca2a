//! A client's connection of HTTP/1: its socket, what was read ahead, and a gate that keeps one request's
//! reader from the bytes of the next.
//!
//! Pingora takes it as one of its own streams and gives it back after a request, so the plain
//! socket is at hand when a WebSocket comes.

pub mod session;
pub mod stream;

pub use stream::ClientStream;

use crate::answer;
use crate::front::chunks::Chunks;
use crate::front::head::Body;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, raw_connect::ProxyDigest,
};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Small writes are gathered up to this until they are flushed: Pingora writes a head and a
/// short body one after the other.
const GATHER: usize = 4096;
/// Read at once while looking out for the client's leaving.
const PEEK: usize = 1024;

#[derive(Debug)]
pub struct Client {
    stream: ClientStream,
    /// Read from the socket, not yet handed out.
    pub ahead: BytesMut,
    /// How much may be read ahead of a request's end; then the rest waits in the kernel.
    ahead_limit: usize,
    gate: Gate,
    gathered: Vec<u8>,
}

/// What a reader gets to see.
#[derive(Clone, Copy, Debug)]
enum Gate {
    /// All there is.
    Open,
    /// So many bytes; after them, nothing but the client's closing.
    Within(u64),
    /// A body in chunks, up to its end; then the same.
    Chunks(Chunks),
    /// Its chunks could be read in two ways.
    Broken,
}

/// The cause of a failed read: the client's framing, and not its socket.
#[derive(Debug, thiserror::Error)]
#[error("malformed chunks: {0}")]
pub struct Malformed(&'static str);

impl Client {
    pub fn new(stream: ClientStream, ahead_limit: usize) -> Client {
        Client { stream, ahead: BytesMut::new(), ahead_limit, gate: Gate::Open, gathered: Vec::new() }
    }

    /// From here on readers see this body and no byte after it.
    pub fn gate(&mut self, body: Body) {
        self.gate = match body {
            Body::None => Gate::Within(0),
            Body::Length(n) => Gate::Within(n),
            Body::Chunked => Gate::Chunks(Chunks::new()),
        };
    }

    pub fn open(&mut self) {
        self.gate = Gate::Open;
    }

    /// Reads more ahead. 0: the client has closed.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.ahead.reserve(PEEK);
        self.stream.read_buf(&mut self.ahead).await
    }

    /// Waits until the client has closed. What it sends meanwhile is kept, up to the limit.
    pub async fn gone(&mut self) {
        let _closed_or_broken = std::future::poll_fn(|cx| self.poll_closed(cx)).await;
    }

    /// What carries its bytes, and what was read ahead of it.
    pub fn into_parts(self) -> (ClientStream, Bytes) {
        (self.stream, self.ahead.freeze())
    }

    /// Looks out for the client's leaving; what it sends instead is kept for later.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.len() < self.ahead_limit {
            let mut scratch = [0u8; PEEK];
            let mut buf = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ahead.extend_from_slice(buf.filled());
        }
        Poll::Pending
    }

    /// What was read counts for the body; what is not of it goes back.
    fn pass(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let read = &buf.filled()[before..];
        match &mut self.gate {
            Gate::Open | Gate::Broken => {}
            Gate::Within(left) => *left -= read.len() as u64,
            Gate::Chunks(chunks) => match chunks.read(read) {
                Ok(n) => {
                    if n < read.len() {
                        self.ahead = [&read[n..], &self.ahead].concat().as_slice().into();
                        buf.set_filled(before + n);
                    }
                    if chunks.ended() {
                        self.gate = Gate::Within(0);
                    }
                }
                Err(bad) => {
                    self.gate = Gate::Broken;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, Malformed(bad.why)));
                }
            },
        }
        Ok(())
    }

    fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.drain(..n);
        }
        self.gathered = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let allowed = match this.gate {
            Gate::Within(0) => return this.poll_closed(cx),
            Gate::Within(n) => usize::try_from(n).unwrap_or(usize::MAX).min(buf.remaining()),
            Gate::Open | Gate::Chunks(_) => buf.remaining(),
            Gate::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        };
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(allowed));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            let n = part.filled().len();
            buf.advance(n);
        } else {
            let n = this.ahead.len().min(allowed);
            buf.put_slice(&this.ahead[..n]);
            this.ahead.advance(n);
        }
        Poll::Ready(this.pass(buf, before))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() + data.len() > GATHER {
            ready!(self.poll_gathered(cx))?;
        }
        if data.len() > GATHER {
            return Pin::new(&mut self.stream).poll_write(cx, data);
        }
        self.gathered.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_gathered(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Client {
    async fn shutdown(&mut self) {
        // It may be gone already: that is what was asked for.
        let _ = AsyncWriteExt::shutdown(self).await;
        // It is still sending a body that nobody wants.
        if !matches!(self.gate, Gate::Within(0)) {
            answer::linger(&mut self.stream).await;
        }
    }
}

impl UniqueID for Client {
    fn id(&self) -> i32 {
        self.stream.as_raw_fd()
    }
}

impl Ssl for Client {}
impl Peek for Client {}

impl GetTimingDigest for Client {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Client {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Client {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}
