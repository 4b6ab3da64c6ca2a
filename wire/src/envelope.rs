//! What crosses between node and broker, in either direction, embedded or over a socket.
//!
//! The bytes are bincode 2 `standard()`; the order of fields and variants is the format, so new
//! ones go to the end and come with a new [`crate::codec::VERSION`].

use crate::id::{Epoch, NodeId};
use bytes::Bytes;
use wincode::{SchemaRead, SchemaWrite};

/// A place in a channel's stream: everything up to and including `offset` lies before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Position {
    pub epoch: Epoch,
    pub offset: u64,
}

/// Who a client is, as others see him.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ClientInfo {
    pub user: String,
    pub client: String,
    /// JSON from the connection token; empty if none.
    pub conn_info: Bytes,
    /// JSON from the subscription token; empty if none.
    pub chan_info: Bytes,
}

/// A message of a channel, before or after it got its place in the stream.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Publication {
    /// 0 in a channel without history.
    pub offset: u64,
    pub data: Bytes,
    /// Set when a client published it, not a backend.
    pub info: Option<ClientInfo>,
    pub tags: Vec<(String, String)>,
}

/// How a channel's stream is kept. Sent along with each publication and subscription: brokers
/// hold no namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct StreamOptions {
    /// Publications kept, at most.
    pub size: u32,
    /// How long one is kept, in milliseconds.
    pub ttl_ms: u64,
    /// How long epoch and top offset outlive the last use, in milliseconds.
    pub meta_ttl_ms: u64,
}

/// When a publication counts as taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Ack {
    /// When every copy in sync has it: it outlives any one broker.
    #[default]
    Copies,
    /// When the channel's owner has it; answered without a position, since it may yet be lost.
    Owner,
    /// At once.
    None,
}

/// A publication on its way to the channel's owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Publish {
    pub channel: String,
    pub data: Bytes,
    pub info: Option<ClientInfo>,
    pub tags: Vec<(String, String)>,
    /// `None`: the channel keeps no history; at most once, no offset.
    pub stream: Option<StreamOptions>,
    /// A repeat of the same key in the same channel within five minutes returns the first result.
    pub idempotency_key: Option<String>,
    /// With a version, a publication not above the stored version (of the same `version_epoch`) is dropped.
    pub version: u64,
    pub version_epoch: String,
    pub ack: Ack,
    /// Where no owner can be reached, it goes to whom it reaches without a place in the stream.
    pub live_without_owner: bool,
}

/// Where a publication landed; `None` in a channel without history.
pub type Published = Option<Position>;

/// What is delivered to nodes with interest in a channel.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Delivery {
    pub channel: String,
    /// Of the stream that `Publication::offset` counts in; `None` in a channel without history.
    pub epoch: Option<Epoch>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Body {
    Publication(Publication),
    Join(ClientInfo),
    Leave(ClientInfo),
}

/// Which part of a stream is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct HistoryQuery {
    /// Exclusive. Ascending from the next offset, or descending from the one before with `reverse`.
    pub since: Option<Position>,
    /// 0: only the position. `u32::MAX`: all there is.
    pub limit: u32,
    pub reverse: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct History {
    /// The stream's top at the time of the answer.
    pub top: Position,
    pub publications: Vec<Publication>,
}

/// A client's membership in a channel, held by the broker under the lease of the client's node.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Member {
    pub info: ClientInfo,
    /// Shown in `presence` (the namespace's `presence` option).
    pub listed: bool,
    /// Its coming and going is pushed to subscribers (`join_leave`).
    pub announced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PresenceStats {
    pub clients: u32,
    pub users: u32,
}

/// Which connections a command is for. Empty `client`: all of that user's.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Target {
    pub user: String,
    pub client: String,
}

/// Commands that reach every node, because a user may be connected anywhere.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Control {
    Disconnect {
        target: Target,
        whitelist: Vec<String>,
        code: u16,
        reason: String,
    },
    Unsubscribe {
        target: Target,
        channel: String,
    },
    Subscribe {
        target: Target,
        channel: String,
        info: Bytes,
        data: Bytes,
        recover_since: Option<Position>,
        expire_at: i64,
    },
    Refresh {
        target: Target,
        expired: bool,
        expire_at: i64,
        info: Bytes,
    },
}

/// A question to every node; each answers for itself.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Question {
    Info,
    /// Channels whose name matches this glob; empty: all.
    Channels {
        pattern: String,
    },
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub enum Answer {
    Info(NodeInfo),
    /// Channel and number of its subscribers on that node.
    Channels(Vec<(String, u32)>),
}

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub struct NodeInfo {
    pub node: NodeId,
    pub name: String,
    pub version: String,
    pub clients: u32,
    pub users: u32,
    pub subscriptions: u32,
    pub channels: u32,
    pub uptime_s: u32,
    /// CPU use since the last answer, in percent of one core.
    pub cpu_percent: f64,
    pub rss_bytes: u64,
}

/// All answers that came in time, and whether any is missing.
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
pub struct Survey {
    pub answers: Vec<(NodeId, Answer)>,
    /// Nodes attached to the broker that did not answer in time.
    pub missing: Vec<NodeId>,
}
