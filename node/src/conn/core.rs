//! All of a connection but its socket: the parser, the session, what waits in either direction,
//! and the phases of its end.

use super::calls::{self, Running, Started};
use super::missed::Missed;
use super::output::Output;
use super::read::Parser;
use super::stats::{End, Stats};
use super::stream::{LengthCutter, LineCutter};
use super::websocket::Frames;
use super::{Accepted, CLOSE_WAIT, FAREWELL_WAIT, now};
use crate::client::Client;
use crate::frame;
use crate::limits::Waiting;
use crate::protocol::{Answer, Format, json};
use crate::session::{Action, CallResult, Event, Kind, Now, Session, earlier};
use crate::shared::Shared;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::Sleep;
use weir_core::accept::Session as WebTransport;
use weir_wire::close::Close;

/// All but the socket: so that input can be looked at where it was read.
pub(super) struct Core {
    pub(super) parser: Parser,
    pub(super) session: Session,
    pub(super) client: Arc<Client>,
    pub(super) shared: Arc<Shared>,
    pub(super) output: Output,
    /// What the client missed and is being given.
    pub(super) missed: Option<Box<Missed>>,
    /// A message has begun then, and not ended.
    pub(super) amid_since: Option<Instant>,
    /// Read, but not parsed yet: the session was busy.
    pub(super) spill: Bytes,
    /// The parser may hold a whole message still.
    pub(super) unparsed: bool,
    /// The session that a stream lies in: what is closed with a code.
    webtransport: Option<Arc<dyn WebTransport>>,
    /// Our side of the stream has ended.
    ended: bool,
    pub(super) call: Option<Running>,
    /// The call goes on when the connection ends.
    lasting: bool,
    /// Until it has said `connect`.
    waiting: Option<Waiting>,
    pub(super) phase: Phase,
    pub(super) stats: Stats,
}

pub(super) enum Phase {
    Open,
    /// The close is said, or was heard first.
    Closing {
        until: Instant,
        /// Input still makes sense.
        parse: bool,
        /// Only our own output is left to wait for.
        heard: bool,
    },
    Done,
}

impl Core {
    pub(super) fn new(
        shared: Arc<Shared>,
        spill: Bytes,
        webtransport: Option<Arc<dyn WebTransport>>,
        mut accepted: Accepted,
    ) -> Core {
        let waiting = accepted.waiting.take();
        let limit = shared.conf.message_size;
        let format = accepted.format;
        let parser = match format {
            Format::Json | Format::JsonUni | Format::Protobuf => Parser::WebSocket(Frames::new(limit)),
            Format::JsonLines | Format::FramedLines => Parser::Lines(LineCutter::new(limit)),
            Format::ProtobufStream | Format::FramedProtobuf => Parser::Lengths(LengthCutter::new(limit)),
        };
        let kind = if format == Format::JsonUni { Kind::Uni } else { Kind::Bidi };
        let id: Arc<str> = new_client_id().into();
        let datagrams = webtransport.clone().filter(|_| accepted.datagrams);
        let meter = Arc::new(shared.rates.meter());
        let client = Client::new(id.clone(), format, shared.conf.outbox_size).with_datagrams(datagrams);
        let client = client.with_meter(meter.clone());
        let client = Arc::new(client);
        let (now, chance) = (now(), rand::random());
        let settings = shared.settings.clone();
        let mut session = Session::new(settings, kind, accepted.control_pings, id, meter, chance, now);
        if let Some(connect) = &accepted.connect {
            session.on_connect_request(now, json::connect_request(connect.as_bytes()));
        }
        Core {
            parser,
            session,
            client,
            waiting,
            stats: Stats::new(accepted, now.at, shared.metrics.clone()),
            shared,
            output: Output::default(),
            missed: None,
            amid_since: None,
            unparsed: !spill.is_empty(),
            spill,
            webtransport,
            ended: false,
            call: None,
            lasting: false,
            phase: Phase::Open,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        self.client.format.is_stream()
    }

    /// Everything that needs no waiting: mail, overflow, actions.
    pub(super) fn work(&mut self) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        while let Some(event) = self.client.take_mail() {
            self.session.on_event(event);
        }
        if self.client.outbox.overflown() {
            self.session.on_event(Event::Disconnect(Close::SLOW));
        }
        if self.session.has_work() {
            let now = now();
            while let Some(action) = self.session.poll_action(now) {
                self.act(action, now);
            }
        }
    }

    fn act(&mut self, action: Action, now: Now) {
        let hub = &self.shared.hub;
        match action {
            Action::Reply(reply) => {
                if let Answer::Error(error) = reply.answer {
                    self.shared.metrics.error(error.code);
                }
                self.say(frame::reply(&reply, self.client.format), now);
            }
            Action::Push(push) => {
                self.say(frame::push(&push, self.client.format), now);
            }
            Action::Ping => {
                let by_frame = self.session.pings_by_control_frame();
                let ping = if by_frame { frame::WS_PING } else { frame::ping(self.client.format) };
                self.client.outbox.add(ping);
            }
            Action::Call(call) => match calls::start(hub, &self.client, call) {
                Started::Done(result) => self.session.on_call_done(now, result),
                Started::Running(call) => (self.call, self.lasting) = (Some(call), false),
                Started::Lasting(call) => (self.call, self.lasting) = (Some(call), true),
            },
            Action::GoLive(live) => self.go_live(live),
            Action::Drop { channel } => {
                hub.drop_sub(&self.client, &channel);
            }
            Action::DropAll => {
                let memberships = hub.drop_all(&self.client);
                self.end_memberships(memberships);
            }
            Action::Connected => {
                self.waiting = None;
                self.stats.connected(&self.session);
            }
            Action::TokenRefused(reason) => self.stats.token_refused(&reason),
            Action::RateRefused(refused) => self.shared.metrics.rate_refused(refused, &self.client),
            Action::Close(close) => self.start_closing(close, true),
        }
    }

    /// Others need its place, and it has not said `connect`.
    pub(super) fn poll_waiting(&mut self, cx: &mut Context<'_>) {
        if self.waiting.as_mut().is_some_and(|waiting| waiting.as_mut().poll(cx).is_ready()) {
            self.waiting = None;
            self.session.close(Close::STALE);
        }
    }

    pub(super) fn poll_call(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(call) = &mut self.call else { return false };
        let Poll::Ready(result) = call.as_mut().poll(cx) else { return false };
        self.call = None;
        if matches!(self.phase, Phase::Open) {
            self.session.on_call_done(now(), result);
        }
        true
    }

    /// What the client asked for, or is told about itself: however large, no sign that it reads too slowly.
    fn say(&mut self, frame: Bytes, now: Now) {
        let len = frame.len();
        if len <= self.client.outbox.room() {
            self.client.outbox.add(frame);
            return;
        }
        if len > self.shared.settings.piece_size {
            let closed = self.shared.backlog.enter(&self.client, len, now.at);
            self.shared.metrics.backlog(closed);
        }
        self.output.add_beside([frame].into(), &self.client);
        self.hold_commands();
    }

    /// One large reply at a time: what is asked next waits until most of it is written.
    fn hold_commands(&mut self) {
        self.session.hold_commands(self.client.beside() > self.shared.settings.piece_size);
    }

    pub(super) fn has_output(&mut self) -> bool {
        self.output.has_any(&self.client)
    }

    pub(super) fn wrote(&mut self, written: usize) {
        let frames = self.output.wrote(written, &self.client);
        self.stats.wrote(frames, written);
        self.hold_commands();
    }

    pub(super) fn is_done(&mut self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Closing { heard, .. } => heard && !self.has_output(),
            Phase::Done => true,
        }
    }

    pub(super) fn poll_timers(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        let next = match self.phase {
            Phase::Open => {
                let blocked = self.output.blocked_since.map(|since| since + self.shared.conf.write_timeout);
                let amid = self.amid_since.map(|since| since + self.shared.conf.message_timeout);
                earlier(earlier(self.session.next_timeout(), blocked), amid)
            }
            Phase::Closing { until, .. } => Some(until),
            Phase::Done => return Poll::Ready(()),
        };
        let Some(next) = next else { return Poll::Pending };
        // A deadline that moved away costs one early wake, instead of a timer for each message.
        if sleep.deadline().into_std() > next || sleep.is_elapsed() {
            sleep.as_mut().reset(next.into());
        }
        if sleep.poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.on_timer();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn on_timer(&mut self) {
        let now = now();
        match self.phase {
            Phase::Open => {
                let timeout = self.shared.conf.write_timeout;
                if self.output.blocked_since.is_some_and(|since| since + timeout <= now.at) {
                    self.session.close(Close::SLOW);
                }
                self.judge_pace(now);
                self.session.on_timeout(now);
            }
            Phase::Closing { until, .. } if until <= now.at => self.phase = Phase::Done,
            Phase::Closing { .. } | Phase::Done => {}
        }
    }

    /// A message that does not end keeps its memory, and whoever puts it together, for nothing.
    fn judge_pace(&mut self, now: Now) {
        let timeout = self.shared.conf.message_timeout;
        if self.amid_since.is_none_or(|since| since + timeout > now.at) {
            return;
        }
        // While a command is under way nothing is read: the rest may well be there.
        match self.listens() {
            true => self.session.close(Close::ENDLESS),
            false => self.amid_since = Some(now.at),
        }
    }

    /// Says the close, and takes nothing more for this client.
    pub(super) fn start_closing(&mut self, close: Close, parse: bool) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        if close == Close::SLOW {
            self.output.forget(&self.client);
        }
        self.client.outbox.shut(frame::last(&close, self.client.format, false));
        self.stats.end(End::Closed(close));
        self.phase = Phase::Closing { until: now().at + CLOSE_WAIT, parse, heard: false };
        self.leave_hub();
    }

    /// All is said on a stream, but not its end yet.
    pub(super) fn wants_to_end(&mut self) -> bool {
        let closing = matches!(self.phase, Phase::Closing { heard: false, .. });
        closing && self.is_stream() && !self.ended && !self.has_output()
    }

    /// The stream's end is said: time for the client to read what is before it, and to leave. What its session ends
    /// with could overtake that.
    pub(super) fn ended(&mut self) {
        self.ended = true;
        if let Phase::Closing { until, .. } = &mut self.phase {
            *until = (*until).min(now().at + FAREWELL_WAIT);
        }
    }

    /// The session ends with the stream.
    pub(super) fn end_session(&mut self) {
        if let (Some(webtransport), Some(close)) = (self.webtransport.take(), self.stats.last_words()) {
            webtransport.close(u32::from(close.code), &close.reason);
        }
    }

    /// The client said close first; its answer stands in the outbox.
    pub(super) fn closed_by_peer(&mut self, code: Option<u16>) {
        if matches!(self.phase, Phase::Open) {
            self.stats.end(End::ByPeer(code));
            self.client.outbox.shut(frame::last(&Close::NORMAL, self.client.format, true));
            self.phase = Phase::Closing { until: now().at + CLOSE_WAIT, parse: false, heard: true };
            self.leave_hub();
        }
    }

    /// The socket is gone.
    pub(super) fn lost(&mut self, error: &std::io::Error) {
        self.stats.end(End::Lost(error.to_string()));
        self.output.clear(&self.client);
        self.phase = Phase::Done;
    }

    pub(super) fn leave_hub(&mut self) {
        if !self.lasting {
            self.call = None;
        }
        self.missed = None;
        let memberships = self.shared.hub.disconnect(&self.client);
        self.end_memberships(memberships);
    }

    /// Behind whatever call is under way.
    fn end_memberships(&mut self, channels: Vec<Arc<str>>) {
        let Some(janitor) = self.shared.hub.janitor().cloned().filter(|_| !channels.is_empty()) else {
            return;
        };
        let (client, before) = (self.client.id.clone(), self.call.take());
        self.lasting = true;
        self.call = Some(Box::pin(async move {
            if let Some(before) = before {
                before.await;
            }
            for channel in channels {
                janitor.leave(channel, client.clone()).await;
            }
            CallResult::Left
        }));
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_client_id() -> String {
    let random: u128 = rand::random();
    let hex = format!("{:032x}", random & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_uuids() {
        let id = new_client_id();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!("89ab".contains(&id[19..20]), "{id}");
        assert_ne!(id, new_client_id());
    }
}
