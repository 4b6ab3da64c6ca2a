//! The two-way copy. It holds no buffer while idle: bytes are read into a scratch buffer of the
//! thread and written on from there; only what the other side cannot take at once is kept, and
//! until that is gone nothing more is read (backpressure).

use crate::metrics::Metrics;
use bytes::{Buf, Bytes};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// At most so much is kept for a side that does not read, per direction.
const SCRATCH: usize = 32 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

pub struct Relay<C, S> {
    client: C,
    server: S,
    up: Way,
    down: Way,
}

/// One direction.
struct Way {
    /// Read, not yet written.
    spill: Bytes,
    bytes: u64,
    state: State,
}

/// ```text
///   Open ──(end of input)──► Ending ──(output shut down)──► Done
/// ```
#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    Ending,
    Done,
}

/// Why a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both sides closed.
    Closed,
    ClientError,
    ServerError,
    /// No byte in either direction for too long.
    Idle,
    /// One side closed, and the other went silent without closing.
    HalfClosed,
    /// The proxy is being drained.
    Drained,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Closed => "closed",
            Cause::ClientError => "client_error",
            Cause::ServerError => "server_error",
            Cause::Idle => "idle",
            Cause::HalfClosed => "half_closed",
            Cause::Drained => "drained",
        }
    }
}

impl<C, S> Relay<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// `from_client` and `from_server` were read ahead and are passed on first.
    pub fn new(client: C, from_client: Bytes, server: S, from_server: Bytes) -> Relay<C, S> {
        Relay { client, server, up: Way::new(from_client), down: Way::new(from_server) }
    }

    /// Moves what can be moved. Ready once both directions have ended, or one has failed.
    pub fn poll(&mut self, cx: &mut Context<'_>, metrics: &Metrics) -> Poll<Cause> {
        BUFFER.with_borrow_mut(|scratch| {
            let before = (self.up.bytes, self.down.bytes);
            let up = self.up.pump(&mut self.client, &mut self.server, scratch, cx);
            let down = self.down.pump(&mut self.server, &mut self.client, scratch, cx);
            if self.up.bytes > before.0 {
                metrics.bytes_up.inc_by(self.up.bytes - before.0);
            }
            if self.down.bytes > before.1 {
                metrics.bytes_down.inc_by(self.down.bytes - before.1);
            }
            match (up, down) {
                (Poll::Ready(Err(Broken::Input)), _) | (_, Poll::Ready(Err(Broken::Output))) => {
                    Poll::Ready(Cause::ClientError)
                }
                (_, Poll::Ready(Err(Broken::Input))) | (Poll::Ready(Err(Broken::Output)), _) => {
                    Poll::Ready(Cause::ServerError)
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Cause::Closed),
                _ => Poll::Pending,
            }
        })
    }

    /// Bytes so far, towards the server and towards the client.
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.bytes, self.down.bytes)
    }

    /// One side has closed, the other has not.
    pub fn is_half_closed(&self) -> bool {
        self.up.state != State::Open || self.down.state != State::Open
    }
}

enum Broken {
    Input,
    Output,
}

impl Way {
    fn new(spill: Bytes) -> Way {
        Way { bytes: spill.len() as u64, spill, state: State::Open }
    }

    #[inline]
    fn pump<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if !self.spill.is_empty() {
                ready!(self.drain(to, cx)).map_err(|_| Broken::Output)?;
            }
            match self.state {
                State::Open => {}
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    // Its other half may still be of use, so a failure here is for that to find.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Done;
                    return Poll::Ready(Ok(()));
                }
            }
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut buf)).map_err(|_| Broken::Input)?;
            let read = buf.filled();
            if read.is_empty() {
                self.state = State::Ending;
                continue;
            }
            self.bytes += read.len() as u64;
            let written = match Pin::new(&mut *to).poll_write(cx, read) {
                Poll::Ready(written) => written.map_err(|_| Broken::Output)?,
                Poll::Pending => 0,
            };
            if written < read.len() {
                self.spill = Bytes::copy_from_slice(&read[written..]);
            } else if let Poll::Ready(Err(_)) = Pin::new(&mut *to).poll_flush(cx) {
                return Poll::Ready(Err(Broken::Output));
            }
        }
    }

    #[cold]
    fn drain<W: AsyncWrite + Unpin>(&mut self, to: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.spill.is_empty() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.spill))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.spill.advance(n);
        }
        self.spill = Bytes::new();
        Pin::new(to).poll_flush(cx)
    }
}
