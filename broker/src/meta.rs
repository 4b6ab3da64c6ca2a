//! What the brokers of a cluster agree on: who belongs to it, and which broker owns which shard.
//! A Raft group keeps it (openraft); messages never go through it.
//!
//! | file | |
//! |---|---|
//! | [`state`], [`command`], `apply` | the state machine: [`Meta`] and what changes it |
//! | [`placement`] | which brokers should hold a shard |
//! | [`controller`], `voters` | what the leader decides from it: promote, place, hand over, who votes |
//! | [`lease`] | until when a broker may act, and when it surely no longer does |
//! | [`store`], `raft` | openraft's view: log, state machine, network |
//! | [`group`] | the handle for the layers above, with its tasks |
//!
//! **Who may take a shard from its owner.** The owner itself, by `Move`, after it has stopped; or
//! the leader, by `Promote`, after the owner's lease has surely run out. Nobody else, so that two
//! brokers never own one shard at the same moment, whatever their clocks show.

mod apply;
mod call;
pub mod command;
pub mod controller;
pub mod group;
pub mod lease;
mod peers;
pub mod placement;
mod raft;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
mod voters;

pub use command::Command;
pub use group::{Conf, Group};
pub use lease::Lease;
pub use peers::{PeerError, Peers};
pub use state::{Assignment, BrokerState, ClusterId, Introduction, Meta, Settings, Versions};
pub use store::{MemoryStore, MetaStore};
