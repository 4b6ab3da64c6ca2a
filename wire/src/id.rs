//! Identifiers that travel: newtypes, so that one is not taken for another.

use serde::{Deserialize, Serialize};
use std::fmt;
use wincode::{SchemaRead, SchemaWrite};

/// One run of one node process. Drawn at random at start, so a restarted node is another node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

/// One incarnation of a broker: a start without its state of before is another broker.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, SchemaRead, SchemaWrite, Serialize, Deserialize,
)]
pub struct BrokerId(pub u64);

impl fmt::Display for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerId({self})")
    }
}

/// Counts the assignments of one shard; what carries an older one comes from somebody who is no
/// longer its owner.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    SchemaRead,
    SchemaWrite,
    Serialize,
    Deserialize,
)]
pub struct ShardEpoch(pub u64);

/// The numbering of one channel's stream. A new one is drawn whenever the numbering starts anew;
/// clients see it as an opaque string (sixteen hexadecimal digits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct Epoch(pub u64);

impl Epoch {
    /// `None` for text that is no epoch of ours: it then equals no stream's epoch.
    pub fn parse(text: &str) -> Option<Epoch> {
        (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok().map(Epoch)).flatten()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

/// A connection's name in the logs of every tier: the proxy's `X-Request-Id`, or one that the
/// node drew when the client came to it directly. At most 64 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ConnId(Box<str>);

impl ConnId {
    pub const MAX_LEN: usize = 64;

    pub fn from_random(random: u64) -> ConnId {
        ConnId(format!("{random:016x}").into())
    }

    /// Takes a name given by a trusted peer; `None` if it could garble a log line.
    pub fn parse(text: &str) -> Option<ConnId> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| ConnId(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_reads_back_and_garbage_is_none() {
        let e = Epoch(0xfeed);
        assert_eq!(Epoch::parse(&e.to_string()), Some(e));
        for bad in ["", "xyz", "00000000000000zz", "000000000000feed0"] {
            assert_eq!(Epoch::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_connection_name_cannot_garble_a_log() {
        assert!(ConnId::parse("a b").is_none() && ConnId::parse("a\nb").is_none());
        assert!(ConnId::parse("").is_none() && ConnId::parse(&"x".repeat(65)).is_none());
        assert!(ConnId::parse("req-1").is_some());
    }
}
