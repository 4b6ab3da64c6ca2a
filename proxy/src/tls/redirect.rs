//! From listeners without TLS to those with it, and telling browsers to come that way at once. Pure.

use crate::answer;
use crate::front::host;
use crate::route::path;
use bytes::Bytes;
use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Response};
use std::time::Duration;

/// Where ACME looks for its challenges (RFC 8555 §8.3), and never over TLS.
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// The same place over TLS. `None`: this request is answered where it came in.
pub fn redirect(head: &Parts, tls_port: u16) -> Option<Response<Bytes>> {
    if head.uri.path().starts_with(CHALLENGES) {
        return None;
    }
    let location = host(head).and_then(|host| {
        let mut to = format!("https://{host}");
        if tls_port != 443 {
            to.push_str(&format!(":{tls_port}"));
        }
        let sent = head.uri.path();
        to.push_str(if sent.starts_with('/') { "" } else { "/" });
        path::escape_odd(if sent == "*" { "" } else { sent }, &mut to);
        if let Some(query) = head.uri.query() {
            to.push('?');
            path::escape_odd(query, &mut to);
        }
        HeaderValue::try_from(to).ok()
    });
    let Some(location) = location else { return Some(answer::response(400, None)) };
    let mut response = answer::response(308, None);
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}

/// The value of Strict-Transport-Security. `None`: it is not sent.
pub fn hsts(max_age: Duration) -> Option<HeaderValue> {
    let seconds = Some(max_age.as_secs()).filter(|seconds| *seconds > 0)?;
    HeaderValue::try_from(format!("max-age={seconds}")).ok()
}

/// Without its port. A client that names no host, two, or something else cannot be sent anywhere.
fn host(head: &Parts) -> Option<&str> {
    let mut named = head.headers.get_all(HOST).iter();
    let text = match (head.uri.authority(), named.next(), named.next()) {
        (Some(authority), ..) => authority.as_str(),
        (None, Some(host), None) => host.to_str().ok()?,
        _ => return None,
    };
    host::split(text).map(|(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(uri: &str, hosts: &[&str], port: u16) -> Option<(u16, String)> {
        let mut request = http::Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let response = redirect(&request.body(()).unwrap().into_parts().0, port)?;
        let location = response.headers().get(LOCATION).map(|to| to.to_str().unwrap().to_owned());
        Some((response.status().as_u16(), location.unwrap_or_default()))
    }

    #[test]
    fn the_same_place_over_tls() {
        for (uri, host, port, expected) in [
            ("/", "a.example", 443, "https://a.example/"),
            ("/a/b?c=d&e", "a.example:80", 443, "https://a.example/a/b?c=d&e"),
            ("/a", "a.example:8000", 8443, "https://a.example:8443/a"),
            ("/a", "127.0.0.1", 443, "https://127.0.0.1/a"),
            ("/a", "[2001:db8::1]:80", 8443, "https://[2001:db8::1]:8443/a"),
            ("//evil.example/x", "a.example", 443, "https://a.example//evil.example/x"),
            ("*", "a.example", 443, "https://a.example/"),
            (
                "/.well-known/acme-challenges",
                "a.example",
                443,
                "https://a.example/.well-known/acme-challenges",
            ),
        ] {
            assert_eq!(to(uri, &[host], port), Some((308, expected.to_owned())), "{uri} {host}");
        }
        // The target goes over the header (RFC 9112 §3.2.2).
        let absolute = to("http://b.example:80/x", &["a.example"], 443);
        assert_eq!(absolute, Some((308, "https://b.example/x".to_owned())));
        assert_eq!(to("/.well-known/acme-challenge/x", &["a.example"], 443), None);
    }

    #[test]
    fn nowhere_without_a_host() {
        let hosts: [&[&str]; 9] = [
            &[],
            &["a", "b"],
            &[""],
            &[":80"],
            &["a.example/x"],
            &["user@a.example"],
            &["[::1"],
            &["[a.example]"],
            &["a.example:80x"],
        ];
        for host in hosts {
            assert_eq!(to("/", host, 443), Some((400, String::new())), "{host:?}");
        }
    }

    #[test]
    fn how_long_browsers_remember() {
        assert_eq!(hsts(Duration::from_secs(31_536_000)).unwrap(), "max-age=31536000");
        assert_eq!(hsts(Duration::from_millis(999)), None);
    }
}
