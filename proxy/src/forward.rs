//! The head as the next hop gets it: hop-by-hop headers gone, the proxy's own put in, and then
//! written anew as HTTP/1.1. Pure.

use crate::front::upgrade::tokens;
use crate::guarded::Guarded;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, StatusCode, Version};
use std::io::Write;
use std::net::IpAddr;
use weir_conf::proxy::HostHeader;
use weir_wire::hop::{FORWARDED_FOR, FORWARDED_PROTO, REQUEST_ID, WEBTRANSPORT};
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

const FORWARDED: &str = "forwarded";
const FORWARDED_HOST: &str = "x-forwarded-host";

/// Who sent a request, as the next hop is told.
pub struct Origin<'a> {
    pub client: IpAddr,
    pub conn: &'a ConnId,
    /// The peer is listed in `trusted`: what it says of the client's protocol and host stays.
    pub trusted: bool,
    /// It came over TLS.
    pub secure: bool,
    /// Servers are told by `Forwarded` too.
    pub forwarded: bool,
}

/// Takes off what is meant for this hop and what this client may not say, and overwrites what is ours to say.
pub fn rewrite(headers: &mut HeaderMap, origin: &Origin, guarded: &Guarded) {
    guarded.strip_named(headers);
    strip_hop_by_hop(headers);
    guarded.clean(headers, origin.trusted);
    if !(origin.trusted && headers.contains_key(FORWARDED_PROTO)) {
        let proto = if origin.secure { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    let told = origin.forwarded.then(|| forwarded(headers, origin.client));
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
    if let Some(told) = told {
        set(FORWARDED, told);
    }
}

/// RFC 7239, one hop: as with `X-Forwarded-For`, whoever stood before is replaced by the client.
fn forwarded(headers: &HeaderMap, client: IpAddr) -> String {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let mut out = match client {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    // Both are free of quotes: one was checked with the head, the other is a word.
    if let Some(host) = text(&HOST) {
        out.push_str(&format!(";host=\"{host}\""));
    }
    if let Some(proto) = text(&HeaderName::from_static(FORWARDED_PROTO)).filter(|p| is_word(p)) {
        out.push_str(&format!(";proto={proto}"));
    }
    out
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Marks a head of which each server gets its own name as `Host`.
#[derive(Clone, Copy)]
struct HostOfServer;

/// The `Host` that servers get; where it is not the client's, that one is told beside it.
pub fn set_host(head: &mut Parts, host: &HostHeader, trusted: bool) {
    if *host == HostHeader::Client {
        return;
    }
    if let Some(asked) = head.headers.get(HOST).cloned()
        && !(trusted && head.headers.contains_key(FORWARDED_HOST))
    {
        head.headers.insert(FORWARDED_HOST, asked);
    }
    match host {
        HostHeader::Client => {}
        HostHeader::Upstream => drop(head.extensions.insert(HostOfServer)),
        HostHeader::Literal(name) => {
            if let Ok(name) = HeaderValue::try_from(name) {
                head.headers.insert(HOST, name);
            }
        }
    }
}

/// The head on the wire, for this server.
pub fn write_request_to(server: &str, head: &Parts, out: &mut Vec<u8>) {
    match (head.extensions.get::<HostOfServer>(), HeaderValue::try_from(server)) {
        (Some(HostOfServer), Ok(name)) => {
            let mut own = head.clone();
            own.headers.insert(HOST, name);
            write_request(&own, out);
        }
        _ => write_request(head, out),
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What of an answer is about the server's connection, and stops here: fields of that kind, and those that
/// `Connection` names, but not what the message's meaning hangs on.
pub fn of_the_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    let named = tokens(headers, CONNECTION).filter_map(|t| HeaderName::try_from(t).ok());
    let named = named.filter(|name| *name != CONTENT_LENGTH);
    let known = HOP_BY_HOP.into_iter().map(HeaderName::from_static).chain([TRANSFER_ENCODING]);
    named.chain(known).filter(|name| headers.contains_key(name)).collect()
}

/// An answer on its way back, of which the framing is up to whoever sends it on.
pub fn rewrite_response(headers: &mut HeaderMap) {
    for name in of_the_hop(headers) {
        headers.remove(name);
    }
}

/// The length that an answer says, if it may say one (RFC 9110 §8.6): equal ones are one. (Others were refused when
/// the answer was read.)
pub fn one_length(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        return None;
    }
    tokens(headers, CONTENT_LENGTH).next()?.parse().ok()
}

/// Puts the handshake's own hop-by-hop headers back.
pub fn mark_upgrade(headers: &mut HeaderMap) {
    mark(headers, "websocket");
}

/// The same for a session of WebTransport: what it and WebSockets have headers for is said to us, or by nobody.
pub fn mark_session(headers: &mut HeaderMap) {
    let of_this_hop = |name: &HeaderName| {
        ["sec-websocket-", "sec-webtransport-"].iter().any(|prefix| name.as_str().starts_with(prefix))
    };
    let said: Vec<HeaderName> = headers.keys().filter(|name| of_this_hop(name)).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    mark(headers, WEBTRANSPORT);
}

fn mark(headers: &mut HeaderMap, protocol: &'static str) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
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
pub fn write_name(name: &str, out: &mut Vec<u8>) {
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
        rewritten_for("1.2.3.4", fields, trusted, false)
    }

    fn rewritten_for(
        client: &str,
        fields: &[(&'static str, &'static str)],
        trusted: bool,
        forwarded: bool,
    ) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let conn = ConnId::from_random(7);
        let client = client.parse().unwrap();
        let origin = Origin { client, conn: &conn, trusted, secure: false, forwarded };
        rewrite(&mut headers, &origin, &Guarded::default());
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
    fn a_session_is_upgraded_to_without_a_word_of_websockets() {
        let mut headers = HeaderMap::new();
        for name in
            ["sec-websocket-key", "sec-websocket-protocol", "sec-webtransport-http3-draft02", "origin"]
        {
            headers.append(name, HeaderValue::from_static("x"));
        }
        mark_session(&mut headers);
        let mut out = Vec::new();
        write_headers(&headers, &mut out);
        let mut lines: Vec<_> = std::str::from_utf8(&out).unwrap().lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["Connection: Upgrade", "Origin: x", "Upgrade: weir-webtransport"]);
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

    #[test]
    fn forwarded_is_ours_where_it_is_asked_for() {
        let said = [("forwarded", "for=6.6.6.6"), ("host", "a.b:80"), ("x-forwarded-proto", "https")];
        let told = rewritten_for("2001:db8::7", &said, true, true);
        assert!(told.contains("Forwarded: for=\"[2001:db8::7]\";host=\"a.b:80\";proto=https|"), "{told}");
        let told = rewritten_for("1.2.3.4", &[("x-forwarded-proto", "a;for=b")], true, true);
        assert!(told.starts_with("Forwarded: for=1.2.3.4|"), "{told}");
    }

    #[test]
    fn a_changed_host_is_told_beside() {
        for (host, trusted, expected) in [
            (HostHeader::Client, false, "host: a|x-forwarded-host: said|"),
            (HostHeader::Literal("b:1".into()), false, "host: b:1|x-forwarded-host: a|"),
            (HostHeader::Literal("b:1".into()), true, "host: b:1|x-forwarded-host: said|"),
            (HostHeader::Upstream, false, "host: 10.0.0.1:80|x-forwarded-host: a|"),
        ] {
            let request = http::Request::get("/").header("host", "a").header("x-forwarded-host", "said");
            let mut head = request.body(()).unwrap().into_parts().0;
            set_host(&mut head, &host, trusted);
            let mut out = Vec::new();
            write_request_to("10.0.0.1:80", &head, &mut out);
            let text = String::from_utf8(out).unwrap().to_lowercase().replace("\r\n", "|");
            assert_eq!(text, format!("get / http/1.1|{expected}|"), "{host:?}");
        }
    }
}
