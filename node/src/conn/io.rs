//! The socket under a connection, and the stand-in for it that tungstenite sees.

use crate::outbox::Outbox;
use bytes::{Buf, Bytes};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weir_core::accept::Stream;

/// Frames handed to the kernel at once.
const SLICES: usize = 64;
const SCRATCH: usize = 16 << 10;

thread_local! {
    /// Input is read in here and parsed at once: an idle connection holds no buffer for it.
    static INPUT: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

pub enum Io {
    Tcp(TcpStream),
    Other(Box<dyn Stream>),
}

impl Io {
    /// Reads once; `f` sees what was read (nothing: the end).
    pub fn poll_read_with<R>(
        &mut self,
        cx: &mut Context<'_>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Poll<io::Result<R>> {
        INPUT.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            let read = match self {
                Io::Tcp(tcp) => Pin::new(tcp).poll_read(cx, &mut buf),
                Io::Other(other) => Pin::new(other).poll_read(cx, &mut buf),
            };
            read.map_ok(|()| f(buf.filled()))
        })
    }

    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Other(other) => Pin::new(other).poll_shutdown(cx),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Io::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Io::Other(other) => Pin::new(other).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Io::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Io::Other(other) => Pin::new(other).poll_write_vectored(cx, slices),
        }
    }

    /// One write of what stands first in `queue`.
    pub fn poll_write_queue(
        &mut self,
        cx: &mut Context<'_>,
        queue: &VecDeque<Bytes>,
    ) -> Poll<io::Result<usize>> {
        if queue.len() == 1 {
            return self.poll_write(cx, &queue[0]);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slice, frame) in slices.iter_mut().zip(queue) {
            *slice = IoSlice::new(frame);
            used += 1;
        }
        self.poll_write_vectored(cx, &slices[..used])
    }
}

/// Takes `written` bytes off the front; gives the number of frames that are through, and whether
/// the one now in front was begun. At least one byte was written.
pub fn advance(queue: &mut VecDeque<Bytes>, mut written: usize) -> (u64, bool) {
    let mut frames = 0;
    while let Some(front) = queue.front_mut() {
        if written < front.len() {
            front.advance(written);
            return (frames, written > 0);
        }
        written -= front.len();
        queue.pop_front();
        frames += 1;
    }
    (frames, false)
}

/// What tungstenite reads from and writes to: input that is here already, and the outbox, where
/// its pongs and closes stand between our frames, whole.
pub struct Feed<'a> {
    pub input: &'a [u8],
    /// `None`: nothing more may be written.
    pub outbox: Option<&'a Outbox>,
}

impl Read for Feed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buf)
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        if let Some(outbox) = self.outbox {
            outbox.add(Bytes::copy_from_slice(frame));
        }
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_stops_inside_a_frame() {
        let mut queue: VecDeque<Bytes> = ["abc", "de", "f"].map(Bytes::from).into();
        assert_eq!(advance(&mut queue, 4), (1, true));
        assert_eq!(queue, ["e", "f"].map(Bytes::from));
        assert_eq!(advance(&mut queue, 1), (1, false));
        assert_eq!(advance(&mut queue, 1), (1, false));
        assert!(queue.is_empty());
    }
}
