//! The node of this process: it is handed the client's own socket, and no relay stays behind.

use crate::access::{Access, End};
use crate::admit::budget::Slot;
use crate::client::ClientStream;
use crate::front::asker::Asker;
use crate::route::Route;
use crate::route::edit::Vars;
use bytes::{Buf, Bytes};
use http::{HeaderMap, Response};
use prometheus_client::metrics::histogram::Histogram;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weir_core::accept::{Exchange, ExchangeFuture, Stream};

/// Answers one handshake.
pub struct Handshake {
    pub asker: Asker,
    pub status: Status,
    /// What it becomes when the node says yes.
    pub switched: u16,
    pub route: Arc<Route>,
    pub vars: Vars,
    pub latency: Histogram,
    pub began: Instant,
    /// Given back with the answer.
    pub slot: Option<Slot>,
}

/// The status that was answered, for the access log; 0 while there is none.
#[derive(Clone, Default)]
pub struct Status(Arc<AtomicU16>);

impl Exchange for Handshake {
    fn accept(self: Box<Self>, mut headers: HeaderMap) -> ExchangeFuture<Box<dyn Stream>> {
        Box::pin(async move {
            self.route.response_headers.apply(&mut headers, &self.vars);
            let stream = self.asker.hand_over(headers).await?;
            self.latency.observe(self.began.elapsed().as_secs_f64());
            self.status.0.store(self.switched, Relaxed);
            drop(self.slot);
            Ok(stream)
        })
    }

    fn refuse(self: Box<Self>, mut response: Response<Bytes>) -> ExchangeFuture<()> {
        Box::pin(async move {
            self.route.response_headers.apply(response.headers_mut(), &self.vars);
            self.status.0.store(response.status().as_u16(), Relaxed);
            self.asker.answer(response, true).await
        })
    }
}

/// What carries the client's bytes, after what was read ahead of them.
pub struct Handed {
    pub stream: ClientStream,
    pub ahead: Bytes,
}

impl Stream for Handed {
    fn into_tcp(self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>> {
        match *self {
            Handed { stream: ClientStream::Tcp(tcp), ahead } => Ok((tcp, ahead)),
            other => Err(Box::new(other)),
        }
    }
}

impl AsyncRead for Handed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..n]);
        self.ahead.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Handed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Part of the permit: dropped with the connection, it writes the access log's line.
pub struct LogAtEnd {
    pub access: Access,
    pub status: Status,
}

impl Drop for LogAtEnd {
    fn drop(&mut self) {
        let status = self.status.0.load(Relaxed);
        let cause = match status {
            101 | 200 => "closed",
            0 => "client_gone",
            _ => "refused_by_node",
        };
        self.access.log("websocket", End { status, bytes: None, cause });
    }
}
