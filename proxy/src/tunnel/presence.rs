//! Whether a peer is still there, told without reading from it: while the other side takes nothing, nothing
//! is read, and so neither its end nor a reset would be seen.
//!
//! An end that stands behind bytes which the kernel has no room for cannot be seen by anybody; then the other
//! side's `write_timeout` is what ends a tunnel.

use crate::upstream::stream::ServerStream;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

/// Between two probes of a peer that does not answer.
const PROBES: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    There,
    /// It sends nothing more, and may still read.
    Ended,
    /// The connection is reset.
    Gone,
}

/// How a peer's bytes end.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// In order: nothing is left out.
    pub whole: bool,
    /// For a session that was not told another one.
    pub code: u16,
}

pub trait Peer {
    /// `cx` is that of the task that reads and writes.
    fn presence(&mut self, cx: &mut Context<'_>) -> Presence;

    /// The bytes end here. What is dropped without it may look cut off; plain sockets never do.
    fn end(&mut self, _: End, _: &mut Context<'_>) {}

    /// What the peer has ended its session with, apart from the bytes.
    fn closed(&self) -> Option<u32> {
        None
    }

    /// Closing throws away what the kernel still has to send, and tells the peer so.
    fn reset_on_close(&mut self);
}

/// What the last event of the kernel said; it costs no system call.
fn told(ready: impl Future<Output = io::Result<Ready>>) -> Presence {
    match pin!(ready).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(ready)) if ready.is_write_closed() => Presence::Gone,
        Poll::Ready(Ok(ready)) if ready.is_read_closed() => Presence::Ended,
        Poll::Ready(Err(_)) => Presence::Gone,
        Poll::Ready(Ok(_)) | Poll::Pending => Presence::There,
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

pub fn of_tcp(tcp: &TcpStream) -> Presence {
    told(tcp.ready(BOTH))
}

fn of_unix(unix: &UnixStream) -> Presence {
    told(unix.ready(BOTH))
}

pub fn reset_tcp(tcp: &TcpStream) {
    // It fails where the connection is gone.
    let _ = tcp.set_zero_linger();
}

impl Peer for TcpStream {
    fn presence(&mut self, _: &mut Context<'_>) -> Presence {
        of_tcp(self)
    }

    fn reset_on_close(&mut self) {
        reset_tcp(self);
    }
}

impl Peer for UnixStream {
    fn presence(&mut self, _: &mut Context<'_>) -> Presence {
        of_unix(self)
    }

    /// What waits is in the peer's own buffer.
    fn reset_on_close(&mut self) {}
}

impl Peer for ServerStream {
    fn presence(&mut self, _: &mut Context<'_>) -> Presence {
        self.socket(of_tcp, of_unix)
    }

    fn reset_on_close(&mut self) {
        self.socket(reset_tcp, |_| ());
    }
}

/// Lets the kernel notice a peer that vanished without a word. Set on a listener, its connections have it
/// from their beginning.
pub fn watch_peer<'s>(
    socket: impl Into<socket2::SockRef<'s>>,
    conf: &weir_conf::proxy::Proxy,
) -> io::Result<()> {
    let socket = socket.into();
    if !conf.tcp_keepalive.is_zero() {
        let probes = socket2::TcpKeepalive::new().with_time(conf.tcp_keepalive).with_interval(PROBES);
        socket.set_tcp_keepalive(&probes)?;
    }
    #[cfg(target_os = "linux")]
    if !conf.tcp_user_timeout.is_zero() {
        // It also says how many probes without an answer are too many.
        socket.set_tcp_user_timeout(Some(conf.tcp_user_timeout))?;
    }
    Ok(())
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
        let until = |mut peer: TcpStream, expected| async move {
            while peer.presence(&mut Context::from_waker(Waker::noop())) != expected {
                tokio::task::yield_now().await;
            }
        };
        let (mut theirs, mut ours) = pair().await;
        theirs.write_all(b"unread").await.unwrap();
        ours.readable().await.unwrap();
        assert_eq!(ours.presence(&mut Context::from_waker(Waker::noop())), Presence::There);
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
