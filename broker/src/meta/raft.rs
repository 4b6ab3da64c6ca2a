//! openraft's view of the group: its types, and how its log, state machine and network are made
//! from [`MetaStore`](super::MetaStore), [`Meta`](super::Meta) and [`Peers`](super::Peers).

pub mod log;
pub mod machine;
pub mod network;

use super::command::{Command, Reply};
use serde::{Deserialize, Serialize};
use std::io::Cursor;

openraft::declare_raft_types!(
    /// What openraft's generic types are filled with.
    pub Types:
        D = Request,
        R = Response,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub type Raft = openraft::Raft<Types>;
pub type LogId = openraft::LogId<u64>;
pub type StorageError = openraft::StorageError<u64>;

/// A term of a leader; two of them are never equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    pub number: u64,
    pub leader: u64,
}

/// An entry of the log: commands that are applied one after another, each on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Set where only the leader can know that the commands are right: they count only if they
    /// were written in this term.
    pub decided_in: Option<Term>,
    pub commands: Vec<Command>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    pub replies: Vec<Reply>,
    /// The state's, when they had been applied.
    pub revision: u64,
}
