//! A session of WebTransport as the client of a tunnel. What the tunnel writes are frames
//! ([`weir_wire::hop::WEBTRANSPORT`]), of which the client gets what they carry, on the session's stream. What it reads
//! are the stream's bytes.
//!
//! ```text
//!   Open ──(Close frame, end of what is written)──► Parting: the stream has ended, the client reads what came
//!    │                                                │      last; what it still says is thrown away
//!    │                                                └──(it leaves, or FAREWELL is over)──► Left: closed with the code
//!    └──(dropped, or ended by the tunnel)──► Left
//! ```

use crate::front::h3::WebTransportStream;
use crate::tunnel::frames::{self, Carries, NO_CODE};
use crate::tunnel::leave::BAD_GATEWAY;
use crate::tunnel::presence::{End, Peer, Presence};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// For the client to leave by itself: a session's end throws away what it has not read.
const FAREWELL: Duration = Duration::from_secs(1);
/// Reads for nothing until others get the thread.
const READS_AT_A_TIME: usize = 32;

/// What is asked of a session besides its bytes.
pub trait Session: AsyncRead + AsyncWrite + Unpin {
    /// Neither side has ended it.
    fn is_live(&self) -> bool;
    /// The client has opened its stream.
    fn is_attached(&self) -> bool;
    /// What the client has closed it with.
    fn closed(&self) -> Option<u32>;
    /// Ends it, after what was written is sent.
    fn close(&self, code: u16, reason: &str);
}

#[derive(Debug)]
pub struct SessionStream<S: Session = WebTransportStream> {
    session: S,
    frame: Frame,
    /// The client has ended its side of the stream.
    heard: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Open,
    Parting(Box<Words>),
    Left,
}

/// What the session is to end with.
#[derive(Debug)]
struct Words {
    code: u16,
    reason: String,
    until: Pin<Box<Sleep>>,
}

/// Where in what is written.
#[derive(Debug)]
enum Frame {
    Between,
    /// So much of it is still to come.
    Data(u64),
    Other(u64),
    Close(u64, Vec<u8>),
}

impl<S: Session> SessionStream<S> {
    pub fn new(session: S) -> SessionStream<S> {
        SessionStream { session, frame: Frame::Between, heard: false, state: State::Open }
    }

    /// The first words count.
    fn part(&mut self, code: u16, reason: &str, cx: &mut Context<'_>) {
        if let State::Open = self.state {
            let until = Box::pin(sleep(FAREWELL));
            self.state = State::Parting(Box::new(Words { code, reason: reason.to_owned(), until }));
            // Pending only where there is no stream.
            let _ended = Pin::new(&mut self.session).poll_shutdown(cx);
            // Whichever direction comes next goes on with it.
            let _later = self.farewell(cx);
        }
    }

    fn leave(&mut self) {
        if let State::Parting(words) = std::mem::replace(&mut self.state, State::Left) {
            self.session.close(words.code, &words.reason);
        }
    }

    /// Ready when the session is closed.
    fn farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Parting(words) = &mut self.state else { return Poll::Ready(()) };
        if self.heard || words.until.as_mut().poll(cx).is_ready() {
            self.leave();
            return Poll::Ready(());
        }
        let mut scratch = [0; 1024];
        for _ in 0..READS_AT_A_TIME {
            let mut buf = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.session).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                self.leave();
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Goes on with the frame under way; says how much of it was taken.
    fn poll_frame(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let part = |left: u64| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (taken, left) = match &mut self.frame {
            Frame::Between => return Poll::Ready(self.begin(bytes)),
            Frame::Data(left) => {
                let taken = ready!(Pin::new(&mut self.session).poll_write(cx, &bytes[..part(*left)]))?;
                if taken == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                (taken, left)
            }
            Frame::Other(left) => (part(*left), left),
            Frame::Close(left, payload) => {
                let taken = part(*left);
                payload.extend_from_slice(&bytes[..taken]);
                (taken, left)
            }
        };
        *left -= taken as u64;
        if *left == 0 {
            self.finish_frame(cx);
        }
        Poll::Ready(Ok(taken))
    }

    fn begin(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begun = frames::begun(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        // Half a header is the end of what a server says that died over it.
        let Some(begun) = begun else { return Ok(bytes.len()) };
        self.frame = match (begun.carries, begun.payload) {
            (Carries::Close, payload) => Frame::Close(payload, Vec::new()),
            (_, 0) => Frame::Between,
            (Carries::Data, payload) => Frame::Data(payload),
            (Carries::Other, payload) => Frame::Other(payload),
        };
        Ok(begun.header)
    }

    fn finish_frame(&mut self, cx: &mut Context<'_>) {
        if let Frame::Close(0, payload) = std::mem::replace(&mut self.frame, Frame::Between) {
            let (code, reason) = words(&payload);
            self.part(code, &reason, cx);
        }
    }

    /// Without a stream there is no way for what a frame carries, but the session can still be closed: with a Close frame
    /// that stands whole among these bytes.
    fn skip_to_close(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> bool {
        let Frame::Data(left) = self.frame else { return false };
        let mut rest = usize::try_from(left).ok().and_then(|left| bytes.get(left..)).unwrap_or_default();
        while let Ok(Some(begun)) = frames::begun(rest) {
            let Some(payload) = usize::try_from(begun.payload).ok().and_then(|payload| {
                let end = begun.header.checked_add(payload)?;
                rest.get(begun.header..end)
            }) else {
                return false;
            };
            if begun.carries == Carries::Close {
                let (code, reason) = words(payload);
                self.part(code, &reason, cx);
                return true;
            }
            rest = &rest[begun.header + payload.len()..];
        }
        false
    }
}

fn words(payload: &[u8]) -> (u16, String) {
    match payload {
        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), String::from_utf8_lossy(reason).into_owned()),
        _ => (NO_CODE, String::new()),
    }
}

impl<S: Session> AsyncRead for SessionStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !matches!(self.state, State::Open) {
            return self.farewell(cx).map(Ok);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.session).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            if !self.session.is_live() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.heard = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Session> AsyncWrite for SessionStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut at = 0;
        while at < bytes.len() {
            if !matches!(self.state, State::Open) {
                return Poll::Ready(Ok(bytes.len()));
            }
            match self.poll_frame(&bytes[at..], cx) {
                Poll::Ready(Ok(taken)) => at += taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if !self.session.is_attached() && self.skip_to_close(&bytes[at..], cx) => {}
                Poll::Pending if at > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
            if let Frame::Close(0, _) = self.frame {
                self.finish_frame(cx);
            }
        }
        Poll::Ready(Ok(at))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.session).poll_flush(cx)
    }

    /// What ends without a Close frame was cut off.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.part(BAD_GATEWAY, "", cx);
        self.farewell(cx).map(Ok)
    }
}

impl<S: Session> Peer for SessionStream<S> {
    fn presence(&mut self, _: &mut Context<'_>) -> Presence {
        if self.session.is_live() || !matches!(self.state, State::Open) {
            Presence::There
        } else {
            Presence::Gone
        }
    }

    fn end(&mut self, end: End, cx: &mut Context<'_>) {
        self.part(end.code, "", cx);
        self.leave();
    }

    fn closed(&self) -> Option<u32> {
        self.session.closed()
    }

    /// The session's end says it, and waits for nobody who does not read.
    fn reset_on_close(&mut self) {}
}

impl<S: Session> Drop for SessionStream<S> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
