//! One try of a server, and what it holds there.

use super::desk::Desk;
use super::server::{Server, Shared};
use super::stream::ServerStream;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_core::breaker::By;

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
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.server.leave();
        self.desk.call();
    }
}

/// A handshake under way.
struct Handshake {
    server: Arc<Shared>,
    desk: Arc<Desk>,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.server.handshake_ends();
        self.desk.call();
    }
}

/// A try of one server. Its outcome must be told; one that is dropped before (the client left)
/// counts as never made.
pub struct Attempt {
    server: Arc<Server>,
    judge: Judge,
    by: By,
    settled: bool,
    failed: bool,
    started: Instant,
    header: Option<Vec<u8>>,
    handshake: Option<Handshake>,
    permit: Option<Permit>,
    desk: Arc<Desk>,
}

impl Attempt {
    /// With the breaker's leave. To be called with the desk locked: nobody else is counted in between.
    pub fn new(
        server: &Arc<Server>,
        desk: &Arc<Desk>,
        judge: Judge,
        by: By,
        header: Option<Vec<u8>>,
        now: Instant,
    ) -> Attempt {
        let shared = &server.shared;
        shared.enter();
        shared.handshake_begins();
        Attempt {
            server: server.clone(),
            judge,
            by,
            settled: false,
            failed: false,
            started: now,
            header,
            handshake: Some(Handshake { server: shared.clone(), desk: desk.clone() }),
            permit: Some(Permit { server: shared.clone(), desk: desk.clone() }),
            desk: desk.clone(),
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

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Opens a connection.
    pub async fn connect(&self, timeout: Duration) -> io::Result<ServerStream> {
        let opened = tokio::time::timeout(timeout, self.server.dial.open(self.header())).await;
        opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Others may begin their handshakes: this one's answer takes its time, and no work.
    pub fn begun(&mut self) {
        self.handshake = None;
    }

    /// The server has answered a handshake; `None`: it closed, or made no sense.
    pub fn answered(&mut self, now: Instant, status: Option<u16>) {
        let took = now.saturating_duration_since(self.started);
        self.server.shared.answered_after(took);
        if !self.judge.slow.is_zero() && took > self.judge.slow {
            return self.fail(now, "slow_handshake");
        }
        self.judge(now, status);
    }

    /// It is there and it talks. That an app closes on, or answers oddly to, what one client asks for
    /// must not take the server from everybody else; unless the conf says so.
    pub fn judge(&mut self, now: Instant, status: Option<u16>) {
        match status {
            None | Some(500..) if self.judge.server_errors => self.fail(now, "server_error"),
            _ => self.succeed(now),
        }
    }

    pub fn succeed(&mut self, now: Instant) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.handshake = None;
        if self.server.shared.succeeded(now, self.by) {
            self.desk.call();
        }
    }

    /// `cause` is a metric's label: one of those in `server.rs`.
    pub fn fail(&mut self, now: Instant, cause: &'static str) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.failed = true;
        self.handshake = None;
        self.server.shared.failed(now, self.by, cause);
    }

    /// Neither good nor bad: the outcome says nothing about the server.
    pub fn give_up(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            self.server.shared.abandoned(self.by);
        }
        self.handshake = None;
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

/// What a failed connect says: `Some` with the cause if it is the server's fault, `None` if
/// this process or machine ran out of something.
pub fn blame(error: &io::Error) -> Option<&'static str> {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const EADDRNOTAVAIL: i32 = 99;
    const ENOBUFS: i32 = 105;
    match error.raw_os_error() {
        Some(ENFILE | EMFILE | EADDRNOTAVAIL | ENOBUFS) => None,
        _ => Some(match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "refused",
            io::ErrorKind::TimedOut => "timeout",
            io::ErrorKind::InvalidData => "tls",
            _ => "error",
        }),
    }
}
