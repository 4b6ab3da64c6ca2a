//! How far a channel's stream has been delivered on this node.
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
//! Pure, and under the channel's lock; fetching is [`super::fill`]'s.

use super::channel::{Fill, Inner, Outcome};
use super::fanout::Frames;
use super::herald::Change;
use std::collections::VecDeque;
use weir_wire::envelope::{Body, Delivery, History, Position, Publication};

/// Deliveries that may wait for a hole to be filled, by number and bytes.
const WAITING: usize = 1024;
const WAITING_BYTES: usize = 4 << 20;

pub(super) enum Flow {
    Opening { waiting: VecDeque<Delivery> },
    Plain,
    Flowing { mark: Position },
    Filling(Box<Filling>),
}

pub(super) struct Filling {
    pub(super) mark: Position,
    /// Known to exist up to here.
    target: u64,
    waiting: VecDeque<Delivery>,
    bytes: usize,
    /// Tells one fill from a later one of the same channel.
    round: u64,
}

impl Inner {
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

    pub fn deliver(&mut self, delivery: Delivery) -> Outcome {
        let mut outcome = Outcome::default();
        match (delivery.body, delivery.epoch) {
            (Body::Publication(publication), Some(epoch)) => {
                let at = Position { epoch, offset: publication.offset };
                let body = Body::Publication(publication);
                self.deliver_at(at, Delivery { body, ..delivery }, &mut outcome);
            }
            (Body::Publication(publication), None) => {
                self.push(&Frames::publication(&self.name, publication, None), &mut outcome);
            }
            (Body::Join(info), _) => self.announce(Change { info, joined: true }, &mut outcome),
            (Body::Leave(info), _) => self.announce(Change { info, joined: false }, &mut outcome),
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
            Flow::Plain => self.push_delivery(delivery, outcome),
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
                self.push_delivery(delivery, outcome);
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
                self.push_delivery(delivery, outcome);
            }
        }
    }

    fn push_delivery(&mut self, delivery: Delivery, outcome: &mut Outcome) {
        if let Body::Publication(publication) = delivery.body {
            self.push(&Frames::publication(&self.name, publication, delivery.epoch), outcome);
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
            let frames = Frames::publication(&self.name, publication, Some(mark.epoch));
            self.push_history(&frames, mark.epoch, &mut outcome);
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
            outcome.datagrams.add(one.datagrams);
            outcome.insufficient += one.insufficient;
            outcome.gave_up |= one.gave_up;
            outcome.fill = one.fill.or(outcome.fill.take());
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
