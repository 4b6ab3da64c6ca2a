//! A connection's figures and its lines in the log.

use super::{Accepted, now};
use crate::metrics::Metrics;
use crate::session::Session;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use weir_core::accept::{Permit, Transport};
use weir_core::limited;
use weir_core::limited::may_log;
use weir_wire::close::Close;
use weir_wire::id::ConnId;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Closed(Close),
    /// The client closed, with this code if any.
    ByPeer(Option<u16>),
    /// Without a close: reset, network, process gone.
    Lost(String),
}

pub struct Stats {
    conn: ConnId,
    transport: Transport,
    address: IpAddr,
    since: Instant,
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    end: Option<End>,
    metrics: Arc<Metrics>,
    /// Held as long as the connection lives.
    _permits: Vec<Permit>,
}

impl Stats {
    pub fn new(accepted: Accepted, since: Instant, metrics: Arc<Metrics>) -> Stats {
        Stats {
            conn: accepted.conn,
            transport: accepted.transport,
            address: accepted.address,
            since,
            messages_in: 0,
            messages_out: 0,
            bytes_in: 0,
            bytes_out: 0,
            end: None,
            metrics,
            _permits: accepted.permits,
        }
    }

    pub fn read(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
        self.metrics.bytes_in.inc_by(bytes as u64);
    }

    pub fn messages(&mut self, n: u64) {
        self.messages_in += n;
        self.metrics.messages_in.inc_by(n);
    }

    pub fn wrote(&mut self, frames: u64, bytes: usize) {
        self.messages_out += frames;
        self.bytes_out += bytes as u64;
        self.metrics.messages_out.inc_by(frames);
        self.metrics.bytes_out.inc_by(bytes as u64);
    }

    pub fn connected(&self, session: &Session) {
        let who = session.who();
        let transport = self.transport.as_str();
        tracing::debug!(conn = %self.conn, transport, client = &*who.client, user = &*who.user, "connected");
    }

    pub fn token_refused(&self, reason: &str) {
        limited!(info, "token refused", conn = %self.conn, address = %self.address, reason, "token refused");
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// What a session of WebTransport ends with. `None`: there is nobody to hear it.
    pub fn last_words(&self) -> Option<Close> {
        match &self.end {
            Some(End::Closed(close)) => Some(close.clone()),
            Some(End::ByPeer(_)) => Some(Close::NORMAL),
            Some(End::Lost(_)) | None => None,
        }
    }

    /// The first cause counts.
    pub fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// Dropped connections at info, with cause and age; those that ended as they should at debug.
    pub fn log(&self, user: Option<&str>) {
        let (code, reason, dropped) = match &self.end {
            Some(End::Closed(close)) => (close.code, &*close.reason, is_drop(close)),
            Some(End::ByPeer(code)) => (code.unwrap_or(1005), "closed by the client", false),
            Some(End::Lost(error)) => (1006, error.as_str(), true),
            None => (1006, "stopped", true),
        };
        // What clients choose does not become labels.
        self.metrics.disconnect(if matches!(self.end, Some(End::ByPeer(_))) { 1000 } else { code });
        let age_ms = now().at.saturating_duration_since(self.since).as_millis() as u64;
        macro_rules! line {
            ($level:ident, $text:literal) => {
                tracing::$level!(
                    conn = %self.conn,
                    transport = self.transport.as_str(),
                    address = %self.address,
                    user,
                    code,
                    reason,
                    age_ms,
                    messages_in = self.messages_in,
                    messages_out = self.messages_out,
                    bytes_in = self.bytes_in,
                    bytes_out = self.bytes_out,
                    $text
                )
            };
        }
        match dropped {
            true if may_log(("connection dropped", kind(code))) => line!(info, "connection dropped"),
            true => {}
            false => line!(debug, "connection closed"),
        }
    }
}

/// Of dropped connections: each has its share of the log.
fn kind(code: u16) -> &'static str {
    match code {
        1006 => "lost",
        1009 => "too large",
        3005 => "expired",
        3008 => "slow",
        3012 => "no pong",
        3013 => "too many",
        3500..=3501 => "refused",
        3502 => "stale",
        _ => "other",
    }
}

/// Closes of ours that nobody asked for.
fn is_drop(close: &Close) -> bool {
    *close != Close::NORMAL && *close != Close::SHUTDOWN && close.code < 4000
}
