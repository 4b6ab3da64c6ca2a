//! What the owner knows of one other holder, and what it sends to it.
//!
//! ```text
//!              it has what comes before `next`
//!   Probe ───────────────────────────────────────► Stream
//!     │  ▲ ◄─────────────────────────────────────── │   a gap, a link that was down
//!     │  │  installed                                │
//!     ▼  │                                           │
//!   Transfer ◄───────────────────────────────────────┘   what it needs is no longer in the window
//! ```

use super::transfer::Outgoing;
use super::{Action, Core, Now};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use weir_wire::id::BrokerId;
use weir_wire::replica::{Ack, Append, Beat, Message, Tenure};

#[derive(Debug)]
pub(super) enum Flow {
    /// One batch at a time, until one fits.
    Probe { sent: Option<Instant> },
    /// One batch after the other, without waiting.
    Stream,
    /// `None`: the state has been asked for and is not there yet.
    Transfer(Option<Outgoing>),
}

/// Why the owner waits for this one's acknowledgements, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    InSync,
    /// The owner wants it in sync: already counts, since the group may say so at any moment.
    Joining,
    CatchingUp,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub id: BrokerId,
    pub member: Member,
    pub flow: Flow,
    /// The size of the state that it was given and whose tail it has not caught up with yet.
    slack: Option<usize>,
    /// The version of the assignment by which it came.
    session: u64,
    /// The next entry to send.
    next: u64,
    matched: u64,
    durable: u64,
    /// Batches that are not acknowledged: their last entry and their bytes.
    flight: VecDeque<(u64, usize)>,
    flight_bytes: usize,
    /// Since when its link is down, and since when it owes an acknowledgement.
    down: Option<Instant>,
    owes: Option<Instant>,
}

impl Peer {
    pub fn new(id: BrokerId, member: Member, session: u64, core: &Core) -> Peer {
        // One in sync has at least what is committed.
        let next = 1 + if member == Member::InSync { core.log.commit() } else { core.log.last().index };
        Peer {
            id,
            member,
            flow: Flow::Probe { sent: None },
            slack: None,
            session,
            next,
            matched: 0,
            durable: 0,
            flight: VecDeque::new(),
            flight_bytes: 0,
            down: None,
            owes: None,
        }
    }

    pub fn is_needed(&self) -> bool {
        self.member != Member::CatchingUp
    }

    pub fn durable(&self) -> u64 {
        self.durable
    }

    pub fn session(&self) -> u64 {
        self.session
    }

    /// In step, or nearly: what it lacks is on its way to it.
    pub fn is_close(&self, core: &Core) -> bool {
        let lag = core.log.last().index.saturating_sub(self.durable) as usize;
        matches!(self.flow, Flow::Stream) && self.down.is_none() && lag <= core.limits.batch_entries
    }

    pub fn is_lost(&self, now: Now, timeout: Duration) -> bool {
        let since =
            |at: Option<Instant>| at.is_some_and(|at| now.at.saturating_duration_since(at) >= timeout);
        since(self.down) || since(self.owes)
    }

    /// Begins to count what it owes, if it owes anything. `again`: from now on.
    pub fn watch(&mut self, core: &Core, now: Now, again: bool) {
        let waits_for_us = matches!(self.flow, Flow::Transfer(None));
        if self.durable >= core.log.last().index || waits_for_us {
            self.owes = None;
        } else if again || self.owes.is_none() {
            self.owes = Some(now.at);
        }
        if again && self.down.is_some() {
            self.down = Some(now.at);
        }
    }

    /// It gets on, though not with acknowledgements.
    pub fn heard(&mut self) {
        (self.down, self.owes) = (None, None);
    }

    pub fn is_down(&self) -> bool {
        self.down.is_some()
    }

    /// It does not answer: nothing is kept for it, and it counts again when it has answered.
    pub fn give_up(&mut self) {
        if self.member != Member::InSync {
            (self.member, self.owes) = (Member::CatchingUp, None);
        }
        self.slack = None;
        if !matches!(self.flow, Flow::Probe { .. }) {
            self.probe(self.durable + 1);
        }
    }

    pub fn link(&mut self, now: Now, up: bool) {
        match up {
            true => self.down = None,
            false if self.down.is_none() => self.down = Some(now.at),
            false => {}
        }
        match &mut self.flow {
            // Goes on where the other end is, after a resend.
            Flow::Transfer(_) => {}
            _ => self.probe(self.durable + 1),
        }
    }

    fn probe(&mut self, next: u64) {
        self.next = next;
        self.flow = Flow::Probe { sent: None };
        self.flight.clear();
        self.flight_bytes = 0;
    }

    /// Takes an answer of this session.
    pub fn acked(&mut self, core: &Core, now: Now, ack: &Ack) {
        self.down = None;
        let last = core.log.last().index;
        let (matched, durable) = (ack.matched.min(last), ack.durable.min(ack.matched).min(last));
        if durable > self.durable {
            self.durable = durable;
            self.owes = None;
        }
        self.matched = self.matched.max(matched);
        while let Some((_, bytes)) = self.flight.pop_front_if(|(index, _)| *index <= matched) {
            self.flight_bytes -= bytes;
        }
        match &self.flow {
            Flow::Transfer(outgoing) => {
                let installed = outgoing.as_ref().is_some_and(|o| matched >= o.at().index);
                if installed || core.log.place(matched).is_some() {
                    self.probe(matched + 1);
                }
            }
            Flow::Probe { sent } if ack.gap => {
                let next = self.rewind_to(core, ack, matched);
                // Two answers to one probe must not become two probes.
                let recent = |at: &Instant| now.at.saturating_duration_since(*at) < core.limits.resend;
                if next != self.next || !sent.as_ref().is_some_and(recent) {
                    self.probe(next);
                }
            }
            Flow::Stream if ack.gap => self.probe(self.rewind_to(core, ack, matched)),
            Flow::Probe { .. } if matched + 1 >= self.next => {
                self.next = matched + 1;
                self.flow = Flow::Stream;
            }
            _ => self.next = self.next.max(matched + 1),
        }
        if self.is_close(core) {
            self.slack = None;
        }
    }

    /// By how much the window may be larger for this one's sake.
    pub fn slack(&self) -> Option<usize> {
        self.slack
    }

    pub fn give(&mut self, outgoing: Outgoing) {
        self.slack = Some(outgoing.size());
        self.flow = Flow::Transfer(Some(outgoing));
    }

    /// Where to begin again: after its last entry, if that is one of the owner's too.
    fn rewind_to(&self, core: &Core, ack: &Ack, matched: u64) -> u64 {
        let whole = ack.last.index > matched && core.log.has(ack.last);
        1 + if whole { ack.last.index } else { matched.max(self.durable.min(ack.last.index)) }
    }

    pub fn pump<T>(&mut self, core: &Core, now: Now, tenure: Tenure, out: &mut Vec<Action<T>>) {
        if self.down.is_some() {
            return;
        }
        let tenure = Tenure { session: self.session, ..tenure };
        if !matches!(self.flow, Flow::Transfer(_)) && self.next <= core.log.base() {
            self.flow = Flow::Transfer(None);
            self.slack = Some(0);
        }
        match &mut self.flow {
            Flow::Transfer(Some(outgoing)) => outgoing.pump(&core.limits, now, self.id, tenure, out),
            Flow::Transfer(None) => {}
            Flow::Probe { sent } => {
                let wait = sent.is_some_and(|at| now.at.saturating_duration_since(at) < core.limits.resend);
                if !wait {
                    *sent = Some(now.at);
                    self.batch(core, tenure, out);
                }
            }
            Flow::Stream => {
                let last = core.log.last().index;
                while self.next <= last && self.has_room(core) {
                    let (sent, bytes) = self.batch(core, tenure, out);
                    self.flight.push_back((sent, bytes));
                    self.flight_bytes += bytes;
                    self.next = sent + 1;
                }
            }
        }
    }

    fn has_room(&self, core: &Core) -> bool {
        let entries = (self.next - 1).saturating_sub(self.matched) as usize;
        entries < core.limits.flight_entries && self.flight_bytes < core.limits.flight_bytes
    }

    /// Sends what fits into one message; its last entry and its bytes.
    fn batch<T>(&self, core: &Core, tenure: Tenure, out: &mut Vec<Action<T>>) -> (u64, usize) {
        let Some(prev) = core.log.place(self.next - 1) else { return (self.next - 1, 0) };
        let count = (core.log.last().index + 1).saturating_sub(self.next) as usize;
        let mut entries = Vec::with_capacity(count.min(core.limits.batch_entries));
        let (mut index, mut bytes) = (self.next, 0);
        while entries.len() < core.limits.batch_entries.max(1)
            && let Some(entry) = core.log.get(index)
            && (entries.is_empty() || bytes + entry.data.len() <= core.limits.batch_bytes)
        {
            bytes += entry.data.len();
            entries.push(entry.clone());
            index += 1;
        }
        let append = Append { tenure, prev, commit: core.log.commit(), entries };
        out.push(Action::Send { to: self.id, message: Message::Append(append) });
        (index - 1, bytes)
    }

    pub fn beat(&self, core: &Core) -> Beat {
        // While the state is on its way there is no gap to be told of.
        let sent = if matches!(self.flow, Flow::Stream) { self.next - 1 } else { 0 };
        Beat {
            epoch: core.epoch,
            session: self.session,
            commit: core.log.commit(),
            sent,
            acked: self.durable,
        }
    }
}
