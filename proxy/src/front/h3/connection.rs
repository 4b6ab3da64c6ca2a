//! The task of a connection: our control stream, what the client opens, datagrams, and the drain.
//!
//! ```text
//!   Serving ──(drain)──► Draining: GOAWAY, no new requests ──(none left)──► Lingering ──► closed, H3_NO_ERROR
//! ```

use super::shared::{Shared, abort, code};
use super::uni::{self, Critical};
use super::{Handler, Limits, request};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use weir_core::drain::Drain;
use weir_h3::{Code, Error, Settings, datagram, frame, stream};

/// Unidirectional streams that are read at a time: three are of use. More wait until some have ended.
const MAX_UNI: usize = 32;

/// A connection is looked at so often for whether it is in use.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// After the last answer was written, until the connection is closed; for its bytes to arrive.
const LINGER: Duration = Duration::from_secs(2);

pub async fn serve<H: Handler>(conn: Connection, handler: Arc<H>, limits: Limits, drain: Drain) {
    let shared = Shared::new(conn, &handler, limits, drain.clone());
    let control = timeout(limits.head_timeout, open_control(&shared)).await;
    match control {
        Ok(Ok(control)) => {
            let idle = Idle { limit: limits.head_timeout, since: Instant::now() };
            let driver = Driver { shared: shared.clone(), handler, control, next: 0, goaway: None, idle };
            driver.run(&drain).await;
        }
        Ok(Err(_)) => {}
        Err(_) => shared.fail(Error::connection(
            Code::H3_GENERAL_PROTOCOL_ERROR,
            "no unidirectional stream for settings",
        )),
    }
    shared.sessions.close();
}

/// Our settings. Streams for QPACK are not opened: there is nothing to say on them (RFC 9204, 4.2).
async fn open_control(shared: &Shared) -> io::Result<SendStream> {
    let mut settings = Settings::new(u64::from(shared.limits.max_field_section));
    if shared.limits.max_sessions > 0 {
        settings = settings.with_webtransport(u64::from(shared.limits.max_sessions));
    }
    let mut output = Vec::new();
    stream::Uni::Control.write(&mut output);
    frame::settings(&settings, &mut output);
    let mut control = shared.conn.open_uni().await?;
    control.write_chunk(output.into()).await?;
    Ok(control)
}

struct Driver<H> {
    shared: Arc<Shared>,
    handler: Arc<H>,
    control: SendStream,
    /// The first request stream that was not seen yet.
    next: u64,
    /// Requests from this stream on are rejected.
    goaway: Option<u64>,
    idle: Idle,
}

/// How long there has been no request. Pings and other frames are none, and keep nothing open.
struct Idle {
    limit: Duration,
    since: Instant,
}

impl Idle {
    /// Whether the connection has been without one for too long; `then` is the limit from the first one on.
    fn is_over(&mut self, used: bool, then: Duration, now: Instant) -> bool {
        if used {
            *self = Idle { limit: then, since: now };
        }
        now.saturating_duration_since(self.since) >= self.limit
    }

    /// When to look again.
    fn look(&self) -> Instant {
        let over = self.since + self.limit;
        over.min(Instant::now() + IDLE_LOOK).max(Instant::now() + Duration::from_millis(1))
    }
}

impl<H: Handler> Driver<H> {
    async fn run(mut self, drain: &Drain) {
        let conn = self.shared.conn.clone();
        let critical = Arc::new(Critical::default());
        let mut uni: FuturesUnordered<BoxFuture<'static, Result<(), Error>>> = FuturesUnordered::new();
        loop {
            // A client that always has something ready shares the thread all the same.
            tokio::task::coop::consume_budget().await;
            let then = self.shared.limits.idle_timeout;
            if self.idle.is_over(self.shared.is_used(), then, Instant::now()) && self.goaway.is_none() {
                // What is on its way meanwhile is told that it may be asked again.
                self.go_away().await;
            }
            tokio::select! {
                stream = conn.accept_bi() => match stream {
                    Ok((send, recv)) => self.accept(send, recv),
                    Err(ended) => return self.ended(&ended),
                },
                stream = conn.accept_uni(), if uni.len() < MAX_UNI => match stream {
                    Ok(recv) => {
                        uni.push(Box::pin(uni::read(self.shared.clone(), critical.clone(), recv)));
                    }
                    Err(ended) => return self.ended(&ended),
                },
                Some(result) = uni.next(), if !uni.is_empty() => {
                    if let Err(error) = result {
                        self.shared.fail(error);
                    }
                }
                datagram = conn.read_datagram() => match datagram {
                    Ok(datagram) => self.datagram(datagram),
                    Err(ended) => return self.ended(&ended),
                },
                () = drain.begun(), if self.goaway.is_none() => self.go_away().await,
                () = self.shared.busy.wait(), if self.goaway.is_some() => break,
                () = sleep_until(self.idle.look()), if self.goaway.is_none() => {}
                () = drain.stopped() => break,
            }
        }
        self.linger(drain).await;
        conn.close(code(Code::H3_NO_ERROR), b"");
    }

    fn accept(&mut self, mut send: SendStream, mut recv: RecvStream) {
        let id = u64::from(recv.id());
        self.next = self.next.max(id + 4);
        let is_late = self.goaway.is_some_and(|from| id >= from);
        if is_late && self.shared.sessions.is_empty() {
            self.shared.count("request after GOAWAY");
            return abort(Code::H3_REQUEST_REJECTED, &mut send, &mut recv);
        }
        let busy = self.shared.busy.token();
        let (shared, handler) = (self.shared.clone(), self.handler.clone());
        tokio::spawn(request::take(shared, handler, send, recv, is_late, busy));
    }

    /// Of its session's; or, before that is there, kept a while.
    fn datagram(&self, datagram: Bytes) {
        match datagram::read(datagram) {
            Ok((id, payload)) if self.shared.limits.max_sessions > 0 => {
                if !self.shared.sessions.datagram(id, payload) {
                    self.shared.count("datagram dropped");
                }
            }
            Ok(_) => self.shared.count("datagram dropped"),
            Err(error) => self.shared.fail(error),
        }
    }

    async fn go_away(&mut self) {
        self.goaway = Some(self.next);
        self.shared.busy.close();
        let frame = Bytes::from(frame::goaway(self.next));
        // A client that does not read its control stream will see the end.
        let _told = timeout(self.shared.limits.head_timeout, self.control.write_chunk(frame)).await;
    }

    /// Closing throws away what was not sent yet.
    async fn linger(&mut self, drain: &Drain) {
        let conn = self.shared.conn.clone();
        let reject = async {
            while let Ok((mut send, mut recv)) = conn.accept_bi().await {
                self.shared.count("request after GOAWAY");
                abort(Code::H3_REQUEST_REJECTED, &mut send, &mut recv);
            }
        };
        tokio::select! {
            () = reject => {}
            () = tokio::time::sleep(LINGER) => {}
            () = drain.stopped() => {}
        }
    }

    fn ended(&self, why: &ConnectionError) {
        match why {
            ConnectionError::LocallyClosed | ConnectionError::ApplicationClosed(_) => {}
            // More streams or bytes than were allowed, frames that make no sense.
            ConnectionError::TransportError(error) => {
                self.shared.count("QUIC rule broken");
                tracing::debug!(%error, "HTTP/3 connection ended");
            }
            why => tracing::debug!(%why, "HTTP/3 connection lost"),
        }
    }
}
