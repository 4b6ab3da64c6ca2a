//! A request head of HTTP/1: from bytes to [`http::request::Parts`], or why not. Pure.
//!
//! Stricter than the RFC's leniencies on purpose: what two servers may read differently is how
//! requests are smuggled, so it gets a 400 here and goes no further. What passes is written
//! anew for the server (see `forward.rs`), never copied.

use super::host;
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use weir_h3::head::escaped;

/// Headers in one request; over it 431.
pub const MAX_HEADERS: usize = 128;

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    Length(u64),
    Chunked,
}

#[derive(Debug)]
pub struct Head {
    pub parts: http::request::Parts,
    pub body: Body,
}

/// Why a head was not taken: the status of the answer, and words for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    pub status: u16,
    pub why: &'static str,
}

pub(super) const fn bad(why: &'static str) -> Bad {
    Bad { status: 400, why }
}

/// Where the head ends: just past its blank line. `from` is where the last look ended.
///
/// Line ends are CR LF and nothing else: a bare LF or CR is refused as soon as it is seen.
pub fn end(bytes: &[u8], from: usize) -> Result<Option<usize>, Bad> {
    // A line end may lie across two reads.
    let mut i = from.saturating_sub(3);
    while let Some(offset) =
        bytes.get(i..).and_then(|rest| rest.iter().position(|b| matches!(b, b'\r' | b'\n')))
    {
        i += offset;
        if bytes[i] == b'\n' {
            if i == 0 || bytes[i - 1] != b'\r' {
                return Err(bad("line feed without carriage return"));
            }
            i += 1;
            continue;
        }
        match bytes.get(i + 1) {
            None => return Ok(None),
            Some(b'\n') if bytes[i..].starts_with(b"\r\n\r\n") => return Ok(Some(i + 4)),
            Some(b'\n') => i += 2,
            Some(_) => return Err(bad("carriage return without line feed")),
        }
    }
    Ok(None)
}

/// Reads a whole head, its blank line included.
pub fn parse(bytes: &[u8]) -> Result<Head, Bad> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        Ok(_) => return Err(bad("head ends early")),
        Err(httparse::Error::TooManyHeaders) => return Err(Bad { status: 431, why: "too many headers" }),
        Err(httparse::Error::Version) if names_http(bytes) => {
            return Err(Bad { status: 505, why: "HTTP version" });
        }
        Err(_) => return Err(bad("malformed head")),
    }
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes())
        .map_err(|_| bad("malformed method"))?;
    let version = if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };

    let mut headers = HeaderMap::with_capacity(request.headers.len() + 4);
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| bad("malformed header name"))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| bad("malformed header value"))?;
        headers.append(name, value);
    }
    let body = framing(&headers, version)?;
    // Before the target, which may bring one: HTTP/1.1 asks for the header itself (RFC 9112, 3.2).
    host::check(&headers, version)?;
    let uri = target(request.path.unwrap_or_default(), &method, &mut headers)?;

    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, headers);
    Ok(Head { parts, body })
}

/// Whether the request line ends with some version of HTTP.
fn names_http(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    line.rsplit(|b| *b == b' ').next().is_some_and(|version| version.starts_with(b"HTTP/"))
}

/// How long the body is; anything that two readers could take differently is refused.
fn framing(headers: &HeaderMap, version: Version) -> Result<Body, Bad> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(Body::None),
        (Some(_), Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
        (None, Some(coding)) => {
            if version == Version::HTTP_10 {
                return Err(bad("Transfer-Encoding in HTTP/1.0"));
            }
            if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(bad("Transfer-Encoding other than chunked"));
            }
            Ok(Body::Chunked)
        }
        (Some(length), None) => match decimal(length) {
            Some(0) if lengths.next().is_none() => Ok(Body::None),
            Some(n) if lengths.next().is_none() => Ok(Body::Length(n)),
            _ => Err(bad("Content-Length")),
        },
    }
}

/// Digits and nothing else.
pub(super) fn decimal(value: &HeaderValue) -> Option<u64> {
    let plain = !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    value.to_str().ok().filter(|_| plain)?.parse().ok()
}

/// The request target in origin form; an absolute one must agree with `Host`.
pub(super) fn target(text: &str, method: &Method, headers: &mut HeaderMap) -> Result<Uri, Bad> {
    if *method == Method::CONNECT {
        return Err(Bad { status: 405, why: "CONNECT" });
    }
    // It sends back what it was sent: cookies that scripts may not see, and what proxies have put in.
    if *method == Method::TRACE {
        return Err(Bad { status: 405, why: "TRACE" });
    }
    // A `Uri` would silently drop a fragment.
    if text.bytes().any(|b| b <= b' ' || matches!(b, 0x7f | b'#')) {
        return Err(bad("characters in the target"));
    }
    if text == "*" {
        return if *method == Method::OPTIONS { Ok(Uri::from_static("*")) } else { Err(bad("target *")) };
    }
    let text = &*escaped(text);
    let path = if text.starts_with('/') {
        PathAndQuery::try_from(text).map_err(|_| bad("malformed target"))?
    } else {
        absolute(text, headers)?
    };
    if has_dot_segment(path.path()) {
        return Err(bad("dot segments in the path"));
    }
    Ok(Uri::from(path))
}

fn absolute(text: &str, headers: &mut HeaderMap) -> Result<PathAndQuery, Bad> {
    let uri: Uri = text.parse().map_err(|_| bad("malformed target"))?;
    let scheme = uri.scheme_str().unwrap_or_default();
    let Some(authority) = uri.authority() else { return Err(bad("malformed target")) };
    if !matches!(scheme, "http" | "https" | "ws" | "wss") || authority.as_str().contains('@') {
        return Err(bad("absolute target"));
    }
    let same = |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    match headers.get(HOST) {
        Some(host) if !same(host) => return Err(bad("target and Host differ")),
        Some(_) => {}
        None => {
            host::split(authority.as_str()).ok_or(bad("malformed target"))?;
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("malformed target"))?;
            headers.insert(HOST, host);
        }
    }
    Ok(uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")))
}

/// `/public/../admin` is routed as `/public` and served as `/admin`: browsers never send it.
fn has_dot_segment(path: &str) -> bool {
    let dots = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    };
    (path.contains('.') || path.contains('%')) && path.split('/').any(dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> u16 {
        match end(text.as_bytes(), 0) {
            Err(bad) => bad.status,
            Ok(None) => 0,
            Ok(Some(n)) => parse(&text.as_bytes()[..n]).map_or_else(|bad| bad.status, |_| 200),
        }
    }

    #[test]
    fn takes_what_browsers_and_tools_send() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /x?q=1&r=%20 HTTP/1.1\r\nHost: a.b:8000\r\nAccept: */*\r\nX: \r\n\r\n",
            "GET http://a/x HTTP/1.1\r\nHost: A\r\n\r\n",
            "GET http://a/x HTTP/1.0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET /a.b/..c/%2f HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /?f={\"a\":1} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a|b^c[d]{e}`\"<f>\\?g|h^[i]{j}`\"<k>\\ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /é/ü?q=ß HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/é?\" HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(status(head), 200, "{head:?}");
        }
    }

    #[test]
    fn refuses_what_two_servers_could_read_differently() {
        let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let table = [
            ("GET / HTTP/1.1\nHost: a\n\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), 400),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(), 400),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 505),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nHost: a\r\n\r\n".into(), 400),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
            ("GET http://a/ HTTP/1.1\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n".into(), 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\u{b}: b\r\n\r\n".into(), 400),
            (post("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400),
            (post("Content-Length: 1\r\nContent-Length: 1"), 400),
            (post("Content-Length: 1, 1"), 400),
            (post("Content-Length: +1"), 400),
            (post("Content-Length: 0x1"), 400),
            (post("Content-Length: 1 1"), 400),
            (post("Content-Length:"), 400),
            (post("Content-Length: 99999999999999999999"), 400),
            (post("Transfer-Encoding: gzip, chunked"), 400),
            (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 400),
            (post("Transfer-Encoding: xchunked"), 400),
            (post("Transfer-Encoding: \"chunked\""), 400),
            (post("Transfer-Encoding: identity"), 400),
            (post("Transfer-Encoding : chunked"), 400),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400),
            (post(&"X: y\r\n".repeat(200)).replace("\r\n\r\n\r\n", "\r\n\r\n"), 431),
        ];
        for (head, expected) in table {
            assert_eq!(status(&head), expected, "{head:?}");
        }
    }

    #[test]
    fn the_end_is_found_at_every_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nrest";
        for cut in 0..text.len() {
            let mut from = 0;
            if end(&text[..cut], 0).unwrap().is_none() {
                from = cut;
            }
            assert_eq!(end(text, from).unwrap(), Some(text.len() - 4), "cut at {cut}");
        }
    }
}
