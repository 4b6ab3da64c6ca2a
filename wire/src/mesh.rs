//! Frames between two brokers.
//!
//! ```text
//!   who dials                                       who listens
//!    │ Opening::Broker(Hello { id, cluster, … })       │
//!    │ ──────────────────────────────────────────────► │
//!    │                             Shake::Hello(Hello) │   or Bye
//!    │ ◄────────────────────────────────────────────── │
//!    │ Shake::Proof(mac)                               │   over the two frames above, with the secret
//!    │ ──────────────────────────────────────────────► │
//!    │                             Shake::Welcome(mac) │   or Bye
//!    │ ◄────────────────────────────────────────────── │
//!    │ parts of messages, in lanes                     │   from now on both ways alike
//!    │ ◄─────────────────────────────────────────────► │
//! ```
//!
//! After that each frame's body is one byte, the [`Lane`] with [`MORE`] set if the message goes on
//! in a later frame, and then up to [`PART`] bytes of the message. Messages of one lane come one
//! after the other, those of different lanes between each other's parts.

use crate::entry::{Call, Holder};
use crate::envelope::{Control, Position, Publish, Question};
use crate::id::{BrokerId, ShardEpoch};
use crate::peer::{self, Bye, Outcome};
use crate::replica::{Beat, Message};
use bytes::Bytes;
use wincode::{SchemaRead, SchemaWrite};

/// Of a message, what one frame holds at most.
pub const PART: usize = 64 << 10;
/// Set beside the lane: the message goes on.
pub const MORE: u8 = 0x80;
/// Longest name, and longest address, in a hello.
pub const TEXT_SIZE: usize = 255;

/// Domain separation, as between nodes and brokers.
pub const DIALLER_PROOF: &[u8] = b"weir/1 dialling broker proves";
pub const LISTENER_PROOF: &[u8] = b"weir/1 listening broker proves";

/// The first frame of whoever connects to a broker.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Opening {
    /// The same bytes as [`peer::FromNode::Hello`].
    Node(peer::Hello),
    /// Beyond all that a node can say.
    #[wincode(tag = 64)]
    Broker(Hello),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Purpose {
    /// The one link between two members.
    Link,
    /// Group calls alone: of one that is not a member yet, or does not know whom it calls.
    Calls,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Hello {
    /// 0: of none yet.
    pub cluster: u64,
    pub id: BrokerId,
    /// One run of the process: an incarnation that keeps its state starts more than once.
    pub run: u64,
    pub name: String,
    /// Where other brokers reach it.
    pub addr: String,
    /// The wire versions that it speaks, the first and the last one.
    pub wire: (u16, u16),
    pub nonce: [u8; 32],
    /// Whether it has a secret, and so asks for a proof and gives one.
    pub keyed: bool,
    pub purpose: Purpose,
    /// Whom it means to reach, if known.
    pub to: Option<BrokerId>,
}

// One of them per link.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Shake {
    Hello(Hello),
    /// Empty without a secret.
    Proof(Vec<u8>),
    Welcome(Vec<u8>),
    Bye(Bye),
}

/// What goes first when there is much. The number is the byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// [`Talk`]: before all others.
    Talk = 0,
    /// [`Replication`]
    Replica = 1,
    /// [`Forward`]
    Forward = 2,
    /// [`Deliver`]
    Deliver = 3,
    /// [`Forward`], to all brokers.
    Control = 4,
    /// [`Replication`]: pieces of a state.
    Bulk = 5,
}

impl Lane {
    pub const ALL: [Lane; 6] =
        [Lane::Talk, Lane::Replica, Lane::Forward, Lane::Deliver, Lane::Control, Lane::Bulk];

    /// The lane of a body's first byte, and whether the message goes on.
    pub fn parse(byte: u8) -> Option<(Lane, bool)> {
        Some((*Lane::ALL.get(usize::from(byte & !MORE))?, byte & MORE != 0))
    }

    /// A metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Talk => "talk",
            Lane::Replica => "replica",
            Lane::Forward => "forward",
            Lane::Deliver => "deliver",
            Lane::Control => "control",
            Lane::Bulk => "bulk",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Talk {
    /// Answered by the same number.
    Ping(u64),
    Pong(u64),
    /// Of the group. Not answered after `within_ms`.
    Call {
        id: u64,
        within_ms: u32,
        body: Bytes,
    },
    /// `None`: it was not taken up.
    Answer {
        id: u64,
        body: Option<Bytes>,
    },
    /// Bytes of [`Deliver`] messages that were taken, since the link began.
    Taken(u64),
    Bye(Bye),
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Replication {
    Message {
        shard: u16,
        message: Message,
    },
    /// Of many shards at once.
    Beats(Vec<(u16, Beat)>),
}

// Decoded, matched and gone.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Forward {
    Request {
        id: u64,
        within_ms: u32,
        request: Request,
    },
    /// `None`: there will be no answer, whatever became of it.
    Reply {
        id: u64,
        reply: Option<Reply>,
    },
}

/// What one broker asks of another on behalf of its nodes.
// Decoded, matched and gone.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Request {
    /// To the owner of the channel's shard.
    Call(Call),
    /// To the owner of the shard: the channels of which the asking broker wants deliveries, all of
    /// them. Answered with their positions.
    Interest {
        shard: u16,
        wanted: Vec<String>,
    },
    /// To every broker, for the nodes attached to it and nobody else: as are all that follow.
    Control(Control),
    Survey(Question),
    /// What the node told of before this link of it is void.
    MembersGone(Holder),
    /// The nodes attached to the asking broker, all of them. Those that are not told of for
    /// `broker.node_lease` by anybody lose their members. Answered by [`Reply::Void`].
    Nodes(Vec<Holder>),
    /// A publication where no owner of the channel can be reached (`when_minority = "live"`).
    Live(Publish),
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Reply {
    Outcome(Outcome),
    /// The positions of the channels wanted; `None`: it has no stream.
    Positions(Vec<(String, Option<Position>)>),
    /// Nothing was done: another broker owns the shard.
    NotOwner,
    /// Nothing was done; worth a retry.
    Busy,
    /// These were taken for gone: what they told of before such links was dropped, so they have to tell again.
    Void(Vec<Holder>),
}

/// A committed delivery for the nodes of one broker.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Delivery {
    pub shard: u16,
    pub epoch: ShardEpoch,
    pub channel: String,
    /// As a node gets it: a whole frame of [`peer::FromBroker`].
    pub frame: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Deliver {
    Delivery(Delivery),
    /// Deliveries may be missing up to here. Part of a list that is complete with `last`.
    Resync {
        positions: Vec<(String, Option<Position>)>,
        last: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::id::NodeId;
    use crate::peer::FromNode;

    #[test]
    fn a_nodes_hello_opens_and_nothing_else_that_a_node_says() {
        let hello = peer::Hello { node: NodeId(1), name: "n".into(), nonce: [1; 32], inbox: 10 };
        let mut frame = codec::encode(&FromNode::Hello(hello.clone())).unwrap();
        let body = codec::next_frame(&mut frame).unwrap().unwrap();
        assert_eq!(codec::decode::<Opening>(&body).unwrap(), Opening::Node(hello));
        for other in [FromNode::Restored, FromNode::Proof(vec![1; 32]), FromNode::Heartbeat] {
            let mut frame = codec::encode(&other).unwrap();
            let body = codec::next_frame(&mut frame).unwrap().unwrap();
            assert!(codec::decode::<Opening>(&body).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_hello_with_the_longest_texts_fits_the_limit_before_proof() {
        let text = "x".repeat(TEXT_SIZE);
        let hello = Hello {
            cluster: u64::MAX,
            id: BrokerId(u64::MAX),
            run: u64::MAX,
            name: text.clone(),
            addr: text,
            wire: (u16::MAX, u16::MAX),
            nonce: [255; 32],
            keyed: true,
            purpose: Purpose::Calls,
            to: Some(BrokerId(u64::MAX)),
        };
        assert!(codec::encode(&Opening::Broker(hello)).unwrap().len() <= peer::HELLO_SIZE);
    }

    #[test]
    fn lanes_read_back() {
        for lane in Lane::ALL {
            assert_eq!(Lane::parse(lane as u8), Some((lane, false)));
            assert_eq!(Lane::parse(lane as u8 | MORE), Some((lane, true)));
        }
        assert_eq!((Lane::parse(6), Lane::parse(6 | MORE)), (None, None));
    }
}
