//! One client connection without its socket: frames, events and `now` go in, actions come out.
//!
//! Commands of a connection are handled in order, and at most one [`Call`] is outstanding: what
//! follows it in the frame waits, and so does the next frame ([`Session::is_busy`]). No I/O, no
//! clock, no channel and no codec in here; the task around it (`conn`) has those.

mod call;
mod command;
mod connect;
mod event;
mod state;
mod subs;
mod subscribe;
mod timers;

pub use call::{
    Action, Call, CallResult, Event, Live, ServerSubscribe, Since, SubscribeCall, Subscribed, Ticket, Who,
};
pub use command::history_query;
use state::State;
use subs::Subs;
pub use subs::earlier;
use timers::Timers;

use crate::auth::Auth;
use crate::namespaces::Namespaces;
use crate::protocol::{Answer, Commands, Connect, Malformed, Push, Reply};
use crate::rates::{Kind as Rate, Meter};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_wire::close::Close;
use weir_wire::code::ErrorCode;

/// What all sessions of a node share.
pub struct Settings {
    pub namespaces: Namespaces,
    pub auth: Auth,
    /// Without a token a client is an empty user; otherwise it is refused.
    pub anonymous: bool,
    pub channels_per_client: usize,
    pub history_limit: u32,
    /// Bytes of publications: of what is recovered within one reply, and of one answer about history.
    pub piece_size: usize,
    pub reply_size: usize,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    pub stale_timeout: Duration,
    pub expired_grace: Duration,
}

/// A moment on both clocks: timers run on the monotonic one, tokens speak Unix time.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    /// Seconds.
    pub unix: i64,
}

/// How a client takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Commands and replies.
    Bidi,
    /// It only listens; errors become closes.
    Uni,
}

pub struct Session {
    settings: Arc<Settings>,
    kind: Kind,
    pings_by_control_frame: bool,
    /// In [0, 1): spreads the first ping.
    chance: f64,
    state: State,
    who: Who,
    subs: Subs,
    /// The rest of the frame that is being worked on.
    frame: Option<Commands>,
    meter: Arc<Meter>,
    /// Commands wait: the client has an answer to read first.
    held: bool,
    /// What came from elsewhere and waits for its turn.
    events: VecDeque<Event>,
    /// What the outstanding call's result is for.
    waiting: Option<Waiting>,
    actions: VecDeque<Action>,
    timers: Timers,
}

/// Who gets the answer of the outstanding call.
#[derive(Debug)]
enum Waiting {
    Register,
    /// A server-side subscription of the connect command.
    ConnectSub,
    Subscribe {
        id: u32,
        made: Box<subscribe::Made>,
    },
    Unsubscribe {
        id: u32,
    },
    Publish {
        id: u32,
    },
    Presence {
        id: u32,
    },
    PresenceStats {
        id: u32,
    },
    History {
        id: u32,
        epoch: String,
    },
    /// A subscription by the HTTP API.
    ServerSubscribe {
        made: Box<subscribe::Made>,
    },
    /// Nobody: the end of a membership that the server decided.
    Nobody,
}

impl Session {
    pub fn new(
        settings: Arc<Settings>,
        kind: Kind,
        pings_by_control_frame: bool,
        client: Arc<str>,
        meter: Arc<Meter>,
        chance: f64,
        now: Now,
    ) -> Session {
        let timers = Timers::new(now.at + settings.stale_timeout);
        Session {
            settings,
            kind,
            // A listening client has no way to answer the protocol's own ping.
            pings_by_control_frame: pings_by_control_frame || kind == Kind::Uni,
            chance,
            state: State::Opening,
            who: Who { user: "".into(), client, info: Bytes::new() },
            subs: Subs::default(),
            frame: None,
            meter,
            held: false,
            events: VecDeque::new(),
            waiting: None,
            actions: VecDeque::new(),
            timers,
        }
    }

    /// A frame of commands. Only when not [`Session::is_busy`].
    pub fn on_frame(&mut self, frame: Commands) {
        debug_assert!(!self.is_busy());
        if !self.is_closed() {
            self.frame = Some(frame);
        }
    }

    /// The connect request of a listening client; what it sends later is of no interest.
    pub fn on_connect_request(&mut self, now: Now, request: Result<Connect, Malformed>) {
        match (&self.state, request) {
            (State::Opening, Ok(request)) => self.connect(now, 0, request),
            (State::Opening, Err(Malformed)) => self.close(Close::BAD_REQUEST),
            _ => {}
        }
    }

    /// A listening client says something: of no interest, but not for ever.
    pub fn on_idle_words(&mut self, now: Now) {
        let _refused_or_not = self.take(now, Rate::Command);
    }

    pub fn on_call_done(&mut self, now: Now, result: CallResult) {
        let Some(waiting) = self.waiting.take() else { return };
        if self.is_closed() {
            return;
        }
        match (waiting, result) {
            (Waiting::Register, CallResult::Registered(true)) => self.next_connect_sub(now),
            (Waiting::Register, CallResult::Registered(false)) => self.close(Close::CONNECTION_LIMIT),
            (Waiting::ConnectSub, CallResult::Subscribed(result)) => self.on_connect_sub(now, result),
            (Waiting::Subscribe { id, made }, CallResult::Subscribed(result)) => {
                self.on_subscribed(now, id, *made, result);
            }
            (Waiting::ServerSubscribe { made }, CallResult::Subscribed(result)) => {
                self.on_server_subscribed(now, *made, result);
            }
            (Waiting::Unsubscribe { id }, CallResult::Left) => self.reply(id, Answer::Unsubscribe),
            (Waiting::Publish { id }, CallResult::Published(result)) => {
                self.reply_result(id, result.map(|()| Answer::Publish));
            }
            (Waiting::Presence { id }, CallResult::Presence(result)) => {
                self.reply_result(id, result.map(Answer::Presence));
            }
            (Waiting::PresenceStats { id }, CallResult::PresenceStats(result)) => {
                self.reply_result(id, result.map(Answer::PresenceStats));
            }
            (Waiting::History { id, epoch }, CallResult::History(result)) => {
                self.on_history(id, &epoch, result);
            }
            (Waiting::Nobody, _) => {}
            // The task answered another question than was asked: a mistake of ours.
            _ => self.close(Close::INTERNAL_SERVER_ERROR),
        }
    }

    /// The next thing to do; `None`: nothing until something comes in.
    pub fn poll_action(&mut self, now: Now) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if !self.advance(now) {
                return None;
            }
        }
    }

    /// Works on one thing that waits. False: nothing waits, or a call is outstanding.
    fn advance(&mut self, now: Now) -> bool {
        if self.is_closed() || self.waiting.is_some() {
            return false;
        }
        if !matches!(self.state, State::Connecting(_))
            && let Some(event) = self.events.pop_front()
        {
            self.handle_event(now, event);
            return true;
        }
        let Some(frame) = self.frame.as_mut().filter(|_| !self.held) else { return false };
        match frame.next() {
            None => self.frame = None,
            Some(Ok(command)) => self.command(now, command),
            Some(Err(Malformed)) => self.close(Close::BAD_REQUEST),
        }
        true
    }

    /// Whether `poll_action` would give something.
    pub fn has_work(&self) -> bool {
        let waits = self.frame.is_some() && !self.held || !self.events.is_empty();
        !self.actions.is_empty() || waits && self.waiting.is_none()
    }

    /// Whether the next frame has to wait.
    pub fn is_busy(&self) -> bool {
        self.waiting.is_some() || self.frame.is_some() || self.held
    }

    /// Whether commands wait until the client has read more of what it was answered.
    pub fn hold_commands(&mut self, held: bool) {
        self.held = held;
    }

    pub fn holds_commands(&self) -> bool {
        self.held
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn pings_by_control_frame(&self) -> bool {
        self.pings_by_control_frame
    }

    pub fn who(&self) -> &Who {
        &self.who
    }

    /// Ends the connection: what was to be said before is still said.
    pub fn close(&mut self, close: Close) {
        if self.is_closed() {
            return;
        }
        if self.kind == Kind::Uni && self.is_open() {
            self.actions.push_back(Action::Push(Push::Disconnect {
                code: close.code,
                reason: close.reason.to_string(),
                reconnect: close.reconnects(),
            }));
        }
        self.state = State::Closed;
        self.frame = None;
        self.events = VecDeque::new();
        self.actions.push_back(Action::Close(close));
    }

    /// One more of these. Refused: it is counted, and whoever has had enough of that is closed.
    fn take(&mut self, now: Now, rate: Rate) -> Result<(), ErrorCode> {
        self.meter.take(rate, now.at).map_err(|refused| {
            self.actions.push_back(Action::RateRefused(refused));
            self.refused(now);
            ErrorCode::TOO_MANY_REQUESTS
        })
    }

    /// A command is about to be answered with 111.
    fn refused(&mut self, now: Now) {
        if !self.meter.may_go_on(now.at) {
            self.close(Close::TOO_MANY_REQUESTS);
        }
    }

    fn call(&mut self, call: Call, waiting: Waiting) {
        debug_assert!(self.waiting.is_none());
        self.waiting = Some(waiting);
        self.actions.push_back(Action::Call(call));
    }

    fn reply(&mut self, id: u32, answer: Answer) {
        if self.is_closed() {
            return;
        }
        self.actions.push_back(Action::Reply(Reply { id, answer }));
    }

    fn reply_result(&mut self, id: u32, result: Result<Answer, ErrorCode>) {
        self.reply(id, result.unwrap_or_else(Answer::Error));
    }

    /// Seconds left, at least one: zero would be read as no expiry.
    fn ttl(&self, now: Now, expires: Option<Instant>) -> Option<u32> {
        expires.map(|at| {
            let left = at.saturating_duration_since(now.at).as_secs_f64().ceil();
            (left as u32).max(1)
        })
    }
}

impl Now {
    /// A Unix time as a moment of the monotonic clock; far ones are cut to a hundred years.
    fn moment(self, unix: i64) -> Instant {
        let left = unix.saturating_sub(self.unix).clamp(0, 100 * 365 * 24 * 3600);
        self.at + Duration::from_secs(left.unsigned_abs())
    }
}

#[cfg(test)]
mod tests;
