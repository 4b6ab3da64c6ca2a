//! A request's head.

use super::{Protocol, add};
use crate::{Error, qpack};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri, Version};
use std::borrow::Cow;

/// Reads a field section. The target is absolute: scheme, authority and path; of a CONNECT without `:protocol`
/// the authority alone. [`Protocol`] is among the extensions. Cookies are joined to one line.
pub fn decode_request(section: &[u8], limit: usize) -> Result<Parts, Error> {
    let mut head = Head::default();
    qpack::decode(section, limit, |name, value| head.field(name, value))?;
    head.finish()
}

#[derive(Default)]
struct Head {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    protocol: Option<Protocol>,
    headers: HeaderMap,
    cookies: Vec<u8>,
    /// A field that is no pseudo-header field was seen: no pseudo-header field may follow.
    regular: bool,
}

impl Head {
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        if name.first() == Some(&b':') {
            return self.pseudo(name, value);
        }
        self.regular = true;
        if name == b"cookie" {
            return self.cookie(value);
        }
        add(&mut self.headers, name, value)
    }

    /// Compared as if they stood in one line (RFC 9114, 4.2.1).
    fn cookie(&mut self, value: &[u8]) -> Result<(), Error> {
        HeaderValue::from_bytes(value).map_err(|_| Error::malformed("bad field value"))?;
        if !self.cookies.is_empty() {
            self.cookies.extend_from_slice(b"; ");
        }
        self.cookies.extend_from_slice(value);
        Ok(())
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        if self.regular {
            return Err(Error::malformed("pseudo-header field after another field"));
        }
        match name {
            b":method" => {
                let method = Method::from_bytes(value).map_err(|_| Error::malformed("bad :method"))?;
                once(&mut self.method, method)
            }
            b":scheme" => {
                let scheme = Scheme::try_from(value).map_err(|_| Error::malformed("bad :scheme"))?;
                once(&mut self.scheme, scheme)
            }
            b":authority" => once(&mut self.authority, authority(value)?),
            b":path" => once(&mut self.path, path(value)?),
            b":protocol" => {
                let name = std::str::from_utf8(value).ok().and_then(Protocol::new);
                once(&mut self.protocol, name.ok_or(Error::malformed("bad :protocol"))?)
            }
            _ => Err(Error::malformed("unknown pseudo-header field")),
        }
    }

    fn finish(mut self) -> Result<Parts, Error> {
        const MISSING: Error = Error::malformed("pseudo-header field missing");
        let method = self.method.take().ok_or(MISSING)?;
        let authority = self.one_authority()?.ok_or(MISSING)?;
        let connect = method == Method::CONNECT;
        if connect && self.headers.contains_key(header::CONTENT_LENGTH) {
            // There is no content; whoever writes this on as HTTP/1.1 must not be told of any.
            return Err(Error::malformed("content-length of a CONNECT"));
        }
        super::content_length(&self.headers)?;
        let mut target = http::uri::Parts::default();
        target.authority = Some(authority);
        match (connect, &self.protocol) {
            (true, None) => {
                if self.scheme.is_some() || self.path.is_some() {
                    return Err(Error::malformed("CONNECT with :scheme or :path"));
                }
            }
            (false, Some(_)) => return Err(Error::malformed(":protocol without CONNECT")),
            _ => {
                target.scheme = Some(self.scheme.take().ok_or(MISSING)?);
                let path = self.path.take().ok_or(MISSING)?;
                if path.as_str() == "*" && method != Method::OPTIONS {
                    return Err(Error::malformed("bad :path"));
                }
                target.path_and_query = Some(path);
            }
        }
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = method;
        parts.uri = Uri::from_parts(target).map_err(|_| Error::malformed("bad target"))?;
        parts.version = Version::HTTP_3;
        if !self.cookies.is_empty() {
            let cookies =
                HeaderValue::from_bytes(&self.cookies).map_err(|_| Error::malformed("bad field value"))?;
            self.headers.try_insert(header::COOKIE, cookies).map_err(|_| qpack::TOO_LARGE)?;
        }
        parts.headers = self.headers;
        if let Some(protocol) = self.protocol {
            parts.extensions.insert(protocol);
        }
        Ok(parts)
    }

    /// `:authority` or `host`; if both are there, they are the same.
    fn one_authority(&mut self) -> Result<Option<Authority>, Error> {
        let mut hosts = self.headers.get_all(header::HOST).iter();
        let (host, another) = (hosts.next(), hosts.next());
        if another.is_some() {
            return Err(Error::malformed("host twice"));
        }
        match (self.authority.take(), host) {
            (Some(named), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()) => {
                Err(Error::malformed("host is not :authority"))
            }
            (None, Some(host)) => authority(host.as_bytes()).map(Some),
            (named, _) => Ok(named),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::malformed("pseudo-header field twice")),
    }
}

fn authority(value: &[u8]) -> Result<Authority, Error> {
    // User information has no place here (RFC 9114, 4.3.1).
    Authority::try_from(value)
        .ok()
        .filter(|authority| !authority.as_str().contains('@'))
        .ok_or(Error::malformed("bad :authority"))
}

fn path(value: &[u8]) -> Result<PathAndQuery, Error> {
    const BAD: Error = Error::malformed("bad :path");
    // http's own parser drops fragments.
    let good = value.iter().all(|byte| *byte > b' ' && !matches!(byte, 0x7f | b'#'));
    if !good || !(value == b"*" || value.starts_with(b"/")) {
        return Err(BAD);
    }
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    PathAndQuery::try_from(&*escaped(text)).map_err(|_| BAD)
}

/// A path and query in which the few signs that a [`Uri`] does not hold are escaped, as browsers do (WHATWG URL §4.4).
pub fn escaped(target: &str) -> Cow<'_, str> {
    if !target.contains(['"', '<', '>', '`']) {
        return Cow::Borrowed(target);
    }
    let escape = |c| match c {
        '"' => "%22".to_owned(),
        '<' => "%3C".to_owned(),
        '>' => "%3E".to_owned(),
        '`' => "%60".to_owned(),
        c => c.to_string(),
    };
    target.chars().map(escape).collect()
}

/// Writes a field section: what [`decode_request`] reads. Fields of a connection are left out.
pub fn encode_request(parts: &Parts) -> qpack::Encoder {
    let mut encoder = qpack::Encoder::new();
    let protocol = parts.extensions.get::<Protocol>();
    encoder.field(":method", parts.method.as_str().as_bytes());
    if parts.method != Method::CONNECT || protocol.is_some() {
        encoder.field(":scheme", parts.uri.scheme_str().unwrap_or("https").as_bytes());
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        encoder.field(":path", path.as_bytes());
    }
    if let Some(authority) = parts.uri.authority() {
        encoder.field(":authority", authority.as_str().as_bytes());
    }
    if let Some(protocol) = protocol {
        encoder.field(":protocol", protocol.as_str().as_bytes());
    }
    for (name, value) in &parts.headers {
        if !super::is_of_connection(name) && *name != header::HOST {
            encoder.field(name.as_str(), value.as_bytes());
        }
    }
    encoder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/x?y=z")];
    const WEBSOCKET: [(&str, &str); 5] = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "a.test"),
        (":path", "/chat"),
    ];

    fn decode(fields: &[&[(&str, &str)]]) -> Result<Parts, Error> {
        let mut encoder = qpack::Encoder::new();
        for (name, value) in fields.iter().copied().flatten() {
            encoder.field(name, value.as_bytes());
        }
        decode_request(&encoder.finish(), 16 * 1024)
    }

    #[test]
    fn plain_and_extended() {
        let parts =
            decode(&[&GET, &[("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2"), ("x-a", "2")]]).unwrap();
        assert_eq!(parts.uri, "https://a.test/x?y=z");
        assert_eq!(parts.version, Version::HTTP_3);
        assert_eq!(parts.headers[header::COOKIE], "a=1; b=2");
        assert_eq!(parts.headers.get_all("x-a").iter().count(), 2);
        let parts = decode(&[&WEBSOCKET]).unwrap();
        assert_eq!(parts.extensions.get::<Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(parts.uri, "https://a.test/chat");
        let parts = decode(&[&[(":method", "CONNECT"), (":authority", "a.test:443")]]).unwrap();
        assert_eq!(parts.uri, "a.test:443");
        // The host stands in for the authority.
        let parts = decode(&[&GET[..2], &GET[3..], &[("host", "b.test")]]).unwrap();
        assert_eq!(parts.uri, "https://b.test/x?y=z");
        let parts = decode(&[&GET[..3], &[(":path", "*")]]);
        assert_eq!(parts.unwrap_err().reason, "bad :path");
        let asterisk = [(":method", "OPTIONS"), (":path", "*")];
        assert_eq!(decode(&[&asterisk, &GET[1..3]]).unwrap().uri.path(), "*");
    }

    #[test]
    fn what_is_malformed() {
        let without = |index: usize| [&GET[..index], &GET[index + 1..]].concat();
        let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
            ("no method", without(0)),
            ("no scheme", without(1)),
            ("no authority", without(2)),
            ("no path", without(3)),
            ("twice", [&GET[..], &[(":path", "/")]].concat()),
            ("after a field", [&GET[..3], &[("x", "y")], &GET[3..]].concat()),
            ("unknown", [&GET[..], &[(":status", "200")]].concat()),
            ("protocol without CONNECT", [&GET[..], &[(":protocol", "websocket")]].concat()),
            ("bad protocol", [&[(":protocol", "web socket")], &WEBSOCKET[..1], &WEBSOCKET[2..]].concat()),
            ("CONNECT with a path", [&WEBSOCKET[..1], &WEBSOCKET[2..]].concat()),
            ("extended CONNECT without a path", WEBSOCKET[..4].to_vec()),
            ("upper case", [&GET[..], &[("X-a", "1")]].concat()),
            ("no name", [&GET[..], &[("", "1")]].concat()),
            ("connection", [&GET[..], &[("connection", "close")]].concat()),
            ("upgrade", [&GET[..], &[("upgrade", "h2c")]].concat()),
            ("transfer-encoding", [&GET[..], &[("transfer-encoding", "chunked")]].concat()),
            ("keep-alive", [&GET[..], &[("keep-alive", "1")]].concat()),
            ("proxy-connection", [&GET[..], &[("proxy-connection", "1")]].concat()),
            ("te", [&GET[..], &[("te", "gzip")]].concat()),
            ("line break", [&GET[..], &[("x", "a\r\nb: c")]].concat()),
            ("zero byte", [&GET[..], &[("x", "a\0")]].concat()),
            ("blank", [&GET[..], &[("x", " a")]].concat()),
            ("cookie", [&GET[..], &[("cookie", "a\n")]].concat()),
            ("name", [&GET[..], &[("a b", "1")]].concat()),
            ("two hosts", [&GET[..], &[("host", "a.test"), ("host", "a.test")]].concat()),
            ("another host", [&GET[..], &[("host", "b.test")]].concat()),
            ("user information", [&without(2)[..], &[(":authority", "me@a.test")]].concat()),
            ("empty authority", [&without(2)[..], &[(":authority", "")]].concat()),
            ("length", [&GET[..], &[("content-length", "x")]].concat()),
            ("length of CONNECT", [&WEBSOCKET[..], &[("content-length", "5")]].concat()),
        ];
        for (name, fields) in cases {
            let error = decode(&[&fields]).expect_err(name);
            assert_eq!((error.code, error.scope), (Code::H3_MESSAGE_ERROR, crate::Scope::Stream), "{name}");
        }
        for path in ["", "x", "/a b", "/a#b", "/a\u{7f}", "/a\r\n", "https://a.test/"] {
            let fields = [&GET[..3], &[(":path", path)]].concat();
            assert_eq!(decode(&[&fields]).expect_err(path).code, Code::H3_MESSAGE_ERROR, "{path}");
        }
        for (path, read) in
            [("/\u{e9}?q=|{}^", "/\u{e9}?q=|{}^"), ("/`?f={\"a\":1}<>", "/%60?f={%22a%22:1}%3C%3E")]
        {
            let fields = [&GET[..3], &[(":path", path)]].concat();
            assert_eq!(decode(&[&fields]).unwrap().uri.path_and_query().unwrap(), read, "{path}");
        }
        assert!(decode(&[&GET, &[("host", "A.test"), ("te", "trailers")]]).is_ok());
    }

    #[test]
    fn what_is_written_is_read() {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = Method::CONNECT;
        parts.uri = "https://a.test:8443/chat?x".parse().unwrap();
        parts.extensions.insert(Protocol::new("websocket").unwrap());
        parts.headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        parts.headers.insert("connection", HeaderValue::from_static("upgrade"));
        let read = decode_request(&encode_request(&parts).finish(), 1000).unwrap();
        parts.headers.remove("connection");
        assert_eq!((read.method, read.uri, read.headers), (parts.method, parts.uri, parts.headers));
        assert_eq!(read.extensions.get::<Protocol>(), parts.extensions.get::<Protocol>());
    }
}
