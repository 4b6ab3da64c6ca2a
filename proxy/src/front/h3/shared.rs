//! What the tasks of one connection share.

use super::sessions::Sessions;
use super::{Handler, Limits};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use weir_core::drain::Drain;
use weir_h3::{Code, Error, Scope, Settings};

/// Requests that a client may cancel before their answer, at once and per second. Each has cost us an admission
/// and maybe a connection to a server.
const MAX_CANCELLED: u32 = 200;
const CANCELLED_PER_SECOND: u32 = 20;

pub struct Shared {
    pub conn: quinn::Connection,
    pub limits: Limits,
    /// The client's, when they have come.
    pub settings: SetOnce<Settings>,
    pub sessions: Sessions,
    /// The requests that were taken, and streams that may become one.
    pub busy: TaskTracker,
    /// How many of these have no head yet.
    headless: AtomicUsize,
    /// The process's, which waits for more than this connection.
    pub drain: Drain,
    cancelled: Mutex<Cancelled>,
    count: Box<dyn Fn(&'static str) + Send + Sync>,
}

impl Shared {
    pub fn new<H: Handler>(
        conn: quinn::Connection,
        handler: &Arc<H>,
        limits: Limits,
        drain: Drain,
    ) -> Arc<Shared> {
        let handler = Arc::clone(handler);
        Arc::new(Shared {
            conn,
            limits,
            settings: SetOnce::new(),
            sessions: Sessions::new(limits.max_sessions as usize),
            busy: TaskTracker::new(),
            headless: AtomicUsize::new(0),
            drain,
            cancelled: Mutex::new(Cancelled::new(Instant::now())),
            count: Box::new(move |cause| handler.refused(cause)),
        })
    }

    /// Whether there is a request, a tunnel or a session. A stream that only might become one is none.
    pub fn is_used(&self) -> bool {
        self.busy.len() > self.headless.load(Relaxed)
    }

    pub fn count(&self, cause: &'static str) {
        (self.count)(cause);
    }

    /// Closes the connection for a breach of its rules.
    pub fn fail(&self, error: Error) {
        if self.conn.close_reason().is_none() {
            self.count(error.reason);
            tracing::debug!(reason = error.reason, code = error.code.name(), "HTTP/3 connection closed");
            self.conn.close(code(error.code), error.reason.as_bytes());
        }
    }

    /// A request went away before it was answered.
    pub fn cancelled(&self) {
        let mut cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        if !cancelled.one(Instant::now()) {
            self.fail(Error::connection(Code::H3_EXCESSIVE_LOAD, "too many cancelled requests"));
        }
    }

    /// Ends what the error reaches: the stream, by its two halves, or the connection.
    pub fn end(&self, error: Error, send: &mut quinn::SendStream, recv: &mut quinn::RecvStream) {
        match error.scope {
            Scope::Connection => self.fail(error),
            Scope::Stream => {
                self.count(error.reason);
                abort(error.code, send, recv);
            }
        }
    }
}

/// A stream whose head has not come yet.
pub struct Headless(Arc<Shared>);

impl Headless {
    pub fn new(shared: &Arc<Shared>) -> Headless {
        shared.headless.fetch_add(1, Relaxed);
        Headless(shared.clone())
    }
}

impl Drop for Headless {
    fn drop(&mut self) {
        self.0.headless.fetch_sub(1, Relaxed);
    }
}

/// Ends a stream in both directions.
pub fn abort(why: Code, send: &mut quinn::SendStream, recv: &mut quinn::RecvStream) {
    // Each fails where that half has ended already.
    let _ended = send.reset(code(why));
    let _ended = recv.stop(code(why));
}

pub fn code(code: Code) -> quinn::VarInt {
    quinn::VarInt::from_u64(code.0).unwrap_or(quinn::VarInt::MAX)
}

pub fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A bucket of requests that may be cancelled.
struct Cancelled {
    left: f64,
    at: Instant,
}

impl Cancelled {
    fn new(now: Instant) -> Cancelled {
        Cancelled { left: f64::from(MAX_CANCELLED), at: now }
    }

    /// Whether one more is fine.
    fn one(&mut self, now: Instant) -> bool {
        let gained = now.duration_since(self.at).as_secs_f64() * f64::from(CANCELLED_PER_SECOND);
        self.left = (self.left + gained).min(f64::from(MAX_CANCELLED));
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn cancelled_requests_are_a_budget() {
        let start = Instant::now();
        let mut cancelled = Cancelled::new(start);
        assert!((0..MAX_CANCELLED).all(|_| cancelled.one(start)));
        assert!(!cancelled.one(start));
        let later = start + Duration::from_secs(1);
        assert!((0..CANCELLED_PER_SECOND).all(|_| cancelled.one(later)));
        assert!(!cancelled.one(later));
    }
}
