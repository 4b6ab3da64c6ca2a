//! The metadata group's part of the log. Always synced: votes and log are tiny.

use super::image::slot_number;
use super::queue::{Op, Queue};
use super::record::Record;
use crate::meta::store::{MetaStore, Saved, Slot};
use async_trait::async_trait;
use bytes::Bytes;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;
use weir_core::sync::lock;

/// While the disk is full or fails, calls wait until it works again: who does not answer loses its
/// lease and its leadership, and keeps its place.
#[derive(Debug)]
pub struct GroupStore {
    pub(super) queue: Arc<Queue>,
    /// What was found at the start.
    pub(super) saved: Mutex<Saved>,
}

impl GroupStore {
    pub(super) async fn put(&self, records: Vec<Record>) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        self.queue.push(Op::Group { records, done });
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the data directory is closed")))
    }

    pub(super) async fn clear(&self) -> io::Result<()> {
        self.put(vec![Record::MetaClear]).await?;
        *lock(&self.saved) = Saved::default();
        Ok(())
    }
}

#[async_trait]
impl MetaStore for GroupStore {
    async fn load(&self) -> io::Result<Saved> {
        Ok(lock(&self.saved).clone())
    }

    async fn set(&self, slot: Slot, value: Bytes) -> io::Result<()> {
        self.put(vec![Record::MetaSlot { slot: slot_number(slot), value }]).await
    }

    async fn append(&self, entries: Vec<(u64, Bytes)>) -> io::Result<()> {
        let records = entries.into_iter().map(|(index, data)| Record::MetaEntry { index, data });
        self.put(records.collect()).await
    }

    async fn truncate(&self, from: u64) -> io::Result<()> {
        self.put(vec![Record::MetaTruncate { from }]).await
    }

    async fn purge(&self, to: u64) -> io::Result<()> {
        self.put(vec![Record::MetaPurge { to }]).await
    }
}
