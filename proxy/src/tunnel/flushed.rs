//! TLS as the relay needs it: it does not flush, since plain sockets hold nothing back; so each write here
//! is followed by a flush, and one that could not be finished goes on with the next poll, whichever it is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug)]
pub struct Flushed<T> {
    stream: T,
    /// Records are written that the socket has not taken yet.
    owes: bool,
}

impl<T: AsyncWrite + Unpin> Flushed<T> {
    pub fn new(stream: T) -> Flushed<T> {
        Flushed { stream, owes: false }
    }

    pub fn get_ref(&self) -> &T {
        &self.stream
    }

    fn pay(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.owes
            && let Poll::Ready(paid) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            paid?;
            self.owes = false;
        }
        Ok(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Flushed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pay(cx)?;
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            // A peer that ends without close_notify: the framing inside says whether that is an end.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            polled => polled,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Flushed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        if written.is_ready() {
            self.owes = true;
            self.pay(cx)?;
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        if written.is_ready() {
            self.owes = true;
            self.pay(cx)?;
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
