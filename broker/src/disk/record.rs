//! What frames carry. Little-endian, data with its length in front.

use bytes::{Buf, BufMut, Bytes};
use weir_wire::id::ShardEpoch;
use weir_wire::replica::Place;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Written at each start of the process and of a segment: by what policy, in which boot of the
    /// machine.
    Opened {
        always: bool,
        boot: Bytes,
    },
    /// The process ended in an orderly way, and everything before is on disk.
    Clean,
    Entry {
        shard: u16,
        at: Place,
        data: Bytes,
    },
    Truncate {
        shard: u16,
        after: u64,
    },
    /// A piece of a state. It means nothing before its `State`.
    Part {
        shard: u16,
        id: u64,
        data: Bytes,
    },
    /// The state as of `at`, made of the parts. Installed: entries of before are void.
    State {
        shard: u16,
        id: u64,
        bytes: u64,
        at: Place,
        resets: u64,
        install: bool,
    },
    Reset {
        shard: u16,
        resets: u64,
        keep: bool,
    },
    Retire {
        shard: u16,
    },
    /// What follows is all there is of the group's state.
    MetaClear,
    MetaSlot {
        slot: u8,
        value: Bytes,
    },
    MetaEntry {
        index: u64,
        data: Bytes,
    },
    MetaTruncate {
        from: u64,
    },
    MetaPurge {
        to: u64,
    },
}

fn put_data(out: &mut Vec<u8>, data: &[u8]) {
    out.put_u32_le(data.len() as u32);
    out.put_slice(data);
}

/// Without a copy of the data on the way.
pub fn put_entry(out: &mut Vec<u8>, shard: u16, at: Place, data: &[u8]) {
    out.put_u8(2);
    out.put_u16_le(shard);
    put_place(out, at);
    put_data(out, data);
}

pub fn put_part(out: &mut Vec<u8>, shard: u16, id: u64, data: &[u8]) {
    out.put_u8(4);
    out.put_u16_le(shard);
    out.put_u64_le(id);
    put_data(out, data);
}

fn put_place(out: &mut Vec<u8>, at: Place) {
    out.put_u64_le(at.epoch.0);
    out.put_u64_le(at.index);
}

impl Record {
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Record::Opened { always, boot } => {
                out.put_u8(0);
                out.put_u8(u8::from(*always));
                put_data(out, boot);
            }
            Record::Clean => out.put_u8(1),
            Record::Entry { shard, at, data } => put_entry(out, *shard, *at, data),
            Record::Truncate { shard, after } => {
                out.put_u8(3);
                out.put_u16_le(*shard);
                out.put_u64_le(*after);
            }
            Record::Part { shard, id, data } => put_part(out, *shard, *id, data),
            Record::State { shard, id, bytes, at, resets, install } => {
                out.put_u8(5);
                out.put_u16_le(*shard);
                out.put_u64_le(*id);
                out.put_u64_le(*bytes);
                put_place(out, *at);
                out.put_u64_le(*resets);
                out.put_u8(u8::from(*install));
            }
            Record::Reset { shard, resets, keep } => {
                out.put_u8(6);
                out.put_u16_le(*shard);
                out.put_u64_le(*resets);
                out.put_u8(u8::from(*keep));
            }
            Record::Retire { shard } => {
                out.put_u8(7);
                out.put_u16_le(*shard);
            }
            Record::MetaClear => out.put_u8(8),
            Record::MetaSlot { slot, value } => {
                out.put_u8(9);
                out.put_u8(*slot);
                put_data(out, value);
            }
            Record::MetaEntry { index, data } => {
                out.put_u8(10);
                out.put_u64_le(*index);
                put_data(out, data);
            }
            Record::MetaTruncate { from } => {
                out.put_u8(11);
                out.put_u64_le(*from);
            }
            Record::MetaPurge { to } => {
                out.put_u8(12);
                out.put_u64_le(*to);
            }
        }
    }

    /// The next one; `None` if what is there is none.
    pub fn get(from: &mut &[u8]) -> Option<Record> {
        Some(match from.try_get_u8().ok()? {
            0 => Record::Opened { always: flag(from)?, boot: data(from)? },
            1 => Record::Clean,
            2 => Record::Entry { shard: short(from)?, at: place(from)?, data: data(from)? },
            3 => Record::Truncate { shard: short(from)?, after: long(from)? },
            4 => Record::Part { shard: short(from)?, id: long(from)?, data: data(from)? },
            5 => Record::State {
                shard: short(from)?,
                id: long(from)?,
                bytes: long(from)?,
                at: place(from)?,
                resets: long(from)?,
                install: flag(from)?,
            },
            6 => Record::Reset { shard: short(from)?, resets: long(from)?, keep: flag(from)? },
            7 => Record::Retire { shard: short(from)? },
            8 => Record::MetaClear,
            9 => Record::MetaSlot { slot: from.try_get_u8().ok()?, value: data(from)? },
            10 => Record::MetaEntry { index: long(from)?, data: data(from)? },
            11 => Record::MetaTruncate { from: long(from)? },
            12 => Record::MetaPurge { to: long(from)? },
            _ => return None,
        })
    }
}

fn flag(from: &mut &[u8]) -> Option<bool> {
    match from.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn short(from: &mut &[u8]) -> Option<u16> {
    from.try_get_u16_le().ok()
}

fn long(from: &mut &[u8]) -> Option<u64> {
    from.try_get_u64_le().ok()
}

fn place(from: &mut &[u8]) -> Option<Place> {
    Some(Place { epoch: ShardEpoch(long(from)?), index: long(from)? })
}

/// A copy, so that a small entry does not keep its segment in memory.
fn data(from: &mut &[u8]) -> Option<Bytes> {
    let length = from.try_get_u32_le().ok()? as usize;
    let (data, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(Bytes::copy_from_slice(data))
}
