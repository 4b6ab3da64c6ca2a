//! Error codes of HTTP/3, QPACK, HTTP Datagrams and WebTransport, and how far an error reaches.

use std::fmt;

/// What a stream is reset, or a connection closed, with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u64);

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Code {
            $(pub const $name: Code = Code($value);)*

            /// The name in its RFC; that of a code that is in none is "unknown".
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($value => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

codes! {
    H3_DATAGRAM_ERROR = 0x33, "H3_DATAGRAM_ERROR";
    H3_NO_ERROR = 0x100, "H3_NO_ERROR";
    H3_GENERAL_PROTOCOL_ERROR = 0x101, "H3_GENERAL_PROTOCOL_ERROR";
    H3_INTERNAL_ERROR = 0x102, "H3_INTERNAL_ERROR";
    H3_STREAM_CREATION_ERROR = 0x103, "H3_STREAM_CREATION_ERROR";
    H3_CLOSED_CRITICAL_STREAM = 0x104, "H3_CLOSED_CRITICAL_STREAM";
    H3_FRAME_UNEXPECTED = 0x105, "H3_FRAME_UNEXPECTED";
    H3_FRAME_ERROR = 0x106, "H3_FRAME_ERROR";
    H3_EXCESSIVE_LOAD = 0x107, "H3_EXCESSIVE_LOAD";
    H3_ID_ERROR = 0x108, "H3_ID_ERROR";
    H3_SETTINGS_ERROR = 0x109, "H3_SETTINGS_ERROR";
    H3_MISSING_SETTINGS = 0x10a, "H3_MISSING_SETTINGS";
    H3_REQUEST_REJECTED = 0x10b, "H3_REQUEST_REJECTED";
    H3_REQUEST_CANCELLED = 0x10c, "H3_REQUEST_CANCELLED";
    H3_REQUEST_INCOMPLETE = 0x10d, "H3_REQUEST_INCOMPLETE";
    H3_MESSAGE_ERROR = 0x10e, "H3_MESSAGE_ERROR";
    H3_CONNECT_ERROR = 0x10f, "H3_CONNECT_ERROR";
    H3_VERSION_FALLBACK = 0x110, "H3_VERSION_FALLBACK";
    QPACK_DECOMPRESSION_FAILED = 0x200, "QPACK_DECOMPRESSION_FAILED";
    QPACK_ENCODER_STREAM_ERROR = 0x201, "QPACK_ENCODER_STREAM_ERROR";
    QPACK_DECODER_STREAM_ERROR = 0x202, "QPACK_DECODER_STREAM_ERROR";
    WT_FLOW_CONTROL_ERROR = 0x045d_4487, "WT_FLOW_CONTROL_ERROR";
    WT_SESSION_GONE = 0x170d_7b68, "WT_SESSION_GONE";
    WT_BUFFERED_STREAM_REJECTED = 0x3994_bd84, "WT_BUFFERED_STREAM_REJECTED";
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.name(), self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What an error ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Stream,
    Connection,
}

/// The peer broke a rule or a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {code}")]
pub struct Error {
    pub scope: Scope,
    pub code: Code,
    /// Which rule; one of few, so that it can be counted by.
    pub reason: &'static str,
}

impl Error {
    pub const fn stream(code: Code, reason: &'static str) -> Error {
        Error { scope: Scope::Stream, code, reason }
    }

    pub const fn connection(code: Code, reason: &'static str) -> Error {
        Error { scope: Scope::Connection, code, reason }
    }

    /// The message on this stream is not HTTP (RFC 9114, 4.1.2).
    pub const fn malformed(reason: &'static str) -> Error {
        Error::stream(Code::H3_MESSAGE_ERROR, reason)
    }
}
