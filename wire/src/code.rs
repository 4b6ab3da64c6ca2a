//! Error codes of replies and unsubscribe codes of the Centrifugo client protocol.

/// An error in a reply: this command failed, the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    pub code: u32,
    pub message: &'static str,
    /// Worth a retry as it is; SDKs do so by themselves.
    pub temporary: bool,
}

macro_rules! errors {
    ($($name:ident = $code:literal, $message:literal, $temporary:literal;)*) => {
        impl ErrorCode {
            $(pub const $name: ErrorCode = ErrorCode { code: $code, message: $message, temporary: $temporary };)*
        }
    };
}

errors! {
    INTERNAL = 100, "internal server error", true;
    UNAUTHORIZED = 101, "unauthorized", false;
    UNKNOWN_CHANNEL = 102, "unknown channel", false;
    PERMISSION_DENIED = 103, "permission denied", false;
    METHOD_NOT_FOUND = 104, "method not found", false;
    ALREADY_SUBSCRIBED = 105, "already subscribed", false;
    LIMIT_EXCEEDED = 106, "limit exceeded", false;
    BAD_REQUEST = 107, "bad request", false;
    NOT_AVAILABLE = 108, "not available", false;
    TOKEN_EXPIRED = 109, "token expired", false;
    EXPIRED = 110, "expired", false;
    TOO_MANY_REQUESTS = 111, "too many requests", true;
    UNRECOVERABLE_POSITION = 112, "unrecoverable position", false;
}

/// Why a subscription ended without the client asking. SDKs subscribe again from 2500 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsubscribeCode {
    pub code: u32,
    pub reason: &'static str,
}

impl UnsubscribeCode {
    pub const SERVER: UnsubscribeCode = UnsubscribeCode { code: 2000, reason: "server unsubscribe" };
    pub const INSUFFICIENT_STATE: UnsubscribeCode =
        UnsubscribeCode { code: 2500, reason: "insufficient state" };
    pub const EXPIRED: UnsubscribeCode = UnsubscribeCode { code: 2501, reason: "expired" };
}
