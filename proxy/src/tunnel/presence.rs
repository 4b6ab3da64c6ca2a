//! Whether a peer is still there, told without reading from it: while the other side takes nothing, nothing
//! is read, and so neither its end nor a reset would be seen.
//!
//! An end that stands behind bytes which the kernel has no room for cannot be seen by anybody; then the other
//! side's `write_timeout` is what ends a tunnel.

use crate::upstream::stream::ServerStream;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    There,
    /// It sends nothing more, and may still read.
    Ended,
    /// The connection is reset.
    Gone,
}

pub trait Peer {
    fn presence(&self) -> Presence;
}

/// What the last event of the kernel said; it costs no system call.
fn told(ready: impl Future<Output = std::io::Result<Ready>>) -> Presence {
    match pin!(ready).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(ready)) if ready.is_write_closed() => Presence::Gone,
        Poll::Ready(Ok(ready)) if ready.is_read_closed() => Presence::Ended,
        Poll::Ready(Err(_)) => Presence::Gone,
        Poll::Ready(Ok(_)) | Poll::Pending => Presence::There,
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl Peer for TcpStream {
    fn presence(&self) -> Presence {
        told(self.ready(BOTH))
    }
}

impl Peer for UnixStream {
    fn presence(&self) -> Presence {
        told(self.ready(BOTH))
    }
}

impl Peer for ServerStream {
    fn presence(&self) -> Presence {
        self.socket(|tcp| tcp.presence(), |unix| unix.presence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn an_end_and_a_reset_are_seen_behind_unread_bytes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let pair = || async { (TcpStream::connect(addr).await.unwrap(), listener.accept().await.unwrap().0) };
        let until = |peer: TcpStream, expected| async move {
            while peer.presence() != expected {
                tokio::task::yield_now().await;
            }
        };
        let (mut theirs, ours) = pair().await;
        theirs.write_all(b"unread").await.unwrap();
        ours.readable().await.unwrap();
        assert_eq!(ours.presence(), Presence::There);
        theirs.shutdown().await.unwrap();
        until(ours, Presence::Ended).await;
        let (mut theirs, mut ours) = pair().await;
        theirs.write_all(b"unread").await.unwrap();
        // Who closes without having read resets.
        ours.write_all(b"unread").await.unwrap();
        theirs.readable().await.unwrap();
        drop(theirs);
        until(ours, Presence::Gone).await;
    }
}
