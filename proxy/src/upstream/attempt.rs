//! One try of a server, and what it holds there.

use super::Upstream;
use super::desk::{Desk, Inner};
use super::probe;
use super::server::{Server, Shared};
use super::silence::Waiting;
use super::stream::ServerStream;
use crate::admit::key::Key;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_core::breaker::By;
use weir_core::limited;
use weir_core::sync::lock;

/// What counts as a failure besides a server that cannot be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judge {
    /// Zero: off.
    pub slow: Duration,
    pub server_errors: bool,
}

/// One open tunnel or request of a server, counted until this is dropped.
pub struct Permit {
    server: Arc<Shared>,
    desk: Arc<Desk>,
    who: Option<Key>,
    home: Option<u64>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.server.leave();
        if let Some(who) = self.who {
            lock(&self.server.places).give(who, |held| held.open -= 1);
        }
        if let Some(home) = self.home {
            self.desk.lock().homes.leave(home, Instant::now());
        }
        self.desk.call();
    }
}

/// A handshake under way.
struct Handshake {
    server: Arc<Shared>,
    desk: Arc<Desk>,
    who: Option<Key>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.server.handshake_ends();
        if let Some(who) = self.who {
            lock(&self.server.places).give(who, |held| held.handshakes -= 1);
        }
        self.desk.call();
    }
}

/// For whom an attempt is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client {
    /// Its address.
    pub who: Option<Key>,
    /// Its key, where it is to stay at its server.
    pub home: Option<u64>,
    /// It was sent elsewhere than its key says, because of load.
    pub moved: bool,
}

/// A try of one server. Its outcome must be told; one that is dropped before (the client left)
/// counts as never made.
pub struct Attempt {
    upstream: Arc<Upstream>,
    server: Arc<Server>,
    client: Client,
    by: By,
    settled: bool,
    failed: bool,
    started: Instant,
    header: Option<Vec<u8>>,
    /// Its place among those that wait for an answer.
    waits: Option<u64>,
    handshake: Option<Handshake>,
    permit: Option<Permit>,
}

impl Attempt {
    /// With the breaker's leave. To be called with the desk locked: nobody else is counted in between.
    pub fn new(
        upstream: &Arc<Upstream>,
        inner: &mut Inner,
        server: &Arc<Server>,
        client: Client,
        (by, header): (By, Option<Vec<u8>>),
        now: Instant,
    ) -> Attempt {
        let (shared, desk) = (&server.shared, &upstream.desk);
        shared.enter();
        shared.handshake_begins();
        let who = client.who.filter(|_| upstream.settings.is_limited());
        if let Some(who) = who {
            lock(&shared.places).take(who, |held| {
                held.open += 1;
                held.handshakes += 1;
            });
        }
        if let Some(home) = client.home {
            inner.homes.enter(home, &shared.name, now);
        }
        let home = client.home;
        Attempt {
            upstream: upstream.clone(),
            server: server.clone(),
            client,
            by,
            settled: false,
            failed: false,
            started: now,
            header,
            waits: None,
            handshake: Some(Handshake { server: shared.clone(), desk: desk.clone(), who }),
            permit: Some(Permit { server: shared.clone(), desk: desk.clone(), who, home }),
        }
    }

    /// The server's name in logs and metrics.
    pub fn name(&self) -> &Arc<str> {
        &self.server.shared.name
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// What goes in front of a connection's bytes.
    pub fn header(&self) -> Option<&[u8]> {
        self.header.as_deref()
    }

    /// How long connections to it are kept without a request. Zero: not.
    pub fn keeps_connections(&self) -> Duration {
        self.upstream.settings.keepalive_timeout
    }

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Opens a connection.
    pub async fn connect(&self, timeout: Duration) -> io::Result<ServerStream> {
        let opened = tokio::time::timeout(timeout, self.server.dial.open(self.header())).await;
        opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// It was sent elsewhere than its key says, because of load.
    pub fn moved(&self) -> bool {
        self.client.moved
    }

    /// Others may begin their handshakes: this one's answer takes its time, and no work.
    pub fn begun(&mut self) {
        self.handshake = None;
    }

    /// The whole request was sent. Silence of this length is suspicious from here on.
    pub fn sent(&mut self, now: Instant, patience: Duration, cause: &'static str) {
        if self.settled {
            return;
        }
        self.waits_no_more(now);
        let waiting = Waiting { who: self.client.who, by: self.by, sent: now, patience, cause };
        if let Some((id, begins)) = self.server.shared.waits(waiting) {
            self.waits = Some(id);
            if begins {
                tokio::spawn(probe::watch(self.server.clone(), self.upstream.clone()));
            }
        }
    }

    /// Nothing came in time. Whether the server is to blame is found out without this request.
    pub fn late(&mut self, now: Instant) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        (self.failed, self.handshake) = (true, None);
        let waits = self.waits.take();
        self.server.shared.was_late(waits, now);
        if waits.is_none() {
            self.server.shared.abandoned(self.by);
        }
    }

    /// The server has answered a handshake; `None`: it closed, or made no sense.
    pub fn answered(&mut self, now: Instant, status: Option<u16>) {
        let took = now.saturating_duration_since(self.started);
        self.server.shared.answered_after(took);
        let slow = self.upstream.settings.judge.slow;
        if !slow.is_zero() && took > slow {
            self.heard(now, status);
            return self.fail(now, "slow_handshake");
        }
        self.judge(now, status);
    }

    /// It is there and it talks. That an app closes on, or answers oddly to, what one client asks for
    /// must not take the server from everybody else; unless the conf says so.
    pub fn judge(&mut self, now: Instant, status: Option<u16>) {
        self.heard(now, status);
        match status {
            None | Some(500..) if self.upstream.settings.judge.server_errors => {
                self.fail(now, "server_error")
            }
            _ => self.succeed(now),
        }
    }

    /// A head shows that the server lives, to all that wait.
    fn heard(&mut self, now: Instant, status: Option<u16>) {
        if status.is_some() && !self.settled {
            self.waits_no_more(now);
            if self.server.shared.word(now) {
                self.upstream.desk.call();
            }
        }
    }

    pub fn succeed(&mut self, now: Instant) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.waits_no_more(now);
        self.handshake = None;
        if self.server.shared.succeeded(now, self.by) {
            self.upstream.desk.call();
        }
    }

    /// `cause` is a metric's label: one of those in `server.rs`.
    pub fn fail(&mut self, now: Instant, cause: &'static str) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.waits_no_more(now);
        (self.failed, self.handshake) = (true, None);
        self.server.shared.failed(now, self.by, cause);
    }

    /// Neither good nor bad: the outcome says nothing about the server.
    pub fn give_up(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            self.waits_no_more(Instant::now());
            self.server.shared.abandoned(self.by);
        }
        self.handshake = None;
    }

    /// Ends its waiting. What became of it meanwhile is no trial's outcome any more.
    fn waits_no_more(&mut self, now: Instant) {
        if let Some(id) = self.waits.take()
            && self.server.shared.waits_no_more(id, now).is_none()
        {
            self.by = By::Anyone;
        }
    }

    /// The place that its connection holds from here on.
    pub fn into_permit(mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Says that this process or machine ran out of sockets.
pub fn no_sockets(error: &dyn std::fmt::Display) {
    limited!(error, "out of sockets", %error, "cannot connect to any server: out of descriptors or ports (LimitNOFILE)");
}

/// What a failed connect says: `Some` with the cause if it is the server's fault, `None` if
/// this process or machine ran out of something.
pub fn blame(error: &io::Error) -> Option<&'static str> {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const EADDRNOTAVAIL: i32 = 99;
    const ENOMEM: i32 = 12;
    const ENOBUFS: i32 = 105;
    match error.raw_os_error() {
        Some(ENFILE | EMFILE | EADDRNOTAVAIL | ENOMEM | ENOBUFS) => None,
        _ => Some(match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "refused",
            io::ErrorKind::TimedOut => "timeout",
            io::ErrorKind::InvalidData => "tls",
            _ => "error",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_lack_is_no_servers_fault() {
        use io::ErrorKind::{ConnectionRefused, InvalidData, NotFound, TimedOut};
        // ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS.
        for ours in [12, 23, 24, 99, 105] {
            assert_eq!(blame(&io::Error::from_raw_os_error(ours)), None, "{ours}");
        }
        // ENETUNREACH, ECONNRESET, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH.
        for (theirs, cause) in
            [(101, "error"), (104, "error"), (110, "timeout"), (111, "refused"), (113, "error")]
        {
            assert_eq!(blame(&io::Error::from_raw_os_error(theirs)), Some(cause), "{theirs}");
        }
        for (kind, cause) in [
            (ConnectionRefused, "refused"),
            (NotFound, "refused"),
            (TimedOut, "timeout"),
            (InvalidData, "tls"),
        ] {
            assert_eq!(blame(&kind.into()), Some(cause));
        }
    }
}
