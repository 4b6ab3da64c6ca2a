//! Every code with which Weir closes a client connection, in one place.
//!
//! Numbers and reasons are those of the Centrifugo client protocol: its SDKs reconnect after
//! 3000–3499 and 4000–4499 and stay away after 3500–3999 and 4500–4999. Below 3000 are the
//! codes of RFC 6455, section 7.4.1.

use std::borrow::Cow;

/// A close: the number and the reason that go into the close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: u16,
    /// At most 123 bytes: a control frame holds 125 (RFC 6455, section 5.5), two are the code's.
    pub reason: Cow<'static, str>,
}

macro_rules! closes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $reason:literal;)*) => {
        impl Close {
            $($(#[$doc])* pub const $name: Close = Close { code: $code, reason: Cow::Borrowed($reason) };)*
            /// All of them, for metrics and docs.
            pub const ALL: &'static [Close] = &[$(Close::$name),*];
        }
    };
}

closes! {
    /// RFC 6455: the peer broke the framing rules.
    PROTOCOL_ERROR = 1002, "protocol error";
    /// RFC 6455: text that is not UTF-8.
    INVALID_DATA = 1007, "invalid utf-8";
    /// RFC 6455: a message in more fragments than anybody needs.
    POLICY = 1008, "too many fragments";
    /// RFC 6455: a message that did not end within `node.message_timeout`.
    ENDLESS = 1008, "message took too long";
    /// RFC 6455: a message longer than `node.message_size`. SDKs do not come back.
    TOO_BIG = 1009, "message too big";
    /// RFC 6455: something broke on our side, this connection only.
    INTERNAL = 1011, "internal error";
    /// Answer to a close that the client began.
    NORMAL = 3000, "connection closed";
    /// This process drains: come back, another one will take you.
    SHUTDOWN = 3001, "shutdown";
    /// Something broke on our side; worth a retry.
    INTERNAL_SERVER_ERROR = 3004, "internal server error";
    /// The connection token ran out and no refresh came within the grace.
    EXPIRED = 3005, "connection expired";
    /// A server-side subscription ran out.
    SUBSCRIPTION_EXPIRED = 3006, "subscription expired";
    /// More bytes wait for this client than `node.outbox_size` allows, or it took none of them
    /// within `node.write_timeout`.
    SLOW = 3008, "slow";
    /// A write to the client failed.
    WRITE_ERROR = 3009, "write error";
    /// A positioned server-side subscription lost its place in the stream.
    INSUFFICIENT_STATE = 3010, "insufficient state";
    /// An operator or backend asks for a reconnect.
    FORCE_RECONNECT = 3011, "force reconnect";
    /// No pong came within `node.pong_timeout` after a ping.
    NO_PONG = 3012, "no pong";
    /// Too many commands or control frames.
    TOO_MANY_REQUESTS = 3013, "too many requests";
    /// The token does not verify.
    INVALID_TOKEN = 3500, "invalid token";
    /// The client broke the protocol: unknown command, bad JSON, no connect first.
    BAD_REQUEST = 3501, "bad request";
    /// No connect command within `node.stale_timeout`.
    STALE = 3502, "stale";
    /// A backend called `disconnect` without a code of its own.
    FORCE_DISCONNECT = 3503, "force disconnect";
    /// More connections than this user, address or node may have.
    CONNECTION_LIMIT = 3504, "connection limit";
    /// More server-side channels than `node.channels_per_client`.
    CHANNEL_LIMIT = 3505, "channel limit";
    /// The client sent binary on a JSON connection, or the reverse.
    INAPPROPRIATE_PROTOCOL = 3506, "inappropriate protocol";
    /// Not allowed to connect here.
    PERMISSION_DENIED = 3507, "permission denied";
    /// `send` where no handler is configured.
    NOT_AVAILABLE = 3508, "not available";
    /// Too many refused commands.
    TOO_MANY_ERRORS = 3509, "too many errors";
}

impl Close {
    /// A code chosen by a backend (`disconnect` of the HTTP API). The reason is cut to what a
    /// close frame holds.
    pub fn custom(code: u16, reason: &str) -> Close {
        let mut end = reason.len().min(123);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Close { code, reason: Cow::Owned(reason[..end].to_owned()) }
    }

    /// Whether the SDKs come back by themselves after this code.
    pub fn reconnects(&self) -> bool {
        !matches!(self.code, 1009 | 3500..=3999 | 4500..=4999)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_fit_a_control_frame() {
        assert!(Close::ALL.iter().all(|c| c.reason.len() <= 123));
        let long = Close::custom(4000, &"ä".repeat(100));
        assert!(long.reason.len() <= 123 && long.reason.chars().all(|c| c == 'ä'));
    }

    #[test]
    fn ranges_say_who_comes_back() {
        assert!(Close::NO_PONG.reconnects() && Close::SLOW.reconnects());
        assert!(!Close::BAD_REQUEST.reconnects() && !Close::TOO_BIG.reconnects());
        assert!(Close::custom(4499, "").reconnects() && !Close::custom(4500, "").reconnects());
    }
}
