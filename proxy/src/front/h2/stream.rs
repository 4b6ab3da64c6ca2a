//! One stream: its two directions as bytes for a tunnel, as pieces of a message for everything else.

use super::calm::Calm;
use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

/// Asked of the window at once.
const AT_ONCE: usize = 16 << 10;

/// What was sent before an answer broke off has so long to be written.
const ON_THE_WAY: Duration = Duration::from_secs(1);
const WRITTEN_LOOK: Duration = Duration::from_millis(5);

/// Dropped before both directions have ended, it is reset.
#[derive(Debug)]
pub struct Stream {
    recv: RecvStream,
    /// Came with a frame, and was not taken yet.
    rest: Bytes,
    respond: SendResponse<Bytes>,
    /// After the head of the answer.
    send: Option<SendStream<Bytes>>,
    ended: bool,
    /// The last piece that was handed to the connection, which holds it until it is written.
    last: Bytes,
    calm: Arc<Calm>,
}

impl Stream {
    pub fn new(recv: RecvStream, respond: SendResponse<Bytes>, calm: Arc<Calm>) -> Stream {
        Stream { recv, rest: Bytes::new(), respond, send: None, ended: false, last: Bytes::new(), calm }
    }

    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|_reason_or_lost| ())
    }

    /// What was handed out counts as taken.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(self.taken(rest.len()).map(|()| rest)));
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => Poll::Ready(Some(self.taken(data.len()).map(|()| data))),
            Some(Err(error)) => Poll::Ready(Some(Err(failed(error)))),
            None => Poll::Ready(None),
        }
    }

    /// Ready when the body's first piece is here, or its end.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                // An empty frame is no end.
                Some(data) => self.rest = data.map_err(failed)?,
                None => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    pub fn is_read(&self) -> bool {
        self.rest.is_empty() && self.recv.is_end_stream()
    }

    pub fn send_head(&mut self, head: Response<()>, end: bool) -> io::Result<()> {
        if head.status().is_informational() {
            return self.respond.send_informational(head).map_err(failed);
        }
        self.send = Some(self.respond.send_response(head, end).map_err(failed)?);
        self.calm.sent(0);
        self.ended = end;
        Ok(())
    }

    pub async fn send_data(&mut self, mut data: Bytes, end: bool) -> io::Result<()> {
        while !data.is_empty() {
            let room = poll_fn(|cx| self.poll_room(data.len(), cx)).await?;
            let part = data.split_to(room.min(data.len()));
            let last = end && data.is_empty();
            self.calm.sent(part.len());
            self.last = part.clone();
            self.sender()?.send_data(part, last).map_err(failed)?;
            self.ended |= last;
        }
        if end { self.end() } else { Ok(()) }
    }

    pub fn send_trailers(&mut self, trailers: HeaderMap) -> io::Result<()> {
        self.sender()?.send_trailers(trailers).map_err(failed)?;
        self.ended = true;
        Ok(())
    }

    pub fn reset(&mut self) {
        match &mut self.send {
            Some(send) => send.send_reset(Reason::CANCEL),
            None => self.respond.send_reset(Reason::CANCEL),
        }
        self.ended = true;
    }

    /// Gives the stream up when what was sent is written, as far as the client takes it: with a reset the rest is
    /// thrown away.
    pub async fn cut(mut self) {
        let until = Instant::now() + ON_THE_WAY;
        while !self.last.is_unique() && Instant::now() < until {
            sleep(WRITTEN_LOOK).await;
        }
        self.reset();
    }

    fn taken(&mut self, bytes: usize) -> io::Result<()> {
        self.recv.flow_control().release_capacity(bytes).map_err(failed)
    }

    fn sender(&mut self) -> io::Result<&mut SendStream<Bytes>> {
        self.send.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn end(&mut self) -> io::Result<()> {
        self.last = Bytes::new();
        if !self.ended {
            self.ended = true;
            self.sender()?.send_data(Bytes::new(), true).map_err(failed)?;
        }
        Ok(())
    }

    /// How much the stream takes now, one byte or more.
    fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let send = self.sender()?;
        send.reserve_capacity(wanted.min(AT_ONCE));
        loop {
            match send.capacity() {
                0 => match ready!(send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                room => return Poll::Ready(Ok(room)),
            }
        }
    }
}

fn failed(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        false => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_begun(cx))?;
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        if n == 0 {
            return Poll::Ready(Ok(()));
        }
        self.rest.advance(n);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Poll::Ready(self.taken(n))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_room(data.len(), cx))?.min(data.len());
        self.sender()?.send_data(Bytes::copy_from_slice(&data[..n]), false).map_err(failed)?;
        self.calm.sent(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}
