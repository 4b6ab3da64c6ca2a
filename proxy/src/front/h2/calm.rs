//! What a client may send that carries nothing: the h2 crate has no bound for PING, SETTINGS, PRIORITY,
//! WINDOW_UPDATE and frames that it does not know, nor for streams that are reset once they were taken.
//!
//! Each such frame takes one from the connection's credit, which grows with time and with what is sent to the
//! client: whoever reads a lot has windows to give. With no credit left nothing more is read, and the
//! connection is to be ended. Frames are seen on their way from TLS to the crate, by their heads alone.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// At most, and to begin with: a browser that cancels a page of pictures is far below.
const CREDIT: u64 = 1000;
const PER_SECOND: u64 = 100;
/// For each frame sent, and for each KiB: eager clients give back a window of 4 KiB, the stream's and the
/// connection's.
const PER_FRAME: u64 = 2;
/// What a connection may have earned by that: windows of 128 MiB that are on their way back.
const EARNED: u64 = 64 << 10;
const PREFACE: usize = 24;
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Of one connection, for those around it.
#[derive(Debug, Default)]
pub struct Calm {
    earned: AtomicU64,
    /// A frame has begun, and its rest has not come.
    within: AtomicBool,
    over: Notify,
}

impl Calm {
    /// A frame with so many bytes went to the client.
    pub fn sent(&self, bytes: usize) {
        self.earned.fetch_add(PER_FRAME + (bytes as u64 >> 10), Relaxed);
    }

    /// Returns when the credit is used up.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    pub fn is_within_a_frame(&self) -> bool {
        self.within.load(Relaxed)
    }
}

/// A connection's bytes, looked at as they are read.
pub struct Watched<T> {
    io: T,
    frames: Frames,
    credit: u64,
    /// When credit was last given for time.
    since: Instant,
    is_over: bool,
    calm: Arc<Calm>,
}

impl<T> Watched<T> {
    pub fn new(io: T, calm: Arc<Calm>) -> Watched<T> {
        let frames = Frames { left: PREFACE, head: [0; HEAD], have: 0 };
        Watched { io, frames, credit: CREDIT, since: Instant::now(), is_over: false, calm }
    }

    /// Whether there is credit for what was read.
    fn allows(&mut self, bytes: &[u8]) -> bool {
        let idle = self.frames.idle(bytes);
        self.calm.within.store(self.frames.is_within(), Relaxed);
        if idle > self.credit {
            let ticks = self.since.elapsed().as_millis() as u64 * PER_SECOND / 1000;
            // What is left of a tick counts the next time.
            self.since += std::time::Duration::from_millis(ticks * 1000 / PER_SECOND);
            let earned = self.calm.earned.swap(0, Relaxed).min(EARNED);
            self.credit = self.credit.saturating_add(ticks).min(CREDIT) + earned;
        }
        match self.credit.checked_sub(idle) {
            Some(rest) => self.credit = rest,
            None => self.is_over = true,
        }
        !self.is_over
    }
}

/// Where one frame ends and the next one begins.
struct Frames {
    /// Of a payload, or of the preface.
    left: usize,
    head: [u8; HEAD],
    have: usize,
}

impl Frames {
    /// How many of the frames that begin here carry nothing.
    fn idle(&mut self, mut bytes: &[u8]) -> u64 {
        let mut idle = 0;
        while !bytes.is_empty() {
            let n =
                if self.left > 0 { self.left.min(bytes.len()) } else { (HEAD - self.have).min(bytes.len()) };
            let (these, rest) = bytes.split_at(n);
            bytes = rest;
            if self.left > 0 {
                self.left -= n;
                continue;
            }
            self.head[self.have..self.have + n].copy_from_slice(these);
            self.have += n;
            if self.have == HEAD {
                let [a, b, c, kind, flags, ..] = self.head;
                (self.have, self.left) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
                let carries = kind == HEADERS || kind == DATA && (self.left > 0 || flags & END_STREAM != 0);
                idle += u64::from(!carries);
            }
        }
        idle
    }

    fn is_within(&self) -> bool {
        self.left > 0 || self.have > 0
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Its end is not for the crate to see: who waits for `over` says GOAWAY.
        if this.is_over {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if this.allows(&buf.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        buf.set_filled(before);
        this.calm.over.notify_one();
        Poll::Pending
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let [_, a, b, c] = (payload as u32).to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, 1][..], &vec![0xff; payload]].concat()
    }

    fn watched() -> (Watched<()>, Arc<Calm>) {
        let calm = Arc::new(Calm::default());
        let mut watched = Watched::new((), calm.clone());
        assert!(watched.allows(&[0; PREFACE]) && !calm.is_within_a_frame());
        (watched, calm)
    }

    const PING: u8 = 6;

    #[test]
    fn frames_are_told_apart_in_pieces_of_any_size() {
        let carry = [frame(HEADERS, 0, 300), frame(DATA, 0, 1), frame(DATA, END_STREAM, 0)].concat();
        let idle: Vec<u8> = (2..12).flat_map(|kind| frame(kind, 0, usize::from(kind))).collect();
        let all = [carry, idle, frame(DATA, 0, 0)].concat();
        for piece in 1..all.len() {
            let mut frames = Frames { left: PREFACE, head: [0; HEAD], have: 0 };
            assert_eq!(frames.idle(&[0; PREFACE]), 0);
            assert_eq!(all.chunks(piece).map(|piece| frames.idle(piece)).sum::<u64>(), 11, "{piece}");
            assert!(!frames.is_within());
            frames.idle(&all[..5]);
            assert!(frames.is_within());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn credit_comes_with_time_and_with_what_is_sent() {
        let (mut watched, calm) = watched();
        let pings = |n: u64| frame(PING, 0, 8).repeat(n as usize);
        assert!(watched.allows(&pings(CREDIT)));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(watched.allows(&pings(3 * PER_SECOND)));
        for _ in 0..10 {
            calm.sent(4096);
        }
        assert!(watched.allows(&pings(60)));
        assert!(!watched.allows(&pings(1)));
        assert!(!watched.allows(&frame(DATA, 0, 1)), "over is over");
    }

    #[tokio::test(start_paused = true)]
    async fn credit_has_a_bound() {
        let (mut watched, calm) = watched();
        let pings = |n: u64| frame(PING, 0, 8).repeat(n as usize);
        assert!(watched.allows(&pings(CREDIT)));
        tokio::time::advance(Duration::from_secs(3600)).await;
        calm.sent(1 << 40);
        assert!(watched.allows(&pings(CREDIT + EARNED)));
        assert!(!watched.allows(&pings(1)));
    }
}
