//! A request's stream of HTTP/2 or HTTP/3: its body comes in, its answer goes out, each at the pace that
//! the other side's flow control allows.

use super::h2;
use super::h3::H3Stream;
use crate::tunnel::presence::{Peer, Presence};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug)]
pub enum RequestStream {
    H2(h2::Stream),
    /// Boxed: it is much larger than a connection of HTTP/1.
    H3(Box<H3Stream>),
}

macro_rules! each {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this {
            RequestStream::H2($stream) => $call,
            RequestStream::H3($stream) => $call,
        }
    };
}

impl RequestStream {
    /// The `:protocol` of an extended CONNECT.
    pub fn protocol(&self, head: &Parts) -> Option<Box<str>> {
        match self {
            RequestStream::H2(_) => head.extensions.get::<::h2::ext::Protocol>().map(|p| p.as_str().into()),
            RequestStream::H3(_) => head.extensions.get::<weir_h3::Protocol>().map(|p| p.as_str().into()),
        }
    }

    /// Waits until the client has given the stream up, or its connection is gone.
    pub async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        each!(self, stream => stream.poll_gone(cx))
    }

    /// The next piece of the body; `None`: its end.
    pub async fn data(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| each!(self, stream => stream.poll_data(cx))).await
    }

    /// Waits until it is known whether there is a body: its first piece is here, or its end.
    pub async fn begun(&mut self) -> io::Result<()> {
        poll_fn(|cx| each!(self, stream => stream.poll_begun(cx))).await
    }

    /// The body has ended.
    pub fn is_read(&self) -> bool {
        each!(self, stream => stream.is_read())
    }

    /// `end`: nothing follows. A status of 100 to 199 may be followed by another.
    pub async fn send_head(&mut self, head: Response<()>, end: bool) -> io::Result<()> {
        match self {
            RequestStream::H2(stream) => stream.send_head(head, end),
            RequestStream::H3(stream) => stream.send_head(head.status(), head.headers(), end).await,
        }
    }

    /// Waits for the client to take it.
    pub async fn send_data(&mut self, data: Bytes, end: bool) -> io::Result<()> {
        each!(self, stream => stream.send_data(data, end).await)
    }

    pub async fn send_trailers(&mut self, trailers: HeaderMap) -> io::Result<()> {
        match self {
            RequestStream::H2(stream) => stream.send_trailers(trailers),
            RequestStream::H3(stream) => stream.send_trailers(&trailers).await,
        }
    }

    /// Gives the stream up behind what was sent on it, in a while.
    pub fn cut(self) {
        // Without a runtime there is nobody to wait: it is reset at once.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        match self {
            RequestStream::H2(stream) => drop(runtime.spawn(stream.cut())),
            RequestStream::H3(stream) => drop(runtime.spawn((*stream).cut())),
        }
    }

    /// Gives the stream up, in a way that nobody takes for an end of the message.
    pub fn reset(&mut self) {
        match self {
            RequestStream::H2(stream) => stream.reset(),
            RequestStream::H3(stream) => {
                stream.reset(weir_h3::Code::H3_REQUEST_CANCELLED);
                stream.stop(weir_h3::Code::H3_REQUEST_CANCELLED);
            }
        }
    }
}

impl Peer for RequestStream {
    fn presence(&mut self, cx: &mut Context<'_>) -> Presence {
        if self.poll_gone(cx).is_ready() { Presence::Gone } else { Presence::There }
    }

    fn reset_on_close(&mut self) {
        self.reset();
    }
}

impl AsyncRead for RequestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
