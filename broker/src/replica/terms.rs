//! What goes into a replica, and what comes out.

use bytes::Bytes;
use std::time::{Duration, Instant};
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::replica::{Entry, Message, Place};

pub use crate::meta::Assignment;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries are written ([`Action::Write`]) and count when that is confirmed. Otherwise memory counts.
    pub disk: bool,
    /// Not yet committed; over it proposals are refused.
    pub tail_entries: usize,
    pub tail_bytes: usize,
    /// Committed and kept for those who are behind. While a state is on its way: twice the bytes,
    /// and as many again as the state has.
    pub kept_entries: usize,
    pub kept_bytes: usize,
    /// In one message.
    pub batch_entries: usize,
    pub batch_bytes: usize,
    /// Sent to one holder and not acknowledged.
    pub flight_entries: usize,
    pub flight_bytes: usize,
    /// One piece of a state, how much of it may be in flight, and the largest one that is taken.
    pub chunk_bytes: usize,
    pub chunk_window: usize,
    pub snapshot_bytes: usize,
    /// A holder that acknowledges nothing for so long, or whose link is down, leaves the set.
    pub replica_timeout: Duration,
    /// Something unanswered is sent again, or asked again.
    pub resend: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            disk: false,
            tail_entries: 16_384,
            tail_bytes: 16 << 20,
            kept_entries: 16_384,
            kept_bytes: 8 << 20,
            batch_entries: 1024,
            batch_bytes: 256 << 10,
            flight_entries: 8192,
            flight_bytes: 4 << 20,
            chunk_bytes: 256 << 10,
            chunk_window: 1 << 20,
            snapshot_bytes: 256 << 20,
            replica_timeout: Duration::from_millis(500),
            resend: Duration::from_millis(100),
        }
    }
}

/// When something happens, and until when this broker may act as an owner: counted from before it
/// asked for the lease, on the same clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    pub lease: Instant,
}

impl Now {
    pub(super) fn has_lease(self) -> bool {
        self.at < self.lease
    }
}

/// What stands on disk at a start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// As last told by [`Action::Reset`] or [`Action::Install`].
    pub resets: u64,
    /// What `entries` follow.
    pub base: Place,
    /// At least all that was confirmed by [`Replica::persisted`].
    pub entries: Vec<Entry>,
    /// What the state on disk contains; later entries are handed out again once they are known to
    /// be committed.
    pub applied: u64,
}

/// Where the group stood when this process registered with it. What was decided up to here may
/// have been meant for the process before, which perhaps acted on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    pub epoch: ShardEpoch,
    pub version: u64,
}

/// To be carried out in order. `T` is what a proposal brought along.
#[derive(Debug)]
pub enum Action<T> {
    Send {
        to: BrokerId,
        message: Message,
    },
    /// The next entry for the state. With a token: its proposer may be told, and it may be delivered.
    Commit {
        at: Place,
        data: Bytes,
        token: Option<T>,
    },
    /// Its outcome is unknown: it may be committed yet, or not.
    Unknown {
        token: T,
    },
    /// Onto the disk, in the order of `write`.
    Write {
        write: u64,
        at: Place,
        data: Bytes,
    },
    Truncate {
        write: u64,
        after: u64,
    },
    /// The state becomes this one, and the log goes on after `at`; both or nothing.
    Install {
        write: u64,
        at: Place,
        resets: u64,
        data: Bytes,
    },
    /// The shard began anew elsewhere. Unless `keep`, state and log are void.
    Reset {
        write: u64,
        resets: u64,
        keep: bool,
    },
    /// The state as of the last `Commit` goes to [`Replica::snapshot`]. Repeated until it does.
    Snapshot,
    /// For the group; each is void if the version is no longer the current one. Repeated until a
    /// newer version is learned.
    Shrink {
        version: u64,
        without: Vec<BrokerId>,
    },
    Grow {
        version: u64,
        add: BrokerId,
    },
    /// This owner acts no more in its epoch. `to` may be itself: then a new epoch is all it needs.
    Move {
        version: u64,
        to: BrokerId,
    },
    /// `fresh`: it began without what was acknowledged before, so streams begin anew.
    Serving {
        epoch: ShardEpoch,
        fresh: bool,
    },
    Stopped {
        epoch: ShardEpoch,
    },
    /// This broker no longer holds the shard: state, log and this replica may go.
    Retire,
}

/// Why a proposal was not taken. It has not been and will not be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotOwner,
    /// Not yet serving, or about to hand over.
    NotReady,
    NoLease,
    /// Too much is waiting for its acknowledgements.
    Full,
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Holder,
    Promoting,
    Serving,
}
