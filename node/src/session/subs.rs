//! The channels of one connection.

use super::call::Ticket;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client asked, with a subscribe command.
    Client,
    /// The connection token brought it.
    Token,
    /// The backend asked, through the HTTP API; or a listening client when it connected.
    Server,
}

#[derive(Debug)]
pub struct Sub {
    pub ticket: Ticket,
    pub origin: Origin,
    /// When the subscription's token runs out, grace not counted.
    pub expires: Option<Instant>,
    pub info: Bytes,
    /// Has a membership at the broker that must be ended.
    pub member: bool,
}

impl Sub {
    pub fn is_server_side(&self) -> bool {
        self.origin != Origin::Client
    }
}

#[derive(Debug, Default)]
pub struct Subs {
    by_channel: HashMap<Arc<str>, Sub>,
    /// The earliest of all; kept, so that no timer walks the map.
    next_expiry: Option<Instant>,
}

impl Subs {
    pub fn len(&self) -> usize {
        self.by_channel.len()
    }

    pub fn get(&self, channel: &str) -> Option<&Sub> {
        self.by_channel.get(channel)
    }

    pub fn contains(&self, channel: &str) -> bool {
        self.by_channel.contains_key(channel)
    }

    pub fn add(&mut self, channel: Arc<str>, sub: Sub) {
        self.next_expiry = earlier(self.next_expiry, sub.expires);
        self.by_channel.insert(channel, sub);
    }

    pub fn remove(&mut self, channel: &str) -> Option<(Arc<str>, Sub)> {
        let removed = self.by_channel.remove_entry(channel);
        if removed.as_ref().is_some_and(|(_, sub)| sub.expires.is_some()) {
            self.find_next_expiry();
        }
        removed
    }

    pub fn set_expiry(&mut self, channel: &str, expires: Option<Instant>) {
        if let Some(sub) = self.by_channel.get_mut(channel) {
            sub.expires = expires;
            self.find_next_expiry();
        }
    }

    pub fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// Takes the deadline off those whose time was up at `then`, and names them.
    pub fn take_expired(&mut self, then: Instant) -> Vec<(Arc<str>, Ticket)> {
        let due = |sub: &Sub| sub.expires.is_some_and(|at| at <= then);
        let mut expired = Vec::new();
        for (channel, sub) in self.by_channel.iter_mut().filter(|(_, sub)| due(sub)) {
            sub.expires = None;
            expired.push((channel.clone(), sub.ticket));
        }
        self.find_next_expiry();
        expired
    }

    pub fn any(&self) -> Option<Arc<str>> {
        self.by_channel.keys().next().cloned()
    }

    /// Channels that the connection token brought.
    pub fn brought_by_token(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_channel.iter().filter(|(_, sub)| sub.origin == Origin::Token).map(|(channel, _)| channel)
    }

    fn find_next_expiry(&mut self) {
        self.next_expiry = self.by_channel.values().filter_map(|sub| sub.expires).min();
    }
}

pub fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
