//! The clocks of one connection: pings and their pongs, the wait for connect, and expiry.

use super::subs::earlier;
use super::{Action, Event, Now, Session};
use std::time::{Duration, Instant};
use weir_wire::close::Close;

#[derive(Debug, Default)]
pub struct Timers {
    /// `connect` is awaited until then.
    stale_at: Option<Instant>,
    ping_at: Option<Instant>,
    pong_by: Option<Instant>,
    /// Pings without a pong.
    unanswered: u32,
    /// When the connection token runs out, grace not counted.
    pub expires: Option<Instant>,
}

impl Timers {
    pub fn new(stale_at: Instant) -> Timers {
        Timers { stale_at: Some(stale_at), ..Timers::default() }
    }
}

impl Session {
    /// When `on_timeout` has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        let grace = self.settings.expired_grace;
        let stale = self.timers.stale_at.filter(|_| self.state.is_stale_prone());
        let expiry = earlier(self.timers.expires, self.subs.next_expiry()).map(|at| at + grace);
        [self.timers.ping_at, self.timers.pong_by, expiry].into_iter().fold(stale, earlier)
    }

    pub fn on_timeout(&mut self, now: Now) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now.at);
        let grace = self.settings.expired_grace;
        if self.is_closed() {
            return;
        }
        if self.state.is_stale_prone() && due(self.timers.stale_at) {
            return self.close(Close::STALE);
        }
        if due(self.timers.expires.map(|at| at + grace)) {
            return self.close(Close::EXPIRED);
        }
        if due(self.timers.pong_by) {
            // While a command is under way nothing is read: the pong may well be there.
            if !self.is_busy() {
                return self.close(Close::NO_PONG);
            }
            self.timers.pong_by = Some(now.at + self.settings.pong_timeout);
        }
        if due(self.timers.ping_at) {
            self.ping(now.at);
        }
        if due(self.subs.next_expiry().map(|at| at + grace)) {
            let then = now.at.checked_sub(grace).unwrap_or(now.at);
            for (channel, ticket) in self.subs.take_expired(then) {
                self.events.push_back(Event::SubExpired { channel, ticket });
            }
        }
    }

    /// From now on pings go out; the first one after a time that differs from client to client.
    pub(super) fn start_pings(&mut self, now: Instant) {
        let interval = self.settings.ping_interval;
        if interval > Duration::ZERO {
            self.timers.ping_at = Some(now + interval.mul_f64(0.5 + 0.5 * self.chance));
        }
    }

    fn ping(&mut self, now: Instant) {
        self.actions.push_back(Action::Ping);
        self.timers.ping_at = Some(now + self.settings.ping_interval);
        if self.settings.pong_timeout > Duration::ZERO {
            self.timers.unanswered += 1;
            self.timers.pong_by.get_or_insert(now + self.settings.pong_timeout);
        }
    }

    /// A pong of the protocol: one that answers no ping breaks it.
    pub(super) fn on_pong(&mut self) {
        if self.settings.pong_timeout.is_zero() {
            return;
        }
        if self.timers.unanswered == 0 {
            return self.close(Close::BAD_REQUEST);
        }
        self.timers.unanswered -= 1;
        if self.timers.unanswered == 0 {
            self.timers.pong_by = None;
        }
    }

    /// A pong control frame: may come unasked (RFC 6455, section 5.5.3).
    pub fn on_control_pong(&mut self) {
        if self.pings_by_control_frame {
            self.timers.unanswered = 0;
            self.timers.pong_by = None;
        }
    }
}
