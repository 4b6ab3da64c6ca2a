//! The task around a session: socket in, actions out, one poll function.
//!
//! Reading goes through a parser, fed from a buffer that all connections of a thread share:
//! tungstenite's for a WebSocket, one that cuts lines for a stream of WebTransport. Writing goes past
//! it: finished frames from the outbox, many per system call; what tungstenite itself says (pongs, the
//! answer to a close) is put into the same outbox. What is larger than the outbox goes beside it (`output`), and what
//! the client missed comes in pieces (`missed`): both at the pace at which it reads.
//!
//! While the session is busy with a command nothing is read: the client feels the backpressure.
//! A close of ours waits up to [`CLOSE_WAIT`] for the client's, reading and forgetting meanwhile,
//! so that the kernel does not throw our last frames away with a reset. A stream has no close of its
//! own: its last message says why, then it ends, and its session with it.

mod assembly;
mod calls;
mod core;
mod io;
mod missed;
mod output;
mod read;
mod stats;
mod stream;
mod websocket;

use self::core::Core;
use crate::limits::Waiting;
use crate::protocol::Format;
use crate::session::Now;
use crate::shared::Shared;
use bytes::Bytes;
use futures_util::FutureExt;
use io::Io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use weir_core::accept::{Permit, Session, Stream, Transport};
use weir_wire::close::Close;
use weir_wire::id::ConnId;

/// How long a close waits for the client's answer.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How long a stream that has ended waits for its client to leave by itself.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);
/// "No deadline", for a timer that has to have one.
const FAR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Rounds of work before other tasks get their turn.
const ROUNDS: usize = 64;

/// What a handshake came to.
pub struct Accepted {
    pub conn: ConnId,
    pub address: IpAddr,
    pub transport: Transport,
    pub format: Format,
    pub control_pings: bool,
    /// Wants publications as datagrams where they may be.
    pub datagrams: bool,
    /// The connect request of a listening client, if it came with the URL.
    pub connect: Option<String>,
    /// Its place among those that have not said `connect`.
    pub waiting: Option<Waiting>,
    /// Limits are held as long as the connection lives.
    pub permits: Vec<Permit>,
}

pub enum Socket {
    /// With what was read behind the handshake.
    Tcp(TcpStream, Bytes),
    /// With the session that it lies in, if it is one of WebTransport.
    Other(Box<dyn Stream>, Option<Arc<dyn Session>>),
}

pub struct Conn {
    io: Io,
    core: Core,
}

impl Conn {
    /// Boxed: an async function keeps room for its arguments twice.
    pub fn new(shared: Arc<Shared>, socket: Socket, accepted: Accepted) -> Box<Conn> {
        let (io, spill, webtransport) = match socket {
            Socket::Tcp(tcp, read) => (Io::Tcp(tcp), read, None),
            Socket::Other(stream, session) => (Io::Other(stream), Bytes::new(), session),
        };
        Box::new(Conn { io, core: Core::new(shared, spill, webtransport, accepted) })
    }

    /// Serves the connection to its end. A panic ends this one only, with 1011.
    pub async fn run(mut self: Box<Self>) {
        let _entry = self.core.shared.enter(&self.core.client, self.core.stats.transport());
        if AssertUnwindSafe(self.drive()).catch_unwind().await.is_err() {
            self.core.shared.metrics.panics.inc();
            self.core.call = None;
            self.core.start_closing(Close::INTERNAL, false);
            let _ = AssertUnwindSafe(self.drive()).catch_unwind().await;
        }
        self.core.leave_hub();
        if let Some(leaving) = self.core.call.take() {
            leaving.await;
        }
        self.core.end_session();
        let _ = tokio::time::timeout(CLOSE_WAIT, std::future::poll_fn(|cx| self.io.poll_shutdown(cx))).await;
        self.core.stats.log(self.core.client.user().map(|user| &**user));
    }

    async fn drive(&mut self) {
        let mut sleep = pin!(tokio::time::sleep(FAR));
        std::future::poll_fn(|cx| self.poll(cx, sleep.as_mut())).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>, sleep: Pin<&mut Sleep>) -> Poll<()> {
        self.core.client.outbox.register(cx.waker());
        self.core.poll_waiting(cx);
        for _ in 0..ROUNDS {
            self.core.work();
            let called = self.core.poll_call(cx) | self.core.poll_missed(cx);
            let heard = self.poll_input(cx);
            let waits = self.core.waits_for_room();
            let room = self.poll_output(cx) && waits;
            self.poll_end(cx);
            if self.core.is_done() {
                return Poll::Ready(());
            }
            if !called && !heard && !room {
                return self.core.poll_timers(cx, sleep);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// True: there may be more.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> bool {
        let core = &mut self.core;
        if core.feed_spill() {
            return true;
        }
        if !core.listens() {
            return false;
        }
        match self.io.poll_read_with(cx, |input| core.on_input(input)) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                self.core.lost(&error);
                false
            }
        }
    }

    /// True: something went out.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> bool {
        let core = &mut self.core;
        let mut wrote = false;
        while core.has_output() {
            match self.io.poll_write_queue(cx, &core.output.writing) {
                Poll::Pending => {
                    core.output.blocked_since.get_or_insert_with(|| now().at);
                    break;
                }
                Poll::Ready(Ok(0)) => core.lost(&std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    core.wrote(written);
                    wrote = true;
                }
                Poll::Ready(Err(error)) => core.lost(&error),
            }
        }
        wrote
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) {
        if !self.core.wants_to_end() {
            return;
        }
        match self.io.poll_shutdown(cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.core.ended(),
            Poll::Ready(Err(error)) => self.core.lost(&error),
        }
    }
}

pub fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // tokio's clock, so that tests can stop it.
    Now { at: tokio::time::Instant::now().into_std(), unix: unix.as_secs() as i64 }
}
