//! A state in bytes and back. Everything that answers depend on is always in it; publications as
//! far as the limit goes, the youngest of all channels first.

use super::epochs::Epochs;
use super::groups::Groups;
use super::keys::Keys;
use super::log::Restoring;
use super::{Channel, State};
use bytes::Bytes;
use std::sync::Arc;
use weir_wire::codec::{self, CodecError};
use weir_wire::snapshot::{Record, Stream, VERSION};

/// Not a state of ours, or not one that this build reads.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("a snapshot of version {0}, this build reads 1 to {VERSION}")]
    Version(u16),
    #[error("{0}")]
    Order(&'static str),
}

struct Writer {
    bytes: Vec<u8>,
    records: u64,
}

impl Writer {
    fn put(&mut self, record: &Record) -> Result<(), CodecError> {
        codec::encode_into(&mut self.bytes, record)?;
        self.records += 1;
        Ok(())
    }
}

impl State {
    /// `limit` bytes, unless what has to be in it takes more.
    pub fn snapshot(&self, limit: usize) -> Result<Bytes, CodecError> {
        let mut needed = Writer { bytes: Vec::new(), records: 0 };
        self.write_rest(&mut needed)?;
        let streams = self.channels.iter().filter_map(|(name, c)| c.log.as_ref().map(|log| (name, log)));
        let names: usize = streams.map(|(name, _)| name.len() + 128).sum();
        let since = self.youngest(limit.saturating_sub(needed.bytes.len() + names));
        let mut out = Writer { bytes: Vec::new(), records: 0 };
        let epochs = self.epochs.record();
        let version = if epochs.is_some() { VERSION } else { 1 };
        out.put(&Record::Head { version, time_ms: self.time })?;
        if let Some((seed, generations)) = epochs {
            out.put(&Record::Epochs { seed, generations })?;
        }
        for (name, channel) in &self.channels {
            let Some(log) = &channel.log else { continue };
            out.put(&Record::Stream(log.record(name)))?;
            // Times of a ring may stand out of order by a clock's jump: from the first one on.
            for (publication, at_ms, expires_ms) in log.kept().skip_while(|(_, at, _)| *at < since) {
                out.put(&Record::Kept { publication, at_ms, expires_ms })?;
            }
        }
        out.records += needed.records;
        out.bytes.extend_from_slice(&needed.bytes);
        let records = out.records;
        out.put(&Record::End { records })?;
        Ok(out.bytes.into())
    }

    fn write_rest(&self, out: &mut Writer) -> Result<(), CodecError> {
        for (name, channel) in &self.channels {
            for (at_ms, key, published) in channel.keys.iter().flat_map(|k| k.iter()) {
                let (channel, key) = (name.to_string(), key.to_owned());
                out.put(&Record::Key { channel, key, at_ms, published })?;
            }
        }
        for (channel, holder, member) in self.presence.iter() {
            out.put(&Record::Member { channel: channel.to_owned(), holder, member: member.clone() })?;
        }
        Ok(())
    }

    /// Publications from this time on take no more than `room`, by the estimate of memory.
    fn youngest(&self, room: usize) -> u64 {
        let usage = self.usage();
        if usage.bytes - usage.key_bytes <= room {
            return 0;
        }
        let mut all: Vec<(u64, usize)> = Vec::new();
        for log in self.channels.values().filter_map(|c| c.log.as_ref()) {
            all.extend(log.sizes());
        }
        all.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        let mut left = room;
        for (at, size) in all {
            match left.checked_sub(size) {
                Some(rest) => left = rest,
                None => return at.saturating_add(1),
            }
        }
        0
    }

    /// The same state, as far as anybody can tell; or an error, and nothing.
    pub fn restore(mut bytes: Bytes, groups: &Arc<Groups>) -> Result<State, Malformed> {
        let (mut state, mut records) = (State::new(groups.clone()), 0);
        let mut open: Option<(Arc<str>, Restoring)> = None;
        while let Some(body) = codec::next_frame(&mut bytes)? {
            let record = codec::decode(&body)?;
            if records == 0 && !matches!(record, Record::Head { .. }) {
                return Err(Malformed::Order("no head"));
            }
            match record {
                Record::Head { version: 1..=VERSION, time_ms } if records == 0 => state.time = time_ms,
                Record::Head { version, .. } => return Err(Malformed::Version(version)),
                Record::Epochs { seed, generations } if records == 1 => {
                    state.epochs = Epochs::restore(seed, &generations);
                }
                Record::Epochs { .. } => return Err(Malformed::Order("epochs behind what they are for")),
                Record::Stream(stream) => {
                    state.close(&mut open)?;
                    open = Some(begin(stream));
                }
                Record::Kept { publication, at_ms, expires_ms } => {
                    if !open.as_mut().is_some_and(|(_, log)| log.restore(publication, at_ms, expires_ms)) {
                        return Err(Malformed::Order("a publication that does not fit its stream"));
                    }
                }
                Record::Key { channel, key, at_ms, published } => {
                    state.close(&mut open)?;
                    let name = state.channel(&channel, None);
                    state.change(&name, |c| {
                        c.keys.get_or_insert_with(Box::<Keys>::default).insert(at_ms, key, published);
                    });
                }
                Record::Member { channel, holder, member } => {
                    state.close(&mut open)?;
                    let name = state.name(&channel).unwrap_or_else(|| channel.as_str().into());
                    let _told_before = state.presence.join(holder, &name, member);
                }
                Record::End { records: count } => {
                    state.close(&mut open)?;
                    return match count == records && bytes.is_empty() {
                        true => Ok(state),
                        false => Err(Malformed::Order("records are missing, or too many")),
                    };
                }
            }
            records += 1;
        }
        Err(Malformed::Order("no end"))
    }

    fn close(&mut self, open: &mut Option<(Arc<str>, Restoring)>) -> Result<(), Malformed> {
        let Some((name, log)) = open.take() else { return Ok(()) };
        let Some(log) = log.whole() else {
            return Err(Malformed::Order("publications are missing at a stream's end"));
        };
        if self.channels.get(&name).is_some_and(|c: &Channel| c.log.is_some()) {
            return Err(Malformed::Order("the same stream twice"));
        }
        let group = self.groups.of(&name);
        self.channels.entry(name.clone()).or_insert_with(|| Channel { group, ..Channel::default() });
        self.change(&name, |c| c.log = Some(log));
        Ok(())
    }
}

fn begin(stream: Stream) -> (Arc<str>, Restoring) {
    (stream.channel.as_str().into(), Restoring::new(stream))
}
