//! What brokers ask each other about the group, as bytes. JSON: there is little of it, and a
//! release that adds a field still understands the one before. The links that carry it prove who
//! is at the other end; here it is checked that it is the incarnation, and the cluster, that was meant.

use super::command::{Command, Refusal};
use super::raft::{Response, Types};
use super::state::{ClusterId, Introduction};
use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, SnapshotMeta, Vote};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;
use weir_wire::id::BrokerId;

#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub from: BrokerId,
    /// `None`: whoever is at this address.
    pub to: Option<BrokerId>,
    /// `None`: of none yet.
    pub cluster: Option<ClusterId>,
    pub ask: Ask,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot {
        vote: Vote<u64>,
        head: SnapshotMeta<u64, BasicNode>,
        meta: Box<RawValue>,
    },
    Renew,
    Submit(Vec<Command>),
    /// Of somebody that wants to become a member.
    Hello,
    Join(Introduction),
    Heard,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(SnapshotResponse<u64>),
    /// From the moment when it was asked for.
    Granted {
        lease: Duration,
        revision: u64,
    },
    Done(Response),
    Hello {
        id: BrokerId,
        cluster: Option<ClusterId>,
        name: String,
        would_bootstrap: bool,
    },
    Joined(ClusterId),
    /// How long ago the leader granted each member a lease.
    Heard(Vec<(BrokerId, Option<Duration>)>),
    No(No),
}

/// Why there is no better answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum No {
    #[error("broker {0} is at that address now")]
    OtherBroker(BrokerId),
    #[error("it belongs to cluster {0}")]
    OtherCluster(ClusterId),
    /// Nothing was changed. Who leads, and where, if known.
    #[error("it does not lead the brokers")]
    NotLeader(Option<(BrokerId, String)>),
    #[error("it is not known whether that happened")]
    Unknown,
    /// Try again.
    #[error("not at the moment: {0}")]
    Later(String),
    #[error("{0}")]
    Refused(Refusal),
    #[error("not a member")]
    NotMember,
    #[error("not understood: {0}")]
    Garbled(String),
    #[error("its part in the group has stopped: {0}")]
    Stopped(String),
}

pub fn encode(value: &impl Serialize) -> Bytes {
    // Only maps with odd keys and failing writers make this fail; there are none.
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}

pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, No> {
    serde_json::from_slice(bytes).map_err(|e| No::Garbled(e.to_string()))
}
