//! What a session asks of the world around it, and what comes back: one question at a time.

use bytes::Bytes;
use std::sync::Arc;
use weir_wire::close::Close;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{
    ClientInfo, History, HistoryQuery, Member, Position, PresenceStats, Publication, Publish, StreamOptions,
};

use crate::protocol::{Push, Reply};
use crate::rates::Refused;

/// Names one subscription of one client for good: a later one to the same channel has another.
pub type Ticket = u64;

/// What the task around a session does for it, in this order.
#[derive(Debug, PartialEq)]
pub enum Action {
    Reply(Reply),
    Push(Push),
    Ping,
    /// To be answered with `Session::on_call_done`; no other call comes before.
    Call(Call),
    /// The reply is on its way: what was held back may follow, then live.
    GoLive(Live),
    /// No push of this channel from now on.
    Drop {
        channel: Arc<str>,
    },
    /// No push of any channel from now on; memberships end.
    DropAll,
    /// The connect command succeeded.
    Connected,
    /// For the log only: why a token was refused.
    TokenRefused(String),
    /// For the log and the metrics only.
    RateRefused(Refused),
    /// The last one.
    Close(Close),
}

/// A subscription whose client knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub channel: Arc<str>,
    pub ticket: Ticket,
    /// `Some`: it has been given the stream up to here, and there is more.
    pub behind: Option<Position>,
}

#[derive(Debug, PartialEq)]
pub enum Call {
    /// Takes a place among this user's connections.
    Register {
        user: Arc<str>,
    },
    Subscribe(Box<SubscribeCall>),
    /// Ends a membership (presence, leave message).
    Leave {
        channel: Arc<str>,
    },
    Publish(Box<Publish>),
    Presence {
        channel: String,
        /// Of members, at most.
        bytes: usize,
    },
    PresenceStats {
        channel: String,
    },
    History {
        channel: String,
        query: HistoryQuery,
        stream: StreamOptions,
        /// Of publications, at most.
        bytes: usize,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct SubscribeCall {
    pub channel: String,
    pub stream: Option<StreamOptions>,
    /// Its rates count.
    pub by_client: bool,
    /// Publications may go as datagrams.
    pub by_datagram: bool,
    /// Told when its place in the stream is lost.
    pub positioned: bool,
    /// Gets join and leave pushes.
    pub join_leave: bool,
    /// `Some`: what comes after this position (an empty epoch is any) is wanted first.
    pub since: Option<Since>,
    /// Fail with 112 if that is not all there.
    pub reject_unrecovered: bool,
    /// Of what is recovered, so much in the reply; the rest follows it.
    pub limit: u32,
    pub bytes: usize,
    /// `Some`: shown in presence or announced.
    pub member: Option<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    pub epoch: String,
    pub offset: u64,
}

#[derive(Debug, PartialEq)]
pub struct Subscribed {
    /// The hub's copy of the name: shared by all subscribers.
    pub channel: Arc<str>,
    pub ticket: Ticket,
    /// Where the subscription begins; `None` without a stream.
    pub position: Option<Position>,
    pub publications: Vec<Publication>,
    /// `Some`: the stream goes on behind this position, which is that of the last of them.
    pub behind: Option<Position>,
    pub recovered: bool,
}

impl Subscribed {
    pub fn live(&self) -> Live {
        Live { channel: self.channel.clone(), ticket: self.ticket, behind: self.behind }
    }
}

#[derive(Debug, PartialEq)]
pub enum CallResult {
    /// False: the user has as many connections as he may.
    Registered(bool),
    Subscribed(Result<Subscribed, ErrorCode>),
    Left,
    Published(Result<(), ErrorCode>),
    Presence(Result<Vec<Member>, ErrorCode>),
    PresenceStats(Result<PresenceStats, ErrorCode>),
    History(Result<History, ErrorCode>),
}

/// What reaches a session from elsewhere than its own client.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The hub lost the place of a positioned subscription and pushes nothing more to it.
    Insufficient {
        channel: Arc<str>,
        ticket: Ticket,
    },
    /// So much of the stream came at once that the outbox has no room for it: it is read from `at` on.
    Behind {
        channel: Arc<str>,
        ticket: Ticket,
        at: Position,
    },
    Disconnect(Close),
    /// By the server HTTP API.
    Unsubscribe {
        channel: String,
    },
    Subscribe(Box<ServerSubscribe>),
    Refresh {
        expired: bool,
        expire_at: i64,
        info: Bytes,
    },
    /// A subscription's time and grace are over (the session's own timer).
    SubExpired {
        channel: Arc<str>,
        ticket: Ticket,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServerSubscribe {
    pub channel: String,
    pub info: Bytes,
    pub data: Bytes,
    pub since: Option<Position>,
    pub expire_at: i64,
}

/// Who a connection is.
#[derive(Clone, Debug)]
pub struct Who {
    pub user: Arc<str>,
    pub client: Arc<str>,
    pub info: Bytes,
}

impl Who {
    pub fn info(&self, chan_info: Bytes) -> ClientInfo {
        ClientInfo {
            user: self.user.to_string(),
            client: self.client.to_string(),
            conn_info: self.info.clone(),
            chan_info,
        }
    }
}
