//! What changes [`Meta`](super::Meta). A command about a shard names the version that it was
//! decided on; if somebody was faster, it is refused and changes nothing.
//!
//! Brokers of two releases apply the same commands. A new kind of command, or a new effect of one,
//! may be used only when every member speaks the wire version that brought it
//! ([`Meta::wire`](super::Meta::wire)).

use super::state::{ClusterId, Introduction, Settings};
use serde::{Deserialize, Serialize};
use std::fmt;
use weir_wire::id::BrokerId;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first broker makes the cluster. Once.
    Bootstrap { cluster: ClusterId, settings: Settings, id: BrokerId, who: Introduction },
    /// A new member, or a member that is back. Older incarnations of the same name or address go.
    Join { cluster: ClusterId, id: BrokerId, who: Introduction },
    /// It is about to restart and to come back with what it holds.
    Drain { id: BrokerId },
    /// It gives up what it holds, and then goes.
    Leave { id: BrokerId },
    /// It has left, or (`lapsed`) it is gone. Only the leader may say so.
    Remove { id: BrokerId, lapsed: bool },
    /// A new owner, because there was none or its lease has run out. Only the leader may.
    Promote { shard: u16, version: u64, owner: BrokerId, without: Vec<BrokerId>, how: Promotion },
    /// The owner goes on with fewer.
    Shrink { shard: u16, version: u64, by: BrokerId, without: Vec<BrokerId> },
    /// The owner says that somebody has caught up.
    Grow { shard: u16, version: u64, by: BrokerId, add: BrokerId },
    /// Who is to be brought up to date, and which surplus copies may go. Only the leader may.
    Place { shard: u16, version: u64, catching_up: Vec<BrokerId>, without: Vec<BrokerId> },
    /// Asks the owner to hand the shard to somebody in sync; `None` takes that back.
    HandOver { shard: u16, version: u64, to: Option<BrokerId> },
    /// The owner hands over, and has stopped to act as the owner.
    Move { shard: u16, version: u64, by: BrokerId, to: BrokerId },
    /// The owner was restarted with what it holds. What it had sent and not kept must not be
    /// taken for what it sends now: the same owner, in a new epoch.
    Restart { shard: u16, version: u64, by: BrokerId },
    /// An operator gives up what the brokers in sync hold, since they will not return.
    GiveUp { shard: u16, version: u64 },
}

impl Command {
    /// Only the leader can know that nobody else still acts.
    pub fn is_for_leader_only(&self) -> bool {
        matches!(self, Command::Remove { .. } | Command::Promote { .. } | Command::Place { .. })
    }
}

/// Why there is a new owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Promotion {
    /// Nobody ever held the shard.
    First,
    /// The lease of the owner before has run out.
    Lapsed,
    /// The owner before is no longer a member.
    Gone,
    /// Nobody in sync is left: what was acknowledged is given up.
    Unclean,
}

impl fmt::Display for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Promotion::First => "first assignment",
            Promotion::Lapsed => "lease of the owner before ran out",
            Promotion::Gone => "owner before left the cluster",
            Promotion::Unclean => "nobody in sync is left; streams begin anew",
        })
    }
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("the shard has changed meanwhile (version {now})")]
    Stale { now: u64 },
    #[error("there is no shard {0}")]
    NoSuchShard(u16),
    #[error("broker {0} is no member")]
    NotMember(BrokerId),
    #[error("broker {0} is not in sync")]
    NotInSync(BrokerId),
    #[error("broker {0} is not catching up")]
    NotCatchingUp(BrokerId),
    #[error("broker {0} does not own the shard")]
    NotOwner(BrokerId),
    #[error("nobody would be left in sync, or the owner would not be")]
    NobodyLeft,
    #[error("this is already cluster {0}")]
    AlreadyBootstrapped(ClusterId),
    #[error("no cluster yet: bootstrap one, or join one")]
    NotBootstrapped,
    #[error("this is cluster {ours}, the broker belongs to {theirs}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error("speaks wire versions {theirs}, but {member} speaks {ours}")]
    Wire { member: String, ours: super::Versions, theirs: super::Versions },
    #[error("settings make no sense: {0}")]
    Settings(String),
    #[error("{0} is alive under this name or address")]
    StillAlive(BrokerId),
    #[error("broker {0} still holds shards")]
    StillHolds(BrokerId),
    #[error("the last active broker cannot leave")]
    LastBroker,
    #[error("only the leader decides this")]
    LeaderOnly,
    #[error("decided by a leader of before")]
    OldLeader,
    #[error("nothing would change")]
    NoChange,
}

/// What became of one command.
pub type Reply = Result<(), Refusal>;

/// A change of ownership, for the log and for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerChange {
    pub shard: u16,
    pub from: Option<BrokerId>,
    pub to: Option<BrokerId>,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Promoted(Promotion),
    HandedOver,
    OwnerRemoved,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Promoted(how) => how.fmt(f),
            Reason::HandedOver => f.write_str("handed over by the owner before"),
            Reason::OwnerRemoved => f.write_str("owner left the cluster"),
        }
    }
}
