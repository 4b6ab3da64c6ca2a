//! May this request become a WebSocket? RFC 6455, section 4.2, and RFC 8441 where the front spoke
//! HTTP/2 or /3 with the client; then origin and limits. The same for the node's own listener and
//! for a proxy of the same process. And may it become a session of WebTransport: from such a proxy the
//! CONNECT of the client; from one in another process an upgrade to [`hop::WEBTRANSPORT`].
#![expect(clippy::result_large_err, reason = "a refusal is the response itself, once per connection")]

use super::origin;
use crate::conn::Accepted;
use crate::limits::Full;
use crate::protocol::Format;
use crate::shared::Shared;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Version};
use std::net::IpAddr;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use weir_core::accept::{Permit, Transport};
use weir_core::limited;
use weir_wire::hop;
use weir_wire::id::ConnId;

pub const WEBSOCKET: &str = "/connection/websocket";
pub const UNI_WEBSOCKET: &str = "/connection/uni_websocket";

pub const WEBTRANSPORT: &str = "/connection/webtransport";

const JSON: &str = "centrifuge-json";
const PROTOBUF: &str = "centrifuge-protobuf";

/// Who knocks.
pub struct Visitor {
    pub conn: ConnId,
    pub transport: Transport,
    pub address: IpAddr,
    /// What a front counts it by.
    pub permit: Option<Permit>,
}

/// The headers of the answer (for HTTP/1.1 with `Sec-WebSocket-Accept`), or the refusal.
pub fn check(
    shared: &Shared,
    head: &Parts,
    visitor: Visitor,
) -> Result<(HeaderMap, Accepted), Response<Bytes>> {
    let (transport, address) = (visitor.transport, visitor.address);
    match examine(shared, head, visitor) {
        Ok(good) => {
            shared.metrics.handshake("accepted", transport);
            Ok(good)
        }
        Err((outcome, response)) => {
            log(address, outcome);
            shared.metrics.handshake(outcome, transport);
            Err(response)
        }
    }
}

/// A line for who was refused, with the key that an operator may want to change.
pub fn log(client: IpAddr, cause: &'static str) {
    let key = match cause {
        "full" => "node.max_connections",
        "address_full" => "node.max_connections_per_ip",
        "origin" => "node.allowed_origins",
        "untrusted" => "node.trusted",
        "silent" => "node.handshake_timeout",
        "descriptors" => "LimitNOFILE of the service (ulimit -Hn)",
        "api_key" => "node.api_key",
        "not_found" => "node.uni_websocket, node.webtransport",
        _ => "",
    };
    limited!(warn, ("node refuses", cause), %client, cause, key, "a client was refused");
}

type Refused = (&'static str, Response<Bytes>);

fn examine(shared: &Shared, head: &Parts, visitor: Visitor) -> Result<(HeaderMap, Accepted), Refused> {
    let of_webtransport = visitor.transport == Transport::WebTransport;
    let wishes = Wishes::of(head);
    let format = match (head.uri.path(), wishes.protobuf) {
        (WEBTRANSPORT, protobuf) if of_webtransport && shared.conf.webtransport => {
            match (protobuf, head.version < Version::HTTP_2) {
                (false, false) => Format::JsonLines,
                (true, false) => Format::ProtobufStream,
                (false, true) => Format::FramedLines,
                (true, true) => Format::FramedProtobuf,
            }
        }
        (WEBSOCKET, false) if !of_webtransport => Format::Json,
        (WEBSOCKET, true) if !of_webtransport => Format::Protobuf,
        (UNI_WEBSOCKET, _) if !of_webtransport && shared.conf.uni_websocket => Format::JsonUni,
        _ => return Err(("not_found", text(StatusCode::NOT_FOUND, "not found"))),
    };
    let mut headers = if of_webtransport { session(head)? } else { upgrade(head)? };
    if wishes.protobuf && format == Format::JsonUni {
        return Err(("subprotocol", text(StatusCode::BAD_REQUEST, "only JSON is spoken here")));
    }
    if let Some(protocol) = wishes.subprotocol.filter(|_| !of_webtransport) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let query = head.uri.query().unwrap_or_default();
    if !origin::allowed(head, &shared.conf.allowed_origins) {
        return Err(("origin", text(StatusCode::FORBIDDEN, "origin not allowed")));
    }
    if shared.is_draining() {
        return Err(("draining", busy(StatusCode::SERVICE_UNAVAILABLE, "shutting down")));
    }
    let (place, waiting) = shared.limits.enter(visitor.address).map_err(|full| match full {
        Full::Node => ("full", busy(StatusCode::SERVICE_UNAVAILABLE, "too many connections")),
        Full::Address => {
            ("address_full", busy(StatusCode::TOO_MANY_REQUESTS, "too many connections of yours"))
        }
    })?;
    let on = |name| parameter(query, name).as_deref() == Some("true");
    let accepted = Accepted {
        conn: visitor.conn,
        address: visitor.address,
        transport: visitor.transport,
        format,
        control_pings: !of_webtransport && on("cf_ws_frame_ping_pong"),
        datagrams: of_webtransport && on("cf_datagrams"),
        waiting: Some(waiting),
        connect: parameter(query, "cf_connect").filter(|_| format == Format::JsonUni),
        permits: visitor.permit.into_iter().chain([place]).collect(),
    };
    Ok((headers, accepted))
}

fn upgrade(head: &Parts) -> Result<HeaderMap, Refused> {
    let bad = |why| Err(("bad_request", text(StatusCode::BAD_REQUEST, why)));
    let mut answer = HeaderMap::new();
    if head.version >= Version::HTTP_2 {
        if head.method != Method::CONNECT {
            return bad("a WebSocket over HTTP/2 or HTTP/3 begins with an extended CONNECT");
        }
    } else {
        if head.method != Method::GET {
            return bad("a WebSocket begins with GET");
        }
        if head.version != Version::HTTP_11 {
            return bad("a WebSocket needs HTTP/1.1");
        }
        if !upgrades_to(head, "websocket") {
            return bad("no `Upgrade: websocket` with `Connection: Upgrade`");
        }
    }
    let version = head.headers.get(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|v| v != "13") {
        let mut response = text(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is spoken here");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(("version", response));
    }
    if head.version < Version::HTTP_2 {
        let mut keys = head.headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        let key = keys.next().filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16));
        let Some(key) = key.filter(|_| keys.next().is_none()) else {
            return bad("`Sec-WebSocket-Key` is not sixteen bytes in base64");
        };
        if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
            answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
    Ok(answer)
}

/// Whatever else WebTransport asks for is between the client and the front.
fn session(head: &Parts) -> Result<HeaderMap, Refused> {
    let fits = match head.version >= Version::HTTP_2 {
        true => head.method == Method::CONNECT,
        false => head.method == Method::GET && upgrades_to(head, hop::WEBTRANSPORT),
    };
    let why = "a session of WebTransport begins with an extended CONNECT of HTTP/3";
    fits.then(HeaderMap::new).ok_or_else(|| ("bad_request", text(StatusCode::BAD_REQUEST, why)))
}

fn upgrades_to(head: &Parts, protocol: &str) -> bool {
    let mut values = head.headers.get_all(header::UPGRADE).iter();
    let value = values.next().and_then(|v| v.to_str().ok());
    value.is_some_and(|v| v.eq_ignore_ascii_case(protocol))
        && values.next().is_none()
        && has_token(&head.headers, &header::CONNECTION, "upgrade")
}

/// The form that a client wants its messages in.
struct Wishes {
    protobuf: bool,
    /// To be echoed.
    subprotocol: Option<&'static str>,
}

impl Wishes {
    /// JSON with whoever offers it or says nothing.
    fn of(head: &Parts) -> Wishes {
        let offered = |name| has_token(&head.headers, &header::SEC_WEBSOCKET_PROTOCOL, name);
        if offered(JSON) {
            return Wishes { protobuf: false, subprotocol: Some(JSON) };
        }
        if offered(PROTOBUF) {
            return Wishes { protobuf: true, subprotocol: Some(PROTOBUF) };
        }
        let query = head.uri.query().unwrap_or_default();
        let by_url = |name| parameter(query, name).as_deref() == Some("protobuf");
        Wishes { protobuf: by_url("cf_protocol") || by_url("format"), subprotocol: None }
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// The value of a query parameter, percent-decoded; `None` too if it is not UTF-8 then.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let (_, value) =
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (hex(rest.next()?)?, hex(rest.next()?)?);
                high << 4 | low
            }
            b => b,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

pub fn text(status: StatusCode, why: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{why}\n")));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Worth another try, but not at once.
fn busy(status: StatusCode, why: &str) -> Response<Bytes> {
    let mut response = text(status, why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let q = "a=1&cf_connect=%7B%22token%22%3A%22x%22%7D&b=a+b&bad=%zz&cut=%2";
        assert_eq!(parameter(q, "cf_connect").as_deref(), Some("{\"token\":\"x\"}"));
        assert_eq!(parameter(q, "b").as_deref(), Some("a b"));
        assert_eq!(parameter(q, "a").as_deref(), Some("1"));
        for none in ["bad", "cut", "missing"] {
            assert_eq!(parameter(q, none), None, "{none}");
        }
    }
}
