//! Why a tunnel ended, as logs and metrics call it, and how it takes its leave then.

use super::leave::{
    BAD_GATEWAY, Codes, GOING_AWAY, Manner, POLICY, PROTOCOL_ERROR, SERVICE_RESTART, TOO_BIG,
};
use super::watch::Why;

/// Why a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both sides closed.
    Closed,
    ClientError,
    ServerError,
    /// No byte in either direction for too long.
    Idle,
    /// One side closed, and the other went silent without closing.
    HalfClosed,
    /// The client did not answer a ping.
    NoPong,
    /// It was as old as a tunnel may get.
    Age,
    /// The token that opened it has expired.
    Expired,
    /// One side took nothing of what waited for it.
    ClientStalled,
    ServerStalled,
    /// The client's doing: a frame too large, too much at once, no frame at all.
    FrameSize,
    Rate,
    Protocol,
    /// A message of the client's did not end in time.
    Message,
    /// It was told to go.
    Drained,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Closed => "closed",
            Cause::ClientError => "client_error",
            Cause::ServerError => "server_error",
            Cause::Idle => "idle",
            Cause::HalfClosed => "half_closed",
            Cause::NoPong => "no_pong",
            Cause::Age => "max_age",
            Cause::Expired => "token_expired",
            Cause::ClientStalled => "client_stalled",
            Cause::ServerStalled => "server_stalled",
            Cause::FrameSize => "frame_size",
            Cause::Rate => "rate",
            Cause::Protocol => "protocol",
            Cause::Message => "message_timeout",
            Cause::Drained => "drained",
        }
    }

    /// Nothing came, or nothing was taken, for too long.
    pub fn is_silence(self) -> bool {
        use Cause::{ClientStalled, HalfClosed, Idle, NoPong, ServerStalled};
        matches!(self, Idle | HalfClosed | NoPong | ClientStalled | ServerStalled)
    }

    /// How a tunnel that ends for it takes its leave.
    pub fn manner(self) -> Manner {
        let client = match self {
            Cause::Drained | Cause::Age => SERVICE_RESTART,
            Cause::FrameSize => TOO_BIG,
            Cause::Rate | Cause::Expired | Cause::Message => POLICY,
            Cause::Protocol => PROTOCOL_ERROR,
            Cause::ServerError => BAD_GATEWAY,
            _ => GOING_AWAY,
        };
        Manner {
            codes: Codes { client, server: GOING_AWAY },
            finish_up: matches!(self, Cause::Drained | Cause::Age | Cause::Expired),
            hear_out: matches!(self, Cause::Protocol | Cause::FrameSize | Cause::Rate),
            client_is_gone: matches!(self, Cause::NoPong | Cause::ClientStalled),
        }
    }
}

impl From<Why> for Cause {
    fn from(why: Why) -> Cause {
        match why {
            Why::Idle => Cause::Idle,
            Why::HalfClosed => Cause::HalfClosed,
            Why::NoPong => Cause::NoPong,
            Why::Message => Cause::Message,
            Why::Age => Cause::Age,
            Why::Expired => Cause::Expired,
            Why::ClientStalled => Cause::ClientStalled,
            Why::ServerStalled => Cause::ServerStalled,
        }
    }
}
