//! What the records come to, one after another: what a start finds, and what the group has.

use super::record::Record;
use crate::meta::store::{Saved, Slot};
use crate::replica::Restored;
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use weir_wire::replica::{Entry, Place};

/// One shard as it was left.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// `base` and `applied` are where `state` stands.
    pub restored: Restored,
    /// The applied state; empty if there is none yet (`applied` is 0).
    pub state: Bytes,
}

#[derive(Debug, Default)]
pub struct Image {
    shards: BTreeMap<u16, Building>,
    pub group: Group,
    /// Of the last start: whether all was synced before it was promised, and in which boot.
    pub opened: Option<(bool, Bytes)>,
    pub clean: bool,
}

/// Looked at when all is read: what begins in a segment that is gone may be void by what comes after.
#[derive(Debug)]
struct Building {
    resets: u64,
    base: Place,
    state: Bytes,
    /// The state has all its parts.
    whole: bool,
    entries: VecDeque<(u64, Entry)>,
    parts: Option<(u64, BytesMut)>,
}

impl Default for Building {
    fn default() -> Building {
        let (base, state) = (Place::default(), Bytes::new());
        Building { resets: 0, base, state, whole: true, entries: VecDeque::new(), parts: None }
    }
}

/// Entries of a shard that do not follow each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Hole {
    pub shard: u16,
    pub after: u64,
}

impl Image {
    pub fn apply(&mut self, record: Record) {
        self.clean = record == Record::Clean;
        match record {
            Record::Opened { always, boot } => self.opened = Some((always, boot)),
            Record::Clean => {}
            Record::Entry { shard, at, data } => {
                let entry = Entry { epoch: at.epoch, data };
                self.shard(shard).entries.push_back((at.index, entry));
            }
            Record::Truncate { shard, after } => {
                let entries = &mut self.shard(shard).entries;
                while entries.pop_back_if(|(index, _)| *index > after).is_some() {}
            }
            Record::Part { shard, id, data } => match &mut self.shard(shard).parts {
                Some((known, parts)) if *known == id => parts.extend_from_slice(&data),
                parts => *parts = Some((id, BytesMut::from(&data[..]))),
            },
            Record::State { shard, id, bytes, at, resets, install } => {
                let building = self.shard(shard);
                let parts = building.parts.take().filter(|(known, _)| *known == id);
                let state = parts.map(|(_, parts)| parts.freeze()).unwrap_or_default();
                building.whole = state.len() as u64 == bytes;
                (building.state, building.resets, building.base) = (state, resets, at);
                let entries = &mut building.entries;
                while entries.pop_front_if(|(index, _)| install || *index <= at.index).is_some() {}
            }
            Record::Reset { shard, resets, keep: true } => self.shard(shard).resets = resets,
            Record::Reset { shard, resets, keep: false } => {
                self.shards.insert(shard, Building { resets, ..Building::default() });
            }
            Record::Retire { shard } => {
                self.shards.remove(&shard);
            }
            group => self.group.apply(group),
        }
    }

    fn shard(&mut self, shard: u16) -> &mut Building {
        self.shards.entry(shard).or_default()
    }

    /// All of it; a shard of which something is missing is an error.
    pub fn finish(self) -> Result<(BTreeMap<u16, Shard>, Group), Hole> {
        let mut shards = BTreeMap::new();
        for (shard, building) in self.shards {
            let done = building.finish().map_err(|after| Hole { shard, after })?;
            shards.insert(shard, done);
        }
        Ok((shards, self.group))
    }
}

impl Building {
    /// An error is the last index before a hole.
    fn finish(self) -> Result<Shard, u64> {
        let (base, mut entries) = (self.base, Vec::with_capacity(self.entries.len()));
        for (next, (index, entry)) in (base.index + 1..).zip(self.entries) {
            if index != next {
                return Err(next - 1);
            }
            entries.push(entry);
        }
        if !self.whole {
            return Err(base.index);
        }
        let restored = Restored { resets: self.resets, base, entries, applied: base.index };
        Ok(Shard { restored, state: self.state })
    }
}

/// What the metadata group keeps: small, so it is written anew into each segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    slots: BTreeMap<u8, Bytes>,
    entries: BTreeMap<u64, Bytes>,
}

const SLOTS: [Slot; 5] = [Slot::Identity, Slot::Vote, Slot::Committed, Slot::Purged, Slot::Snapshot];

/// As it stands in a record; the order of [`SLOTS`] must not change.
pub fn slot_number(slot: Slot) -> u8 {
    match slot {
        Slot::Identity => 0,
        Slot::Vote => 1,
        Slot::Committed => 2,
        Slot::Purged => 3,
        Slot::Snapshot => 4,
    }
}

impl Group {
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::MetaClear => *self = Group::default(),
            Record::MetaSlot { slot, value } => {
                self.slots.insert(slot, value);
            }
            Record::MetaEntry { index, data } => {
                self.entries.insert(index, data);
            }
            Record::MetaTruncate { from } => {
                self.entries.split_off(&from);
            }
            Record::MetaPurge { to } => {
                self.entries = self.entries.split_off(&(to.saturating_add(1)));
            }
            _ => {}
        }
    }

    pub fn records(&self) -> impl Iterator<Item = Record> {
        let slots = self.slots.iter().map(|(slot, value)| (*slot, value.clone()));
        let slots = slots.map(|(slot, value)| Record::MetaSlot { slot, value });
        let entries = self.entries.iter().map(|(index, data)| (*index, data.clone()));
        let entries = entries.map(|(index, data)| Record::MetaEntry { index, data });
        std::iter::once(Record::MetaClear).chain(slots).chain(entries)
    }

    pub fn saved(&self) -> Saved {
        let slot = |(number, value): (&u8, &Bytes)| Some((*SLOTS.get(*number as usize)?, value.clone()));
        Saved {
            slots: self.slots.iter().filter_map(slot).collect(),
            entries: self.entries.iter().map(|(index, data)| (*index, data.clone())).collect(),
        }
    }
}
