//! A client's connection of HTTP/1: its socket, and what was read ahead.

pub mod session;
pub mod stream;

pub use stream::ClientStream;

use bytes::{Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// Read at once while looking out for the client's leaving.
const PEEK: usize = 1024;

#[derive(Debug)]
pub struct Client {
    stream: ClientStream,
    /// Read from the socket, not yet handed out.
    pub ahead: BytesMut,
    /// How much may be read ahead of a request's end; then the rest waits in the kernel.
    ahead_limit: usize,
}

impl Client {
    pub fn new(stream: ClientStream, ahead_limit: usize) -> Client {
        Client { stream, ahead: BytesMut::new(), ahead_limit }
    }

    pub fn stream(&mut self) -> &mut ClientStream {
        &mut self.stream
    }

    /// Reads more ahead. 0: the client has closed.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.fill_with(PEEK).await
    }

    /// The same in larger pieces.
    pub async fn fill_with(&mut self, most: usize) -> io::Result<usize> {
        self.ahead.reserve(most);
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
}
