//! Frames between a node and a broker of another process.
//!
//! ```text
//!   node                                            broker
//!    │ Hello { node, name, nonce, inbox }              │   both versions are in the frame header
//!    │ ──────────────────────────────────────────────► │
//!    │              Challenge { broker, nonce, keyed } │
//!    │ ◄────────────────────────────────────────────── │
//!    │ Proof { mac }                                   │   over the two frames above, with the secret
//!    │ ──────────────────────────────────────────────► │
//!    │                        Welcome { mac, limits }  │   or Bye
//!    │ ◄────────────────────────────────────────────── │
//!    │ Restore … Restored                              │   interest and members it had before
//!    │ ──────────────────────────────────────────────► │
//!    │                                        Resync … │   then live
//!    │ ◄────────────────────────────────────────────── │
//! ```
//!
//! The secret itself never travels: each side answers the other's nonce. Requests are pipelined;
//! replies carry the request's id and may come in another order, but the broker carries requests
//! out in the order in which they came.

use crate::envelope::{
    Answer, Control, Delivery, History, HistoryQuery, Member, Position, PresenceStats, Publish, Published,
    Question, StreamOptions, Survey,
};
use crate::id::NodeId;
use wincode::{SchemaRead, SchemaWrite};

/// Largest frame before both sides have proved themselves.
pub const HELLO_SIZE: usize = 1024;
/// Longest name of a node in a hello.
pub const NAME_SIZE: usize = 255;
/// What one `Restore` or `Resync` frame holds at most, roughly; longer lists take several.
pub const CHUNK_SIZE: usize = 128 << 10;
/// What one history reply holds at most, roughly; the node asks again for the rest.
pub const HISTORY_CHUNK_SIZE: usize = 4 << 20;

/// Domain separation: a proof by one side is none by the other.
pub const NODE_PROOF: &[u8] = b"weir/1 node proves";
pub const BROKER_PROOF: &[u8] = b"weir/1 broker proves";

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Hello {
    pub node: NodeId,
    /// For logs.
    pub name: String,
    pub nonce: [u8; 32],
    /// Deliveries that may be on their way to this node or wait there.
    pub inbox: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Challenge {
    /// One run of one broker process.
    pub broker: u64,
    pub nonce: [u8; 32],
    /// Whether the broker has a secret, and so asks for a proof and gives one.
    pub keyed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Welcome {
    /// Empty without a secret.
    pub mac: Vec<u8>,
    /// `broker.node_lease`: each side is heard from four times within it.
    pub lease_ms: u64,
    /// `broker.message_size`.
    pub message_size: u64,
    /// `broker.survey_timeout`.
    pub survey_ms: u64,
}

/// What a node wants to hold, told anew after each connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Restore {
    pub interest: Vec<(String, Option<StreamOptions>)>,
    pub members: Vec<(String, Member)>,
    /// The members were taken for gone, and announced as such: those that are not there are announced as back.
    pub void: bool,
}

/// Why a side closes the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Bye {
    /// This process stops. A node's members leave at once.
    Stopping,
    /// The other side did not prove that it has the secret.
    Secret,
    /// `broker.max_nodes` are attached already.
    Full,
    /// A frame that makes no sense, or not at this point.
    Protocol,
    /// A newer link of the same node took over.
    Replaced,
    /// Nothing was heard for too long, or nothing could be written.
    Timeout,
    /// Between brokers: there is a link of these two already.
    Twin,
    /// It belongs to another cluster.
    OtherCluster,
    /// Somebody else is at this address.
    OtherBroker,
    /// It is no member any more.
    Removed,
    /// There is no wire version that both speak.
    Versions,
    /// To a node: it was taken for gone and its members dropped, so it has to tell of them again.
    Void,
}

impl Bye {
    pub fn reason(self) -> &'static str {
        match self {
            Bye::Stopping => "stopping",
            Bye::Secret => "wrong or missing secret (broker.secret, node.broker_secret)",
            Bye::Full => "broker.max_nodes reached",
            Bye::Protocol => "protocol error",
            Bye::Replaced => "replaced by a newer link of the same node",
            Bye::Timeout => "silent for too long",
            Bye::Twin => "there is a link of these two already",
            Bye::OtherCluster => "it belongs to another cluster",
            Bye::OtherBroker => "another broker is at this address",
            Bye::Removed => "this broker is no member any more",
            Bye::Versions => "no wire version in common",
            Bye::Void => "this node was taken for gone and has to tell of its members again",
        }
    }
}

// Decoded, matched and gone: none of them is kept, so a box would only cost an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum FromNode {
    Hello(Hello),
    /// Empty without a secret.
    Proof(Vec<u8>),
    Restore(Restore),
    /// All is told: the broker answers with a `Resync`.
    Restored,
    Request {
        id: u64,
        op: Op,
    },
    /// Deliveries taken from the inbox since the last of these frames.
    Consumed(u32),
    Heartbeat,
    Bye(Bye),
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum FromBroker {
    Challenge(Challenge),
    Welcome(Welcome),
    Reply {
        id: u64,
        result: Outcome,
    },
    Deliver(Delivery),
    Control(Control),
    Survey {
        id: u64,
        question: Question,
    },
    /// Part of a resync; complete with `last`.
    Resync {
        positions: Vec<(String, Option<Position>)>,
        last: bool,
    },
    Heartbeat,
    Bye(Bye),
}

/// A call, by the methods of the broker crate's `Bus`.
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Op {
    Publish(Publish),
    Subscribe { channel: String, stream: Option<StreamOptions> },
    Unsubscribe { channel: String },
    History { channel: String, query: HistoryQuery, stream: StreamOptions },
    HistoryRemove { channel: String },
    Join { channel: String, member: Member },
    Leave { channel: String, client: String },
    Presence { channel: String },
    PresenceStats { channel: String },
    Control(Control),
    Survey(Question),
    Answer { survey: u64, answer: Answer },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Outcome {
    Done,
    Published(Published),
    Subscribed(Option<Position>),
    /// With `more`, the query's answer goes on after the last publication here.
    History {
        history: History,
        more: bool,
    },
    Members(Vec<Member>),
    Stats(PresenceStats),
    Survey(Survey),
    Unavailable,
    /// The conf key.
    Limit(String),
    Refused(String),
}
