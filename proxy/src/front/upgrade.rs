//! Is this request a WebSocket handshake, and a good one? Pure.
//!
//! `websocket` is the only protocol that anybody can upgrade to: other values of `Upgrade`
//! (`h2c` above all) are dropped with the other hop-by-hop headers, and the request goes on as
//! plain HTTP.

use super::head::{Bad, Body, Head};
use http::header::{CONNECTION, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Method, Version};

/// `Ok(true)`: a handshake to be answered as one; `Ok(false)`: any other request.
pub fn is_websocket(head: &Head) -> Result<bool, Bad> {
    let headers = &head.parts.headers;
    if !tokens(headers, UPGRADE).any(|t| t.eq_ignore_ascii_case("websocket")) {
        return Ok(false);
    }
    let refuse = |why| Err(Bad { status: 400, why });
    if head.parts.method != Method::GET || head.parts.version != Version::HTTP_11 {
        return refuse("upgrade needs GET and HTTP/1.1");
    }
    if head.body != Body::None {
        return refuse("upgrade with a body");
    }
    if tokens(headers, UPGRADE).count() != 1 || headers.get_all(UPGRADE).iter().count() != 1 {
        return refuse("more than one Upgrade");
    }
    if !tokens(headers, CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade")) {
        return refuse("Upgrade without Connection: upgrade");
    }
    let one = |name: http::HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    match one(SEC_WEBSOCKET_VERSION) {
        Some(version) if version.as_bytes() == b"13" => {}
        Some(_) => return Err(Bad { status: 426, why: "WebSocket version other than 13" }),
        None => return refuse("Sec-WebSocket-Version"),
    }
    match one(SEC_WEBSOCKET_KEY) {
        Some(key) if is_key(key.as_bytes()) => Ok(true),
        _ => refuse("Sec-WebSocket-Key"),
    }
}

/// The members of a comma-separated header, over all its lines.
pub fn tokens(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Sixteen bytes in base64.
fn is_key(key: &[u8]) -> bool {
    use base64::Engine;
    let mut nonce = [0u8; 18];
    key.len() == 24 && base64::engine::general_purpose::STANDARD.decode_slice(key, &mut nonce) == Ok(16)
}

/// What a server must answer to this key (RFC 6455, 4.2.2).
pub fn accept_for(key: &[u8]) -> String {
    use base64::Engine;
    let mut sha = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha.update(key);
    sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(sha.finish())
}

#[cfg(test)]
mod tests {
    use super::super::head::parse;
    use super::*;

    const GOOD: &str = "GET /c HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn check(text: &str) -> Result<bool, u16> {
        is_websocket(&parse(text.as_bytes()).unwrap()).map_err(|bad| bad.status)
    }

    #[test]
    fn a_handshake_is_told_from_a_request_and_from_a_bad_one() {
        assert_eq!(check(GOOD), Ok(true));
        let table = [
            ("Upgrade: WebSocket\r\n", "", Ok(false)),
            ("Upgrade: WebSocket", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk", Ok(false)),
            ("Upgrade: WebSocket", "Upgrade: websocket, h2c", Err(400)),
            ("Upgrade: WebSocket", "Upgrade: websocket\r\nUpgrade: websocket", Err(400)),
            ("Upgrade: WebSocket", "Upgrade: h2c\r\nUpgrade: websocket", Err(400)),
            ("Connection: keep-alive, Upgrade", "Connection: keep-alive", Err(400)),
            ("GET", "POST", Err(400)),
            ("HTTP/1.1", "HTTP/1.0", Err(400)),
            ("Host: a", "Host: a\r\nContent-Length: 5", Err(400)),
            ("Host: a", "Host: a\r\nTransfer-Encoding: chunked", Err(400)),
            ("Version: 13", "Version: 8", Err(426)),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13", Err(400)),
            ("Sec-WebSocket-Version: 13\r\n", "", Err(400)),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short==", Err(400)),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ!!", Err(400)),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", Err(400)),
        ];
        for (from, to, expected) in table {
            assert!(GOOD.contains(from));
            assert_eq!(check(&GOOD.replace(from, to)), expected, "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn the_answer_to_the_key_of_the_rfc() {
        assert_eq!(accept_for(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
