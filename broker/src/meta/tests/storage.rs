//! What openraft expects of a log and a state machine, by its own suite; and that all of it is
//! still there after a restart.

use super::harness::Disk;
use crate::meta::raft::log::Log;
use crate::meta::raft::machine::Machine;
use crate::meta::raft::{StorageError, Types};
use crate::meta::store::MetaStore;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite, blank_ent, log_id};
use openraft::{RaftLogReader, RaftSnapshotBuilder, Vote};
use std::sync::Arc;
use weir_wire::id::BrokerId;

struct Build;

impl StoreBuilder<Types, Log, Machine> for Build {
    async fn build(&self) -> Result<((), Log, Machine), StorageError> {
        let (log, machine) = open(&Arc::default()).await;
        Ok(((), log, machine))
    }
}

async fn open(disk: &Arc<Disk>) -> (Log, Machine) {
    let saved = disk.load().await.unwrap();
    let (machine, _) = Machine::open(BrokerId(1), &saved, disk.clone()).unwrap();
    (Log::open(&saved, disk.clone()).unwrap(), machine)
}

#[test]
fn openrafts_own_suite_passes() {
    Suite::test_all(Build).unwrap();
}

#[tokio::test]
async fn a_restart_finds_log_vote_and_snapshot() {
    let disk = Arc::default();
    let (mut log, mut machine) = open(&disk).await;
    log.save_vote(&Vote::new(3, 1)).await.unwrap();
    let entries = || (1..=9).map(|n| blank_ent::<Types>(1, 1, n));
    log.blocking_append(entries()).await.unwrap();
    log.truncate(log_id(1, 1, 8)).await.unwrap();
    machine.apply(entries().take(5)).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    log.purge(log_id(1, 1, 3)).await.unwrap();
    log.save_committed(Some(log_id(1, 1, 6))).await.unwrap();

    let (mut log, mut machine) = open(&disk).await;
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(1, 1, 3)));
    assert_eq!(state.last_log_id, Some(log_id(1, 1, 7)));
    let kept: Vec<_> = log.try_get_log_entries(..).await.unwrap().iter().map(|e| e.log_id.index).collect();
    assert_eq!(kept, [4, 5, 6, 7]);
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1, 6)));
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 1, 5)));
    assert!(machine.get_current_snapshot().await.unwrap().is_some());
}
