//! The stream as a tunnel: bytes over DATA frames. What is written goes into one frame with its header, so
//! that a frame is always as long as it says.

use super::H3Stream;
use super::stream::Half;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weir_core::accept::Stream;
use weir_h3::frame;

/// The largest frame: what is kept when QUIC takes only its beginning.
const MAX_FRAME: usize = 16 * 1024;

impl AsyncRead for H3Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            match self.poll_piece(cx, buf.remaining()) {
                Poll::Ready(Some(Ok(data))) => buf.put_slice(&data),
                // Of an end or an error the next call will tell again.
                _ if buf.filled().len() > before => break,
                Poll::Ready(None) => break,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H3Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        if self.writing != Half::Open || !self.answered {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let length = buf.len().min(MAX_FRAME);
        if length > 0 {
            let mut frame = Vec::with_capacity(length + 8);
            frame::data_header(length, &mut frame);
            frame.extend_from_slice(&buf[..length]);
            self.out = [Bytes::new(), frame.into()];
            if let Poll::Ready(Err(error)) = self.poll_out(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        self.end_writing();
        Poll::Ready(Ok(()))
    }
}

impl Stream for H3Stream {
    fn into_tcp(self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>> {
        Err(self)
    }
}
