//! What the brokers that hold one shard tell each other. The frames that carry it name the shard.
//!
//! ```text
//!   owner                                       another holder
//!    │ Append { prev, entries, commit }            │
//!    │ ──────────────────────────────────────────► │   appends what fits its log
//!    │                   Ack { matched, durable }  │   or, with a gap: send from `matched` on
//!    │ ◄────────────────────────────────────────── │
//!    │ Beat { sent, commit }                       │   now and then; answered if something is amiss
//!    │ ──────────────────────────────────────────► │
//!    │ Chunk …                          ChunkAck … │   the state, for one that is too far behind
//!    │ ──────────────────────────────────────────► │
//! ```
//!
//! Each of them may be lost, doubled or late.

use crate::id::ShardEpoch;
use bytes::Bytes;
use wincode::{SchemaRead, SchemaWrite};

/// A place in a shard's log. An entry keeps the epoch in which it was appended, so two logs that
/// agree on one place agree on all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Place {
    pub epoch: ShardEpoch,
    /// From 1; 0 is before the first entry.
    pub index: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Entry {
    pub epoch: ShardEpoch,
    pub data: Bytes,
}

/// By what right an owner speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Tenure {
    pub epoch: ShardEpoch,
    /// How often the shard began without what it had before. With a higher one, no holder's log
    /// of before counts any more.
    pub resets: u64,
    /// The version of the assignment by which the owner took the holder up. An answer repeats
    /// it, so that one from before the holder was dropped and named again is told apart.
    pub session: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Append {
    pub tenure: Tenure,
    /// What stands before the entries.
    pub prev: Place,
    pub commit: u64,
    /// May be empty: does `prev` fit?
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Beat {
    pub epoch: ShardEpoch,
    pub session: u64,
    pub commit: u64,
    /// The last entry sent to this holder, and the last one that it acknowledged.
    pub sent: u64,
    pub acked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Ack {
    /// The newest that the holder knows of: tells an owner of before that it is none any more.
    pub epoch: ShardEpoch,
    pub session: u64,
    /// Up to here its log is the owner's.
    pub matched: u64,
    /// And up to here also kept as durably as it keeps things.
    pub durable: u64,
    /// The end of its log, matched or not.
    pub last: Place,
    /// What came did not fit: something before it is missing or differs.
    pub gap: bool,
}

/// A piece of the applied state as of `at`.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Chunk {
    pub tenure: Tenure,
    /// Which of the owner's snapshots: two of the same place need not be the same bytes.
    pub take: u64,
    pub at: Place,
    pub total: u64,
    pub offset: u64,
    pub data: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ChunkAck {
    pub epoch: ShardEpoch,
    pub session: u64,
    pub take: u64,
    /// Bytes that are there without a hole.
    pub received: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Message {
    Append(Append),
    Ack(Ack),
    Beat(Beat),
    Chunk(Chunk),
    ChunkAck(ChunkAck),
}
