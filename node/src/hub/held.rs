//! What waits for a subscriber that may not be given anything live yet, and how it gets there.

use super::channel::{Inner, Outcome, Subscriber};
use super::fanout::Frames;
use crate::session::{Event, Ticket};
use bytes::Bytes;
use weir_wire::envelope::Position;
use weir_wire::id::Epoch;

/// Pushes that may be held back for a subscriber whose reply is not written yet.
const HELD: usize = 512;
const HELD_BYTES: usize = 1 << 20;

/// What waits for a subscriber's reply, or for the end of what it missed, to be written.
#[derive(Default)]
pub(super) struct Held {
    frames: Vec<(u64, Bytes)>,
    bytes: usize,
    /// The newest publication of a channel where only that one counts.
    newest: Option<Bytes>,
    /// More came than is held: the stream has it.
    pub overflown: bool,
    /// The reply is written: what is in no stream need not wait.
    pub replied: bool,
    /// Something is missing for good: the subscription begins with its end.
    pub lost: bool,
}

/// What a subscriber's way to live deliveries came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// Or it is gone.
    Live,
    /// Its stream has more than could be held; it is read from here on.
    Behind(Position),
    /// Something is missing; the subscriber is removed and must be told.
    Lost,
}

impl Inner {
    /// The reply is written: what was held back follows it, and then everything as it comes.
    pub fn go_live(&mut self, slot: u32, ticket: Ticket) -> Went {
        let epoch = self.mark().map(|mark| mark.epoch);
        let Some(subscriber) = self.get(slot, ticket) else { return Went::Live };
        let Some(held) = subscriber.held.take() else { return Went::Live };
        let outbox = &subscriber.client.outbox;
        match epoch {
            _ if held.lost => {}
            // What is held is no sign of slowness either.
            Some(epoch) if held.overflown || held.bytes > outbox.room() => {
                for (_, frame) in held.frames.into_iter().filter(|(offset, _)| *offset == 0) {
                    let _or_lost = frame.len() <= outbox.room() && outbox.add(frame);
                }
                subscriber.held = Some(Box::new(Held { replied: true, ..Held::default() }));
                return Went::Behind(Position { epoch, offset: subscriber.from });
            }
            None if held.overflown => {}
            _ => {
                let new = |offset: &u64| *offset == 0 || *offset > subscriber.from;
                for (_, frame) in held.frames.into_iter().filter(|(offset, _)| new(offset)) {
                    outbox.add(frame);
                }
                if let Some(frame) = held.newest {
                    outbox.add(frame);
                }
                return Went::Live;
            }
        }
        self.remove(slot, ticket);
        Went::Lost
    }

    /// Holds back anew what comes from now on; all before, up to the offset that is returned or further, is about to be
    /// read from the stream. `None`: the subscriber is gone.
    pub fn hold_anew(&mut self, slot: u32, ticket: Ticket) -> Option<u64> {
        let mark = self.mark().map_or(0, |mark| mark.offset);
        self.get(slot, ticket)?.held = Some(Box::new(Held { replied: true, ..Held::default() }));
        Some(mark)
    }

    /// The subscriber has been given the stream up to `at`, and that is all there was of it when what is held began:
    /// live from there, unless more came meanwhile than could be held.
    pub fn caught_up(&mut self, slot: u32, ticket: Ticket, at: Position) -> Went {
        let same = self.mark().is_some_and(|mark| mark.epoch == at.epoch);
        let Some(subscriber) = self.get(slot, ticket) else { return Went::Live };
        subscriber.from = at.offset;
        match &subscriber.held {
            // Whether something is lost for good is for the stream to say.
            Some(held) if held.lost || !same => Went::Behind(at),
            _ => self.go_live(slot, ticket),
        }
    }

    /// As [`Inner::push`], of what was read from the stream at once: who has no room for it is not too slow, but goes
    /// on at his own pace.
    pub(super) fn push_history(&mut self, frames: &Frames, epoch: Epoch, outcome: &mut Outcome) {
        let offset = frames.offset();
        for subscriber in self.slots.iter_mut().flatten() {
            let Subscriber { client, held, from, ticket, .. } = subscriber;
            let enough = frames.get(client.format).len() + client.outbox.limit() / 2 <= client.outbox.room();
            if enough || held.is_some() || offset <= *from {
                continue;
            }
            *held = Some(Box::new(Held { replied: true, overflown: true, ..Held::default() }));
            let (at, ticket) = (Position { epoch, offset: offset - 1 }, *ticket);
            client.post(Event::Behind { channel: self.name.clone(), ticket, at });
        }
        self.push(frames, outcome);
    }
}

impl Held {
    pub fn replace(&mut self, frame: Bytes) {
        self.newest = Some(frame);
    }

    pub fn push(&mut self, offset: u64, frame: Bytes) {
        self.bytes += frame.len();
        if self.frames.len() == HELD || self.bytes > HELD_BYTES {
            self.overflown = true;
            self.frames = Vec::new();
        }
        if !self.overflown {
            self.frames.push((offset, frame));
        }
    }
}
