//! The node of this process: it is handed the client's own socket, and no relay stays behind.

use crate::access::{Access, End};
use crate::admit::budget::Slot;
use crate::answer;
use crate::client::Client;
use crate::forward;
use crate::route::Route;
use crate::route::edit::Vars;
use bytes::{Buf, Bytes};
use http::{HeaderMap, Response, StatusCode};
use prometheus_client::metrics::histogram::Histogram;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weir_core::accept::{Exchange, ExchangeFuture, Stream};

/// Answers one handshake of HTTP/1.1.
pub struct H1Exchange {
    pub client: Client,
    pub status: Status,
    pub route: Arc<Route>,
    pub vars: Vars,
    pub latency: Histogram,
    pub began: Instant,
    /// Given back with the answer.
    pub handshake: Option<Slot>,
}

/// The status that was answered, for the access log; 0 while there is none.
#[derive(Clone, Default)]
pub struct Status(Arc<AtomicU16>);

impl Exchange for H1Exchange {
    fn accept(self: Box<Self>, mut headers: HeaderMap) -> ExchangeFuture<Box<dyn Stream>> {
        Box::pin(async move {
            self.route.response_headers.apply(&mut headers, &self.vars);
            forward::mark_upgrade(&mut headers);
            let mut out = answer::status_line(StatusCode::SWITCHING_PROTOCOLS);
            forward::write_headers(&headers, &mut out);
            out.extend_from_slice(b"\r\n");
            let (mut tcp, ahead) = self.client.into_parts();
            answer::write(&mut tcp, &out).await?;
            self.latency.observe(self.began.elapsed().as_secs_f64());
            self.status.0.store(101, Relaxed);
            drop(self.handshake);
            Ok(Box::new(Handed { tcp, ahead }) as Box<dyn Stream>)
        })
    }

    fn refuse(self: Box<Self>, mut response: Response<Bytes>) -> ExchangeFuture<()> {
        Box::pin(async move {
            self.route.response_headers.apply(response.headers_mut(), &self.vars);
            self.status.0.store(response.status().as_u16(), Relaxed);
            let (mut tcp, _ahead) = self.client.into_parts();
            answer::send_and_close(&mut tcp, response).await
        })
    }
}

/// The client's socket, after what was read ahead on it.
struct Handed {
    tcp: TcpStream,
    ahead: Bytes,
}

impl Stream for Handed {
    fn into_tcp(self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>> {
        Ok((self.tcp, self.ahead))
    }
}

impl AsyncRead for Handed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..n]);
        self.ahead.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Handed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
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
            101 => "closed",
            0 => "client_gone",
            _ => "refused_by_node",
        };
        self.access.log("websocket", End { status, bytes: None, cause });
    }
}
