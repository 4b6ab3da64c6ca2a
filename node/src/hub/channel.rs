//! One channel on this node: its subscribers, and how far its stream has been delivered.
//!
//! ```text
//!              bus.subscribe answered         a hole, or a resync ahead of the mark
//!   Opening ──────────────────────► Flowing ◄──────────────────────────────────────► Filling
//!      └──► Plain (no stream)                 filled, or given up (insufficient state)
//! ```
//!
//! The *mark* is the last position delivered. At or below it a delivery is dropped; the next one
//! is delivered; beyond it is a hole: then deliveries wait while history is fetched since the
//! mark, and are merged behind it. What cannot be filled ends the positioned subscriptions (they
//! are told) and skips ahead for the others.
//!
//! Everything here is pure and under the channel's own lock; fetching is [`super::fill`]'s.

use super::fanout::Frames;
use crate::client::Client;
use crate::session::{Event, Ticket};
use crate::sync::lock;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use weir_wire::envelope::{Body, Delivery, History, Position, Publication, StreamOptions};

/// Deliveries that may wait for a hole to be filled, by number and bytes.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 4 << 20;
/// Pushes that may be held back for a subscriber whose reply is not written yet.
const HELD: usize = 512;
const HELD_BYTES: usize = 1 << 20;

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
    /// The bus was told and agreed.
    pub held: bool,
    /// No longer in the hub's map: look again there.
    pub removed: bool,
}

pub(super) struct Inner {
    name: Arc<str>,
    slots: Vec<Option<Subscriber>>,
    free: Vec<u32>,
    flow: Flow,
    /// Stands in the queue of those without subscribers.
    pub lingering: bool,
}

struct Subscriber {
    client: Arc<Client>,
    ticket: Ticket,
    positioned: bool,
    join_leave: bool,
    /// Up to here the client knows the stream already.
    from: u64,
    /// `Some`: the reply is not written yet, so nothing may be pushed.
    held: Option<Box<Held>>,
}

/// What waits for a subscriber's reply to be written.
#[derive(Default)]
struct Held {
    frames: Vec<(u64, Bytes)>,
    bytes: usize,
    /// Something is missing in it: the subscription begins with its end.
    lost: bool,
}

enum Flow {
    Opening { waiting: VecDeque<Delivery> },
    Plain,
    Flowing { mark: Position },
    Filling(Box<Filling>),
}

struct Filling {
    mark: Position,
    /// Known to exist up to here.
    target: u64,
    waiting: VecDeque<Delivery>,
    bytes: usize,
    /// Tells one fill from a later one of the same channel.
    round: u64,
}

/// What the caller has to do after the lock is released.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub delivered: u64,
    /// Fetch history since this mark, and bring it to [`Inner::filled`].
    pub fill: Option<Fill>,
    /// Positioned subscriptions that were ended.
    pub insufficient: u64,
    /// A hole was given up.
    pub gave_up: bool,
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
    pub fn new(name: Arc<str>, stream: Option<StreamOptions>) -> Channel {
        let flow = Flow::Opening { waiting: VecDeque::new() };
        let inner = Inner { name: name.clone(), slots: Vec::new(), free: Vec::new(), flow, lingering: false };
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
}

impl Inner {
    pub fn subscribers(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The bus took the interest: the stream's top, if there is a stream.
    pub fn opened(&mut self, top: Option<Position>) {
        let Flow::Opening { waiting } = &mut self.flow else { return };
        self.flow = match top {
            None => Flow::Plain,
            Some(mut mark) => {
                // Nobody is subscribed yet: what came meanwhile only moves the mark.
                for delivery in waiting.drain(..) {
                    if let (Some(epoch), Body::Publication(p)) = (delivery.epoch, &delivery.body)
                        && epoch == mark.epoch
                    {
                        mark.offset = mark.offset.max(p.offset);
                    }
                }
                Flow::Flowing { mark }
            }
        };
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

    /// The reply is written: what was held back follows it, and then everything as it comes.
    /// False: something is missing; the subscriber is removed and must be told.
    pub fn go_live(&mut self, slot: u32, ticket: Ticket) -> bool {
        let Some(subscriber) = self.get(slot, ticket) else { return true };
        let Some(held) = subscriber.held.take() else { return true };
        if held.lost {
            self.remove(slot, ticket);
            return false;
        }
        for (offset, frame) in held.frames {
            if offset == 0 || offset > subscriber.from {
                subscriber.client.outbox.add(frame);
            }
        }
        true
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

    fn get(&mut self, slot: u32, ticket: Ticket) -> Option<&mut Subscriber> {
        self.slots.get_mut(slot as usize)?.as_mut().filter(|s| s.ticket == ticket)
    }

    pub fn deliver(&mut self, delivery: Delivery) -> Outcome {
        let mut outcome = Outcome::default();
        match (&delivery.body, delivery.epoch) {
            (Body::Publication(publication), Some(epoch)) => {
                let at = Position { epoch, offset: publication.offset };
                self.deliver_at(at, delivery, &mut outcome);
            }
            _ => outcome.delivered += self.push(&Frames::new(&self.name, &delivery)),
        }
        outcome
    }

    fn deliver_at(&mut self, at: Position, delivery: Delivery, outcome: &mut Outcome) {
        match &mut self.flow {
            Flow::Opening { waiting } => {
                if waiting.len() == WAITING {
                    waiting.pop_front();
                }
                waiting.push_back(delivery);
            }
            Flow::Plain => outcome.delivered += self.push(&Frames::new(&self.name, &delivery)),
            Flow::Filling(filling) => {
                filling.bytes += size(&delivery);
                filling.waiting.push_back(delivery);
                if filling.waiting.len() > WAITING || filling.bytes > WAITING_BYTES {
                    self.give_up(outcome);
                }
            }
            Flow::Flowing { mark } if mark.epoch == at.epoch && at.offset <= mark.offset => {}
            Flow::Flowing { mark } if mark.epoch == at.epoch && at.offset == mark.offset + 1 => {
                mark.offset = at.offset;
                outcome.delivered += self.push(&Frames::new(&self.name, &delivery));
            }
            Flow::Flowing { mark } if mark.epoch == at.epoch => {
                let mark = *mark;
                if self.subscribers() == 0 {
                    self.flow = Flow::Flowing { mark: at };
                    return;
                }
                let bytes = size(&delivery);
                self.start_filling(mark, at.offset, VecDeque::from([delivery]), bytes, outcome);
            }
            Flow::Flowing { mark } => {
                *mark = at;
                self.new_epoch(outcome);
                outcome.delivered += self.push(&Frames::new(&self.name, &delivery));
            }
        }
    }

    /// The bus may have lost deliveries up to `top`.
    pub fn resync(&mut self, top: Position) -> Outcome {
        let mut outcome = Outcome::default();
        match &mut self.flow {
            Flow::Opening { .. } | Flow::Plain => {}
            Flow::Flowing { mark } if mark.epoch != top.epoch => {
                *mark = top;
                self.new_epoch(&mut outcome);
            }
            Flow::Flowing { mark } if top.offset <= mark.offset => {}
            Flow::Flowing { mark } => {
                let mark = *mark;
                if self.subscribers() == 0 {
                    self.flow = Flow::Flowing { mark: top };
                } else {
                    self.start_filling(mark, top.offset, VecDeque::new(), 0, &mut outcome);
                }
            }
            Flow::Filling(filling) if filling.mark.epoch == top.epoch => {
                filling.target = filling.target.max(top.offset);
            }
            Flow::Filling(filling) => {
                // What waits is of the old epoch, or comes again from history: begin anew.
                let waiting = std::mem::take(&mut filling.waiting);
                self.flow = Flow::Flowing { mark: top };
                self.new_epoch(&mut outcome);
                drop(waiting);
            }
        }
        outcome
    }

    fn start_filling(
        &mut self,
        mark: Position,
        target: u64,
        waiting: VecDeque<Delivery>,
        bytes: usize,
        outcome: &mut Outcome,
    ) {
        let round = rand::random();
        self.flow = Flow::Filling(Box::new(Filling { mark, target, waiting, bytes, round }));
        outcome.fill = Some(Fill { since: mark, round });
    }

    /// Whether the fill `round` is still wanted, and since where.
    pub fn wants(&self, round: u64) -> Option<Position> {
        match &self.flow {
            Flow::Filling(filling) if filling.round == round => Some(filling.mark),
            _ => None,
        }
    }

    /// History since the mark has come: delivers it, then what waits. `fill` in the outcome: the
    /// hole goes on, fetch more.
    pub fn filled(&mut self, round: u64, history: History) -> Outcome {
        let mut outcome = Outcome::default();
        let Flow::Filling(filling) = &mut self.flow else { return outcome };
        if filling.round != round {
            return outcome;
        }
        if history.top.epoch != filling.mark.epoch {
            let (waiting, old) = (std::mem::take(&mut filling.waiting), filling.mark.epoch);
            self.flow = Flow::Flowing { mark: history.top };
            self.new_epoch(&mut outcome);
            self.redeliver(waiting.into_iter().filter(|d| d.epoch != Some(old)), &mut outcome);
            return outcome;
        }
        let (mut mark, before) = (filling.mark, filling.mark);
        let target = filling.target.max(history.top.offset);
        for publication in history.publications {
            if publication.offset <= mark.offset {
                continue;
            }
            if publication.offset != mark.offset + 1 {
                self.insufficient(&mut outcome);
            }
            mark.offset = publication.offset;
            outcome.delivered += self.push(&Frames::publication(&self.name, publication, Some(mark.epoch)));
        }
        let Flow::Filling(filling) = &mut self.flow else { return outcome };
        let next = filling.waiting.front().and_then(offset).unwrap_or(u64::MAX);
        if mark.offset < target && mark.offset + 1 < next {
            if mark == before {
                // Not in history any more: no further question would bring it.
                filling.mark = mark;
                self.give_up(&mut outcome);
            } else {
                filling.mark = mark;
                outcome.fill = Some(Fill { since: mark, round });
            }
            return outcome;
        }
        let waiting = std::mem::take(&mut filling.waiting);
        self.flow = Flow::Flowing { mark };
        self.redeliver(waiting.into_iter(), &mut outcome);
        outcome
    }

    /// Gives the hole up: positioned subscriptions end, the others go on with what there is.
    fn give_up(&mut self, outcome: &mut Outcome) {
        let Flow::Filling(filling) = &mut self.flow else { return };
        let (mut mark, waiting) = (filling.mark, std::mem::take(&mut filling.waiting));
        match waiting.front() {
            Some(first) => {
                mark.epoch = first.epoch.unwrap_or(mark.epoch);
                mark.offset = offset(first).unwrap_or(1).saturating_sub(1);
            }
            None => mark.offset = filling.target,
        }
        self.flow = Flow::Flowing { mark };
        outcome.gave_up = true;
        self.insufficient(outcome);
        self.redeliver(waiting.into_iter(), outcome);
    }

    fn redeliver(&mut self, waiting: impl Iterator<Item = Delivery>, outcome: &mut Outcome) {
        for delivery in waiting {
            let one = self.deliver(delivery);
            outcome.delivered += one.delivered;
            outcome.insufficient += one.insufficient;
            outcome.gave_up |= one.gave_up;
            outcome.fill = one.fill.or(outcome.fill.take());
        }
    }

    fn new_epoch(&mut self, outcome: &mut Outcome) {
        outcome.gave_up = true;
        self.insufficient(outcome);
        for subscriber in self.slots.iter_mut().flatten() {
            subscriber.from = 0;
        }
    }

    /// Ends every positioned subscription: its client is told and gets nothing more.
    fn insufficient(&mut self, outcome: &mut Outcome) {
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

    /// Puts a push into the outboxes of all whom it concerns.
    fn push(&mut self, frames: &Frames) -> u64 {
        let (offset, only_join_leave) = (frames.offset(), frames.is_join_leave());
        let mut delivered = 0;
        for subscriber in self.slots.iter_mut().flatten() {
            if only_join_leave && !subscriber.join_leave || offset != 0 && offset <= subscriber.from {
                continue;
            }
            let frame = frames.get(subscriber.client.format);
            match &mut subscriber.held {
                None => delivered += u64::from(subscriber.client.outbox.push(frame)),
                Some(held) => held.push(offset, frame),
            }
        }
        delivered
    }
}

impl Held {
    fn push(&mut self, offset: u64, frame: Bytes) {
        self.bytes += frame.len();
        if self.frames.len() == HELD || self.bytes > HELD_BYTES {
            self.lost = true;
            self.frames = Vec::new();
        }
        if !self.lost {
            self.frames.push((offset, frame));
        }
    }
}

fn offset(delivery: &Delivery) -> Option<u64> {
    match &delivery.body {
        Body::Publication(Publication { offset, .. }) => Some(*offset),
        Body::Join(_) | Body::Leave(_) => None,
    }
}

fn size(delivery: &Delivery) -> usize {
    match &delivery.body {
        Body::Publication(p) => p.data.len() + 64,
        Body::Join(_) | Body::Leave(_) => 64,
    }
}
