//! A share of the channels: their logs, who is interested, who is present. Pure: `now` and random
//! numbers are arguments, and what is to be delivered is handed to the caller's closure while the
//! shard is held, so that one channel's deliveries leave in the order of its offsets.
//!
//! The engine holds each shard behind a mutex. Its time-driven work is driven by two heaps with
//! at most one entry per channel each: by the age of the oldest thing kept (memory), and by the
//! next deadline (expiry). Entries may be early, never late; an early one is put back.

use crate::channel_log::ChannelLog;
use crate::idempotency::Keys;
use crate::presence::Presence;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_wire::codec;
use weir_wire::envelope::{
    Body, Delivery, History, HistoryQuery, Member, Position, PresenceStats, Publication, Publish, Published,
    StreamOptions,
};
use weir_wire::id::{Epoch, NodeId};
use weir_wire::peer::FromBroker;

/// A place for an attached node; its number is used again when the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub u16);

/// Who holds a member: a node, by one of its attachments. Later ones have larger numbers.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub node: NodeId,
    pub link: u64,
}

/// Over a limit; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    MaxChannels,
    /// Could not be encoded: larger than a frame.
    TooLarge,
}

/// Who gets a frame.
pub type Deliver<'a> = &'a mut dyn FnMut(&[Slot], Bytes);

/// What the shard may do and may not know by itself.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    /// For a stream that comes into being.
    pub epoch: Epoch,
    /// Whether one may.
    pub room: bool,
}

#[derive(Debug, Default)]
pub struct Shard {
    channels: HashMap<Arc<str>, Channel>,
    presence: Presence,
    by_age: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    by_deadline: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    bytes: usize,
    streams: usize,
}

#[derive(Debug, Default)]
struct Channel {
    log: Option<ChannelLog>,
    keys: Option<Box<Keys>>,
    nodes: Vec<Slot>,
    /// Whether the heaps hold this channel.
    in_age: bool,
    in_deadline: bool,
}

impl Channel {
    /// Into the stream, and to whoever is interested; or nothing, if it was there before.
    fn publish(
        &mut self,
        now: Instant,
        options: &StreamOptions,
        publish: Publish,
        deliver: Deliver<'_>,
    ) -> Result<Published, Refusal> {
        let Some(log) = &mut self.log else { return Err(Refusal::MaxChannels) };
        if let Some(key) = &publish.idempotency_key
            && let Some(first) = self.keys.as_mut().and_then(|k| k.get(now, key))
        {
            return Ok(first);
        }
        let mut published = Some(log.position());
        if !log.is_stale(publish.version, &publish.version_epoch) {
            let Position { epoch, offset } = log.next();
            let publication =
                Publication { offset, data: publish.data, info: publish.info, tags: publish.tags };
            let publication = send(publish.channel, Some(epoch), publication, &self.nodes, deliver)?;
            log.append(now, options, publication);
            log.set_version(publish.version, publish.version_epoch);
            published = Some(log.position());
        }
        if let Some(key) = publish.idempotency_key {
            self.keys.get_or_insert_default().insert(now, key, published);
        }
        Ok(published)
    }

    fn bytes(&self) -> usize {
        self.log.as_ref().map_or(0, ChannelLog::bytes) + self.keys.as_ref().map_or(0, |k| k.bytes())
    }

    fn oldest(&self) -> Option<Instant> {
        let log = self.log.as_ref().and_then(ChannelLog::oldest);
        let keys = self.keys.as_ref().and_then(|k| k.oldest());
        log.into_iter().chain(keys).min()
    }

    fn deadline(&self) -> Option<Instant> {
        let log = self.log.as_ref().map(ChannelLog::deadline);
        let keys = self.keys.as_ref().and_then(|k| k.oldest()).map(|at| at + crate::idempotency::KEPT);
        log.into_iter().chain(keys).min()
    }

    fn drop_oldest(&mut self) {
        let log = self.log.as_ref().and_then(ChannelLog::oldest);
        let keys = self.keys.as_ref().and_then(|k| k.oldest());
        match (&mut self.log, &mut self.keys) {
            (Some(l), _) if log.is_some() && (keys.is_none() || log <= keys) => l.drop_front(),
            (_, Some(k)) => k.drop_front(),
            _ => {}
        }
    }

    /// Ends what is past its time. A stream that someone is interested in keeps its place.
    fn expire(&mut self, now: Instant) {
        if let Some(log) = &mut self.log {
            log.expire(now);
            if log.is_dead(now) && self.nodes.is_empty() {
                self.log = None;
            }
        }
        if let Some(keys) = &mut self.keys {
            keys.expire(now);
            if keys.is_empty() {
                self.keys = None;
            }
        }
    }

    fn is_unused(&self) -> bool {
        self.log.is_none() && self.keys.is_none() && self.nodes.is_empty()
    }
}

impl Shard {
    pub fn publish(
        &mut self,
        now: Now,
        publish: Publish,
        deliver: Deliver<'_>,
    ) -> Result<Published, Refusal> {
        let Some(options) = publish.stream else { return self.publish_live(now, publish, deliver) };
        let key = self.stream(now, &publish.channel, &options)?;
        let (before, channel) = self.channel(&key);
        let published = channel.publish(now.at, &options, publish, deliver);
        self.settle(&key, before, now.at);
        published
    }

    /// A channel without history: whoever is interested now, and no trace.
    fn publish_live(
        &mut self,
        now: Now,
        publish: Publish,
        deliver: Deliver<'_>,
    ) -> Result<Published, Refusal> {
        if let Some(idempotency_key) = publish.idempotency_key {
            let key = self.name(&publish.channel);
            let (before, channel) = self.channel(&key);
            let keys = channel.keys.get_or_insert_default();
            let repeated = keys.get(now.at, &idempotency_key);
            if repeated.is_none() {
                keys.insert(now.at, idempotency_key, None);
            }
            self.settle(&key, before, now.at);
            if let Some(first) = repeated {
                return Ok(first);
            }
        }
        if let Some(channel) = self.channels.get(publish.channel.as_str()) {
            let publication =
                Publication { offset: 0, data: publish.data, info: publish.info, tags: publish.tags };
            send(publish.channel, None, publication, &channel.nodes, deliver)?;
        }
        Ok(None)
    }

    /// Interest of `slot`; the position is taken with it, in one step. Returns the channel's
    /// shared name if the interest is new.
    pub fn subscribe(
        &mut self,
        now: Now,
        slot: Slot,
        channel: &str,
        stream: Option<StreamOptions>,
    ) -> Result<(Option<Position>, Option<Arc<str>>), Refusal> {
        let key = match &stream {
            Some(options) => self.stream(now, channel, options)?,
            None => self.name(channel),
        };
        let (_, channel) = self.channel(&key);
        let new = !channel.nodes.contains(&slot);
        if new {
            channel.nodes.push(slot);
        }
        let position = stream.and(channel.log.as_ref()).map(ChannelLog::position);
        Ok((position, new.then_some(key)))
    }

    pub fn unsubscribe(&mut self, slot: Slot, channel: &str) {
        if let Some(held) = self.channels.get_mut(channel) {
            held.nodes.retain(|s| *s != slot);
            if held.is_unused() {
                self.channels.remove(channel);
            }
        }
    }

    /// Where a channel's stream stands, if it has one.
    pub fn position(&self, channel: &str) -> Option<Position> {
        self.channels.get(channel)?.log.as_ref().map(ChannelLog::position)
    }

    pub fn history(
        &mut self,
        now: Now,
        channel: &str,
        query: &HistoryQuery,
        options: &StreamOptions,
    ) -> Result<History, Refusal> {
        let key = self.stream(now, channel, options)?;
        let (before, channel) = self.channel(&key);
        let Some(log) = &mut channel.log else { return Err(Refusal::MaxChannels) };
        let history = log.read(now.at, query);
        self.settle(&key, before, now.at);
        Ok(history)
    }

    pub fn history_remove(&mut self, now: Instant, channel: &str) {
        let Some((key, _)) = self.channels.get_key_value(channel) else { return };
        let key = key.clone();
        let (before, channel) = self.channel(&key);
        if let Some(log) = &mut channel.log {
            log.clear();
        }
        self.settle(&key, before, now);
    }

    /// With `quiet`, nothing is announced: the member was there before, this broker was not.
    pub fn join(&mut self, holder: Holder, channel: &str, member: Member, quiet: bool, deliver: Deliver<'_>) {
        let key = self.channels.get_key_value(channel).map_or_else(|| channel.into(), |(k, _)| k.clone());
        if let Some(info) = self.presence.join(holder, &key, member)
            && !quiet
        {
            self.announce(channel, Body::Join(info), deliver);
        }
    }

    pub fn leave(&mut self, node: NodeId, channel: &str, client: &str, deliver: Deliver<'_>) {
        if let Some(info) = self.presence.leave(node, channel, client) {
            self.announce(channel, Body::Leave(info), deliver);
        }
    }

    /// Takes away the members that the node told of before the holder's link: its lease ended, or
    /// it told anew what it holds.
    pub fn remove_members_before(&mut self, holder: Holder, deliver: Deliver<'_>) -> usize {
        let left = self.presence.remove_before(holder);
        let count = left.len();
        for (channel, info) in left {
            self.announce(&channel, Body::Leave(info), deliver);
        }
        count
    }

    pub fn members(&self, channel: &str) -> Vec<Member> {
        self.presence.members(channel)
    }

    pub fn stats(&self, channel: &str) -> PresenceStats {
        self.presence.stats(channel)
    }

    /// Memory of publications and keys.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn streams(&self) -> usize {
        self.streams
    }

    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// No publication here is older than this.
    pub fn oldest(&self) -> Option<Instant> {
        self.by_age.peek().map(|Reverse((at, _))| *at)
    }

    /// Drops the oldest publication of all channels here. Returns false if there is none, or none
    /// that is not after `until`.
    pub fn drop_oldest(&mut self, now: Instant, until: Option<Instant>) -> bool {
        while self.oldest().is_some_and(|at| until.is_none_or(|until| at <= until)) {
            let Some(Reverse((at, key))) = self.by_age.pop() else { return false };
            let Some(channel) = self.channels.get_mut(&key) else { continue };
            channel.in_age = false;
            let before = channel.bytes();
            let due = channel.oldest() == Some(at);
            if due {
                channel.drop_oldest();
            }
            self.settle(&key, before, now);
            if due {
                return true;
            }
        }
        false
    }

    /// Ends what is past its time, at most `budget` channels. Returns whether more is due.
    pub fn sweep(&mut self, now: Instant, budget: usize) -> bool {
        for _ in 0..budget {
            match self.by_deadline.peek() {
                Some(Reverse((at, _))) if *at <= now => {}
                _ => return false,
            }
            let Some(Reverse((_, key))) = self.by_deadline.pop() else { return false };
            let Some(channel) = self.channels.get_mut(&key) else { continue };
            channel.in_deadline = false;
            let (before, had_log) = (channel.bytes(), channel.log.is_some());
            channel.expire(now);
            self.streams -= usize::from(had_log && channel.log.is_none());
            if channel.is_unused() {
                self.bytes = self.bytes + channel.bytes() - before;
                self.channels.remove(&key);
            } else {
                self.settle(&key, before, now);
            }
        }
        true
    }

    fn announce(&self, channel: &str, body: Body, deliver: Deliver<'_>) {
        let Some(held) = self.channels.get(channel).filter(|c| !c.nodes.is_empty()) else { return };
        let delivery = Delivery { channel: channel.to_owned(), epoch: None, body };
        if let Ok(frame) = codec::encode(&FromBroker::Deliver(delivery)) {
            deliver(&held.nodes, frame);
        }
    }

    /// The channel's shared name, which stays one allocation however many tables hold it.
    fn name(&mut self, channel: &str) -> Arc<str> {
        match self.channels.get_key_value(channel) {
            Some((key, _)) => key.clone(),
            None => {
                let key: Arc<str> = channel.into();
                self.channels.insert(key.clone(), Channel::default());
                key
            }
        }
    }

    /// The same, with a stream in place.
    fn stream(&mut self, now: Now, channel: &str, options: &StreamOptions) -> Result<Arc<str>, Refusal> {
        if let Some((key, held)) = self.channels.get_key_value(channel)
            && held.log.is_some()
        {
            let key = key.clone();
            if let Some(log) = self.channels.get_mut(&key).and_then(|c| c.log.as_mut()) {
                log.touch(now.at, options);
            }
            return Ok(key);
        }
        if !now.room {
            return Err(Refusal::MaxChannels);
        }
        let key = self.name(channel);
        let (before, held) = self.channel(&key);
        held.log = Some(ChannelLog::new(now.at, now.epoch, options));
        self.streams += 1;
        self.settle(&key, before, now.at);
        Ok(key)
    }

    fn channel(&mut self, key: &Arc<str>) -> (usize, &mut Channel) {
        let channel = self.channels.entry(key.clone()).or_default();
        (channel.bytes(), channel)
    }

    /// After a change: the sum of bytes, and the channel's entries in the heaps.
    fn settle(&mut self, key: &Arc<str>, before: usize, now: Instant) {
        let Some(channel) = self.channels.get_mut(key) else { return };
        self.bytes = self.bytes + channel.bytes() - before;
        if !channel.in_age
            && let Some(at) = channel.oldest()
        {
            channel.in_age = true;
            self.by_age.push(Reverse((at, key.clone())));
        }
        if !channel.in_deadline
            && let Some(at) = channel.deadline()
        {
            channel.in_deadline = true;
            // A stream kept by interest alone has its deadline behind it: look again in a while.
            let at = if at <= now { now + Duration::from_secs(60) } else { at };
            self.by_deadline.push(Reverse((at, key.clone())));
        }
    }
}

/// Encodes a publication once for all nodes, and gives it back.
fn send(
    channel: String,
    epoch: Option<Epoch>,
    publication: Publication,
    nodes: &[Slot],
    deliver: Deliver<'_>,
) -> Result<Publication, Refusal> {
    if nodes.is_empty() {
        return Ok(publication);
    }
    let frame = FromBroker::Deliver(Delivery { channel, epoch, body: Body::Publication(publication) });
    deliver(nodes, codec::encode(&frame).map_err(|_| Refusal::TooLarge)?);
    match frame {
        FromBroker::Deliver(Delivery { body: Body::Publication(publication), .. }) => Ok(publication),
        _ => Err(Refusal::TooLarge),
    }
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
