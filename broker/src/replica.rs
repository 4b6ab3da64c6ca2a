//! Replication of one shard's log: what its owner and its other holders do. Pure: time, messages
//! and assignments go in, [`Action`]s come out, in the order in which they are to be done.
//!
//! ```text
//!            assigned to own it               every needed holder has the tail
//!   Holder ─────────────────────► promoting ─────────────────────────────────► serving
//!      ▲                              │                                           │
//!      └──────────────────────────────┴───────────────────────────────────────────┘
//!            a newer epoch was heard of, another owner assigned, handed over
//! ```
//!
//! What holds, whatever the network does (`sim` looks for the opposite):
//!
//! - An entry is committed when all holders in sync have it durably, and one that has caught
//!   up counts from before the owner asks for it to be in sync. So whoever is promoted has it.
//! - Only an owner with a valid lease commits or serves; the lease is looked at each time.
//! - Whatever speaks with an older epoch is refused, and told so: it then steps down.
//! - What is committed is never cut off, and everywhere the same.
//!
//! `terms` is what goes in and comes out, `log` keeps entries, `owner` decides, `peer` sends to one
//! other holder, `holder` receives, `transfer` is how a state gets to one that is too far behind,
//! `faults` are mistakes that tests plant.

mod faults;
mod holder;
mod log;
mod owner;
mod peer;
#[cfg(test)]
mod sim;
mod terms;
#[cfg(test)]
mod tests;
mod transfer;

use bytes::Bytes;
use faults::Fault;
use holder::Holder;
use log::Log;
use owner::Owner;
use std::time::Instant;
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::replica::{Ack, Beat, Message, Place, Tenure};

pub use terms::{Action, Assignment, Floor, Limits, Now, Refusal, Restored, Standing};

/// What owner and holder have in common.
#[derive(Debug)]
struct Core {
    me: BrokerId,
    limits: Limits,
    /// The newest that was heard of.
    epoch: ShardEpoch,
    resets: u64,
    log: Log,
    #[cfg(test)]
    fault: Option<Fault>,
}

#[derive(Debug)]
enum Role<T> {
    Holder(Holder),
    Owner(Owner<T>),
}

/// One broker's part in one shard.
#[derive(Debug)]
pub struct Replica<T> {
    core: Core,
    role: Role<T>,
    assignment: Assignment,
    floor: Floor,
    /// The last epoch that was this one's own; none is entered twice.
    owned: ShardEpoch,
    /// The newest that was heard of.
    session: u64,
    asked: Option<Instant>,
}

impl<T> Replica<T> {
    /// `restored` is `None` for one that holds nothing yet.
    pub fn new(me: BrokerId, limits: Limits, restored: Option<Restored>, floor: Floor) -> Replica<T> {
        let restored = restored.unwrap_or_default();
        let mut log = match limits.disk {
            true => Log::restore(restored.base, restored.entries, restored.applied),
            false => Log::new(false),
        };
        log.trim(&limits, None);
        let holder = Holder::new(log.commit());
        let core = Core {
            me,
            limits,
            epoch: floor.epoch,
            resets: restored.resets,
            log,
            #[cfg(test)]
            fault: None,
        };
        Replica {
            core,
            role: Role::Holder(holder),
            assignment: Assignment::default(),
            floor,
            owned: ShardEpoch(0),
            session: 0,
            asked: None,
        }
    }

    /// A newer assignment, in the order of their versions; those before the floor are ignored.
    pub fn assign(&mut self, now: Now, assignment: &Assignment, out: &mut Vec<Action<T>>) {
        if assignment.version < self.floor.version || assignment.version <= self.assignment.version {
            return;
        }
        self.assignment.clone_from(assignment);
        let (a, me) = (assignment, self.core.me);
        if !a.holds(me) {
            self.step_down(a.epoch, out);
            // One that was named again meanwhile, and heard of it from its owner first, stays.
            if self.session <= a.version || self.core.planted(Fault::RetireBlindly) {
                out.push(Action::Retire);
            }
            return;
        }
        if a.epoch < self.core.epoch {
            return;
        }
        match &mut self.role {
            Role::Owner(owner) if a.owner == Some(me) && a.epoch == self.core.epoch => {
                owner.assign(&mut self.core, now, a, out);
            }
            _ if a.owner == Some(me) => self.promote(now, a, out),
            _ => {
                if matches!(self.role, Role::Owner(_)) {
                    self.step_down(a.epoch, out);
                }
                let resets = if a.owner.is_some() { a.resets } else { self.core.resets };
                self.enter(a.epoch, resets, out);
            }
        }
    }

    /// Becomes the owner, unless this epoch may already have been used.
    fn promote(&mut self, now: Now, a: &Assignment, out: &mut Vec<Action<T>>) {
        let used =
            a.epoch <= self.floor.epoch && !self.core.planted(Fault::ReuseEpoch) || a.epoch <= self.owned;
        if used {
            self.step_down(a.epoch, out);
            return self.tick(now, out);
        }
        self.step_down(a.epoch, out);
        let fresh = a.resets > self.core.resets;
        if fresh {
            self.core.resets = a.resets;
            let write = self.core.log.write(self.core.log.last().index);
            out.push(Action::Reset { write, resets: a.resets, keep: true });
        }
        self.owned = a.epoch;
        let mut owner = Owner::new(&self.core, a, fresh);
        owner.assign(&mut self.core, now, a, out);
        self.role = Role::Owner(owner);
    }

    /// A new owner's epoch begins, for one that is not the owner.
    fn enter(&mut self, epoch: ShardEpoch, resets: u64, out: &mut Vec<Action<T>>) {
        if epoch > self.core.epoch {
            self.step_down(epoch, out);
        }
        if resets > self.core.resets {
            self.core.resets = resets;
            let write = self.core.log.reset(Place::default());
            out.push(Action::Reset { write, resets, keep: false });
            self.role = Role::Holder(Holder::new(0));
        }
    }

    /// Nobody's holder, until an owner is heard from. What it proposed may be committed by the next.
    fn step_down(&mut self, epoch: ShardEpoch, out: &mut Vec<Action<T>>) {
        let holder = Holder::new(self.core.log.commit());
        if let Role::Owner(owner) = std::mem::replace(&mut self.role, Role::Holder(holder)) {
            owner.stop(self.core.epoch, out);
        }
        self.core.epoch = self.core.epoch.max(epoch);
        self.asked = None;
    }

    /// From another holder. What makes no sense is ignored.
    pub fn receive(&mut self, now: Now, from: BrokerId, message: Message, out: &mut Vec<Action<T>>) {
        match message {
            Message::Append(append) => {
                if let Some((core, holder)) = self.admit(from, append.tenure, out) {
                    holder.append(core, from, append, out);
                }
            }
            Message::Chunk(chunk) => {
                if let Some((core, holder)) = self.admit(from, chunk.tenure, out) {
                    holder.chunk(core, now, from, chunk, out);
                }
            }
            Message::Beat(beat) => self.beaten(from, beat, out),
            Message::Ack(Ack { epoch, .. }) if epoch > self.core.epoch => self.step_down(epoch, out),
            Message::Ack(ack) => {
                if let Role::Owner(owner) = &mut self.role
                    && ack.epoch == self.core.epoch
                {
                    owner.acked(&mut self.core, now, from, ack, out);
                }
            }
            Message::ChunkAck(ack) => {
                if let Role::Owner(owner) = &mut self.role
                    && ack.epoch == self.core.epoch
                {
                    owner.chunk_acked(&mut self.core, now, from, ack, out);
                }
            }
        }
    }

    /// Whether an owner's word counts here.
    fn admit(
        &mut self,
        from: BrokerId,
        tenure: Tenure,
        out: &mut Vec<Action<T>>,
    ) -> Option<(&mut Core, &mut Holder)> {
        if tenure.epoch < self.core.epoch && !self.core.planted(Fault::NoFence) {
            self.refuse(from, tenure.session, out);
            return None;
        }
        if tenure.resets < self.core.resets {
            return None;
        }
        self.enter(tenure.epoch, tenure.resets, out);
        self.session = self.session.max(tenure.session);
        let Role::Holder(holder) = &mut self.role else { return None };
        holder.follow(from, tenure.session);
        Some((&mut self.core, holder))
    }

    fn beaten(&mut self, from: BrokerId, beat: Beat, out: &mut Vec<Action<T>>) {
        match &mut self.role {
            _ if beat.epoch < self.core.epoch => self.refuse(from, beat.session, out),
            // The owner's next batch opens its epoch, and it will come.
            Role::Holder(holder) if beat.epoch == self.core.epoch => {
                self.session = self.session.max(beat.session);
                holder.beat(&mut self.core, from, beat, out);
            }
            _ => {}
        }
    }

    /// Tells an owner of before that there is a newer epoch.
    fn refuse(&self, to: BrokerId, session: u64, out: &mut Vec<Action<T>>) {
        let (epoch, last) = (self.core.epoch, self.core.log.last());
        let ack = Ack { epoch, session, matched: 0, durable: 0, last, gap: true };
        out.push(Action::Send { to, message: Message::Ack(ack) });
    }

    /// Appends one entry, whose fate comes as [`Action::Commit`] or [`Action::Unknown`] with the
    /// token. Call [`Replica::flush`] after the last one of a batch.
    pub fn propose(
        &mut self,
        now: Now,
        data: Bytes,
        token: T,
        out: &mut Vec<Action<T>>,
    ) -> Result<u64, (Refusal, T)> {
        match &mut self.role {
            Role::Owner(owner) => owner.propose(&mut self.core, now, data, token, out),
            Role::Holder(_) => Err((Refusal::NotOwner, token)),
        }
    }

    /// Sends what was proposed.
    pub fn flush(&mut self, now: Now, out: &mut Vec<Action<T>>) {
        if let Role::Owner(owner) = &mut self.role {
            owner.flush(&mut self.core, now, out);
        }
    }

    /// The newest that was heard of; while this broker owns the shard, its own.
    pub fn epoch(&self) -> ShardEpoch {
        self.core.epoch
    }

    /// Whether the state may be read: it holds all that anybody was told to be committed.
    pub fn may_serve(&self, now: Now) -> bool {
        (now.has_lease() || self.core.planted(Fault::NoLease)) && self.standing() == Standing::Serving
    }

    /// Whether something may be proposed now: it serves, is not about to hand over, and not too
    /// much waits for its acknowledgements.
    pub fn accepts(&self, now: Now) -> bool {
        match &self.role {
            Role::Owner(owner) => owner.accepts(&self.core, now),
            Role::Holder(_) => false,
        }
    }

    pub fn standing(&self) -> Standing {
        match &self.role {
            Role::Holder(_) => Standing::Holder,
            Role::Owner(owner) if owner.is_serving() => Standing::Serving,
            Role::Owner(_) => Standing::Promoting,
        }
    }

    /// All writes up to this one are on disk, and stay there.
    pub fn persisted(&mut self, now: Now, write: u64, out: &mut Vec<Action<T>>) {
        self.core.log.persisted(write);
        match &mut self.role {
            Role::Owner(owner) => owner.flush(&mut self.core, now, out),
            Role::Holder(holder) => holder.persisted(&mut self.core, out),
        }
    }

    /// What time brings. Call it at least every `resend / 2`, and when a lease was renewed.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Action<T>>) {
        match &mut self.role {
            Role::Owner(owner) => owner.tick(&mut self.core, now, out),
            Role::Holder(holder) => {
                holder.tick(&self.core.limits, now);
                self.ask_for_a_new_epoch(now, out);
            }
        }
        if let Role::Owner(owner) = &self.role
            && owner.has_handed_over(&self.core)
        {
            self.resign(now, out);
        }
    }

    /// Stops to act as the owner for good in this epoch: a disk that fails, a planned move.
    pub fn resign(&mut self, now: Now, out: &mut Vec<Action<T>>) {
        if matches!(self.role, Role::Owner(_)) {
            self.step_down(self.core.epoch, out);
            self.ask_for_a_new_epoch(now, out);
        }
    }

    /// For an owner by the assignment that must not act in that epoch any more.
    fn ask_for_a_new_epoch(&mut self, now: Now, out: &mut Vec<Action<T>>) {
        let (a, me) = (&self.assignment, self.core.me);
        let again =
            self.asked.is_none_or(|at| now.at.saturating_duration_since(at) >= self.core.limits.resend);
        if a.owner == Some(me) && a.epoch == self.core.epoch && again {
            self.asked = Some(now.at);
            let to = a.hand_to.filter(|to| a.in_sync.contains(to)).unwrap_or(me);
            out.push(Action::Move { version: a.version, to });
        }
    }

    /// Entries that another holder has not acknowledged yet, at most; 0 for one that does not own it.
    pub fn lag(&self) -> u64 {
        match &self.role {
            Role::Owner(owner) => owner.lag(&self.core),
            Role::Holder(_) => 0,
        }
    }

    /// This shard's part of the heartbeat to a peer; `None` if it is not for this one to send.
    pub fn beat(&self, to: BrokerId) -> Option<Beat> {
        match &self.role {
            Role::Owner(owner) => owner.beat(&self.core, to),
            Role::Holder(_) => None,
        }
    }

    /// The link to a peer is gone or there again. What was on its way may be lost.
    pub fn link(&mut self, now: Now, peer: BrokerId, up: bool, out: &mut Vec<Action<T>>) {
        if let Role::Owner(owner) = &mut self.role {
            owner.link(&mut self.core, now, peer, up, out);
        }
    }

    /// The state as of entry `index`, for who is too far behind. `false`: larger than allowed.
    pub fn snapshot(&mut self, now: Now, index: u64, data: Bytes, out: &mut Vec<Action<T>>) -> bool {
        let fits = data.len() <= self.core.limits.snapshot_bytes;
        if let Role::Owner(owner) = &mut self.role
            && fits
        {
            owner.snapshot(&mut self.core, now, index, data, out);
        }
        fits
    }
}
