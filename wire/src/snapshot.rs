//! A shard's state in bytes, for a holder that is too far behind its log, and for the disk: frames
//! one after the other, so that nothing grows with the state but their number.
//!
//! ```text
//!   Head · Epochs? · (Stream · Kept …)* · Key* · Member* · End
//! ```

use crate::entry::Holder;
use crate::envelope::{self, Publication, Published};
use crate::id::Epoch;
use wincode::{SchemaRead, SchemaWrite};

/// Of these records; the frames have their own. With [`Record::Epochs`] it is 2, without 1, which the release before
/// reads too.
pub const VERSION: u16 = 2;

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Stream {
    pub channel: String,
    pub epoch: Epoch,
    pub top: u64,
    pub version: u64,
    pub version_epoch: String,
    pub last_use_ms: u64,
    pub outlives_ms: u64,
    pub top_expires_ms: u64,
}

// Read, taken over and gone.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Record {
    Head {
        version: u16,
        time_ms: u64,
    },
    Stream(Stream),
    /// A publication of the stream before it; offsets without a hole, up to its top.
    Kept {
        publication: Publication,
        at_ms: u64,
        expires_ms: u64,
    },
    /// In the order of their times, for one channel.
    Key {
        channel: String,
        key: String,
        at_ms: u64,
        published: Published,
    },
    Member {
        channel: String,
        holder: Holder,
        member: envelope::Member,
    },
    /// All of it is there: so many records before this one.
    End {
        records: u64,
    },
    /// What the epochs of streams that were never published to are made of; right after the head.
    Epochs {
        seed: u64,
        /// Those that are not 0, by their buckets.
        generations: Vec<(u16, u32)>,
    },
}
