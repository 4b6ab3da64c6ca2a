//! A state on its way to a holder that is too far behind, in chunks with a window. Both ends hold
//! it once and whole; what is lost is sent again from where the other end says it is.

use super::{Action, Limits, Now};
use bytes::{Bytes, BytesMut};
use std::time::Instant;
use weir_wire::id::BrokerId;
use weir_wire::replica::{Chunk, Message, Place, Tenure};

/// The owner's end, for one holder.
#[derive(Debug)]
pub(super) struct Outgoing {
    take: u64,
    at: Place,
    data: Bytes,
    sent: usize,
    acked: usize,
    /// When anything last came or went on; `None`: nothing was sent yet.
    moved: Option<Instant>,
}

impl Outgoing {
    pub fn new(take: u64, at: Place, data: Bytes) -> Outgoing {
        Outgoing { take, at, data, sent: 0, acked: 0, moved: None }
    }

    pub fn at(&self) -> Place {
        self.at
    }

    pub fn size(&self) -> usize {
        self.data.len()
    }

    pub fn acked(&mut self, now: Now, take: u64, received: u64) {
        if take != self.take {
            return;
        }
        let received = usize::try_from(received).map_or(self.data.len(), |r| r.min(self.data.len()));
        if received > self.acked {
            self.moved = Some(now.at);
        }
        self.acked = received;
        self.sent = self.sent.max(received);
    }

    pub fn pump<T>(
        &mut self,
        limits: &Limits,
        now: Now,
        to: BrokerId,
        tenure: Tenure,
        out: &mut Vec<Action<T>>,
    ) {
        let late = self.moved.is_some_and(|m| now.at.saturating_duration_since(m) >= limits.resend);
        if late {
            self.sent = match self.acked < self.data.len() {
                true => self.acked,
                // All there, but not known to be installed: the last piece asks again.
                false => self.data.len().saturating_sub(limits.chunk_bytes.max(1)),
            };
        }
        let mut first = late || self.moved.is_none();
        while first
            || (self.sent < self.data.len() && self.sent.saturating_sub(self.acked) < limits.chunk_window)
        {
            let end = (self.sent + limits.chunk_bytes.max(1)).min(self.data.len());
            let data = self.data.slice(self.sent..end);
            let (total, offset) = (self.data.len() as u64, self.sent as u64);
            let chunk = Chunk { tenure, take: self.take, at: self.at, total, offset, data };
            out.push(Action::Send { to, message: Message::Chunk(chunk) });
            self.sent = end;
            self.moved = Some(now.at);
            first = false;
        }
    }
}

/// The other end.
#[derive(Debug)]
pub(super) struct Incoming {
    take: u64,
    at: Place,
    total: u64,
    /// Grows with what is there, never with what is announced.
    data: BytesMut,
    heard: Instant,
}

impl Incoming {
    pub fn new(chunk: &Chunk, now: Instant) -> Incoming {
        Incoming { take: chunk.take, at: chunk.at, total: chunk.total, data: BytesMut::new(), heard: now }
    }

    pub fn at(&self) -> Place {
        self.at
    }

    pub fn heard(&self) -> Instant {
        self.heard
    }

    pub fn is_of(&self, chunk: &Chunk) -> bool {
        (self.take, self.at, self.total) == (chunk.take, chunk.at, chunk.total)
    }

    /// Takes what comes next; anything else is left for a resend.
    pub fn add(&mut self, chunk: &Chunk, now: Instant) {
        let fits = chunk.data.len() as u64 <= self.total.saturating_sub(self.received());
        if chunk.offset == self.received() && fits {
            self.data.extend_from_slice(&chunk.data);
            self.heard = now;
        }
    }

    pub fn received(&self) -> u64 {
        self.data.len() as u64
    }

    pub fn is_whole(&self) -> bool {
        self.received() == self.total
    }

    pub fn into_data(self) -> Bytes {
        self.data.freeze()
    }
}
