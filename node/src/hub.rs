//! Who is connected to this node and who listens to what: connections by client id and by user,
//! subscribers by channel, and the fan-out of what the bus delivers.
//!
//! Maps are sharded (dashmap); a guard of theirs is never held across an await or a fan-out: an
//! `Arc` is cloned out first. A channel's subscribers, mark and order are under its own lock.

mod catch_up;
mod channel;
mod fanout;
mod fill;
mod flow;
mod held;
mod herald;
mod pages;
mod subscribe;

pub use catch_up::{Behind, Piece};
pub use channel::Channel;
use channel::{Datagrams, Outcome};
use held::Went;

use crate::client::{Client, SubRef};
use crate::interest::Janitor;
use crate::metrics::Metrics;
use crate::rates::Kind as Rate;
use crate::session::{Event, Ticket};
use dashmap::DashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use weir_broker::{Bus, BusError};
use weir_core::limited;
use weir_core::sync::lock;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{Delivery, Position, Target};

/// Holes that are being filled at once; others wait for a place.
const FILLS: usize = 64;
/// Parts of streams that are being read at once for clients, with some megabytes each at most.
const READS: usize = 32;

pub struct Hub {
    clients: DashMap<Arc<str>, Arc<Client>>,
    /// Named users only; who has no name is found by client id.
    users: DashMap<Arc<str>, Vec<Arc<Client>>>,
    pub channels: DashMap<Arc<str>, Arc<Channel>>,
    bus: OnceLock<Arc<dyn Bus>>,
    janitor: OnceLock<Janitor>,
    anonymous: AtomicUsize,
    tickets: AtomicU64,
    fills: Semaphore,
    reads: Semaphore,
    max_per_user: usize,
    /// Of joins and leaves.
    window: Duration,
    /// Of a whole subscribe, several bus calls together.
    deadline: Duration,
    pub metrics: Arc<Metrics>,
}

impl Hub {
    pub fn new(max_per_user: usize, bus_timeout: Duration, window: Duration, metrics: Arc<Metrics>) -> Hub {
        Hub {
            clients: DashMap::new(),
            users: DashMap::new(),
            channels: DashMap::new(),
            bus: OnceLock::new(),
            janitor: OnceLock::new(),
            anonymous: AtomicUsize::new(0),
            tickets: AtomicU64::new(1),
            fills: Semaphore::new(FILLS),
            reads: Semaphore::new(READS),
            max_per_user,
            window,
            deadline: bus_timeout * 2,
            metrics,
        }
    }

    /// Both come when the node starts to run; before, there is no client.
    pub fn start(&self, bus: Arc<dyn Bus>, janitor: Janitor) {
        let _ = self.bus.set(bus);
        let _ = self.janitor.set(janitor);
    }

    pub fn bus(&self) -> Result<&Arc<dyn Bus>, BusError> {
        self.bus.get().ok_or(BusError::Unavailable("the node is starting"))
    }

    pub fn bus_is_up(&self) -> bool {
        self.bus.get().is_some_and(|bus| bus.is_up())
    }

    pub fn janitor(&self) -> Option<&Janitor> {
        self.janitor.get()
    }

    /// Takes a connected client in. False: its user has as many connections as he may.
    pub fn register(&self, client: &Arc<Client>, user: Arc<str>) -> bool {
        if user.is_empty() {
            self.anonymous.fetch_add(1, Ordering::Relaxed);
        } else {
            let mut of_user = self.users.entry(user.clone()).or_default();
            if self.max_per_user > 0 && of_user.len() >= self.max_per_user {
                return false;
            }
            of_user.push(client.clone());
        }
        client.set_user(user);
        self.clients.insert(client.id.clone(), client.clone());
        true
    }

    /// Undoes all that a client has here. Gives the channels in which a membership is left to end.
    pub fn disconnect(&self, client: &Arc<Client>) -> Vec<Arc<str>> {
        let memberships = self.drop_all(client);
        let Some(user) = client.user() else { return memberships };
        if self.clients.remove(&client.id).is_none() {
            return memberships;
        }
        if user.is_empty() {
            self.anonymous.fetch_sub(1, Ordering::Relaxed);
            return memberships;
        }
        if let Some(mut of_user) = self.users.get_mut(user) {
            of_user.retain(|c| !Arc::ptr_eq(c, client));
        }
        self.users.remove_if(user, |_, of_user| of_user.is_empty());
        memberships
    }

    /// Ends all subscriptions of a client; gives the channels with a membership.
    pub fn drop_all(&self, client: &Arc<Client>) -> Vec<Arc<str>> {
        let subs = std::mem::take(&mut *lock(&client.subs));
        let mut memberships = Vec::new();
        for sub in subs {
            self.remove(&sub);
            if sub.member {
                memberships.push(sub.channel.name.clone());
            }
        }
        memberships
    }

    /// Ends one subscription: no push of it from now on. A membership is the caller's to end.
    pub fn drop_sub(&self, client: &Arc<Client>, channel: &str) -> bool {
        let sub = {
            let mut subs = lock(&client.subs);
            let at = subs.iter().position(|s| *s.channel.name == *channel);
            at.map(|at| subs.swap_remove(at))
        };
        sub.is_some_and(|sub| {
            self.remove(&sub);
            sub.member
        })
    }

    fn remove(&self, sub: &SubRef) {
        lock(&sub.channel.inner).remove(sub.slot, sub.ticket);
        self.metrics.subscriptions.dec();
        if sub.channel.is_empty() {
            self.release_later(&sub.channel);
        }
    }

    /// Nobody listens: the interest ends after a while, unless somebody comes.
    fn release_later(&self, channel: &Arc<Channel>) {
        if let Some(janitor) = self.janitor.get() {
            janitor.release(channel);
        }
    }

    /// A client asks for a name that nobody has here.
    pub fn take_new(&self, client: &Client) -> Result<(), ErrorCode> {
        let Some(meter) = &client.meter else { return Ok(()) };
        meter.take(Rate::NewChannel, crate::conn::now().at).map_err(|refused| {
            self.metrics.rate_refused(refused, client);
            ErrorCode::TOO_MANY_REQUESTS
        })
    }

    /// Ends the interest in a channel that still has no subscriber.
    pub async fn release(&self, channel: &Arc<Channel>) {
        let mut interest = channel.interest.lock().await;
        channel.end_linger();
        if !channel.is_empty() || interest.removed {
            return;
        }
        if interest.asked {
            let Ok(bus) = self.bus() else { return };
            if let Err(error) = bus.unsubscribe(channel.name.to_string()).await {
                // The channel stays as it is, usable; the next sweep tries again.
                tracing::debug!(channel = &*channel.name, %error, "cannot end the interest yet");
                return;
            }
            if interest.held {
                self.metrics.channels.dec();
            }
        }
        interest.removed = true;
        self.forget(channel);
    }

    /// The reply is in the outbox: what was held back follows it. Gives what has to be read from the stream before.
    pub fn go_live(&self, client: &Arc<Client>, channel: &Arc<str>, ticket: Ticket) -> Option<Behind> {
        let (found, slot) = self.subscription(client, channel, ticket)?;
        let went = lock(&found.inner).go_live(slot, ticket);
        self.went(client, channel, ticket, went)
    }

    fn went(&self, client: &Arc<Client>, channel: &Arc<str>, ticket: Ticket, went: Went) -> Option<Behind> {
        match went {
            Went::Live => None,
            Went::Behind(at) => Some(Behind { channel: channel.clone(), ticket, at }),
            Went::Lost => {
                client.post(Event::Insufficient { channel: channel.clone(), ticket });
                None
            }
        }
    }

    /// Whether `ticket` is the subscription that this client has now.
    pub fn has_ticket(&self, client: &Client, channel: &str, ticket: Ticket) -> bool {
        self.subscription(client, channel, ticket).is_some()
    }

    fn subscription(&self, client: &Client, channel: &str, ticket: Ticket) -> Option<(Arc<Channel>, u32)> {
        let subs = lock(&client.subs);
        let sub = subs.iter().find(|s| s.ticket == ticket && *s.channel.name == *channel)?;
        Some((sub.channel.clone(), sub.slot))
    }

    /// One delivery of the bus, to all whom it concerns.
    pub fn deliver(self: &Arc<Self>, delivery: Delivery) {
        self.metrics.publications.inc();
        // Unknown: the last subscriber left, and the bus has not heard of it yet.
        let Some(channel) = self.channel(&delivery.channel) else { return };
        let outcome = lock(&channel.inner).deliver(delivery);
        self.settle(&channel, outcome);
    }

    /// Deliveries of this channel may be missing up to `top`.
    pub fn resync(self: &Arc<Self>, name: &str, top: Option<Position>) {
        self.metrics.resyncs.inc();
        let (Some(channel), Some(top)) = (self.channel(name), top) else { return };
        let outcome = lock(&channel.inner).resync(top);
        self.settle(&channel, outcome);
    }

    fn settle(self: &Arc<Self>, channel: &Arc<Channel>, outcome: Outcome) {
        self.count(channel, &outcome);
        if let Some(fill) = outcome.fill {
            tokio::spawn(fill::run(self.clone(), channel.clone(), fill));
        }
        if let Some(closes) = outcome.window {
            // One for each channel at most.
            let (hub, channel) = (self.clone(), channel.clone());
            tokio::spawn(async move {
                tokio::time::sleep_until(closes.into()).await;
                let outcome = lock(&channel.inner).end_window();
                hub.count(&channel, &outcome);
            });
        }
    }

    fn count(&self, channel: &Channel, outcome: &Outcome) {
        self.metrics.deliveries.inc_by(outcome.delivered);
        let Datagrams { sent, too_large, unsupported, closed } = outcome.datagrams;
        let datagrams =
            [("sent", sent), ("too_large", too_large), ("unsupported", unsupported), ("closed", closed)];
        for (outcome, n) in datagrams.into_iter().filter(|(_, n)| *n > 0) {
            self.metrics.datagrams(outcome, n);
        }
        if outcome.gave_up {
            self.metrics.gap("unfillable");
            let (channel, ended) = (&*channel.name, outcome.insufficient);
            limited!(
                warn,
                "lost the place in a stream",
                channel,
                ended,
                "lost the place in a stream: its positioned subscribers are told"
            );
        }
    }

    /// A client here asks who is in a channel.
    pub fn presence_asked(&self, name: &str) {
        if let Some(channel) = self.channel(name) {
            lock(&channel.inner).presence_asked();
        }
    }

    fn channel(&self, name: &str) -> Option<Arc<Channel>> {
        self.channels.get(name).map(|c| c.clone())
    }

    /// An event for every connection that a command is for.
    pub fn post(&self, target: &Target, except: &[String], event: &Event) {
        let matches = |client: &Client| {
            let of_user = target.user.is_empty() || client.user().is_some_and(|u| **u == *target.user);
            of_user && !except.iter().any(|id| **id == *client.id)
        };
        let clients: Vec<Arc<Client>> = if !target.client.is_empty() {
            self.clients.get(target.client.as_str()).map(|c| c.clone()).into_iter().collect()
        } else {
            self.users.get(target.user.as_str()).map(|of_user| of_user.clone()).unwrap_or_default()
        };
        for client in clients.iter().filter(|c| matches(c)) {
            client.post(event.clone());
        }
    }

    pub fn is_subscribed(&self, client: &str, channel: &str) -> bool {
        let Some(client) = self.clients.get(client).map(|c| c.clone()) else { return false };
        lock(&client.subs).iter().any(|sub| *sub.channel.name == *channel)
    }

    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    pub fn users(&self) -> usize {
        self.users.len() + usize::from(self.anonymous.load(Ordering::Relaxed) > 0)
    }

    /// Channels with subscribers here, and how many.
    pub fn channel_counts(&self) -> Vec<(Arc<str>, u32)> {
        let channels: Vec<Arc<Channel>> = self.channels.iter().map(|c| c.clone()).collect();
        let count = |channel: Arc<Channel>| {
            let subscribers = lock(&channel.inner).subscribers() as u32;
            (channel.name.clone(), subscribers)
        };
        channels.into_iter().map(count).filter(|(_, n)| *n > 0).collect()
    }

    /// Bytes that wait for all clients together; walks over them.
    pub fn outbox_bytes(&self) -> usize {
        self.clients.iter().map(|c| c.outbox.waiting() + c.beside()).sum()
    }
}

/// What a client is told when the bus fails: everything worth a retry is 100.
pub fn bus_error(error: &BusError) -> ErrorCode {
    match error {
        BusError::Unavailable(_) => ErrorCode::INTERNAL,
        BusError::Limit(_) => ErrorCode::LIMIT_EXCEEDED,
        BusError::Refused(reason) => {
            limited!(error, "the broker refused a call", %reason, "the broker refused a call");
            ErrorCode::INTERNAL
        }
    }
}

#[cfg(test)]
mod tests;
