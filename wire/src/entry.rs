//! What a shard is asked for, and what its log holds. A channel belongs to one shard by a hash of
//! its name; whatever a call changes becomes an entry, and every holder that applies the same
//! entries comes to the same state: offsets, epochs, members and who was first, all of it by the
//! entry's own time and by nothing else.
//!
//! ```text
//!   Call ──► the shard's owner ──► Entry ──► the logs of its holders ──► applied by each of them
//! ```

use crate::envelope::{HistoryQuery, Member, Position, Publish, StreamOptions};
use crate::id::{Epoch, NodeId};
use wincode::{SchemaRead, SchemaWrite};

/// Which shard a channel belongs to: FNV-1a, then mixed, so the same in every build.
pub fn shard_of(channel: &str, shards: u16) -> u16 {
    let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    let x = channel.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) % u64::from(shards.max(1))) as u16
}

/// Who holds a member: a node, by one of its attachments. Later ones have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Holder {
    pub node: NodeId,
    pub link: u64,
}

/// What a broker asks of a shard's owner, for one of its nodes or for itself.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Call {
    Publish(Publish),
    /// Interest of the broker that asks; a place of one of its nodes is its own matter.
    Subscribe {
        channel: String,
        stream: Option<StreamOptions>,
    },
    Unsubscribe {
        channel: String,
    },
    History {
        channel: String,
        query: HistoryQuery,
        stream: StreamOptions,
    },
    HistoryRemove {
        channel: String,
    },
    Join {
        channel: String,
        holder: Holder,
        member: Member,
        quiet: bool,
    },
    Leave {
        channel: String,
        holder: Holder,
        client: String,
    },
    Presence {
        channel: String,
    },
    PresenceStats {
        channel: String,
    },
}

impl Call {
    pub fn channel(&self) -> &str {
        match self {
            Call::Publish(publish) => &publish.channel,
            Call::Subscribe { channel, .. }
            | Call::Unsubscribe { channel }
            | Call::History { channel, .. }
            | Call::HistoryRemove { channel }
            | Call::Join { channel, .. }
            | Call::Leave { channel, .. }
            | Call::Presence { channel }
            | Call::PresenceStats { channel } => channel,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Entry {
    /// Milliseconds of the Unix clock at its proposer. A state's time never goes back: an entry
    /// with an earlier one counts as made at the latest time so far.
    pub time_ms: u64,
    pub op: Op,
}

/// A change of a shard's state.
// Encoded, applied and gone: none of them is kept, so a box would only cost an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Op {
    Publish {
        publish: Publish,
        /// For the channel's stream, if it comes into being by this in a state without a [`Op::Seed`].
        epoch: Epoch,
    },
    /// A stream is used without being changed; in a state without a [`Op::Seed`] it is created if there is none.
    Touch {
        channel: String,
        stream: StreamOptions,
        epoch: Epoch,
    },
    HistoryRemove {
        channel: String,
    },
    /// With `quiet`, nothing is announced: the member was there before, the broker was not. One that comes late,
    /// after the node has told of the member by a later link, changes nothing.
    Join {
        channel: String,
        holder: Holder,
        member: Member,
        quiet: bool,
    },
    /// The same: not of a member that the node has told of by a later link.
    Leave {
        channel: String,
        holder: Holder,
        client: String,
    },
    /// What a node told of under links before this one leaves: its lease ended, or it told anew.
    DropMembers {
        before: Holder,
    },
    /// Time goes on; those of these streams that are past theirs end. The owner names them, since
    /// it alone knows in which ones nobody is interested.
    Expire {
        channels: Vec<String>,
    },
    /// What was acknowledged before may be missing: all streams get other epochs, made of this
    /// number and their names.
    NewEpochs {
        seed: u64,
    },
    /// From now on the epoch of a stream that was never published to is made of this number and its name, so that
    /// nothing has to be kept of it. The first one of a shard counts. Since wire version [`SEEDED`].
    Seed {
        seed: u64,
    },
    /// These streams end before their time, since there are too many: those that still stand where the owner saw
    /// them when it chose. Since wire version [`SEEDED`].
    Evict {
        streams: Vec<(String, Position)>,
    },
}

/// The wire version that brought [`Op::Seed`] and [`Op::Evict`]: all members of a cluster have to speak it.
pub const SEEDED: u16 = 2;
