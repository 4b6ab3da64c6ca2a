//! The head as the next hop gets it: hop-by-hop headers gone, the proxy's own put in, and then
//! written anew as HTTP/1.1. Pure.

use crate::front::upgrade::tokens;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Version};
use std::io::Write;
use std::net::IpAddr;
use weir_wire::hop::{FORWARDED_FOR, FORWARDED_PROTO, REQUEST_ID};
use weir_wire::id::ConnId;

/// Headers about one connection, not about the request (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "upgrade",
    "http2-settings",
];

/// Told by whoever was in front, believed only if he is trusted.
const HEARSAY: [&str; 4] = ["forwarded", "x-real-ip", "x-forwarded-host", "x-forwarded-port"];

/// Who sent a request, as the next hop is told.
pub struct Origin<'a> {
    pub client: IpAddr,
    pub conn: &'a ConnId,
    /// The peer is listed in `trusted`: what it says of the client's protocol and host stays.
    pub trusted: bool,
}

/// Takes off what is meant for this hop, and overwrites what no client may set.
pub fn rewrite(headers: &mut HeaderMap, origin: &Origin) {
    strip_hop_by_hop(headers);
    if !origin.trusted {
        for name in HEARSAY {
            headers.remove(name);
        }
    }
    if !(origin.trusted && headers.contains_key(FORWARDED_PROTO)) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    let mut set = |name: &'static str, text: String| match HeaderValue::try_from(text) {
        Ok(value) => {
            headers.insert(name, value);
        }
        // Neither an address nor a connection's name can hold such characters.
        Err(_) => {
            headers.remove(name);
        }
    };
    set(FORWARDED_FOR, origin.client.to_string());
    set(REQUEST_ID, origin.conn.to_string());
}

/// `Connection` may name further headers of this hop, but not those that the message's meaning
/// hangs on.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, CONNECTION).filter_map(|t| t.parse().ok()).collect();
    for name in named {
        if ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name) {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// An answer on its way back: the same, and nothing put in.
pub fn rewrite_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
}

/// Puts the handshake's own hop-by-hop headers back.
pub fn mark_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// The head on the wire, for a server of HTTP/1.
pub fn write_request(head: &Parts, out: &mut Vec<u8>) {
    let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let version = if head.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    // Writing to a vector cannot fail.
    let _ = write!(out, "{} {target} {version}\r\n", head.method);
    write_headers(&head.headers, out);
    out.extend_from_slice(b"\r\n");
}

/// Each header on a line of its own, its name in the form that old servers expect.
pub fn write_headers(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        write_name(name.as_str(), out);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// `sec-websocket-key` is written `Sec-WebSocket-Key`.
fn write_name(name: &str, out: &mut Vec<u8>) {
    let start = out.len();
    let mut upper = true;
    for b in name.bytes() {
        out.push(if upper { b.to_ascii_uppercase() } else { b });
        upper = b == b'-';
    }
    if name.starts_with("sec-websocket-") {
        out[start + 7] = b'S';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(fields: &[(&'static str, &'static str)], trusted: bool) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let conn = ConnId::from_random(7);
        rewrite(&mut headers, &Origin { client: "1.2.3.4".parse().unwrap(), conn: &conn, trusted });
        let mut out = Vec::new();
        write_headers(&headers, &mut out);
        let mut lines: Vec<_> = std::str::from_utf8(&out).unwrap().lines().map(str::to_string).collect();
        lines.sort();
        lines.join("|")
    }

    const OURS: &str = "X-Forwarded-For: 1.2.3.4|X-Forwarded-Proto: http|X-Request-Id: 0000000000000007";

    #[test]
    fn what_a_client_forges_is_overwritten() {
        let forged = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "mine"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-host", "evil"),
        ];
        assert_eq!(rewritten(&forged, false), OURS);
    }

    #[test]
    fn hop_by_hop_headers_go_and_cannot_take_ours_along() {
        let hop = [
            ("connection", "close, X-Forwarded-For, x-secret, Host"),
            ("host", "a"),
            ("x-secret", "s"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMA"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
        ];
        assert_eq!(rewritten(&hop, false), format!("Host: a|{OURS}"));
    }

    #[test]
    fn a_trusted_peer_may_speak_of_the_protocol() {
        let said = [("x-forwarded-proto", "https"), ("x-forwarded-host", "a.b")];
        let expected = format!(
            "X-Forwarded-For: 1.2.3.4|X-Forwarded-Host: a.b|{}",
            &OURS[25..].replace("http", "https")
        );
        assert_eq!(rewritten(&said, true), expected);
    }

    #[test]
    fn names_are_written_as_old_servers_expect() {
        let mut out = Vec::new();
        for name in ["sec-websocket-key", "x-a-b", "host"] {
            write_name(name, &mut out);
            out.push(b' ');
        }
        assert_eq!(out, b"Sec-WebSocket-Key X-A-B Host ");
    }
}
