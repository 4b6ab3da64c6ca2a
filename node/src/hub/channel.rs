//! One channel on this node: its subscribers, and what is put into their outboxes.
//!
//! How far the stream has been delivered, and what happens in a hole, is in [`super::flow`].
//! Everything in both is pure and under the channel's own lock.

use super::fanout::Frames;
use super::flow::Flow;
use super::held::Held;
use super::herald::{Change, Herald, Verdict};
use crate::client::Client;
use crate::session::{Event, Ticket};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use weir_core::accept::NoDatagram;
use weir_core::sync::lock;
use weir_wire::envelope::{Position, StreamOptions};

/// Joins and leaves in one frame.
const AT_ONCE: usize = 100;

fn now() -> Instant {
    crate::conn::now().at
}

pub struct Channel {
    pub name: Arc<str>,
    /// How its stream is kept; `None`: it keeps none.
    pub(super) stream: Option<StreamOptions>,
    /// Serialises what is said to the bus about this channel.
    pub(super) interest: tokio::sync::Mutex<Interest>,
    pub(super) inner: Mutex<Inner>,
}

#[derive(Default)]
pub(super) struct Interest {
    /// The bus was told, or may have been.
    pub asked: bool,
    /// The bus agreed.
    pub held: bool,
    /// No longer in the hub's map: look again there.
    pub removed: bool,
}

pub(super) struct Inner {
    pub(super) name: Arc<str>,
    pub(super) slots: Vec<Option<Subscriber>>,
    free: Vec<u32>,
    pub(super) flow: Flow,
    /// Publications go as datagrams to clients that take them.
    by_datagram: bool,
    herald: Herald,
    /// Stands in the queue of those without subscribers.
    pub lingering: bool,
}

pub(super) struct Subscriber {
    pub(super) client: Arc<Client>,
    pub(super) ticket: Ticket,
    positioned: bool,
    join_leave: bool,
    /// Up to here the client knows the stream already.
    pub(super) from: u64,
    /// `Some`: the reply is not written yet, so nothing may be pushed.
    pub(super) held: Option<Box<Held>>,
}

/// What the caller has to do after the lock is released.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub delivered: u64,
    pub datagrams: Datagrams,
    /// Fetch history since this mark, and bring it to [`Inner::filled`].
    pub fill: Option<Fill>,
    /// Joins and leaves wait until then: [`Inner::end_window`].
    pub window: Option<Instant>,
    /// Positioned subscriptions that were ended.
    pub insufficient: u64,
    /// A hole was given up.
    pub gave_up: bool,
}

/// What became of publications for clients that take datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Datagrams {
    pub sent: u64,
    /// These two went by the stream.
    pub too_large: u64,
    pub unsupported: u64,
    /// The session has ended.
    pub closed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fill {
    pub since: Position,
    pub round: u64,
}

pub(super) struct NewSubscriber {
    pub client: Arc<Client>,
    pub ticket: Ticket,
    pub positioned: bool,
    pub join_leave: bool,
}

impl Channel {
    pub fn new(
        name: Arc<str>,
        stream: Option<StreamOptions>,
        by_datagram: bool,
        window: Duration,
    ) -> Channel {
        let flow = Flow::Opening { waiting: Default::default() };
        let (name_of_inner, slots, free) = (name.clone(), Vec::new(), Vec::new());
        let herald = Herald::new(window);
        let inner = Inner { name: name_of_inner, slots, free, flow, by_datagram, herald, lingering: false };
        Channel { name, stream, interest: Default::default(), inner: Mutex::new(inner) }
    }

    /// True: it was not lingering before, and is now.
    pub fn linger(&self) -> bool {
        !std::mem::replace(&mut lock(&self.inner).lingering, true)
    }

    pub fn end_linger(&self) {
        lock(&self.inner).lingering = false;
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.inner).subscribers() == 0
    }

    /// Whether the bus has ever answered that this node is subscribed.
    pub fn was_open(&self) -> bool {
        !matches!(lock(&self.inner).flow, Flow::Opening { .. })
    }
}

impl Inner {
    pub fn subscribers(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn mark(&self) -> Option<Position> {
        match &self.flow {
            Flow::Opening { .. } | Flow::Plain => None,
            Flow::Flowing { mark } => Some(*mark),
            Flow::Filling(filling) => Some(filling.mark),
        }
    }

    /// Adds a subscriber that gets nothing before [`Inner::go_live`].
    pub fn add(&mut self, new: NewSubscriber) -> (u32, Option<Position>) {
        let mark = self.mark();
        let subscriber = Subscriber {
            client: new.client,
            ticket: new.ticket,
            positioned: new.positioned,
            join_leave: new.join_leave,
            from: mark.map_or(0, |m| m.offset),
            held: Some(Box::default()),
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(subscriber);
                slot
            }
            None => {
                self.slots.push(Some(subscriber));
                (self.slots.len() - 1) as u32
            }
        };
        (slot, mark)
    }

    /// The subscriber knows the stream up to `from`: it was sent that as history.
    pub fn set_from(&mut self, slot: u32, ticket: Ticket, from: Position) {
        let epoch = self.mark().map(|m| m.epoch);
        if let Some(subscriber) = self.get(slot, ticket) {
            subscriber.from = from.offset;
            if epoch != Some(from.epoch)
                && let Some(held) = &mut subscriber.held
            {
                held.lost = true;
            }
        }
    }

    pub fn remove(&mut self, slot: u32, ticket: Ticket) -> bool {
        if self.get(slot, ticket).is_none() {
            return false;
        }
        self.slots[slot as usize] = None;
        self.free.push(slot);
        if self.free.len() == self.slots.len() {
            // Empty: give back what a crowd had made it grow to.
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        true
    }

    pub(super) fn get(&mut self, slot: u32, ticket: Ticket) -> Option<&mut Subscriber> {
        self.slots.get_mut(slot as usize)?.as_mut().filter(|s| s.ticket == ticket)
    }

    pub(super) fn new_epoch(&mut self, outcome: &mut Outcome) {
        outcome.gave_up = true;
        self.insufficient(outcome);
        for subscriber in self.slots.iter_mut().flatten() {
            subscriber.from = 0;
        }
    }

    /// Ends every positioned subscription: its client is told and gets nothing more.
    pub(super) fn insufficient(&mut self, outcome: &mut Outcome) {
        for slot in 0..self.slots.len() {
            let Some(subscriber) = self.slots.get_mut(slot).and_then(Option::as_mut) else { continue };
            if !subscriber.positioned {
                continue;
            }
            outcome.insufficient += 1;
            if let Some(held) = &mut subscriber.held {
                held.lost = true;
                continue;
            }
            let (client, ticket) = (subscriber.client.clone(), subscriber.ticket);
            self.remove(slot as u32, ticket);
            client.post(Event::Insufficient { channel: self.name.clone(), ticket });
        }
    }

    /// A join or leave: told at once, or with others when the window ends.
    pub(super) fn announce(&mut self, change: Change, outcome: &mut Outcome) {
        match self.herald.on(change, now()) {
            Verdict::Now(change) => self.push(&Frames::changes(&self.name, [change]), outcome),
            Verdict::Waits => {}
            Verdict::WaitsUntil(closes) => outcome.window = Some(closes),
            Verdict::Full => self.tell(outcome),
        }
    }

    /// The window of joins and leaves is over.
    pub fn end_window(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        self.tell(&mut outcome);
        outcome
    }

    fn tell(&mut self, outcome: &mut Outcome) {
        let changes = self.herald.take(now());
        for some in changes.chunks(AT_ONCE) {
            self.push(&Frames::changes(&self.name, some.to_vec()), outcome);
        }
    }

    /// Somebody here asks who is there.
    pub fn presence_asked(&mut self) {
        self.herald.asked(now());
    }

    /// Puts a push into the outboxes of all whom it concerns, or sends it past them.
    pub(super) fn push(&mut self, frames: &Frames, outcome: &mut Outcome) {
        let (offset, only_join_leave) = (frames.offset(), frames.is_join_leave());
        let by_datagram = self.by_datagram && !only_join_leave;
        for subscriber in self.slots.iter_mut().flatten() {
            if only_join_leave && !subscriber.join_leave || offset != 0 && offset <= subscriber.from {
                continue;
            }
            let client = &subscriber.client;
            let frame = frames.get(client.format);
            let by_datagram = by_datagram && client.takes_datagrams();
            match &mut subscriber.held {
                // Behind the reply, on the stream.
                Some(held) if by_datagram => held.replace(frame),
                Some(held) if offset != 0 || !held.replied => held.push(offset, frame),
                Some(_) => outcome.delivered += u64::from(client.outbox.push(frame)),
                None if by_datagram && outcome.datagrams.send(client, &frame) => outcome.delivered += 1,
                None => outcome.delivered += u64::from(client.outbox.push(frame)),
            }
        }
    }
}

impl Datagrams {
    /// False: the stream has to carry it.
    fn send(&mut self, client: &Client, frame: &Bytes) -> bool {
        match client.send_datagram(frame) {
            Ok(()) => self.sent += 1,
            Err(NoDatagram::Closed) => self.closed += 1,
            Err(NoDatagram::TooLarge) => {
                self.too_large += 1;
                return false;
            }
            Err(NoDatagram::Unsupported) => {
                self.unsupported += 1;
                return false;
            }
        }
        true
    }

    pub fn add(&mut self, other: Datagrams) {
        self.sent += other.sent;
        self.too_large += other.too_large;
        self.unsupported += other.unsupported;
        self.closed += other.closed;
    }
}
