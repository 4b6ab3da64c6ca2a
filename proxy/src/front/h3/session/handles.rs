//! What the taker of a session has of it: its stream, and a handle for the rest.

use super::Session;
use bytes::{Buf, Bytes};
use quinn::SendDatagramError;
#[cfg(test)]
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weir_core::accept::{NoDatagram, Session as Seam, Stream};
use weir_h3::datagram;

/// A session's handle beside its stream.
#[derive(Clone)]
pub struct WebTransport(Arc<Session>);

impl WebTransport {
    #[cfg(test)]
    /// The client's next datagram; `None` when the session has ended. Of many that nobody reads the newest
    /// are kept.
    pub async fn datagram(&self) -> Option<Bytes> {
        poll_fn(|cx| {
            let mut inner = self.0.lock();
            if let Some(datagram) = inner.datagrams.pop_front() {
                return Poll::Ready(Some(datagram));
            }
            if !inner.is_live() {
                return Poll::Ready(None);
            }
            inner.listener = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Seam for WebTransport {
    fn send_datagram(&self, payload: Bytes) -> Result<(), NoDatagram> {
        if !self.0.lock().is_live() {
            return Err(NoDatagram::Closed);
        }
        let settings = self.0.shared.settings.get();
        if !settings.is_some_and(|settings| settings.h3_datagram || settings.h3_datagram_draft04) {
            return Err(NoDatagram::Unsupported);
        }
        let datagram = datagram::write(self.0.id, &payload);
        self.0.shared.conn.send_datagram(datagram).map_err(|error| match error {
            SendDatagramError::TooLarge => NoDatagram::TooLarge,
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => NoDatagram::Unsupported,
            SendDatagramError::ConnectionLost(_) => NoDatagram::Closed,
        })
    }

    fn close(&self, code: u32, reason: &str) {
        self.0.begin_leaving(Some((code, reason.to_owned())));
    }
}

/// The bytes of a session: of the first stream that the client opens in both directions. Dropping it ends the
/// session.
pub struct WebTransportStream {
    pub(super) session: Arc<Session>,
}

impl WebTransportStream {
    pub fn handle(&self) -> WebTransport {
        WebTransport(self.session.clone())
    }
}

impl crate::client::session::Session for WebTransportStream {
    fn is_live(&self) -> bool {
        self.session.lock().is_live()
    }

    fn is_attached(&self) -> bool {
        self.session.lock().attached
    }

    fn closed(&self) -> Option<u32> {
        self.session.lock().closed
    }

    fn close(&self, code: u16, reason: &str) {
        self.session.begin_leaving(Some((code.into(), reason.to_owned())));
    }
}

impl std::fmt::Debug for WebTransportStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebTransportStream").field("session", &self.session.id).finish_non_exhaustive()
    }
}

impl AsyncRead for WebTransportStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.session.lock();
        if !inner.is_live() {
            return Poll::Ready(Ok(()));
        }
        if !inner.ahead.is_empty() {
            let length = inner.ahead.len().min(buf.remaining());
            buf.put_slice(&inner.ahead[..length]);
            inner.ahead.advance(length);
            if inner.ahead.is_empty() {
                // An empty rest would hold on to the packet it came in.
                inner.ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let result = match &mut inner.recv {
            Some(recv) => recv.poll_read_buf(cx, buf),
            None => Poll::Pending,
        };
        if result.is_pending() {
            keep(&mut inner.reader, cx);
        }
        result.map_err(io::Error::from)
    }
}

impl AsyncWrite for WebTransportStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.session.lock();
        if !inner.is_live() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = inner.credit.map_or(u64::MAX, |credit| credit.allowed.saturating_sub(credit.written));
        let length = buf.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let result = match &mut inner.send {
            Some(send) if length > 0 || buf.is_empty() => Pin::new(send).poll_write(cx, &buf[..length]),
            _ => Poll::Pending,
        };
        match &result {
            Poll::Pending => keep(&mut inner.writer, cx),
            Poll::Ready(Ok(written)) => {
                if let Some(credit) = &mut inner.credit {
                    credit.written += *written as u64;
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        result.map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.session.lock();
        if inner.is_live() {
            match &mut inner.send {
                // It fails if it has ended.
                Some(send) => drop(send.finish()),
                None if inner.attached => {}
                None => {
                    keep(&mut inner.writer, cx);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn keep(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        place => *place = Some(cx.waker().clone()),
    }
}

impl Stream for WebTransportStream {
    fn into_tcp(self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>> {
        Err(self)
    }

    fn session(&self) -> Option<Arc<dyn Seam>> {
        Some(Arc::new(self.handle()))
    }
}

impl Drop for WebTransportStream {
    fn drop(&mut self) {
        self.session.begin_leaving(None);
    }
}
