//! What a shard's committed entries mean: the streams of its channels, who is present, and what was
//! published under which key. Pure and deterministic: every holder that applies the same entries
//! gives the same epochs, offsets, answers to repeats, versions and members, since all of them go
//! by the entries' own times.
//!
//! Two things are each holder's own, and nothing above is ever decided by them: which publications
//! are still kept (by its clock and its memory), and when memory of what is over is freed. A stream
//! ends by an entry that names it ([`Op::Expire`]), keys by the time of later entries.
//!
//! A stream begins with its first publication. Before that its epoch is made of what the shard has for all names
//! ([`epochs`]), and nothing is kept of it: names cost nothing, whoever makes them up.

mod channel;
pub mod epochs;
pub mod groups;
pub mod keys;
mod log;
mod order;
mod presence;
mod snapshot;

use channel::{Channel, announce};
use epochs::{Epochs, derive};
use groups::{Groups, Usage};
use log::ChannelLog;
use order::Order;
use presence::Presence;
use std::collections::HashMap;
use std::sync::Arc;
use weir_wire::entry::{Entry, Holder, Op};
use weir_wire::envelope::{
    Body, History, HistoryQuery, Member, Position, PresenceStats, Publish, Published, StreamOptions,
};
use weir_wire::id::{Epoch, NodeId};
use weir_wire::peer::FromBroker;

pub use channel::deliver_live;

/// What is to be delivered, one at a time, while the state is held: [`FromBroker::Deliver`]. Given
/// as a whole frame's value, so that it is encoded once and at most once.
pub type Deliver<'a> = &'a mut dyn FnMut(&FromBroker);

/// What an entry came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Published(Published),
    Position(Position),
    /// So many were announced as left.
    Left(usize),
    Done,
}

#[derive(Debug)]
pub struct State {
    /// The latest time of an entry.
    time: u64,
    channels: HashMap<Arc<str>, Channel>,
    epochs: Epochs,
    presence: Presence,
    order: Order,
    groups: Arc<Groups>,
    /// By groups.
    usage: Vec<Usage>,
}

impl Default for State {
    fn default() -> State {
        State::new(Arc::default())
    }
}

/// Something that cannot be ended yet is looked at again after so many milliseconds.
const RECHECK: u64 = 60_000;
/// The same where only the shard's time has to go on.
const RECHECK_TIME: u64 = 1_000;

/// A table gives back its room when no more than this part of it is in use.
const SPARSE: usize = 8;

impl State {
    pub fn new(groups: Arc<Groups>) -> State {
        State {
            time: 0,
            channels: HashMap::new(),
            epochs: Epochs::default(),
            presence: Presence::default(),
            order: Order::new(groups.count()),
            usage: vec![Usage::default(); groups.count()],
            groups,
        }
    }

    /// An entry that is committed, in the order of the log.
    pub fn apply(&mut self, entry: Entry, deliver: Deliver<'_>) -> Reply {
        self.time = self.time.max(entry.time_ms);
        match entry.op {
            Op::Publish { publish, epoch } => Reply::Published(self.publish(publish, epoch, deliver)),
            Op::Touch { channel, stream, epoch } => Reply::Position(self.touch(&channel, &stream, epoch)),
            Op::HistoryRemove { channel } => {
                self.change(&channel, |c| {
                    if let Some(log) = &mut c.log {
                        log.clear();
                    }
                });
                Reply::Done
            }
            Op::Join { channel, holder, member, quiet } => {
                let key = self.name(&channel).unwrap_or_else(|| channel.as_str().into());
                if let Some(info) = self.presence.join(holder, &key, member)
                    && !quiet
                {
                    announce(channel, Body::Join(info), deliver);
                }
                Reply::Done
            }
            Op::Leave { channel, holder, client } => {
                if let Some(info) = self.presence.leave(holder, &channel, &client) {
                    announce(channel, Body::Leave(info), deliver);
                }
                Reply::Done
            }
            Op::DropMembers { before } => {
                let left = self.presence.remove_before(before);
                let count = left.len();
                for (channel, info) in left {
                    announce(channel.to_string(), Body::Leave(info), deliver);
                }
                Reply::Left(count)
            }
            Op::Expire { channels } => {
                let time = self.time;
                channels.iter().for_each(|c| self.forget_stream(c, |log| log.is_dead(time)));
                Reply::Done
            }
            Op::NewEpochs { seed } => {
                self.epochs.renew(seed);
                for (name, channel) in &mut self.channels {
                    channel.renumber(derive(seed, name));
                }
                Reply::Done
            }
            Op::Seed { seed } => {
                self.epochs.set_seed(seed);
                Reply::Done
            }
            Op::Evict { streams } => {
                for (channel, at) in streams {
                    self.forget_stream(&channel, |log| log.position() == at);
                }
                Reply::Done
            }
        }
    }

    fn publish(&mut self, publish: Publish, epoch: Epoch, deliver: Deliver<'_>) -> Published {
        let time = self.time;
        let key = self.channel(&publish.channel, publish.stream.map(|options| (options, epoch)));
        self.change(&key, |channel| channel.publish(time, publish, deliver))
    }

    fn touch(&mut self, channel: &str, options: &StreamOptions, epoch: Epoch) -> Position {
        let time = self.time;
        if let Some(position) = self.derived(channel) {
            return position;
        }
        let key = self.channel(channel, Some((*options, epoch)));
        self.change(&key, |c| {
            let log = c.log.get_or_insert_with(|| ChannelLog::new(time, epoch, options));
            log.touch(time, options);
            log.position()
        })
    }

    /// Ends a stream, if `may`; the owner said that nobody is interested.
    fn forget_stream(&mut self, channel: &str, may: impl FnOnce(&ChannelLog) -> bool) {
        let Some(found) = self.channels.get_mut(channel) else { return };
        if found.log.as_ref().is_some_and(may) {
            let before = found.usage();
            if found.log.take().is_some_and(|log| log.is_published()) {
                self.epochs.forget(channel);
            }
            self.usage[found.group].replace(before, found.usage());
        }
        if found.is_unused() {
            self.remove(channel);
        }
    }

    fn remove(&mut self, channel: &str) {
        self.channels.remove(channel);
        if self.channels.len() * SPARSE < self.channels.capacity() {
            self.channels.shrink_to(2 * self.channels.len());
        }
    }

    /// Where a stream stands that has no publications and never had any.
    fn derived(&self, channel: &str) -> Option<Position> {
        if self.has_stream(channel) {
            return None;
        }
        Some(Position { epoch: self.epochs.of(channel)?, offset: 0 })
    }

    /// Whether something is kept of the channel's stream.
    pub fn has_stream(&self, channel: &str) -> bool {
        self.log(channel).is_some()
    }

    /// Whether epochs are made of a seed, so that a stream without publications takes nothing.
    pub fn is_seeded(&self) -> bool {
        self.epochs.is_seeded()
    }

    /// Where a channel's stream stands; in a state without a seed, if it has one.
    pub fn position(&self, channel: &str) -> Option<Position> {
        self.log(channel).map(ChannelLog::position).or_else(|| self.derived(channel))
    }

    /// The same, if a use of the stream at this time needs no entry.
    pub fn touched(&mut self, now: u64, channel: &str, options: &StreamOptions) -> Option<Position> {
        match self.channels.get_mut(channel).and_then(|c| c.log.as_mut()) {
            Some(log) => {
                log.note_use(now);
                log.is_touched(now, options).then(|| log.position())
            }
            None => self.derived(channel),
        }
    }

    /// `None`: nothing is known of the stream.
    pub fn history(&mut self, now: u64, channel: &str, query: &HistoryQuery) -> Option<History> {
        let now = now.max(self.time);
        if let Some(top) = self.derived(channel) {
            return Some(History { top, publications: Vec::new() });
        }
        self.log(channel)?;
        self.change(channel, |c| c.log.as_mut().map(|log| log.read(now, query)))
    }

    pub fn members(&self, channel: &str) -> Vec<Member> {
        self.presence.members(channel)
    }

    pub fn stats(&self, channel: &str) -> PresenceStats {
        self.presence.stats(channel)
    }

    /// What nodes hold no more, as far as `known` says by which link they are attached: for
    /// [`Op::DropMembers`].
    pub fn stale_holders(&self, known: &dyn Fn(NodeId) -> Option<u64>) -> Vec<Holder> {
        self.presence.stale_holders(known)
    }

    /// Whether a node holds members here.
    pub fn has_members_of(&self, node: NodeId) -> bool {
        self.presence.has(node)
    }

    /// Whether a publication with this key was there before, within the last minutes.
    pub fn has_key(&self, channel: &str, key: &str) -> bool {
        self.channels.get(channel).and_then(|c| c.keys.as_ref()).is_some_and(|k| k.has(key))
    }

    /// What is kept of all channels.
    pub fn usage(&self) -> Usage {
        let mut all = Usage::default();
        self.usage.iter().for_each(|usage| all.add(*usage));
        all
    }

    /// … and by groups.
    pub fn usage_by_group(&self) -> &[Usage] {
        &self.usage
    }

    /// What the keys of one channel take.
    pub fn key_bytes_of(&self, channel: &str) -> usize {
        self.channels.get(channel).map_or(0, Channel::key_bytes)
    }

    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The channel's shared name, which stays one allocation however many tables hold it.
    pub fn name(&self, channel: &str) -> Option<Arc<str>> {
        self.channels.get_key_value(channel).map(|(key, _)| key.clone())
    }

    fn log(&self, channel: &str) -> Option<&ChannelLog> {
        self.channels.get(channel)?.log.as_ref()
    }

    /// The channel, with a stream if it is to have one.
    fn channel(&mut self, channel: &str, stream: Option<(StreamOptions, Epoch)>) -> Arc<str> {
        let key = match self.channels.get_key_value(channel) {
            // Nearly always: then this is all.
            Some((key, found)) if found.log.is_some() || stream.is_none() => return key.clone(),
            Some((key, _)) => key.clone(),
            None => {
                let key: Arc<str> = channel.into();
                let group = self.groups.of(channel);
                self.channels.insert(key.clone(), Channel { group, ..Channel::default() });
                key
            }
        };
        if let Some((options, epoch)) = stream
            && let Some(channel) = self.channels.get_mut(&key)
            && channel.log.is_none()
        {
            let epoch = self.epochs.of(&key).unwrap_or(epoch);
            channel.log = Some(ChannelLog::new(self.time, epoch, &options));
            self.usage[channel.group].streams += 1;
        }
        key
    }

    /// Changes a channel and keeps sums and heaps right; one that is not there is as a new one.
    fn change<T>(&mut self, key: &str, change: impl FnOnce(&mut Channel) -> T) -> T {
        let Some(channel) = self.channels.get_mut(key) else { return change(&mut Channel::default()) };
        let before = channel.usage();
        let result = change(channel);
        // Nearly always: one look into the table is all.
        if channel.is_in_heaps() {
            self.usage[channel.group].replace(before, channel.usage());
        } else {
            let now = self.time;
            self.settle(key, before, now.saturating_add(RECHECK), now);
        }
        result
    }
}

#[cfg(test)]
#[path = "state/properties.rs"]
mod properties;
#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
