//! A request of HTTP/2 or HTTP/3 as the rest of the proxy knows requests: with a `Host`, a path as its target,
//! one `Cookie`, and a WebSocket asked for by an extended CONNECT (RFC 8441, RFC 9220) as HTTP/1.1 asks for
//! one; a session of WebTransport, too, is a GET for all that follows. As strict as the reader of HTTP/1 heads, and pure.

use super::head::{self, Bad, Body, Head, bad};
use super::host;
use http::Method;
use http::header::{
    CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING,
};
use http::request::Parts;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    Http,
    WebSocket,
    /// A session of WebTransport, over HTTP/3 alone.
    WebTransport,
}

/// Neither a body's first piece nor the stream's end came in time.
pub const SLOW: Bad = Bad { status: 408, why: "slow body" };

/// Whether the head leaves it open if there is a body, so that what comes next decides. Who expects a 100 has one, and
/// waits with it.
pub fn may_have_a_body(parts: &Parts) -> bool {
    parts.method != Method::CONNECT
        && !parts.headers.contains_key(CONTENT_LENGTH)
        && !parts.headers.contains_key(EXPECT)
}

/// `protocol` is the value of `:protocol`; `ended`: no body follows; `nonce` becomes the key that a server of
/// HTTP/1.1 proves its handshake by.
pub fn request(
    mut parts: Parts,
    protocol: Option<&str>,
    ended: bool,
    nonce: [u8; 16],
) -> Result<(Head, Asks), Bad> {
    let asks = match (parts.method == Method::CONNECT, protocol) {
        (false, None) => Asks::Http,
        (false, Some(_)) => return Err(bad(":protocol without CONNECT")),
        (true, None) => return Err(Bad { status: 405, why: "CONNECT without :protocol" }),
        (true, Some("websocket")) => Asks::WebSocket,
        (true, Some("webtransport" | "webtransport-h3")) if parts.version == http::Version::HTTP_3 => {
            Asks::WebTransport
        }
        (true, Some(_)) => return Err(Bad { status: 501, why: "unknown :protocol" }),
    };
    authority(&mut parts)?;
    host::check(&parts.headers, http::Version::HTTP_11)?;
    target(&mut parts)?;
    parts.headers = fields(std::mem::take(&mut parts.headers))?;
    let body = match asks {
        Asks::Http => body(&parts.headers, ended)?,
        // The bytes that follow are no body.
        _ => Body::None,
    };
    match asks {
        Asks::Http => {}
        Asks::WebSocket => websocket(&mut parts, nonce)?,
        Asks::WebTransport => parts.method = Method::GET,
    }
    Ok((Head { parts, body }, asks))
}

/// `:authority` stands for `Host` (RFC 9113, 8.3.1), and two of them must say the same.
fn authority(parts: &mut Parts) -> Result<(), Bad> {
    let Some(authority) = parts.uri.authority() else { return Ok(()) };
    let value = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("malformed :authority"))?;
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(bad("more than one Host")),
        (Some(host), None) if !host.as_bytes().eq_ignore_ascii_case(value.as_bytes()) => {
            return Err(bad(":authority and Host differ"));
        }
        _ => {}
    }
    parts.headers.insert(HOST, value);
    Ok(())
}

fn target(parts: &mut Parts) -> Result<(), Bad> {
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    if !(path.starts_with('/') || path == "*") {
        return Err(bad("malformed :path"));
    }
    let path = path.to_owned();
    // That of a handshake is a path as any other.
    let method = if parts.method == Method::CONNECT { Method::GET } else { parts.method.clone() };
    parts.uri = head::target(&path, &method, &mut parts.headers)?;
    Ok(())
}

/// Crumbs of a cookie are one (RFC 9113, 8.2.3).
fn fields(mut headers: HeaderMap) -> Result<HeaderMap, Bad> {
    if headers.len() > head::MAX_HEADERS {
        return Err(Bad { status: 431, why: "too many headers" });
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let cookie = (crumbs.len() > 1).then(|| crumbs.join(&b"; "[..]));
    if let Some(cookie) = cookie {
        let cookie = HeaderValue::from_bytes(&cookie).map_err(|_| bad("malformed Cookie"))?;
        headers.insert(COOKIE, cookie);
    }
    Ok(headers)
}

fn body(headers: &HeaderMap, ended: bool) -> Result<Body, Bad> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(bad("Transfer-Encoding in HTTP/2"));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => return Ok(if ended { Body::None } else { Body::Chunked }),
        (Some(length), None) => length,
        _ => return Err(bad("more than one Content-Length")),
    };
    match head::decimal(length) {
        Some(0) => Ok(Body::None),
        Some(_) if ended => Err(bad("a body that is shorter than it says")),
        Some(length) => Ok(Body::Length(length)),
        None => Err(bad("malformed Content-Length")),
    }
}

/// As HTTP/1.1 asks for it: a GET with a key of ours. What a client says of these is of no use here.
fn websocket(parts: &mut Parts, nonce: [u8; 16]) -> Result<(), Bad> {
    use base64::Engine;
    let mut versions = parts.headers.get_all(SEC_WEBSOCKET_VERSION).iter();
    match (versions.next(), versions.next()) {
        (Some(version), None) if version.as_bytes() == b"13" => {}
        (Some(_), None) => return Err(Bad { status: 426, why: "WebSocket version other than 13" }),
        _ => return Err(bad("Sec-WebSocket-Version")),
    }
    if parts.headers.contains_key(CONTENT_LENGTH) {
        return Err(bad("upgrade with a body"));
    }
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    let key = HeaderValue::try_from(key).map_err(|_| bad("key"))?;
    parts.headers.insert(SEC_WEBSOCKET_KEY, key);
    parts.method = Method::GET;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Version};

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn status(parts: Parts, protocol: Option<&str>) -> Result<(Head, Asks), u16> {
        request(parts, protocol, true, [7; 16]).map_err(|bad| bad.status)
    }

    const V13: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn an_extended_connect_is_a_handshake_as_http_1_has_it() {
        let (head, asks) =
            status(parts("CONNECT", "https://a.test/c?x=1", &[V13]), Some("websocket")).unwrap();
        assert_eq!(asks, Asks::WebSocket);
        assert_eq!(head.parts.method, Method::GET);
        assert_eq!(head.parts.uri, "/c?x=1");
        assert_eq!(head.parts.headers[HOST], "a.test");
        assert_eq!(head.parts.headers[SEC_WEBSOCKET_KEY], "BwcHBwcHBwcHBwcHBwcHBw==");
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>, u16);
        let table: [Case<'_>; 8] = [
            ("CONNECT", &[V13], None, 405),
            ("CONNECT", &[V13], Some("h2c"), 501),
            ("CONNECT", &[V13], Some("webtransport"), 501),
            ("GET", &[], Some("websocket"), 400),
            ("CONNECT", &[], Some("websocket"), 400),
            ("CONNECT", &[V13, V13], Some("websocket"), 400),
            ("CONNECT", &[("sec-websocket-version", "8")], Some("websocket"), 426),
            ("CONNECT", &[V13, ("content-length", "5")], Some("websocket"), 400),
        ];
        for (method, fields, protocol, expected) in table {
            let got = status(parts(method, "https://a.test/c", fields), protocol).map(|_| ());
            assert_eq!(got, Err(expected), "{method} {fields:?} {protocol:?}");
        }
    }

    #[test]
    fn a_session_is_asked_for_by_a_get() {
        let mut asked = parts("CONNECT", "https://a.test/c?x=1", &[("origin", "https://a.test")]);
        asked.version = Version::HTTP_3;
        let (head, asks) = status(asked, Some("webtransport")).unwrap();
        assert_eq!(asks, Asks::WebTransport);
        assert_eq!((head.parts.method, head.parts.uri.path()), (Method::GET, "/c"));
        assert!(!head.parts.headers.contains_key(SEC_WEBSOCKET_KEY));
    }

    #[test]
    fn host_cookie_and_length_are_one_each() {
        let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("host", "A.test")];
        let (head, _) = status(parts("GET", "https://a.test/", &fields), None).unwrap();
        assert_eq!(head.parts.headers[COOKIE], "a=1; b=2");
        assert_eq!(head.parts.headers.get_all(COOKIE).iter().count(), 1);
        let table: [&[(&str, &str)]; 6] = [
            &[("host", "b.test")],
            &[("host", "a.test"), ("host", "b.test")],
            &[("host", "a.test"), ("host", "a.test")],
            &[("content-length", "5")],
            &[("content-length", "0"), ("content-length", "0")],
            &[("transfer-encoding", "chunked")],
        ];
        for fields in table {
            let got = status(parts("POST", "https://a.test/", fields), None).map(|_| ());
            assert_eq!(got, Err(400), "{fields:?}");
        }
        let open = request(parts("POST", "https://a.test/", &[]), None, false, [0; 16]).unwrap();
        assert_eq!(open.0.body, Body::Chunked);
    }
}
