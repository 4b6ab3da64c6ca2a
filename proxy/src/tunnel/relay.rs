//! One direction of the two-way copy. It holds no buffer while idle: bytes are read into a scratch
//! buffer of the thread, looked at there, and written on from there; only what the other side cannot
//! take at once is kept, and until that is gone nothing more is read (backpressure).

use super::frames::{Rules, Scanner, Sender, Stop};
use super::limits::{Guard, Judged, Verdict};
use bytes::{Buf, Bytes};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// At most so much is kept for a side that does not read, per direction.
const SCRATCH: usize = 32 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Lends the scratch buffer of this thread.
pub fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|scratch| work(scratch))
}

/// One direction.
pub struct Way {
    pub scanner: Scanner,
    /// Passed, not yet written.
    spill: Bytes,
    /// Read, not yet passed: the beginning of a header mostly, or what a rate holds back.
    kept: Vec<u8>,
    /// What is kept can be judged again without anything to follow it.
    again: bool,
    /// What makes no sense as frames does not pass.
    strict: bool,
    state: State,
    /// Passed so far.
    bytes: u64,
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

/// How far a pump came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// One of the two sockets has to move first.
    Waiting,
    /// Nothing is read until then.
    Paused(Instant),
    /// Both ends of this direction are closed.
    Done,
    InputBroken,
    OutputBroken,
    /// A limit was met: the end of the tunnel.
    Stopped(Verdict),
}

impl Way {
    /// `ahead` was read before, and is judged and passed on first.
    pub fn new(sender: Sender, ahead: Bytes) -> Way {
        // A copy, even of nothing: these bytes may be the end of a buffer of some KiB, which would live
        // as long as the tunnel.
        let kept = ahead.to_vec();
        Way {
            scanner: Scanner::new(sender),
            spill: Bytes::new(),
            again: !kept.is_empty(),
            strict: false,
            kept,
            state: State::Open,
            bytes: 0,
        }
    }

    /// From the client of a session of WebTransport: bytes without frames.
    pub fn unframed(ahead: Bytes) -> Way {
        let mut way = Way::new(Sender::Client, ahead);
        way.scanner.lose();
        way
    }

    /// To such a client: frames, and nothing else.
    pub fn framed(ahead: Bytes) -> Way {
        Way { strict: true, ..Way::new(Sender::Server, ahead) }
    }

    /// Moves what can be moved.
    #[inline]
    pub fn pump<R, W>(
        &mut self,
        (from, to): (&mut R, &mut W),
        mut guard: Option<&mut Guard>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Flow
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if !self.spill.is_empty() {
                match self.flush(to, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Flow::OutputBroken,
                    Poll::Pending => return Flow::Waiting,
                }
            }
            match self.state {
                State::Open => {}
                State::Done => return Flow::Done,
                State::Ending => {
                    // Its other half may still be of use, so a failure here is for that to find.
                    if Pin::new(&mut *to).poll_shutdown(cx).is_pending() {
                        return Flow::Waiting;
                    }
                    self.state = State::Done;
                    return Flow::Done;
                }
            }
            let (end, judged) = match &mut guard {
                None => {
                    let (end, _) = match self.fill(from, scratch, usize::MAX, cx) {
                        Poll::Ready(Ok(filled)) => filled,
                        Poll::Ready(Err(_)) => return Flow::InputBroken,
                        Poll::Pending => return Flow::Waiting,
                    };
                    (end, self.judge(&scratch[..end]))
                }
                Some(guard) => {
                    let allowance = match guard.allow(Instant::now) {
                        Ok(allowance) => allowance,
                        Err(when) => return Flow::Paused(when),
                    };
                    let (end, fresh) = match self.fill(from, scratch, allowance.bytes, cx) {
                        Poll::Ready(Ok(filled)) => filled,
                        Poll::Ready(Err(_)) => return Flow::InputBroken,
                        Poll::Pending => return Flow::Waiting,
                    };
                    (end, guard.judge(&mut self.scanner, &mut scratch[..end], fresh, &allowance))
                }
            };
            if end == 0 {
                continue;
            }
            let Judged { pass, keep, verdict } = judged;
            self.keep(&scratch[pass..keep], verdict != Verdict::Good);
            if self.write(to, &scratch[..pass], cx).is_err() {
                return Flow::OutputBroken;
            }
            if !matches!(verdict, Verdict::Good | Verdict::Later) {
                return Flow::Stopped(verdict);
            }
        }
    }

    /// Without limits: all passes but the beginning of a header.
    #[inline]
    fn judge(&mut self, bytes: &[u8]) -> Judged {
        let (mut pass, stop) = self.scanner.scan(bytes, &Rules::NONE);
        if stop == Stop::Nonsense && self.strict {
            return Judged { pass, keep: bytes.len(), verdict: Verdict::Nonsense };
        }
        if stop == Stop::Nonsense {
            // It is left to the two ends to make something of it.
            self.scanner.lose();
            pass = bytes.len();
        }
        Judged { pass, keep: bytes.len(), verdict: Verdict::Good }
    }

    /// What was kept, and what there is to be read after it, at the scratch buffer's start. Says how
    /// much that is, and how much of it is new. Nothing: the input has ended.
    #[inline]
    pub fn fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        scratch: &mut [u8],
        limit: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(usize, usize)>> {
        if self.again {
            // What was read ahead of a tunnel may be longer than a read.
            let part = self.kept.len().min(scratch.len());
            scratch[..part].copy_from_slice(&self.kept[..part]);
            self.kept = self.kept.split_off(part);
            self.again = !self.kept.is_empty();
            return Poll::Ready(Ok((part, 0)));
        }
        let have = self.kept.len();
        let end = scratch.len().min(have.saturating_add(limit));
        let mut buf = ReadBuf::new(&mut scratch[have..end]);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let fresh = buf.filled().len();
        if have > 0 {
            scratch[..have].copy_from_slice(&self.kept);
            self.kept = Vec::new();
        }
        if fresh == 0 {
            self.state = State::Ending;
            // Half a header is of no use, and yet not ours to leave out: unless something waits (then the
            // tunnel is on its way out, and this was not to be passed on).
            if self.spill.is_empty() {
                self.spill = Bytes::copy_from_slice(&scratch[..have]);
                self.bytes += have as u64;
            }
            return Poll::Ready(Ok((0, 0)));
        }
        Poll::Ready(Ok((have + fresh, fresh)))
    }

    /// To be brought again by the next [`Way::fill`]; `again`: even if nothing follows.
    #[inline]
    pub fn keep(&mut self, bytes: &[u8], again: bool) {
        if bytes.is_empty() {
            return;
        }
        // What was read ahead and did not fit stands behind it.
        self.kept.splice(..0, bytes.iter().copied());
        self.again |= again;
    }

    /// What cannot be written now is spilled.
    #[inline]
    pub fn write<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bytes += bytes.len() as u64;
        let written = match Pin::new(&mut *to).poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < bytes.len() {
            self.spill = Bytes::copy_from_slice(&bytes[written..]);
        } else if let Poll::Ready(flushed) = Pin::new(to).poll_flush(cx) {
            flushed?;
        }
        Ok(())
    }

    /// Writes what was spilled.
    #[cold]
    pub fn flush<W: AsyncWrite + Unpin>(&mut self, to: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// Puts a frame of ours in, if one may stand here.
    pub fn inject(&mut self, frame: &[u8]) -> bool {
        self.state == State::Open && self.inject_last(frame)
    }

    /// The same for the last frame of all, which may also stand behind the input's end.
    pub fn inject_last(&mut self, frame: &[u8]) -> bool {
        if self.state == State::Done || !self.scanner.takes_a_frame() {
            return false;
        }
        self.spill = match self.spill.is_empty() {
            true => Bytes::copy_from_slice(frame),
            false => [&self.spill[..], frame].concat().into(),
        };
        true
    }

    /// All is said in this direction: a Close frame has gone by, and nothing waits.
    pub fn is_said(&self) -> bool {
        self.scanner.close().is_some() && self.scanner.is_at_boundary() && !self.is_stuck()
    }

    /// Takes this for the input's end.
    pub fn finish(&mut self) {
        if self.state == State::Open {
            self.state = State::Ending;
        }
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Something waits to be written.
    pub fn is_stuck(&self) -> bool {
        !self.spill.is_empty()
    }

    /// Memory besides itself.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.kept.capacity() + self.spill.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of what was passed, how much the other side has taken. (A frame of ours counts before its time.)
    pub fn written(&self) -> u64 {
        self.bytes.wrapping_sub(self.spill.len() as u64)
    }
}
