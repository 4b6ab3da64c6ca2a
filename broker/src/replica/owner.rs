//! The owner of a shard: appends, sends, commits what all needed holders have, and asks the group
//! for changes of the set in sync, one at a time.

use super::faults::Fault;
use super::log::cost;
use super::peer::{Flow, Member, Peer};
use super::transfer::Outgoing;
use super::{Action, Assignment, Core, Now, Refusal};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Instant;
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::replica::{Ack, Beat, ChunkAck, Entry, Place, Tenure};

#[derive(Debug)]
pub(super) struct Owner<T> {
    version: u64,
    fresh: bool,
    peers: Vec<Peer>,
    /// Proposals by the index of their entry.
    waiting: VecDeque<(u64, T)>,
    /// The end of the tail that it came with: serves when that is committed.
    barrier: u64,
    serving: bool,
    hand_to: Option<BrokerId>,
    change: Option<Change>,
    snapshot: Snapshot,
    takes: u64,
    ticked: Option<Instant>,
}

/// What the group was asked for at this version, and has not answered.
#[derive(Debug)]
struct Change {
    add: Option<BrokerId>,
    without: Vec<BrokerId>,
    asked: Instant,
}

#[derive(Debug)]
enum Snapshot {
    None,
    Asked(Instant),
    /// For as long as somebody is given it.
    Taken(u64, Place, Bytes),
}

impl<T> Owner<T> {
    pub fn new(core: &Core, assignment: &Assignment, fresh: bool) -> Owner<T> {
        Owner {
            version: assignment.version,
            fresh,
            peers: Vec::new(),
            waiting: VecDeque::new(),
            barrier: core.log.last().index,
            serving: false,
            hand_to: None,
            change: None,
            snapshot: Snapshot::None,
            takes: 0,
            ticked: None,
        }
    }

    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// Who holds the shard from now on; what was asked for is answered by it.
    pub fn assign(&mut self, core: &mut Core, now: Now, a: &Assignment, out: &mut Vec<Action<T>>) {
        self.version = a.version;
        self.change = None;
        self.hand_to = a.hand_to.filter(|to| *to != core.me && a.in_sync.contains(to));
        self.peers.retain(|p| a.holds(p.id));
        let in_sync = a.in_sync.iter().map(|id| (*id, Member::InSync));
        let members = in_sync.chain(a.catching_up.iter().map(|id| (*id, Member::CatchingUp)));
        for (id, member) in members.filter(|(id, _)| *id != core.me) {
            match self.peers.iter_mut().find(|p| p.id == id) {
                Some(peer) => peer.member = member,
                None => self.peers.push(Peer::new(id, member, a.version, core)),
            }
        }
        self.flush(core, now, out);
    }

    pub fn stop(self, epoch: ShardEpoch, out: &mut Vec<Action<T>>) {
        out.extend(self.waiting.into_iter().map(|(_, token)| Action::Unknown { token }));
        out.push(Action::Stopped { epoch });
    }

    pub fn propose(
        &mut self,
        core: &mut Core,
        now: Now,
        data: Bytes,
        token: T,
        out: &mut Vec<Action<T>>,
    ) -> Result<u64, (Refusal, T)> {
        let (entries, bytes) = core.log.tail();
        let refusal = match cost(&data) {
            _ if !has_lease(core, now) => Refusal::NoLease,
            _ if !self.serving || self.hand_to.is_some() => Refusal::NotReady,
            cost if cost > core.limits.tail_bytes => Refusal::TooLarge,
            cost if entries >= core.limits.tail_entries || bytes + cost > core.limits.tail_bytes => {
                Refusal::Full
            }
            _ => {
                let index = core.log.push(Entry { epoch: core.epoch, data }, out);
                self.waiting.push_back((index, token));
                return Ok(index);
            }
        };
        Err((refusal, token))
    }

    /// Whether a proposal would be taken, unless it is very large.
    pub fn accepts(&self, core: &Core, now: Now) -> bool {
        let (entries, bytes) = core.log.tail();
        let room = entries < core.limits.tail_entries && bytes < core.limits.tail_bytes / 2;
        has_lease(core, now) && self.serving && self.hand_to.is_none() && room
    }

    pub fn flush(&mut self, core: &mut Core, now: Now, out: &mut Vec<Action<T>>) {
        self.advance(core, now, out);
        let tenure = tenure(core);
        for peer in &mut self.peers {
            peer.pump(core, now, tenure, out);
        }
        self.supply(core, now, out);
    }

    /// Commits what every needed holder has.
    fn advance(&mut self, core: &mut Core, now: Now, out: &mut Vec<Action<T>>) {
        if !has_lease(core, now) {
            out.extend(self.waiting.drain(..).map(|(_, token)| Action::Unknown { token }));
            return;
        }
        let needed = self.peers.iter().filter(|p| p.is_needed()).map(Peer::durable);
        let mut to = needed.fold(core.log.durable(), u64::min);
        if core.planted(Fault::CommitAlone) {
            to = core.log.durable();
        }
        while core.log.commit() < to {
            let Some((at, data)) = core.log.commit_next() else { break };
            let token = self.waiting.pop_front_if(|(index, _)| *index == at.index).map(|(_, token)| token);
            out.push(Action::Commit { at, data, token });
        }
        core.log.trim(&core.limits, self.peers.iter().filter_map(Peer::slack).max());
        let ready = core.log.commit() >= self.barrier || core.planted(Fault::ServeTooSoon);
        if !self.serving && ready {
            self.serving = true;
            out.push(Action::Serving { epoch: core.epoch, fresh: self.fresh });
        }
    }

    pub fn acked(&mut self, core: &mut Core, now: Now, from: BrokerId, ack: Ack, out: &mut Vec<Action<T>>) {
        let any = core.planted(Fault::AnySession);
        let known = |p: &&mut Peer| p.id == from && (any || p.session() == ack.session);
        let Some(peer) = self.peers.iter_mut().find(known) else { return };
        peer.acked(core, now, &ack);
        self.flush(core, now, out);
    }

    pub fn chunk_acked(
        &mut self,
        core: &mut Core,
        now: Now,
        from: BrokerId,
        ack: ChunkAck,
        out: &mut Vec<Action<T>>,
    ) {
        let known = |p: &&mut Peer| p.id == from && p.session() == ack.session;
        let Some(peer) = self.peers.iter_mut().find(known) else { return };
        if let Flow::Transfer(Some(outgoing)) = &mut peer.flow {
            outgoing.acked(now, ack.take, ack.received);
            peer.heard();
            peer.pump(core, now, tenure(core), out);
        }
    }

    pub fn link(&mut self, core: &mut Core, now: Now, id: BrokerId, up: bool, out: &mut Vec<Action<T>>) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.id == id) {
            peer.link(now, up);
            self.flush(core, now, out);
        }
    }

    pub fn beat(&self, core: &Core, to: BrokerId) -> Option<Beat> {
        self.peers.iter().find(|p| p.id == to).map(|p| p.beat(core))
    }

    pub fn tick(&mut self, core: &mut Core, now: Now, out: &mut Vec<Action<T>>) {
        // A process that was stopped itself has no reason to call the others silent.
        let slept = self
            .ticked
            .is_none_or(|t| now.at.saturating_duration_since(t) * 2 >= core.limits.replica_timeout);
        self.ticked = Some(now.at);
        for peer in &mut self.peers {
            peer.watch(core, now, slept);
        }
        self.flush(core, now, out);
        if now.has_lease() {
            self.ask(core, now, out);
        }
    }

    /// Asks for one change of the set at a time, again and again until a newer version tells.
    fn ask(&mut self, core: &Core, now: Now, out: &mut Vec<Action<T>>) {
        if self.change.is_none() {
            self.change = self.wanted(core, now);
        } else if let Some(change) = &mut self.change {
            if now.at.saturating_duration_since(change.asked) < core.limits.resend {
                return;
            }
            change.asked = now.at;
        }
        let version = self.version;
        match &self.change {
            Some(Change { add: Some(add), .. }) => out.push(Action::Grow { version, add: *add }),
            Some(Change { without, .. }) => out.push(Action::Shrink { version, without: without.clone() }),
            None => {}
        }
    }

    fn wanted(&mut self, core: &Core, now: Now) -> Option<Change> {
        let timeout = core.limits.replica_timeout;
        // One that joins has not been asked for yet, so it may still be left out.
        for peer in self.peers.iter_mut().filter(|p| p.is_lost(now, timeout)) {
            peer.give_up();
        }
        let lost = |p: &&Peer| p.member == Member::InSync && p.is_lost(now, timeout);
        let without: Vec<_> = self.peers.iter().filter(lost).map(|p| p.id).collect();
        if !without.is_empty() {
            return Some(Change { add: None, without, asked: now.at });
        }
        if !self.serving {
            return None;
        }
        let joining = match self.peers.iter().position(|p| p.member == Member::Joining) {
            Some(at) => at,
            None => self.peers.iter().position(|p| p.member == Member::CatchingUp && p.is_close(core))?,
        };
        let peer = &mut self.peers[joining];
        // It counts from here on, so that nothing is committed any more that it lacks; and the
        // group is asked when it has all that was committed before.
        if !core.planted(Fault::GrowCarelessly) {
            peer.member = Member::Joining;
        }
        let has_all = peer.durable() >= core.log.commit();
        has_all.then(|| Change { add: Some(peer.id), without: Vec::new(), asked: now.at })
    }

    pub fn lag(&self, core: &Core) -> u64 {
        let last = core.log.last().index;
        self.peers.iter().map(|p| last.saturating_sub(p.durable())).max().unwrap_or(0)
    }

    /// Whether all is done that comes before a planned hand-over.
    pub fn has_handed_over(&self, core: &Core) -> bool {
        self.hand_to.is_some() && self.serving && core.log.commit() == core.log.last().index
    }

    /// Gives the state to those who need it; asks for it first, and lets it go after.
    fn supply(&mut self, core: &Core, now: Now, out: &mut Vec<Action<T>>) {
        let mut open = false;
        for peer in &mut self.peers {
            let Flow::Transfer(outgoing) = &mut peer.flow else { continue };
            open = true;
            // The window has moved on: what follows that state is gone too.
            if outgoing.as_ref().is_some_and(|o| o.at().index < core.log.base()) {
                *outgoing = None;
            }
            if let Snapshot::Taken(take, at, data) = &self.snapshot
                && outgoing.is_none()
                && at.index >= core.log.base()
            {
                peer.give(Outgoing::new(*take, *at, data.clone()));
                peer.pump(core, now, tenure(core), out);
            }
        }
        let waits = self.peers.iter().any(|p| matches!(p.flow, Flow::Transfer(None)) && !p.is_down());
        match self.snapshot {
            _ if !open => self.snapshot = Snapshot::None,
            Snapshot::Asked(at) if now.at.saturating_duration_since(at) < core.limits.resend => {}
            _ if waits => {
                self.snapshot = Snapshot::Asked(now.at);
                out.push(Action::Snapshot);
            }
            _ => {}
        }
    }

    pub fn snapshot(&mut self, core: &mut Core, now: Now, index: u64, data: Bytes, out: &mut Vec<Action<T>>) {
        if let (Snapshot::Asked(_), Some(at)) = (&self.snapshot, core.log.place(index))
            && index <= core.log.commit()
        {
            self.takes += 1;
            self.snapshot = Snapshot::Taken(self.takes, at, data);
            self.supply(core, now, out);
        }
    }
}

fn has_lease(core: &Core, now: Now) -> bool {
    now.has_lease() || core.planted(Fault::NoLease)
}

fn tenure(core: &Core) -> Tenure {
    Tenure { epoch: core.epoch, resets: core.resets, session: 0 }
}
