//! A WebSocket to a server over the network: the handshake with it (`tunnel/greet.rs`), then the relay.

pub mod answer;
pub mod greet;
pub mod relay;

use crate::access::{Access, End};
use crate::front::arrive::Permit;
use crate::metrics::{Cause as CauseLabel, Metrics};
use crate::server::Closing;
use crate::upstream::ServerStream;
use relay::{Cause, Relay};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// A tunnel of which one side has closed ends when the other was silent for so long.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// What an open tunnel holds besides its sockets.
pub struct Held {
    pub access: Access,
    pub metrics: Metrics,
    pub closing: Arc<Closing>,
    pub idle: Duration,
    /// Given back when the tunnel has ended.
    pub permit: Permit,
}

/// Relays until it ends; to be spawned as a task of its own (it relies on its waker staying the
/// same), apart from the handshake's, whose memory is then free again.
pub async fn run<C>(relay: Relay<C, ServerStream>, held: Box<Held>)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    held.metrics.tunnels.inc();
    let mut relay = relay;
    let cause = until_end(&mut relay, &held).await;
    let bytes = relay.bytes();
    drop(relay);
    held.metrics.tunnels.dec();
    held.metrics.tunnel_ends.get_or_create(&CauseLabel { cause: cause.as_str() }).inc();
    drop(held.permit);
    held.access.log("tunnel", End { status: 101, bytes: Some(bytes), cause: cause.as_str() });
}

async fn until_end<C>(relay: &mut Relay<C, ServerStream>, held: &Held) -> Cause
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut closing = std::pin::pin!(held.closing.notified());
    let mut listening = false;
    let mut watch = Watch::new(held.idle);
    std::future::poll_fn(|cx| {
        if !listening {
            // Polled once: the task's waker stays registered, and each later poll looks at the
            // flag alone, which costs a message next to nothing.
            listening = closing.as_mut().poll(cx).is_pending();
        }
        if held.closing.has_begun() {
            return Poll::Ready(Cause::Drained);
        }
        match relay.poll(cx, &held.metrics) {
            Poll::Ready(cause) => Poll::Ready(cause),
            Poll::Pending => watch.poll(cx, relay.bytes(), relay.is_half_closed()),
        }
    })
    .await
}

/// Notices silence without touching a clock on every message: it looks a few times per period
/// whether the counts have moved.
struct Watch {
    idle: Duration,
    /// There only if something is to be watched.
    timer: Option<Pin<Box<Sleep>>>,
    seen: u64,
    silent: u32,
    half_closed: bool,
}

/// Looks per period: silence is noticed within a quarter of the period past its end.
const LOOKS: u32 = 4;

impl Watch {
    fn new(idle: Duration) -> Watch {
        let timer = (!idle.is_zero()).then(|| Box::pin(tokio::time::sleep(idle / LOOKS)));
        Watch { idle, timer, seen: 0, silent: 0, half_closed: false }
    }

    fn poll(&mut self, cx: &mut std::task::Context<'_>, bytes: (u64, u64), half_closed: bool) -> Poll<Cause> {
        if half_closed && !self.half_closed {
            (self.half_closed, self.silent) = (true, 0);
            self.timer = Some(Box::pin(tokio::time::sleep(self.period() / LOOKS)));
        }
        let look = self.period() / LOOKS;
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        while timer.as_mut().poll(cx).is_ready() {
            let moved = std::mem::replace(&mut self.seen, bytes.0 + bytes.1) != self.seen;
            self.silent = if moved { 0 } else { self.silent + 1 };
            if self.silent >= LOOKS {
                return Poll::Ready(if self.half_closed { Cause::HalfClosed } else { Cause::Idle });
            }
            timer.as_mut().reset(tokio::time::Instant::now() + look);
        }
        Poll::Pending
    }

    fn period(&self) -> Duration {
        match (self.half_closed, self.idle.is_zero()) {
            (true, true) => HALF_CLOSED,
            (true, false) => HALF_CLOSED.min(self.idle),
            (false, _) => self.idle,
        }
    }
}

/// Lets the kernel notice a peer that vanished without a word.
pub fn watch_peer(socket: &TcpStream) -> io::Result<()> {
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket2::SockRef::from(socket).set_tcp_keepalive(&probes)
}
