//! A WebSocket to a server over the network: the handshake with the server, then the relay.
//!
//! The server's answer is believed only if it is a valid 101: status, `Upgrade`, `Connection`
//! and the `Sec-WebSocket-Accept` of this very key. Until then nothing that the client sent
//! after its request goes anywhere; after any other answer it dies with the connection.

pub mod answer;
pub mod relay;

use crate::access::{Access, End};
use crate::admit::{AddressPlace, Place};
use crate::forward;
use crate::front::upgrade::accept_for;
use crate::metrics::{Cause as CauseLabel, Metrics};
use crate::server::Closing;
use crate::upstream::health::{Attempt, blame};
use crate::upstream::{Exhausted, Plan};
use answer::{Answer, ReadError};
use bytes::Bytes;
use http::Response;
use http::header::SEC_WEBSOCKET_KEY;
use http::request::Parts;
use relay::{Cause, Relay};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Sleep, timeout};
use weir_core::drain::Busy;

/// A tunnel of which one side has closed ends when the other was silent for so long.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// How a server took a handshake.
pub enum Greeted {
    /// It switched: the headers of its answer, its socket, and what it sent right after.
    Accepted(http::HeaderMap, TcpStream, Bytes),
    /// It gave an ordinary answer, to be passed on.
    Refused(Response<Bytes>),
    /// There is no answer; what to tell the client, and why.
    Failed { status: u16, retry_after: Option<Duration>, cause: &'static str },
}

/// Deadlines of a handshake with a server.
#[derive(Clone, Copy)]
pub struct Deadlines {
    pub connect: Duration,
    pub handshake: Duration,
}

/// Asks the servers of the plan, one after the other, until one can be reached.
pub async fn greet(plan: &mut Plan, head: &Parts, deadlines: Deadlines, access: &mut Access) -> Greeted {
    loop {
        let mut attempt = match plan.next(Instant::now()) {
            Ok(attempt) => attempt,
            Err(exhausted) => return unavailable(exhausted),
        };
        access.server = Some(attempt.name());
        match attempt.connect(deadlines.connect).await {
            Ok(server) => return handshake(server, attempt, head, deadlines.handshake).await,
            Err(error) => match blame(&error) {
                Some(cause) => attempt.fail(Instant::now(), cause),
                None => {
                    attempt.give_up(Instant::now());
                    tracing::error!(%error, "cannot connect to any server: out of sockets or ports");
                    return Greeted::Failed {
                        status: 503,
                        retry_after: Some(Duration::from_secs(1)),
                        cause: "no_sockets",
                    };
                }
            },
        }
    }
}

fn unavailable(exhausted: Exhausted) -> Greeted {
    let cause = if exhausted.tried { "unreachable" } else { "breakers_open" };
    Greeted::Failed { status: 503, retry_after: Some(exhausted.retry_after), cause }
}

/// Sends the request and judges the answer. Not tried again elsewhere: the server may have acted.
async fn handshake(mut server: TcpStream, mut attempt: Attempt, head: &Parts, deadline: Duration) -> Greeted {
    let failed = |status, cause| Greeted::Failed { status, retry_after: None, cause };
    let _ = server.set_nodelay(true);
    let exchange = async {
        let mut request = Vec::with_capacity(1024);
        forward::write_request(head, &mut request);
        server.write_all(&request).await.map_err(|_| ReadError::Closed)?;
        answer::read(&mut server).await
    };
    let answer = match timeout(deadline, exchange).await {
        Err(_) => {
            attempt.fail(Instant::now(), "handshake_timeout");
            return failed(504, "handshake_timeout");
        }
        Ok(answer) => answer,
    };
    // It is there and it talks. That an app closes on, or answers oddly to, what one client
    // asks for must not take the server from everybody else.
    attempt.succeed();
    match answer {
        Err(ReadError::Closed) => failed(502, "server_closed"),
        Err(ReadError::Malformed) => failed(502, "malformed_answer"),
        Err(ReadError::TooLarge) => failed(502, "answer_too_large"),
        Ok(Answer::Switch { headers, rest }) => {
            let key = head.headers.get(SEC_WEBSOCKET_KEY).map(|key| accept_for(key.as_bytes()));
            match key.is_some_and(|accept| answer::is_valid_switch(&headers, &accept)) {
                true => Greeted::Accepted(headers, server, rest),
                false => failed(502, "false_switch"),
            }
        }
        Ok(Answer::Plain(response)) => Greeted::Refused(response),
    }
}

/// What an open tunnel holds besides its sockets.
pub struct Held {
    pub access: Access,
    pub metrics: Metrics,
    pub closing: Arc<Closing>,
    pub idle: Duration,
    /// Given back when the tunnel has ended.
    pub permit: (Place, Option<AddressPlace>, Busy),
}

/// Relays until it ends; to be spawned as a task of its own (it relies on its waker staying the
/// same), apart from the handshake's, whose memory is then free again.
pub async fn run<C>(relay: Relay<C, TcpStream>, held: Box<Held>)
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

async fn until_end<C>(relay: &mut Relay<C, TcpStream>, held: &Held) -> Cause
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
