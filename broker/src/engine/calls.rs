//! What a shard's owner does with a call: checks it, answers it from the state that is committed,
//! or proposes an entry whose outcome is the answer. Where another broker owns the shard, or this one
//! does not serve it yet, the call goes to [`Cluster::forward`](super::Cluster::forward).

use super::cluster::{Moment, Submitted};
use super::shard::{Shard, Then};
use super::slots::Held;
use super::{Engine, Refusal, lock};
use crate::replica::Standing;
use crate::state;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use weir_wire::codec::MAX_FRAME;
use weir_wire::entry::{Call, Holder, Op, shard_of};
use weir_wire::envelope::{Ack, ClientInfo, HistoryQuery, Publish, StreamOptions};
use weir_wire::id::{BrokerId, Epoch};
use weir_wire::peer::{HISTORY_CHUNK_SIZE, Outcome};

impl Engine {
    /// A call of one of this broker's nodes.
    pub fn call(&self, call: Call) -> Submitted {
        let number = shard_of(call.channel(), self.shards.len() as u16);
        self.prepare(&call);
        // Put on its way while the shard is held: what is said of a channel keeps its order.
        self.with(number, |shard, moment| {
            self.cluster.overtake(&call);
            let taken = self.take(shard, moment, None, call);
            taken.unwrap_or_else(|call| self.cluster.forward(number, *call))
        })
    }

    pub fn publish(&self, publish: Publish) -> Submitted {
        let data = publish.data.len();
        if data + publish.channel.len() > self.conf.message_size || weight(&publish) > MAX_FRAME {
            return Refusal::TooLarge.into();
        }
        self.metrics.publications.inc();
        self.metrics.bytes_in.inc_by(data as u64);
        let submitted = self.call(Call::Publish(publish));
        self.keep_within_memory();
        submitted
    }

    /// Interest of a node of this broker. It is noted while the shard is held, so that an answer that comes later finds
    /// it, and taken back by any answer but that it is subscribed.
    pub fn subscribe(
        self: &Arc<Self>,
        held: &Arc<Held>,
        channel: String,
        stream: Option<StreamOptions>,
    ) -> Submitted {
        let number = shard_of(&channel, self.shards.len() as u16);
        self.with(number, |shard, moment| {
            let call = Call::Subscribe { channel: channel.clone(), stream };
            let submitted = self.take(shard, moment, None, call);
            let name = shard.state.name(&channel);
            match submitted.unwrap_or_else(|call| self.cluster.forward(number, *call)) {
                Submitted::Now(outcome @ Outcome::Subscribed(_)) => {
                    self.note(shard, held, &channel);
                    outcome.into()
                }
                Submitted::Later(later) => {
                    let (number, new) = shard.interest.begin(held.slot, &channel, name);
                    new.into_iter().for_each(|name| held.add_interest(name));
                    let (engine, held) = (self.clone(), held.clone());
                    Submitted::Subscribing(later, Attempt { engine, held, channel, number, is_open: true })
                }
                refused => refused,
            }
        })
    }

    /// Interest that a node had before it attached. What its channels' owners have to know they are told with the
    /// resync that follows.
    pub fn restore_interest(&self, held: &Held, channel: &str) {
        let number = shard_of(channel, self.shards.len() as u16);
        self.with(number, |shard, _| self.note(shard, held, channel));
    }

    fn note(&self, shard: &mut Shard, held: &Held, channel: &str) {
        let name = shard.state.name(channel);
        let new = shard.interest.add(held.slot, channel, name);
        shard.interest.hold(held.slot, channel);
        // While the shard is held: a detach in between must find it.
        new.into_iter().for_each(|name| held.add_interest(name));
    }

    /// What an attempt came to.
    fn end_attempt(&self, held: &Held, channel: &str, number: u64, subscribed: bool) {
        let shard = shard_of(channel, self.shards.len() as u16);
        self.with(shard, |shard, _| {
            if let Some(last) = shard.interest.end(held.slot, channel, number, subscribed) {
                held.remove_interest(channel);
                if last && shard.standing() == Standing::Holder {
                    self.cluster.unwanted(shard.number, channel);
                }
            }
        });
    }

    /// Does something while the shard is held, if a node of this broker wants the channel.
    pub fn if_wanted<T>(&self, channel: &str, act: impl FnOnce() -> T) -> Option<T> {
        let shard = lock(&self.shards[usize::from(shard_of(channel, self.shards.len() as u16))]);
        shard.interest.get(channel).filter(|who| !who.nodes.is_empty()).map(|_| act())
    }

    /// Before a shard is held: others may have to make room.
    pub(super) fn prepare(&self, call: &Call) {
        if let Call::Publish(Publish { channel, stream: Some(_), .. }) = call {
            self.make_room_for(channel);
        }
    }

    /// Ends the interest of a node of this broker.
    pub fn unsubscribe(&self, slot: super::Slot, channel: &str) {
        let number = shard_of(channel, self.shards.len() as u16);
        self.with(number, |shard, _| {
            if shard.interest.remove(slot, channel) && shard.standing() == Standing::Holder {
                self.cluster.unwanted(number, channel);
            }
        });
    }

    /// Members that a node told of before the holder's link leave, in all shards that are owned
    /// here; the other brokers are told by [`Engine::members_gone`].
    pub fn drop_members(&self, before: Holder) {
        if self.void(before) {
            return;
        }
        for number in 0..self.shards.len() as u16 {
            if lock(&self.shards[usize::from(number)]).state.has_members_of(before.node) {
                self.with(number, |shard, moment| {
                    if shard.serving.is_some() {
                        self.propose_quietly(shard, moment, Op::DropMembers { before });
                    }
                });
            }
        }
        let left = self.left.swap(0, Relaxed);
        if left > 0 {
            tracing::info!(node = %before.node, left, "members that a node holds no more left");
        }
    }

    /// If that node is attached here, by a link before this one: it is not gone, and tells again of what others
    /// have dropped.
    pub fn void(&self, before: Holder) -> bool {
        self.slots.heard(before.link);
        let here = self.slots.find(before.node).filter(|held| held.link() < before.link);
        if let Some(held) = &here {
            tracing::warn!(node = %held.node, name = held.name, "a node here was taken for gone: it tells again");
            held.outlet.tell_again();
        }
        here.is_some()
    }

    pub(super) fn members_gone(&self, before: Holder) {
        self.drop_members(before);
        self.cluster.members_gone(before);
    }

    /// `Err`: another broker owns the shard, or this one does not serve it yet, or no more.
    pub(super) fn take(
        &self,
        shard: &mut Shard,
        moment: Moment,
        from: Option<BrokerId>,
        call: Call,
    ) -> Result<Submitted, Box<Call>> {
        if let (Some(from), Call::Unsubscribe { channel }) = (from, &call) {
            // Also before it serves: what is wanted was told then, too.
            shard.interest.remove_broker(from, channel);
        }
        let ready = match &call {
            Call::Presence { .. } | Call::PresenceStats { .. } | Call::Unsubscribe { .. } => {
                shard.may_serve(moment)
            }
            _ => shard.accepts(moment),
        };
        if !ready {
            return Err(Box::new(call));
        }
        Ok(match call {
            Call::Publish(publish) => self.take_publish(shard, moment, publish),
            Call::Subscribe { channel, stream: None } => {
                if let Some(from) = from {
                    note_broker(shard, from, &channel);
                }
                Outcome::Subscribed(None).into()
            }
            Call::Subscribe { channel, stream: Some(stream) } => {
                let noted = from.filter(|from| note_broker(shard, *from, &channel));
                let submitted = self.take_touch(shard, moment, channel.clone(), stream, None);
                let stays =
                    matches!(&submitted, Submitted::Later(_) | Submitted::Now(Outcome::Subscribed(_)));
                // That broker takes it back itself where the answer comes later, or is lost.
                if let Some(from) = noted.filter(|_| !stays) {
                    shard.interest.remove_broker(from, &channel);
                }
                submitted
            }
            Call::Unsubscribe { .. } => Outcome::Done.into(),
            Call::History { channel, query, stream } => {
                self.take_touch(shard, moment, channel, stream, Some(query))
            }
            Call::HistoryRemove { channel } if !shard.state.has_stream(&channel) => Outcome::Done.into(),
            Call::HistoryRemove { channel } => {
                self.propose(shard, moment, Op::HistoryRemove { channel }, Then::Reply)
            }
            Call::Join { channel, holder, member, quiet } => {
                self.propose(shard, moment, Op::Join { channel, holder, member, quiet }, Then::Reply)
            }
            Call::Leave { channel, holder, client } => {
                self.propose(shard, moment, Op::Leave { channel, holder, client }, Then::Reply)
            }
            Call::Presence { channel } => Outcome::Members(shard.state.members(&channel)).into(),
            Call::PresenceStats { channel } => Outcome::Stats(shard.state.stats(&channel)).into(),
        })
    }

    fn take_publish(&self, shard: &mut Shard, moment: Moment, publish: Publish) -> Submitted {
        match (&publish.stream, &publish.idempotency_key) {
            // The straight path; but not past others that wait for their commit.
            (None, None) if shard.live_waiting == 0 => {
                let (number, epoch, interest) = (shard.number, shard.epoch(), &shard.interest);
                if interest.has(&publish.channel) {
                    state::deliver_live(publish, &mut |frame| self.deliver(number, epoch, interest, frame));
                }
                return Outcome::Published(None).into();
            }
            (Some(_), _) if !self.has_room(shard, &publish.channel) => {
                return self.refuse(Refusal::MaxChannels, &publish.channel);
            }
            (_, Some(key))
                if !self.has_room_for_key(shard, &publish.channel)
                    && !shard.state.has_key(&publish.channel, key) =>
            {
                return self.refuse(Refusal::Keys, &publish.channel);
            }
            _ => {}
        }
        let (epoch, ack) = (Epoch(rand::random()), publish.ack);
        match (ack, self.propose(shard, moment, Op::Publish { publish, epoch }, Then::Reply)) {
            (Ack::Owner | Ack::None, Submitted::Later(_)) => Outcome::Published(None).into(),
            (_, submitted) => submitted,
        }
    }

    /// A use of a stream, for its position or for its history.
    fn take_touch(
        &self,
        shard: &mut Shard,
        moment: Moment,
        channel: String,
        stream: StreamOptions,
        query: Option<HistoryQuery>,
    ) -> Submitted {
        if let Some(position) = shard.state.touched(moment.ms, &channel, &stream) {
            return match query {
                Some(query) => shard.history(moment, &channel, &query, HISTORY_CHUNK_SIZE).into(),
                None => Outcome::Subscribed(Some(position)).into(),
            };
        }
        if !shard.state.is_seeded() && !self.has_room(shard, &channel) {
            return self.refuse(Refusal::MaxChannels, &channel);
        }
        let then = match query {
            Some(query) => Then::History { channel: channel.clone(), query, max_bytes: HISTORY_CHUNK_SIZE },
            None => Then::Reply,
        };
        let epoch = Epoch(rand::random());
        self.propose(shard, moment, Op::Touch { channel, stream, epoch }, then)
    }
}

/// A call to subscribe that is answered later. Dropped before that, it is as one that failed.
pub struct Attempt {
    engine: Arc<Engine>,
    held: Arc<Held>,
    channel: String,
    number: u64,
    is_open: bool,
}

impl Attempt {
    pub fn end(mut self, outcome: &Outcome) {
        self.settle(matches!(outcome, Outcome::Subscribed(_)));
    }

    fn settle(&mut self, subscribed: bool) {
        if std::mem::replace(&mut self.is_open, false) {
            self.engine.end_attempt(&self.held, &self.channel, self.number, subscribed);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.settle(false);
    }
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attempt {} to subscribe to {:?}", self.number, self.channel)
    }
}

/// Whether that broker's interest is new.
fn note_broker(shard: &mut Shard, from: BrokerId, channel: &str) -> bool {
    let name = shard.state.name(channel);
    shard.interest.add_broker(from, channel, name)
}

/// No less than the publication takes in any frame.
fn weight(publish: &Publish) -> usize {
    let info = |i: &ClientInfo| i.user.len() + i.client.len() + i.conn_info.len() + i.chan_info.len() + 64;
    let tags: usize = publish.tags.iter().map(|(k, v)| k.len() + v.len() + 20).sum();
    let key = publish.idempotency_key.as_ref().map_or(0, String::len);
    publish.channel.len()
        + publish.data.len()
        + publish.info.as_ref().map_or(0, info)
        + tags
        + key
        + publish.version_epoch.len()
        + 256
}
