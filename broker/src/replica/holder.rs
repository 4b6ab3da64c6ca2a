//! A holder that is not the owner: appends what fits, cuts off what an owner of before left, and
//! acknowledges.

use super::faults::Fault;
use super::transfer::Incoming;
use super::{Action, Core, Limits, Now};
use std::time::Duration;
use weir_wire::id::BrokerId;
use weir_wire::replica::{Ack, Append, Beat, Chunk, ChunkAck, Message};

/// As seen from one epoch; a new one begins with a new `Holder`.
#[derive(Debug)]
pub(super) struct Holder {
    /// Who owns the epoch, once heard, and what answers repeat.
    owner: Option<(BrokerId, u64)>,
    /// Up to here the log is the owner's. All that is committed is, so it begins there.
    matched: u64,
    /// What the owner says is committed, and what was last acknowledged to it.
    told: u64,
    acked: u64,
    incoming: Option<Incoming>,
}

/// A state that stopped coming is let go after so many resends.
const PATIENCE: u32 = 50;
/// No log gets there; a larger one is nonsense.
const MAX_INDEX: u64 = 1 << 62;

impl Holder {
    pub fn new(commit: u64) -> Holder {
        Holder { owner: None, matched: commit, told: 0, acked: 0, incoming: None }
    }

    pub fn follow(&mut self, owner: BrokerId, session: u64) {
        let session = self.owner.map_or(session, |(_, known)| known.max(session));
        self.owner = Some((owner, session));
    }

    pub fn append<T>(&mut self, core: &mut Core, from: BrokerId, append: Append, out: &mut Vec<Action<T>>) {
        let Append { prev, entries, commit, .. } = append;
        if prev.index > self.matched {
            if !core.log.has(prev) {
                return self.ack(core, from, true, out);
            }
            self.matched = prev.index;
        }
        for (index, entry) in (prev.index + 1..).zip(entries) {
            if index <= self.matched {
                continue;
            }
            match core.log.epoch_at(index) {
                Some(epoch) if epoch == entry.epoch || core.planted(Fault::NoTruncate) => {}
                Some(_) => {
                    core.log.truncate(index - 1, out);
                    core.log.push(entry, out);
                }
                None => {
                    core.log.push(entry, out);
                }
            }
            self.matched = index;
        }
        if self.incoming.as_ref().is_some_and(|i| i.at().index <= self.matched) {
            self.incoming = None;
        }
        self.commit(core, commit, out);
        // What is still on its way to the disk is acknowledged when it is there.
        if self.durable(core) == self.matched {
            self.ack(core, from, false, out);
        }
    }

    /// What the owner may count on.
    fn durable(&self, core: &Core) -> u64 {
        if core.planted(Fault::EarlyAck) {
            return self.matched;
        }
        self.matched.min(core.log.durable())
    }

    fn commit<T>(&mut self, core: &mut Core, told: u64, out: &mut Vec<Action<T>>) {
        self.told = self.told.max(told);
        let to = self.told.min(self.durable(core));
        while core.log.commit() < to {
            let Some((at, data)) = core.log.commit_next() else { break };
            out.push(Action::Commit { at, data, token: None });
        }
        core.log.trim(&core.limits, None);
    }

    fn ack<T>(&mut self, core: &Core, to: BrokerId, gap: bool, out: &mut Vec<Action<T>>) {
        let session = self.owner.map_or(0, |(_, session)| session);
        let (durable, last) = (self.durable(core), core.log.last());
        self.acked = durable;
        let ack = Ack { epoch: core.epoch, session, matched: self.matched, durable, last, gap };
        out.push(Action::Send { to, message: Message::Ack(ack) });
    }

    pub fn persisted<T>(&mut self, core: &mut Core, out: &mut Vec<Action<T>>) {
        self.commit(core, self.told, out);
        if let Some((owner, _)) = self.owner
            && self.durable(core) > self.acked
        {
            self.ack(core, owner, false, out);
        }
    }

    pub fn beat<T>(&mut self, core: &mut Core, from: BrokerId, beat: Beat, out: &mut Vec<Action<T>>) {
        self.follow(from, beat.session);
        self.commit(core, beat.commit, out);
        let missing = self.matched < beat.sent;
        if missing || self.durable(core) > beat.acked {
            self.ack(core, from, missing, out);
        }
    }

    pub fn chunk<T>(
        &mut self,
        core: &mut Core,
        now: Now,
        from: BrokerId,
        chunk: Chunk,
        out: &mut Vec<Action<T>>,
    ) {
        if chunk.at.index <= core.log.commit() {
            return self.ack(core, from, false, out);
        }
        if chunk.total > core.limits.snapshot_bytes as u64 || chunk.at.index > MAX_INDEX {
            return;
        }
        if core.log.has(chunk.at) && !core.planted(Fault::InstallOverTail) {
            // All of it is here, and perhaps more that was acknowledged and must stay.
            self.matched = self.matched.max(chunk.at.index);
            self.commit(core, chunk.at.index, out);
            return self.ack(core, from, false, out);
        }
        let (at, session) = (chunk.at, chunk.tenure.session);
        if self.incoming.as_ref().is_none_or(|i| !i.is_of(&chunk)) {
            if self.incoming.as_ref().is_some_and(|i| i.at().index > at.index) {
                return;
            }
            self.incoming = Some(Incoming::new(&chunk, now.at));
        }
        let Some(incoming) = &mut self.incoming else { return };
        incoming.add(&chunk, now.at);
        let received = incoming.received();
        let ack = ChunkAck { epoch: core.epoch, session, take: chunk.take, received };
        out.push(Action::Send { to: from, message: Message::ChunkAck(ack) });
        if !incoming.is_whole() {
            return;
        }
        let Some(incoming) = self.incoming.take() else { return };
        let write = core.log.reset(at);
        self.matched = at.index;
        out.push(Action::Install { write, at, resets: core.resets, data: incoming.into_data() });
        if self.durable(core) == self.matched {
            self.ack(core, from, false, out);
        }
    }

    pub fn tick(&mut self, limits: &Limits, now: Now) {
        let patience: Duration = limits.resend * PATIENCE;
        if self.incoming.as_ref().is_some_and(|i| now.at.saturating_duration_since(i.heard()) > patience) {
            self.incoming = None;
        }
    }
}
