//! What client and node say to each other, free of how it is written: the messages of the
//! Centrifugo client protocol v2 that this node speaks. [`json`] and [`protobuf`] write and read them.

pub mod json;
pub mod protobuf;
mod request;

use bytes::Bytes;
use std::sync::Arc;
use weir_wire::code::{ErrorCode, UnsubscribeCode};
use weir_wire::envelope::{ClientInfo, Member, Position, PresenceStats, Publication};
use weir_wire::id::Epoch;

/// How a connection's messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON, both directions: replies and pushes wrapped in a `Reply`.
    Json,
    /// JSON to a client that only listens: bare `Push` objects.
    JsonUni,
    /// JSON on a stream of bytes (WebTransport): each message ends with a newline.
    JsonLines,
    /// Protobuf in binary frames.
    Protobuf,
    /// Protobuf on a stream of bytes.
    ProtobufStream,
    /// What the two say on a stream of bytes that a proxy of another process passes on: it gets them in frames, and
    /// reads nothing of what they carry.
    FramedLines,
    FramedProtobuf,
}

impl Format {
    pub const COUNT: usize = 7;

    pub fn index(self) -> usize {
        match self {
            Format::Json => 0,
            Format::JsonUni => 1,
            Format::JsonLines => 2,
            Format::Protobuf => 3,
            Format::ProtobufStream => 4,
            Format::FramedLines => 5,
            Format::FramedProtobuf => 6,
        }
    }

    /// A push stands in a `Reply`.
    pub fn wraps_pushes(self) -> bool {
        self != Format::JsonUni
    }

    /// What carries it knows no messages, as WebSockets do: they are told apart by what they say.
    pub fn is_stream(self) -> bool {
        matches!(self, Format::JsonLines | Format::ProtobufStream) || self.is_framed()
    }

    /// It is a stream, and what goes to the client is in frames, with a Close frame at the end.
    pub fn is_framed(self) -> bool {
        matches!(self, Format::FramedLines | Format::FramedProtobuf)
    }

    pub fn is_protobuf(self) -> bool {
        matches!(self, Format::Protobuf | Format::ProtobufStream | Format::FramedProtobuf)
    }
}

/// The frame was no sequence of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The commands of one frame, decoded one at a time: a frame of many small commands never
/// becomes many large structures at once.
#[derive(Debug)]
pub enum Commands {
    Json(json::Lines),
    Protobuf(protobuf::Messages),
}

impl Iterator for Commands {
    type Item = Result<Command, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Commands::Json(lines) => lines.next(),
            Commands::Protobuf(messages) => messages.next(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub id: u32,
    pub request: Request,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// An empty command: the answer to a ping.
    Pong,
    Connect(Box<Connect>),
    Subscribe(Box<Subscribe>),
    Unsubscribe {
        channel: String,
    },
    Publish {
        channel: String,
        data: Bytes,
    },
    Presence {
        channel: String,
    },
    PresenceStats {
        channel: String,
    },
    History(Box<HistoryRequest>),
    Ping,
    Send,
    Rpc,
    Refresh {
        token: String,
    },
    SubRefresh {
        channel: String,
        token: String,
    },
    /// An id, and nothing known beside it.
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connect {
    pub token: String,
    pub name: String,
    pub version: String,
    /// Server-side subscriptions the client remembers; with a listening client also its wishes.
    pub subs: Vec<(String, Subscribe)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subscribe {
    pub channel: String,
    pub token: String,
    pub recover: bool,
    pub epoch: String,
    pub offset: u64,
    pub positioned: bool,
    pub recoverable: bool,
    pub join_leave: bool,
    pub flag: i64,
}

impl Subscribe {
    /// The client would rather have error 112 than a subscription that did not recover.
    pub fn rejects_unrecovered(&self) -> bool {
        self.flag & 2 != 0
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryRequest {
    pub channel: String,
    pub limit: i32,
    pub since: Option<(u64, String)>,
    pub reverse: bool,
}

/// What answers a command, under the command's name.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Error(ErrorCode),
    Connect(Box<ConnectResult>),
    Subscribe(Box<SubscribeResult>),
    Unsubscribe,
    Publish,
    Presence(Vec<Member>),
    PresenceStats(PresenceStats),
    History { top: Position, publications: Vec<Publication> },
    Refresh { client: Arc<str>, ttl: Option<u32> },
    SubRefresh { ttl: Option<u32> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub id: u32,
    pub answer: Answer,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectResult {
    pub client: Arc<str>,
    /// `Some`: the token runs out in so many seconds.
    pub ttl: Option<u32>,
    pub subs: Vec<(Arc<str>, SubscribeResult)>,
    /// Seconds between the server's pings; 0: none of the protocol's own.
    pub ping: u32,
    /// Whether they are to be answered.
    pub pong: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscribeResult {
    pub ttl: Option<u32>,
    pub recoverable: bool,
    pub positioned: bool,
    pub position: Option<Position>,
    pub publications: Vec<Publication>,
    pub recovered: bool,
    pub was_recovering: bool,
    /// JSON from the subscription token or the API call; empty if none.
    pub data: Bytes,
}

/// What comes to a client unasked.
#[derive(Clone, Debug, PartialEq)]
pub enum Push {
    Publication { channel: Arc<str>, publication: Publication, epoch: Option<Epoch> },
    Join { channel: Arc<str>, info: ClientInfo },
    Leave { channel: Arc<str>, info: ClientInfo },
    Unsubscribe { channel: Arc<str>, code: UnsubscribeCode },
    Subscribe { channel: Arc<str>, result: Box<SubscribeResult> },
    Connect(Box<ConnectResult>),
    Disconnect { code: u16, reason: String, reconnect: bool },
    Refresh { ttl: Option<u32> },
}
