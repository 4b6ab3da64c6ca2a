//! What a shard's committed entries mean: the streams of its channels, who is present, and what was
//! published under which key. Pure and deterministic: every holder that applies the same entries
//! gives the same epochs, offsets, answers to repeats, versions and members, since all of them go
//! by the entries' own times.
//!
//! Two things are each holder's own, and nothing above is ever decided by them: which publications
//! are still kept (by its clock and its memory), and when memory of what is over is freed. A stream
//! ends by an entry that names it ([`Op::Expire`]), keys by the time of later entries.
//!
//! Time-driven work is driven by two heaps with one valid item per channel each: by the age of
//! the oldest publication (memory), and by the next deadline (expiry). Items may be early, never
//! late; an early one is put back.

mod channel;
pub mod keys;
mod log;
mod presence;
mod snapshot;

use channel::{Channel, announce};
use log::ChannelLog;
use presence::Presence;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
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

#[derive(Debug, Default)]
pub struct State {
    /// The latest time of an entry.
    time: u64,
    channels: HashMap<Arc<str>, Channel>,
    presence: Presence,
    by_age: BinaryHeap<Reverse<(u64, Arc<str>)>>,
    by_deadline: BinaryHeap<Reverse<(u64, Arc<str>)>>,
    bytes: usize,
    key_bytes: usize,
    streams: usize,
}

/// Something that cannot be ended yet is looked at again after so many milliseconds.
const RECHECK: u64 = 60_000;
/// The same where only the shard's time has to go on.
const RECHECK_TIME: u64 = 1_000;

impl State {
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
                channels.iter().for_each(|c| self.end_stream(c));
                Reply::Done
            }
            Op::NewEpochs { seed } => {
                for (name, channel) in &mut self.channels {
                    channel.renumber(derive(seed, name));
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
        let key = self.channel(channel, Some((*options, epoch)));
        self.change(&key, |c| {
            let log = c.log.get_or_insert_with(|| ChannelLog::new(time, epoch, options));
            log.touch(time, options);
            log.position()
        })
    }

    /// Ends a stream whose time is over; the owner said that nobody is interested.
    fn end_stream(&mut self, channel: &str) {
        let Some(found) = self.channels.get_mut(channel) else { return };
        if found.log.as_ref().is_some_and(|log| log.is_dead(self.time)) {
            self.bytes -= found.log.take().map_or(0, |log| log.bytes());
            self.streams -= 1;
        }
        if found.is_unused() {
            self.channels.remove(channel);
        }
    }

    /// Where a channel's stream stands, if it has one.
    pub fn position(&self, channel: &str) -> Option<Position> {
        Some(self.log(channel)?.position())
    }

    /// The same, if a use of the stream at this time needs no entry.
    pub fn touched(&self, now: u64, channel: &str, options: &StreamOptions) -> Option<Position> {
        self.log(channel).filter(|log| log.is_touched(now, options)).map(ChannelLog::position)
    }

    /// `None` without a stream.
    pub fn history(&mut self, now: u64, channel: &str, query: &HistoryQuery) -> Option<History> {
        let now = now.max(self.time);
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

    /// Memory of publications and keys.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of keys alone, which nothing shortens.
    pub fn key_bytes(&self) -> usize {
        self.key_bytes
    }

    pub fn streams(&self) -> usize {
        self.streams
    }

    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The channel's shared name, which stays one allocation however many tables hold it.
    pub fn name(&self, channel: &str) -> Option<Arc<str>> {
        self.channels.get_key_value(channel).map(|(key, _)| key.clone())
    }

    /// No publication here is older than this.
    pub fn oldest(&self) -> Option<u64> {
        self.by_age.peek().map(|Reverse((at, _))| *at)
    }

    /// Drops the oldest publication of all channels here. Returns false if there is none, or none
    /// that is not after `until`.
    pub fn drop_oldest(&mut self, until: Option<u64>) -> bool {
        while self.oldest().is_some_and(|at| until.is_none_or(|until| at <= until)) {
            let Some(Reverse((at, key))) = self.by_age.pop() else { return false };
            let Some(channel) = self.channels.get_mut(&key) else { continue };
            if channel.in_age != Some(at) {
                continue;
            }
            channel.in_age = None;
            let dropped = self.change(&key, |c| match &mut c.log {
                Some(log) if log.oldest() == Some(at) => {
                    log.drop_front();
                    true
                }
                _ => false,
            });
            if dropped {
                return true;
            }
        }
        false
    }

    /// Frees what is over by the clock of this holder, at most `budget` channels. `due` gets the
    /// streams that may end now, for their owner to decide. True: keys end when the shard's time
    /// goes on.
    pub fn sweep(&mut self, now: u64, budget: usize, due: &mut Vec<Arc<str>>) -> bool {
        let mut behind = false;
        self.drop_void_items();
        for _ in 0..budget {
            match self.by_deadline.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((at, key))) = self.by_deadline.pop() else { break };
            let time = self.time;
            let Some(channel) = self.channels.get_mut(&key) else { continue };
            if channel.in_deadline != Some(at) {
                continue;
            }
            channel.in_deadline = None;
            let (before, keys_before) = (channel.bytes(), channel.key_bytes());
            channel.expire(now, time);
            let dead = channel.log.as_ref().is_some_and(|log| log.is_dead(now));
            let keys_due = channel.keys.as_ref().and_then(|k| k.end()).is_some_and(|end| end <= now);
            behind |= keys_due;
            let recheck = if keys_due { RECHECK_TIME } else { RECHECK };
            if dead {
                due.push(key.clone());
            }
            let unused = channel.is_unused();
            self.settle(&key, (before, keys_before), now.saturating_add(recheck), now);
            if unused {
                self.channels.remove(&key);
            }
        }
        behind
    }

    /// Items of channels that ended do not pile up in the heaps.
    fn drop_void_items(&mut self) {
        let most = 2 * self.channels.len() + 64;
        let channels = &self.channels;
        if self.by_age.len() > most {
            self.by_age.retain(|Reverse((at, c))| channels.get(c).is_some_and(|c| c.in_age == Some(*at)));
        }
        if self.by_deadline.len() > most {
            let item = |c: &Channel, at: u64| c.in_deadline == Some(at);
            self.by_deadline.retain(|Reverse((at, c))| channels.get(c).is_some_and(|c| item(c, *at)));
        }
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
                self.channels.insert(key.clone(), Channel::default());
                key
            }
        };
        if let Some((options, epoch)) = stream
            && let Some(channel) = self.channels.get_mut(&key)
            && channel.log.is_none()
        {
            channel.log = Some(ChannelLog::new(self.time, epoch, &options));
            self.streams += 1;
        }
        key
    }

    /// Changes a channel and keeps sums and heaps right; one that is not there is as a new one.
    fn change<T>(&mut self, key: &str, change: impl FnOnce(&mut Channel) -> T) -> T {
        let Some(channel) = self.channels.get_mut(key) else { return change(&mut Channel::default()) };
        let (bytes, key_bytes) = (channel.bytes(), channel.key_bytes());
        let result = change(channel);
        // Nearly always the heaps hold it already: one look into the table is all.
        if channel.is_in_heaps() {
            self.bytes = self.bytes + channel.bytes() - bytes;
            self.key_bytes = self.key_bytes + channel.key_bytes() - key_bytes;
        } else {
            let now = self.time;
            self.settle(key, (bytes, key_bytes), now.saturating_add(RECHECK), now);
        }
        result
    }

    /// After a change: the sums of bytes, and the channel's items in the heaps. A deadline that is
    /// behind is looked at again `later`.
    fn settle(&mut self, key: &str, (bytes, key_bytes): (usize, usize), later: u64, now: u64) {
        let Some(channel) = self.channels.get_mut(key) else { return };
        self.bytes = self.bytes + channel.bytes() - bytes;
        self.key_bytes = self.key_bytes + channel.key_bytes() - key_bytes;
        let (mut age, mut deadline) = (None, None);
        if channel.in_age.is_none() {
            age = channel.log.as_ref().and_then(ChannelLog::oldest);
            channel.in_age = age;
        }
        if channel.in_deadline.is_none() {
            deadline = channel.deadline().map(|at| if at <= now { later } else { at });
            channel.in_deadline = deadline;
        }
        if (age, deadline) == (None, None) {
            return;
        }
        let Some(name) = self.name(key) else { return };
        if let Some(at) = age {
            self.by_age.push(Reverse((at, name.clone())));
        }
        if let Some(at) = deadline {
            self.by_deadline.push(Reverse((at, name)));
        }
    }
}

/// A number for each name, the same at every holder.
fn derive(seed: u64, name: &str) -> Epoch {
    let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    let x = name.as_bytes().iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, fnv);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Epoch(x ^ (x >> 31))
}

#[cfg(test)]
#[path = "state/properties.rs"]
mod properties;
#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
