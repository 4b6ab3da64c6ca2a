//! One channel of a shard: its stream, its keys, and what goes out when something is published.

use super::Deliver;
use super::groups::Usage;
use super::keys::Keys;
use super::log::ChannelLog;
use super::order::{self, Weight};
use weir_wire::envelope::{Body, Delivery, Position, Publication, Publish, Published, StreamOptions};
use weir_wire::id::Epoch;
use weir_wire::peer::FromBroker;

#[derive(Debug, Default)]
pub struct Channel {
    pub log: Option<ChannelLog>,
    pub keys: Option<Box<Keys>>,
    /// With which it is counted; see [`super::groups`].
    pub group: usize,
    /// What the heaps hold this channel under; others of its items there are void.
    pub in_weight: Option<Weight>,
    pub in_idleness: Option<u64>,
    pub in_deadline: Option<u64>,
}

impl Channel {
    /// Into the stream, and to whoever is interested; or nothing, if it was there before.
    pub fn publish(&mut self, time: u64, mut publish: Publish, deliver: Deliver<'_>) -> Published {
        let (key, stream) = (publish.idempotency_key.take(), publish.stream);
        if let (Some(key), Some(keys)) = (&key, &mut self.keys)
            && let Some(first) = keys.get(time, key)
        {
            if let (Some(log), Some(options)) = (&mut self.log, &stream) {
                log.touch(time, options);
            }
            return first;
        }
        let published = match (&mut self.log, stream) {
            (Some(log), Some(options)) => Some(append(log, time, &options, publish, deliver)),
            _ => {
                deliver_live(publish, deliver);
                None
            }
        };
        if let Some(key) = key {
            self.keys.get_or_insert_default().insert(time, key, published);
        }
        published
    }

    pub fn usage(&self) -> Usage {
        let key_bytes = self.key_bytes();
        let bytes = self.log.as_ref().map_or(0, ChannelLog::bytes) + key_bytes;
        Usage { bytes, key_bytes, streams: usize::from(self.log.is_some()) }
    }

    pub fn key_bytes(&self) -> usize {
        self.keys.as_ref().map_or(0, |k| k.bytes())
    }

    /// Of its publications.
    pub fn weight(&self) -> Option<Weight> {
        self.log.as_ref().and_then(order::weight)
    }

    /// Whether its item is no later than this.
    pub fn covers(&self, weight: &Weight) -> bool {
        self.in_weight.is_some_and(|item| item.0 >= weight.0)
    }

    /// Since when its stream is neither used nor has publications here.
    pub fn idle_since(&self) -> Option<u64> {
        self.log.as_ref().filter(|log| log.oldest().is_none()).map(ChannelLog::used_at)
    }

    /// Nearly always: then a change needs no look at them.
    pub fn is_in_heaps(&self) -> bool {
        self.in_deadline.is_some() && self.weight().is_some_and(|weight| self.covers(&weight))
    }

    pub fn deadline(&self) -> Option<u64> {
        let log = self.log.as_ref().map(ChannelLog::deadline);
        log.into_iter().chain(self.keys.as_ref().and_then(|k| k.end())).min()
    }

    /// Publications by this holder's clock, keys by the time of the shard.
    pub fn expire(&mut self, now: u64, time: u64) {
        if let Some(log) = &mut self.log {
            log.expire(now);
        }
        if let Some(keys) = &mut self.keys {
            keys.expire(time);
            if keys.is_empty() {
                self.keys = None;
            }
        }
    }

    pub fn renumber(&mut self, epoch: Epoch) {
        let Some(log) = &mut self.log else { return };
        if let Some(keys) = &mut self.keys {
            keys.renumber(log.position().epoch, epoch);
        }
        log.renumber(epoch);
    }

    pub fn is_unused(&self) -> bool {
        self.log.is_none() && self.keys.is_none()
    }
}

/// Unless its version comes too late. Where the stream stands then.
fn append(
    log: &mut ChannelLog,
    time: u64,
    options: &StreamOptions,
    publish: Publish,
    deliver: Deliver<'_>,
) -> Position {
    if log.is_stale(publish.version, &publish.version_epoch) {
        log.touch(time, options);
        return log.position();
    }
    let Position { epoch, offset } = log.next();
    let publication = Publication { offset, data: publish.data, info: publish.info, tags: publish.tags };
    if let Some(publication) = send(publish.channel, Some(epoch), publication, deliver) {
        log.append(time, options, publication);
    }
    log.set_version(publish.version, publish.version_epoch);
    log.position()
}

/// Hands out a publication for all who are interested, and gives it back.
fn send(
    channel: String,
    epoch: Option<Epoch>,
    publication: Publication,
    deliver: Deliver<'_>,
) -> Option<Publication> {
    let frame = FromBroker::Deliver(Delivery { channel, epoch, body: Body::Publication(publication) });
    deliver(&frame);
    match frame {
        FromBroker::Deliver(Delivery { body: Body::Publication(publication), .. }) => Some(publication),
        _ => None,
    }
}

pub fn announce(channel: String, body: Body, deliver: Deliver<'_>) {
    deliver(&FromBroker::Deliver(Delivery { channel, epoch: None, body }));
}

/// A channel without history, and without a key: whoever is interested now, and no trace.
pub fn deliver_live(publish: Publish, deliver: Deliver<'_>) {
    let publication = Publication { offset: 0, data: publish.data, info: publish.info, tags: publish.tags };
    let _not_kept = send(publish.channel, None, publication, deliver);
}
