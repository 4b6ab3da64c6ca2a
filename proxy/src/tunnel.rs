//! A WebSocket to a server over the network: the handshake with it (`tunnel/greet.rs`), then the two
//! directions (`tunnel/relay.rs`) and what is looked after while they are open: limits
//! (`tunnel/limits.rs`), silence and age (`tunnel/watch.rs`), and an end in order (`tunnel/leave.rs`).
//!
//! Frames (`tunnel/frames.rs`) are counted always, and nothing depends on them but what a route asks
//! for: bytes that make no sense as frames are relayed as they are, and from there on no frame of ours
//! is put into that direction. Where limits are set for a client, they are a protocol error (1002).
//!
//! A session of WebTransport to a node of another process is a tunnel, too: its client's bytes have no frames, and
//! those of the node are in frames ([`weir_wire::hop::WEBTRANSPORT`]), which the client's end takes off
//! (`client/session.rs`). So a Close frame, the node's or ours, is what ends the session.

pub mod answer;
mod cause;
pub mod flushed;
pub mod frames;
pub mod greet;
pub mod leave;
pub mod limits;
pub mod presence;
pub mod refusal;
pub mod register;
pub mod relay;
pub mod watch;

use crate::access::{Access, Close, TunnelEnd};
use crate::front::arrive::Permit;
use crate::metrics::TunnelEnd as EndLabel;
use crate::upstream::attempt::Permit as ServerPermit;
use bytes::Bytes;
use cause::Cause;
use frames::Sender;
use leave::Leaving;
use limits::{Guard, Verdict};
use presence::{End, Peer, Presence};
use register::{Seat, Told};
use relay::{Flow, Way, with_scratch};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use watch::{Look, Seen, Watch};
use weir_conf::proxy::Tunnel as Conf;
use weir_core::accept::Transport;

/// A tunnel that is told to end has this long: for frames under way to end, and for the peers' answers.
const LEAVE: Duration = Duration::from_secs(2);
/// Before that, a server has this long to answer what a client said before it broke a rule.
const ANSWERS: Duration = Duration::from_secs(1);

/// What an open tunnel holds besides its sockets. Kept small: there are thousands.
pub struct Held {
    pub access: Access,
    pub conf: Arc<Conf>,
    /// It ends with its token.
    pub until: Option<Instant>,
    /// Given back when the tunnel has ended.
    pub _permit: (Permit, Option<ServerPermit>),
}

/// To be spawned as a task of its own (it relies on its waker staying the same), apart from the
/// handshake's, whose memory is then free again.
pub struct Tunnel<C, S> {
    client: C,
    server: S,
    up: Way,
    down: Way,
    guard: Option<Box<Guard>>,
    /// There while something is to be watched or waited for.
    timer: Option<Box<Timer>>,
    leaving: Option<Box<Left>>,
    close: Option<Close>,
    begun: bool,
    seat: Seat,
    held: Held,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    watch: Watch,
    /// The next look.
    look: Instant,
}

/// A tunnel on its way out.
struct Left {
    leaving: Leaving,
    cause: Cause,
    /// Passed on up to here; what comes now is looked at only for the peers' answers.
    frames: (u64, u64),
    /// Since before: the server or the client took nothing of what waited for it.
    stuck: (bool, bool),
}

impl<C, S> Tunnel<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin + Peer,
    S: AsyncRead + AsyncWrite + Unpin + Peer,
{
    /// What was read ahead from each side is passed on first.
    pub fn new(client: (C, Bytes), server: (S, Bytes), seat: Seat, held: Held) -> Tunnel<C, S> {
        let (up, down) = match held.access.transport() {
            Transport::WebTransport => (Way::unframed(client.1), Way::framed(server.1)),
            _ => (Way::new(Sender::Client, client.1), Way::new(Sender::Server, server.1)),
        };
        Tunnel {
            guard: Guard::new(&held.conf, Instant::now()).map(Box::new),
            client: client.0,
            server: server.0,
            up,
            down,
            timer: None,
            leaving: None,
            close: None,
            begun: false,
            seat,
            held,
        }
    }

    /// Moves what can be moved. Says why it must end, or that it must not, and when to come again.
    fn relay(&mut self, cx: &mut Context<'_>) -> (Option<Cause>, Option<Instant>) {
        let before = (self.up.bytes(), self.down.bytes());
        let (mut up, mut down) = self.pump(cx);
        // The closing handshake is over: the server's side, which we are to the client, ends the connection (RFC
        // 6455 §7.1.1).
        if self.up.is_said() && self.down.is_said() {
            self.up.finish();
            self.down.finish();
            (up, down) = self.pump(cx);
        }
        let metrics = self.seat.metrics();
        if self.up.bytes() > before.0 {
            metrics.bytes_up.inc_by(self.up.bytes() - before.0);
        }
        if self.down.bytes() > before.1 {
            metrics.bytes_down.inc_by(self.down.bytes() - before.1);
        }
        if self.close.is_none() {
            let (client, server) = (self.up.scanner.close(), self.down.scanner.close());
            let by = |by, code: Option<u16>| code.map(|code| Close { by, code: code.into() });
            self.close = by("client", client).or(by("server", server));
        }
        let cause = match (up, down) {
            (Flow::InputBroken, _) | (_, Flow::OutputBroken) => Some(self.client_left()),
            (_, Flow::InputBroken | Flow::Stopped(_)) | (Flow::OutputBroken, _) => Some(Cause::ServerError),
            (Flow::Stopped(Verdict::TooLarge), _) => Some(Cause::FrameSize),
            (Flow::Stopped(Verdict::Nonsense), _) => Some(Cause::Protocol),
            (Flow::Stopped(_), _) => Some(Cause::Rate),
            (Flow::Done, Flow::Done) => Some(Cause::Closed),
            _ => None,
        };
        let resume = if let Flow::Paused(when) = up { Some(when) } else { None };
        (cause, resume)
    }

    #[inline]
    fn pump(&mut self, cx: &mut Context<'_>) -> (Flow, Flow) {
        with_scratch(|scratch| {
            let guard = self.guard.as_deref_mut();
            let up = self.up.pump((&mut self.client, &mut self.server), guard, scratch, cx);
            (up, self.down.pump((&mut self.server, &mut self.client), None, scratch, cx))
        })
    }

    /// Its connection is of no use any more: lost, or ended by itself.
    #[cold]
    fn client_left(&mut self) -> Cause {
        let Some(code) = self.client.closed() else { return Cause::ClientError };
        self.close.get_or_insert(Close { by: "client", code });
        Cause::Closed
    }

    /// The clock's part. Ready: it must end.
    fn watch(&mut self, resume: Option<Instant>, cx: &mut Context<'_>) -> Poll<Cause> {
        let conf = &*self.held.conf;
        let stuck = self.up.is_stuck() || self.down.is_stuck();
        if self.timer.is_none() {
            let wanted = stuck || resume.is_some() || self.is_half_closed() || Watch::is_wanted(conf);
            let wanted = wanted || self.held.until.is_some();
            if !wanted {
                return Poll::Pending;
            }
            let now = Instant::now();
            let watch = Watch::new(conf, now, rand::random(), self.seen(), now).until(self.held.until);
            self.timer =
                Some(Box::new(Timer { sleep: Box::pin(tokio::time::sleep_until(now)), watch, look: now }));
        }
        let mut seen = self.seen();
        // Held up by the server or by our own rates: no fault of the client's.
        if self.up.is_stuck() || resume.is_some() {
            seen.message = None;
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        loop {
            let until = resume.map_or(timer.look, |when| when.min(timer.look));
            if timer.sleep.deadline() != until {
                timer.sleep.as_mut().reset(until);
            }
            if timer.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now < timer.look {
                // Only the pause is over: what it held back can move.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // While it is read, its end is found by reading.
            if (self.up.is_stuck() || resume.is_some()) && self.down.is_open() {
                match self.client.presence(cx) {
                    Presence::There => {}
                    Presence::Ended => seen.client_left = true,
                    Presence::Gone => return Poll::Ready(self.client_left()),
                }
            }
            seen.server_left = self.down.is_stuck() && self.server.presence(cx) == Presence::Gone;
            match timer.watch.look(conf, seen, now) {
                Look::End(why) => return Poll::Ready(why.into()),
                Look::Again(at) => timer.look = at,
                Look::Ping(at) => {
                    timer.look = at;
                    let payload: [u8; 8] = rand::random();
                    if !self.down.is_stuck() && self.down.inject(&frames::ping(payload)) {
                        timer.watch.pinged(seen.heard, now);
                        if let Some(guard) = &mut self.guard {
                            guard.expect(payload);
                        }
                        // It is written by the pump.
                        cx.waker().wake_by_ref();
                    }
                }
                Look::Rest if resume.is_some() => timer.look = now + watch::STUCK_LOOK,
                Look::Rest => {
                    self.timer = None;
                    return Poll::Pending;
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        let swallowed = self.guard.as_ref().map_or(0, |guard| guard.swallowed);
        Seen {
            moved: self.up.bytes() + self.down.bytes(),
            heard: self.up.bytes() + swallowed,
            message: self.up.scanner.message(),
            server_takes: self.up.is_stuck().then(|| self.up.written()),
            client_takes: self.down.is_stuck().then(|| self.down.written()),
            half_closed: self.is_half_closed(),
            ..Seen::default()
        }
    }

    /// Passed on towards the server and towards the client.
    fn frames(&self) -> (u64, u64) {
        let seen = (self.up.scanner.frames(), self.down.scanner.frames());
        self.leaving.as_ref().map_or(seen, |left| left.frames)
    }

    /// One side has closed, the other has not.
    fn is_half_closed(&self) -> bool {
        !(self.up.is_open() && self.down.is_open())
    }

    /// From here on nothing is relayed but the rest of frames under way.
    fn leave(&mut self, cause: Cause) {
        let frames = self.frames();
        let stuck = (self.up.is_stuck(), self.down.is_stuck());
        let leaving = Leaving::new(&mut self.up, &mut self.down, cause.manner());
        self.leaving = Some(Box::new(Left { leaving, cause, frames, stuck }));
        let until = Instant::now() + if cause.manner().hear_out { ANSWERS } else { LEAVE };
        match &mut self.timer {
            Some(timer) => timer.sleep.as_mut().reset(until),
            None => {
                let watch = Watch::new(&self.held.conf, until, 0.0, self.seen(), until);
                let sleep = Box::pin(tokio::time::sleep_until(until));
                self.timer = Some(Box::new(Timer { sleep, watch, look: until }));
            }
        }
    }

    /// Ready when its leave is taken, or its time for that is over.
    fn poll_leave(&mut self, at_once: bool, cx: &mut Context<'_>) -> Poll<Cause> {
        let Some(left) = &mut self.leaving else { return Poll::Pending };
        let Left { leaving, cause, .. } = &mut **left;
        let done = with_scratch(|scratch| {
            let ways = (&mut self.up, &mut self.down);
            leaving.poll(ways, (&mut self.client, &mut self.server), scratch, cx).is_ready()
        });
        if self.close.is_none() && leaving.told_client() {
            self.close = Some(Close { by: "proxy", code: cause.manner().codes.client.into() });
        }
        let over = self.timer.as_mut().is_none_or(|timer| timer.sleep.as_mut().poll(cx).is_ready());
        if over && !done && !at_once && leaving.hurry(&mut self.down) {
            if let Some(timer) = &mut self.timer {
                timer.sleep.as_mut().reset(Instant::now() + LEAVE);
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if done || over || at_once { Poll::Ready(*cause) } else { Poll::Pending }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        if !self.begun {
            self.begun = true;
            self.seat.listen(cx.waker());
        }
        let told = self.seat.told();
        if self.leaving.is_none() {
            let cause = if told != Told::Nothing { Poll::Ready(Cause::Drained) } else { self.poll_open(cx) };
            match cause {
                Poll::Pending => return Poll::Pending,
                // There is nobody left to take leave of, or no way to.
                Poll::Ready(Cause::Closed | Cause::ClientError | Cause::ServerError) => return cause,
                Poll::Ready(cause) => self.leave(cause),
            }
        }
        self.poll_leave(told == Told::GoNow, cx)
    }

    #[inline]
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        let (cause, resume) = self.relay(cx);
        match cause {
            Some(cause) => Poll::Ready(cause),
            None => self.watch(resume, cx),
        }
    }
}

impl<C, S> Future for Tunnel<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin + Peer,
    S: AsyncRead + AsyncWrite + Unpin + Peer,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let cause = std::task::ready!(this.poll_end(cx));
        if let Some(left) = this.leaving.as_ref().filter(|left| left.cause.is_silence()) {
            // Whoever took nothing gets to know now, and the kernel does not keep the bytes for minutes.
            (left.stuck.0 && this.up.is_stuck()).then(|| this.server.reset_on_close());
            (left.stuck.1 && this.down.is_stuck()).then(|| this.client.reset_on_close());
        }
        let end = End { whole: !this.down.is_stuck(), code: cause.manner().codes.client };
        this.client.end(end, cx);
        let metrics = this.seat.metrics();
        let transport = this.held.access.transport().as_str();
        metrics.tunnel_ends.get_or_create(&EndLabel { cause: cause.as_str(), transport }).inc();
        this.held.access.log_tunnel(&TunnelEnd {
            bytes: (this.up.bytes(), this.down.bytes()),
            frames: this.frames(),
            close: this.close,
            cause: cause.as_str(),
        });
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    /// There are thousands of them; the figure in the docs hangs on this.
    #[test]
    fn an_idle_tunnel_is_small() {
        let size = size_of::<Tunnel<TcpStream, TcpStream>>();
        assert!(size <= 768, "{size} bytes");
        let idle = Way::new(Sender::Server, bytes::BytesMut::with_capacity(4096).freeze());
        assert_eq!(idle.held(), 0, "it holds the buffer that was read ahead into");
    }
}
