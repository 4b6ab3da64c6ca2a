//! The Raft log: in memory for reading, and in a store if there is one. It is short: changes of
//! members and assignments, cut off at each snapshot.

use super::{LogId, StorageError, Types};
use crate::meta::store::{MetaStore, Saved, Slot};
use bytes::Bytes;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{Entry, LogState, RaftLogReader, StorageIOError, Vote};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};
use weir_core::sync::lock;

#[derive(Clone)]
pub struct Log {
    held: Arc<Mutex<Held>>,
    store: Arc<dyn MetaStore>,
}

#[derive(Default)]
struct Held {
    vote: Option<Vote<u64>>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry<Types>>,
}

pub fn encode(value: &impl Serialize) -> io::Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(io::Error::other)
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::other)
}

pub fn slot<T: DeserializeOwned>(saved: &Saved, slot: Slot) -> io::Result<Option<T>> {
    saved.slots.iter().find(|(s, _)| *s == slot).map(|(_, bytes)| decode(bytes)).transpose()
}

impl Log {
    pub fn open(saved: &Saved, store: Arc<dyn MetaStore>) -> io::Result<Log> {
        let purged: Option<LogId> = slot(saved, Slot::Purged)?;
        let mut entries = BTreeMap::new();
        for (index, bytes) in &saved.entries {
            // The mark is written before the entries go.
            if purged.is_none_or(|p| *index > p.index) {
                entries.insert(*index, decode(bytes)?);
            }
        }
        let (vote, committed) = (slot(saved, Slot::Vote)?, slot(saved, Slot::Committed)?);
        Ok(Log { held: Arc::new(Mutex::new(Held { vote, committed, purged, entries })), store })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }

    async fn set(&self, slot: Slot, value: &impl Serialize) -> io::Result<()> {
        self.store.set(slot, encode(value)?).await
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, StorageError> {
        // An empty range is asked for, and BTreeMap would panic on it.
        let start = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n + 1,
            Bound::Unbounded => 0,
        };
        let held = self.held();
        let wanted = held.entries.range(start..).take_while(|(n, _)| range.contains(*n));
        Ok(wanted.map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let held = self.held();
        let last = held.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: held.purged, last_log_id: last.or(held.purged) })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError> {
        self.set(Slot::Vote, vote).await.map_err(|e| StorageIOError::write_vote(&e))?;
        self.held().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError> {
        Ok(self.held().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.set(Slot::Committed, &committed).await.map_err(|e| StorageIOError::write_logs(&e))?;
        self.held().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.held().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let encoded: io::Result<Vec<_>> =
            entries.iter().map(|entry| Ok((entry.log_id.index, encode(entry)?))).collect();
        self.held().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        let written = match encoded {
            Ok(encoded) => self.store.append(encoded).await,
            Err(error) => Err(error),
        };
        flushed.log_io_completed(written);
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        self.held().entries.split_off(&from.index);
        self.store.truncate(from.index).await.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn purge(&mut self, to: LogId) -> Result<(), StorageError> {
        self.set(Slot::Purged, &Some(to)).await.map_err(|e| StorageIOError::write_logs(&e))?;
        {
            let mut held = self.held();
            held.purged = Some(to);
            held.entries = held.entries.split_off(&(to.index + 1));
        }
        self.store.purge(to.index).await.map_err(|e| StorageIOError::write_logs(&e).into())
    }
}
