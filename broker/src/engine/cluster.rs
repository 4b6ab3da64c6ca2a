//! What the engine needs of the world around it: other brokers, the group that assigns shards, a
//! disk. [`Alone`] is a broker that has none of them: nothing leaves its process, and whatever is
//! proposed is committed at once.

use super::calls::Attempt;
use crate::replica::{Assignment, Floor, Limits, Now, Restored};
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use weir_wire::entry::{Call, Holder, SEEDED};
use weir_wire::envelope::{Control, Question, Survey};
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::peer::Outcome;
use weir_wire::replica::{Message, Place};

/// When something happens, until when this broker may own shards, and the Unix clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Now,
    pub ms: u64,
}

/// Wall-clock time that no clock change makes jump: read once, then counted.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begun: Instant,
    ms: u64,
}

impl Clock {
    pub fn start() -> Clock {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let ms = unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0));
        Clock { begun: Instant::now(), ms }
    }

    pub fn ms(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.begun).as_millis();
        self.ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

/// An outcome that is there, or comes when the entry behind it is committed.
#[derive(Debug)]
pub enum Submitted {
    Now(Outcome),
    Later(oneshot::Receiver<Outcome>),
    /// The same for a node's interest, which was noted and is taken back unless it is subscribed.
    Subscribing(oneshot::Receiver<Outcome>, Attempt),
}

/// Longer than it takes to drop a silent holder, and than to find another owner.
const COMMIT_DEADLINE: Duration = Duration::from_secs(5);

impl Submitted {
    /// Unavailable: the outcome is unknown.
    pub async fn outcome(self) -> Outcome {
        match self {
            Submitted::Now(outcome) => outcome,
            Submitted::Later(later) => awaited(later).await,
            Submitted::Subscribing(later, attempt) => {
                let outcome = awaited(later).await;
                attempt.end(&outcome);
                outcome
            }
        }
    }
}

async fn awaited(later: oneshot::Receiver<Outcome>) -> Outcome {
    match tokio::time::timeout(COMMIT_DEADLINE, later).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) | Err(_) => Outcome::Unavailable,
    }
}

impl From<Outcome> for Submitted {
    fn from(outcome: Outcome) -> Submitted {
        Submitted::Now(outcome)
    }
}

/// For a shard's disk, in the order of the writes; [`crate::engine::Engine::persisted`] confirms.
#[derive(Debug)]
pub enum Store {
    Append { write: u64, at: Place, data: Bytes },
    Truncate { write: u64, after: u64 },
    Install { write: u64, at: Place, resets: u64, data: Bytes },
    Reset { write: u64, resets: u64, keep: bool },
    Retire,
}

/// For the group; void if the shard's version is another one by then.
#[derive(Debug)]
pub enum Ask {
    Shrink { version: u64, without: Vec<BrokerId> },
    Grow { version: u64, add: BrokerId },
    Move { version: u64, to: BrokerId },
}

/// What became of this broker's part in a shard.
#[derive(Debug)]
pub enum Change {
    Serving {
        epoch: ShardEpoch,
        fresh: bool,
    },
    Stopped {
        epoch: ShardEpoch,
    },
    Retired,
    /// It was given something that it cannot read, and takes part no more: another version's
    /// entry or state.
    Broken,
}

/// What is on disk at a start.
#[derive(Debug, Default)]
pub struct Found {
    pub log: Option<Restored>,
    /// The state that `log.applied` names.
    pub state: Option<Bytes>,
}

/// Methods are called while the shard is held: they only put things on their way, and never call
/// the engine. What is on its way to one broker about one shard keeps its order, or is dropped.
pub trait Cluster: Send + Sync + 'static {
    fn me(&self) -> BrokerId;
    fn shards(&self) -> u16;
    fn limits(&self) -> Limits;
    fn moment(&self) -> Moment;
    /// Whether entries leave this process, so that their bytes are needed.
    fn needs_bytes(&self) -> bool;

    /// The wire version that all brokers speak which may get entries of this one.
    fn wire(&self) -> u16 {
        SEEDED
    }
    fn floor(&self, _shard: u16) -> Floor {
        Floor::default()
    }
    /// Asked once, before the shard's replica is made.
    fn found(&self, _shard: u16) -> Found {
        Found::default()
    }
    /// Whether something may be proposed, or taken from another holder, that leads to writes.
    fn admit(&self) -> Result<(), &'static str> {
        Ok(())
    }
    /// Of all shards, where no group assigns them.
    fn assigned(&self) -> Option<Assignment> {
        None
    }

    fn send(&self, shard: u16, to: BrokerId, message: Message);
    fn store(&self, shard: u16, store: Store);
    fn ask(&self, shard: u16, ask: Ask);
    fn changed(&self, shard: u16, change: Change);
    /// One copy for each broker, to be handed to its [`crate::engine::Engine::delivered`].
    fn deliver(&self, shard: u16, epoch: ShardEpoch, to: &[BrokerId], channel: &str, frame: &Bytes);
    /// To the shard's owner, as soon as there is one: its [`crate::engine::Engine::forwarded`]. That
    /// may be this broker, when it has taken over.
    fn forward(&self, shard: u16, call: Call) -> Submitted;
    /// A call that this broker takes up itself, as the owner: an earlier one that is still on its way to
    /// [`Cluster::forward`]'s owner must not arrive after it.
    fn overtake(&self, _call: &Call) {}
    /// No node here wants deliveries of the channel, which another broker owns.
    fn unwanted(&self, _shard: u16, _channel: &str) {}
    /// Deliveries of a shard that another broker owns may be missing: what is wanted of it is to be
    /// told anew, and its positions are to come to [`crate::engine::Engine::resync_channels`].
    fn recheck(&self, _shard: u16) {}
    /// A node is gone, or told anew what it holds: for [`crate::engine::Engine::drop_members`] of
    /// all other brokers.
    fn members_gone(&self, _before: Holder) {}
    /// A command or a question for the nodes of all other brokers.
    fn control(&self, _control: &Control) {}
    fn survey(&self, _question: &Question) -> Surveyed {
        Box::pin(std::future::ready(Survey { answers: Vec::new(), missing: Vec::new() }))
    }
}

/// What the nodes of other brokers answered, and those of whom nothing is known.
pub type Surveyed = Pin<Box<dyn Future<Output = Survey> + Send>>;

/// One broker that owns everything for as long as it lives.
pub struct Alone {
    me: BrokerId,
    clock: Clock,
}

/// Channels are spread over so many, each behind a lock of its own.
pub const SHARDS: u16 = 256;
/// A lease that no process outlives.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Alone {
    pub fn new(me: BrokerId) -> Alone {
        Alone { me, clock: Clock::start() }
    }
}

impl Cluster for Alone {
    fn me(&self) -> BrokerId {
        self.me
    }

    fn shards(&self) -> u16 {
        SHARDS
    }

    /// Nobody is ever behind, so nothing is kept.
    fn limits(&self) -> Limits {
        Limits { kept_entries: 0, kept_bytes: 0, tail_bytes: usize::MAX, ..Limits::default() }
    }

    fn moment(&self) -> Moment {
        let at = Instant::now();
        Moment { now: Now { at, lease: at + FOR_EVER }, ms: self.clock.ms(at) }
    }

    fn needs_bytes(&self) -> bool {
        false
    }

    fn assigned(&self) -> Option<Assignment> {
        let (epoch, in_sync) = (ShardEpoch(1), vec![self.me]);
        Some(Assignment { epoch, version: 1, owner: Some(self.me), in_sync, ..Assignment::default() })
    }

    fn send(&self, _: u16, _: BrokerId, _: Message) {}
    fn store(&self, _: u16, _: Store) {}
    fn ask(&self, _: u16, _: Ask) {}
    fn changed(&self, _: u16, _: Change) {}
    fn deliver(&self, _: u16, _: ShardEpoch, _: &[BrokerId], _: &str, _: &Bytes) {}
    fn forward(&self, _: u16, _: Call) -> Submitted {
        Outcome::Unavailable.into()
    }
}
