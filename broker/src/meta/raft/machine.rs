//! The state machine as openraft drives it: applies what is committed, tells the watchers, and
//! makes and takes snapshots.

use super::log::{decode, encode, slot};
use super::{LogId, Response, StorageError, Term, Types};
use crate::meta::apply::Outcome;
use crate::meta::command::{OwnerChange, Promotion, Reason, Refusal};
use crate::meta::state::Meta;
use crate::meta::store::{MetaStore, Saved, Slot};
use openraft::storage::RaftStateMachine;
use openraft::{
    BasicNode, Entry, EntryPayload, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageIOError,
    StoredMembership,
};
use serde::{Deserialize, Serialize};
use std::io::{self, Cursor};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use weir_core::sync::lock;
use weir_wire::id::BrokerId;

pub struct Machine {
    me: BrokerId,
    meta: watch::Sender<Arc<Meta>>,
    applied: Option<LogId>,
    membership: StoredMembership<u64, BasicNode>,
    kept: Arc<Kept>,
}

/// The last snapshot.
struct Kept {
    last: Mutex<Option<SnapshotFile>>,
    store: Arc<dyn MetaStore>,
}

/// As it is stored.
#[derive(Clone, Serialize, Deserialize)]
struct SnapshotFile {
    head: SnapshotMeta<u64, BasicNode>,
    meta: Arc<Meta>,
}

impl Machine {
    pub fn open(
        me: BrokerId,
        saved: &Saved,
        store: Arc<dyn MetaStore>,
    ) -> io::Result<(Machine, watch::Receiver<Arc<Meta>>)> {
        let last: Option<SnapshotFile> = slot(saved, Slot::Snapshot)?;
        let (applied, membership, meta) = match &last {
            Some(file) => (file.head.last_log_id, file.head.last_membership.clone(), file.meta.clone()),
            None => Default::default(),
        };
        let (meta, watch) = watch::channel(meta);
        let kept = Arc::new(Kept { last: Mutex::new(last), store });
        Ok((Machine { me, meta, applied, membership, kept }, watch))
    }

    fn log(&self, meta: &Meta, change: &OwnerChange) {
        // One line for each change: by who is concerned, so that not all brokers write it.
        if change.to != Some(self.me) && change.to.is_some() {
            return;
        }
        let name = |id: Option<BrokerId>| id.map_or_else(|| "nobody".into(), |id| meta.name(id));
        let (shard, from, to, reason) =
            (change.shard, name(change.from), name(change.to), change.reason.to_string());
        if change.reason == Reason::Promoted(Promotion::Unclean) {
            tracing::error!(shard, from, to, reason, "a shard has another owner, and lost its content");
        } else {
            tracing::info!(shard, from, to, reason, "a shard has another owner");
        }
    }

    fn apply_one(&self, meta: &mut Meta, entry: Entry<Types>) -> Response {
        let mut response = Response::default();
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                let voters: Vec<u64> = membership.voter_ids().collect();
                meta.set_voters(|id| voters.contains(&id.0));
            }
            EntryPayload::Normal(request) => {
                let leader = entry.log_id.leader_id;
                let term = Term { number: leader.term, leader: leader.node_id };
                let stale = request.decided_in.is_some_and(|decided| decided != term);
                for command in &request.commands {
                    let outcome = if stale {
                        Outcome { reply: Err(Refusal::OldLeader), changes: Vec::new() }
                    } else {
                        meta.apply(command)
                    };
                    outcome.changes.iter().for_each(|change| self.log(meta, change));
                    response.replies.push(outcome.reply);
                }
            }
        }
        response.revision = meta.revision;
        response
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembership<u64, BasicNode>), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Response>, StorageError>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut meta = Meta::clone(&self.meta.borrow());
        let before = meta.revision;
        let mut responses = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            responses.push(self.apply_one(&mut meta, entry));
        }
        debug_assert_eq!(meta.check(), Ok(()));
        if meta.revision != before {
            self.meta.send_replace(Arc::new(meta));
        }
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = self.meta.borrow().clone();
        let at = self.applied.map_or(0, |id| id.index);
        let head = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{at}-{}", meta.revision),
        };
        Builder { file: SnapshotFile { head, meta }, kept: self.kept.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        head: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let failed = |e: io::Error| StorageIOError::read_snapshot(Some(head.signature()), &e);
        let meta: Arc<Meta> = Arc::new(decode(snapshot.get_ref()).map_err(failed)?);
        let file = SnapshotFile { head: head.clone(), meta: meta.clone() };
        self.kept.keep(file).await.map_err(failed)?;
        self.applied = head.last_log_id;
        self.membership = head.last_membership.clone();
        self.meta.send_replace(meta);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let last = lock(&self.kept.last).clone();
        let sent = last.map(|file| file.to_send()).transpose();
        sent.map_err(|e| StorageIOError::read_snapshot(None, &e).into())
    }
}

pub struct Builder {
    file: SnapshotFile,
    kept: Arc<Kept>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let signature = self.file.head.signature();
        let kept = self.kept.keep(self.file.clone()).await;
        let sent = kept.and_then(|()| self.file.to_send());
        sent.map_err(|e| StorageIOError::write_snapshot(Some(signature), &e).into())
    }
}

impl SnapshotFile {
    fn to_send(&self) -> io::Result<Snapshot<Types>> {
        let bytes = encode(&*self.meta)?.to_vec();
        Ok(Snapshot { meta: self.head.clone(), snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl Kept {
    async fn keep(&self, file: SnapshotFile) -> io::Result<()> {
        self.store.set(Slot::Snapshot, encode(&file)?).await?;
        *lock(&self.last) = Some(file);
        Ok(())
    }
}
