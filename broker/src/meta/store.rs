//! Where a broker's part of the group outlives its process, if anywhere. openraft's view of it is
//! in `raft`; an implementation sees numbered bytes and a few named ones.

use async_trait::async_trait;
use bytes::Bytes;
use std::io;

/// Each holds its last value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// Which incarnation this is. Lost together with all the rest.
    Identity,
    Vote,
    Committed,
    Purged,
    Snapshot,
}

/// What was there at start; all empty the first time.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    pub slots: Vec<(Slot, Bytes)>,
    /// In order of their numbers.
    pub entries: Vec<(u64, Bytes)>,
}

/// Each call returns when its change would survive a power failure (as far as the operator asks
/// for that). Calls come one after another, except that a snapshot may be set meanwhile. An error
/// stops this broker's part in the group: it cannot keep promises any more.
#[async_trait]
pub trait MetaStore: Send + Sync + 'static {
    async fn load(&self) -> io::Result<Saved>;
    async fn set(&self, slot: Slot, value: Bytes) -> io::Result<()>;
    /// Numbers go on from the last entry.
    async fn append(&self, entries: Vec<(u64, Bytes)>) -> io::Result<()>;
    /// Entries from this one on.
    async fn truncate(&self, from: u64) -> io::Result<()>;
    /// Entries up to this one.
    async fn purge(&self, to: u64) -> io::Result<()>;
}

/// Nothing outlives the process: each start is a new incarnation.
#[derive(Debug, Default)]
pub struct MemoryStore;

#[async_trait]
impl MetaStore for MemoryStore {
    async fn load(&self) -> io::Result<Saved> {
        Ok(Saved::default())
    }

    async fn set(&self, _: Slot, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    async fn append(&self, _: Vec<(u64, Bytes)>) -> io::Result<()> {
        Ok(())
    }

    async fn truncate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    async fn purge(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
