//! WebTransport over HTTP/3: how a session is asked for, and what its streams are reset with. Dialects differ
//! in SETTINGS (see [`crate::Settings`]), in one header and in the name; on the wire all else is the same.
//!
//! | dialect | who (2026) | `:protocol` | header |
//! |---|---|---|---|
//! | draft-02 | Firefox, Chromium | `webtransport` | `sec-webtransport-http3-draft02: 1` |
//! | draft-07 | Chromium, by a flag | `webtransport` | the same |
//! | draft-13 | Safari | `webtransport` | |
//! | draft-15 | none yet | `webtransport-h3` | |

use crate::{Code, Protocol};
use http::{HeaderMap, HeaderName, HeaderValue};

pub const PROTOCOL: &str = "webtransport";
pub const PROTOCOL_DRAFT15: &str = "webtransport-h3";

const ASKS_DRAFT02: &str = "sec-webtransport-http3-draft02";
const IS_DRAFT02: HeaderName = HeaderName::from_static("sec-webtransport-http3-draft");

/// Whether an extended CONNECT asks for a session.
pub fn is_session(protocol: &Protocol) -> bool {
    [PROTOCOL, PROTOCOL_DRAFT15].contains(&protocol.as_str())
}

/// Whether the answer to a request with these headers has to say which draft it is.
pub fn asks_draft02(request: &HeaderMap) -> bool {
    request.get(ASKS_DRAFT02).is_some_and(|value| value == "1")
}

/// Says so, in a request.
pub fn ask_draft02(request: &mut HeaderMap) {
    request.insert(ASKS_DRAFT02, HeaderValue::from_static("1"));
}

/// Says so, in an answer.
pub fn answer_draft02(response: &mut HeaderMap) {
    response.insert(IS_DRAFT02, HeaderValue::from_static("draft02"));
}

/// The part of HTTP/3's code space that holds an application's 32 bits, with every 31st value left out.
const FIRST: u64 = 0x52e4_a40f_a8db;

/// What a stream of a session is reset with for an application's code.
pub fn to_http(code: u32) -> Code {
    Code(FIRST + u64::from(code) + u64::from(code) / 0x1e)
}

/// The application's code; `None` for HTTP/3's own.
pub fn from_http(code: Code) -> Option<u32> {
    let shifted = code.0.checked_sub(FIRST)?;
    if crate::varint::is_reserved(code.0) {
        return None;
    }
    u32::try_from(shifted - shifted / 0x1f).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_there_and_back() {
        assert_eq!(to_http(0), Code(FIRST));
        assert_eq!(to_http(u32::MAX), Code(0x52e5_ac98_3162));
        for code in (0..100).chain([3000, 3501, u32::MAX - 1, u32::MAX]) {
            assert_eq!(from_http(to_http(code)), Some(code));
        }
        assert_eq!(from_http(Code::H3_REQUEST_CANCELLED), None);
        assert_eq!(from_http(Code(0x52e5_ac98_3163)), None);
        assert_eq!((0..62).filter(|n| from_http(Code(FIRST + n)).is_none()).count(), 2);
    }
}
