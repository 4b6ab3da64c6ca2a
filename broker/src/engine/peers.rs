//! What comes to the engine from other brokers, from the group that assigns shards, and from the
//! disk: the other direction of [`Cluster`](super::Cluster).

use super::shard::Shard;
use super::{Engine, Slot, Submitted, lock};
use crate::replica::{Assignment, Standing};
use crate::state;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use weir_wire::entry::{Call, Holder, Op, shard_of};
use weir_wire::envelope::{Position, Publish};
use weir_wire::id::{BrokerId, NodeId};
use weir_wire::replica::{Beat, Message, Place};

/// Channels with the tops of their streams; `None`: there is no stream.
pub type Positions = Vec<(String, Option<Position>)>;

/// Nothing was done with what another broker asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDone {
    NotOwner,
    /// About to serve, or to serve no more.
    NotServing,
}

impl NotDone {
    fn of(shard: &Shard) -> NotDone {
        match shard.standing() {
            Standing::Holder => NotDone::NotOwner,
            Standing::Promoting | Standing::Serving => NotDone::NotServing,
        }
    }
}

/// Counts over all shards of this broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    pub held: usize,
    pub owned: usize,
    pub serving: usize,
    /// Shards owned here of which another holder lacks something, and the most that one lacks.
    pub lagging: usize,
    pub max_lag: u64,
    /// Channels wanted by nodes here, and by other brokers.
    pub channels: usize,
    pub brokers: usize,
}

impl Engine {
    /// Who holds a shard from now on, in the order of the versions.
    pub fn assign(&self, number: u16, assignment: &Assignment) {
        if !self.has(number) {
            return;
        }
        self.with(number, |shard, moment| {
            let floor = self.cluster.floor(number);
            if assignment.holds(self.cluster.me()) && assignment.version >= floor.version {
                shard.create(&*self.cluster);
            }
            self.drive(shard, moment, |r, out| r.assign(moment.now, assignment, out));
        });
    }

    fn has(&self, number: u16) -> bool {
        usize::from(number) < self.shards.len()
    }

    /// From another holder of a shard.
    pub fn receive_from(&self, from: BrokerId, number: u16, message: Message) {
        if !self.has(number) {
            return;
        }
        // What is taken must reach the disk. Sent again by its owner, who drops us if it takes long.
        if matches!(message, Message::Append(_) | Message::Chunk(_)) && self.cluster.admit().is_err() {
            return;
        }
        self.with(number, |shard, moment| {
            self.drive(shard, moment, |r, out| r.receive(moment.now, from, message, out));
        });
        self.keep_within_memory();
    }

    /// All writes of a shard up to this one are on disk.
    pub fn persisted(&self, number: u16, write: u64) {
        self.with(number, |shard, moment| {
            self.drive(shard, moment, |r, out| r.persisted(moment.now, write, out));
        });
    }

    /// A shard's state for the disk. `keep` is called while the shard is held: what is written
    /// later comes later.
    pub fn keep_state(&self, number: u16, keep: impl FnOnce(Place, Bytes)) {
        self.with(number, |shard, _| {
            if let Some((at, data)) = self.applied_state(shard) {
                keep(at, data);
            }
        });
    }

    /// The link to another broker is gone, or there again. Its interest ends with the link.
    pub fn linked(&self, peer: BrokerId, up: bool) {
        for number in self.numbers() {
            self.with(number, |shard, moment| {
                if !up {
                    shard.interest.forget_brokers(Some(peer));
                }
                self.drive(shard, moment, |r, out| r.link(moment.now, peer, up, out));
            });
        }
    }

    /// What the heartbeat to a peer says of the shards that are owned here.
    pub fn beats(&self, to: BrokerId) -> Vec<(u16, Beat)> {
        let beat = |n: u16| Some((n, lock(&self.shards[usize::from(n)]).replica.as_ref()?.beat(to)?));
        self.numbers().filter_map(beat).collect()
    }

    /// What time brings to replicas: for brokers with peers, at least every `resend / 2` of their
    /// limits, and when a lease was renewed.
    pub fn tick_replicas(&self) {
        for number in self.numbers() {
            self.with(number, |shard, moment| self.drive(shard, moment, |r, out| r.tick(moment.now, out)));
        }
    }

    /// A call that another broker has forwarded; it is answered here or not at all.
    pub fn forwarded(&self, from: BrokerId, call: Call) -> Result<Submitted, NotDone> {
        let number = shard_of(call.channel(), self.shards.len() as u16);
        self.prepare(&call);
        let taken = self.with(number, |shard, moment| {
            self.take(shard, moment, Some(from), call).map_err(|_| NotDone::of(shard))
        });
        self.keep_within_memory();
        taken
    }

    /// A call that waited for an owner, if that is this broker by now, and if it still `may`: which is asked while
    /// the shard is held, so that no later call comes in between.
    pub fn try_call(&self, call: Call, may: impl FnOnce() -> bool) -> Option<Result<Submitted, Box<Call>>> {
        let number = shard_of(call.channel(), self.shards.len() as u16);
        self.with(number, |shard, moment| may().then(|| self.take(shard, moment, None, call)))
    }

    /// Of another broker that owns the channel: for the nodes here, and for nobody else.
    pub fn delivered(&self, channel: &str, frame: &Bytes) {
        let number = shard_of(channel, self.shards.len() as u16);
        // While the shard is held, so that it goes to whoever is interested, in order.
        let shard = lock(&self.shards[usize::from(number)]);
        match shard.interest.get(channel).filter(|who| !who.nodes.is_empty()) {
            Some(who) => self.to_slots(&who.nodes, frame),
            None if shard.standing() == Standing::Holder => self.cluster.unwanted(number, channel),
            None => {}
        }
    }

    /// A publication for the nodes here, where no owner can be reached: without a place in the
    /// stream, and so that clients see it has none.
    pub fn deliver_live(&self, publish: Publish) {
        let number = shard_of(&publish.channel, self.shards.len() as u16);
        let shard = lock(&self.shards[usize::from(number)]);
        let Some(who) = shard.interest.get(&publish.channel) else { return };
        state::deliver_live(publish, &mut |frame| match weir_wire::codec::encode(frame) {
            Ok(frame) => self.to_slots(&who.nodes, &frame),
            Err(error) => tracing::error!(%error, "a delivery cannot be sent"),
        });
    }

    /// All that another broker wants of a shard from now on, and where these channels stand.
    pub fn interest_of(
        &self,
        from: BrokerId,
        number: u16,
        wanted: Vec<String>,
    ) -> Result<Positions, NotDone> {
        if !self.has(number) {
            return Err(NotDone::NotOwner);
        }
        self.with(number, |shard, moment| {
            if shard.standing() == Standing::Holder {
                return Err(NotDone::NotOwner);
            }
            shard.interest.forget_brokers(Some(from));
            for channel in &wanted {
                let name = shard.state.name(channel);
                shard.interest.add_broker(from, channel, name);
            }
            // Noted before it serves: it delivers what it commits on its way to that.
            if !shard.may_serve(moment) {
                return Err(NotDone::NotServing);
            }
            Ok(positions(shard, wanted))
        })
    }

    /// What nodes here want of a shard that another broker owns, told while the shard is held: what
    /// is wanted later is told later. `None`: they want nothing (unless `even_nothing`), or this broker owns it; if it serves
    /// it, they learn the positions from it.
    pub fn tell_interest<T>(
        &self,
        number: u16,
        even_nothing: bool,
        tell: impl FnOnce(Vec<String>) -> T,
    ) -> Option<T> {
        let told = self.with(number, |shard, moment| {
            let wanted = shard.interest.wanted_here();
            if shard.standing() == Standing::Holder {
                return Ok((even_nothing || !wanted.is_empty()).then(|| tell(wanted)));
            }
            match shard.may_serve(moment) {
                true => Err(positions(shard, wanted)),
                // It marks the shard itself when it serves.
                false => Ok(None),
            }
        });
        told.unwrap_or_else(|positions| {
            self.resync_channels(positions);
            None
        })
    }

    /// What another broker wants of the shards that are owned here.
    pub fn positions_for(&self, peer: BrokerId) -> Positions {
        let mut all = Vec::new();
        for number in self.numbers() {
            self.with(number, |shard, moment| {
                if shard.may_serve(moment) {
                    let wanted = shard.interest.wanted_by(peer);
                    all.extend(wanted.into_iter().map(|c| (c.to_string(), shard.state.position(&c))));
                }
            });
        }
        all
    }

    /// Deliveries of these channels may be missing up to here: tells the nodes that want them.
    pub fn resync_channels(&self, positions: Positions) {
        let mut by_slot: HashMap<Slot, Positions> = HashMap::new();
        for (channel, position) in positions {
            let number = shard_of(&channel, self.shards.len() as u16);
            let shard = lock(&self.shards[usize::from(number)]);
            for slot in shard.interest.get(&channel).map(|who| &who.nodes[..]).unwrap_or_default() {
                by_slot.entry(*slot).or_default().push((channel.clone(), position));
            }
        }
        for (slot, positions) in by_slot {
            // A lost one asks for all of its positions when it has room.
            let Some(held) = self.slots.get(slot).filter(|held| !held.is_lost()) else { continue };
            match held.outlet.has_room() {
                true => held.outlet.resync(positions),
                false => self.mark_lost(&held, "inbox_full"),
            }
        }
    }

    /// The nodes attached here, whose lease this broker keeps.
    pub fn nodes(&self) -> Vec<Holder> {
        self.slots.holders()
    }

    /// Nodes of another broker: links given here from now on are later than theirs.
    pub fn heard_of(&self, nodes: &[Holder]) {
        if let Some(newest) = nodes.iter().map(|n| n.link).max() {
            self.slots.heard(newest);
        }
    }

    /// Takes out what nodes hold no more: `known` says by which link a node is attached anywhere.
    /// Only in shards that were served for `settled`: by then the nodes have told what they hold.
    /// Returns what was taken out.
    pub fn sweep_members(&self, settled: Duration, known: &dyn Fn(NodeId) -> Option<u64>) -> Vec<Holder> {
        let mut all = Vec::new();
        for number in self.numbers() {
            self.with(number, |shard, moment| {
                let since = shard.serving.map(|s| moment.now.at.saturating_duration_since(s));
                if since.is_none_or(|since| since < settled) || !shard.may_serve(moment) {
                    return;
                }
                for before in shard.state.stale_holders(known) {
                    tracing::info!(node = %before.node, shard = number, "members of a node that is gone leave");
                    self.propose_quietly(shard, moment, Op::DropMembers { before });
                    all.push(before);
                }
            });
        }
        all
    }

    pub fn holdings(&self) -> Holdings {
        let mut sum = Holdings::default();
        let mut brokers = BTreeSet::new();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.held += usize::from(shard.replica.is_some());
            sum.owned += usize::from(shard.standing() != Standing::Holder);
            sum.serving += usize::from(shard.serving.is_some());
            let lag = shard.replica.as_ref().map_or(0, |r| r.lag());
            sum.lagging += usize::from(lag > 0);
            sum.max_lag = sum.max_lag.max(lag);
            sum.channels += shard.interest.len();
            brokers.extend(shard.interest.brokers());
        }
        sum.brokers = brokers.len();
        sum
    }
}

/// Where channels of a shard stand that is served here.
fn positions(shard: &Shard, channels: Vec<String>) -> Positions {
    let position = |channel: String| {
        let position = shard.state.position(&channel);
        (channel, position)
    };
    channels.into_iter().map(position).collect()
}
