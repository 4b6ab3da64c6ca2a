//! The host that a request is for: one, and one that a server and a browser read alike. Pure.
//!
//! What is no host (RFC 9110 §7.2, as narrow as DNS and addresses are) is refused: it would be routed as one name,
//! and served, logged or sent back in a `Location` as another.

use super::head::{Bad, bad};
use http::Version;
use http::header::{HOST, HeaderMap};
use std::net::Ipv6Addr;

/// Of a name with its dots (RFC 1035 §2.3.4), and of one label.
const NAME: usize = 253;
const LABEL: usize = 63;

/// Checks the one `Host` of a request.
pub fn check(headers: &HeaderMap, version: Version) -> Result<(), Bad> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_10 => Ok(()),
        (None, _) => Err(bad("no Host")),
        (Some(_), Some(_)) => Err(bad("more than one Host")),
        (Some(host), None) => match host.to_str().ok().and_then(split) {
            Some(_) => Ok(()),
            None => Err(bad("malformed Host")),
        },
    }
}

/// A host and its port, if these are what the text is: `a.example`, `a.example:80`, `10.0.0.1`, `[::1]:80`.
pub fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(end);
    let port = match port.strip_prefix(':') {
        Some(port) => Some(number(port)?),
        None if port.is_empty() => None,
        None => return None,
    };
    let sound = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => is_name(host),
    };
    sound.then_some((host, port))
}

/// No sign, no blank, as many digits as a port has at most.
fn number(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Labels of letters, digits, `-` and `_` (which containers' names have); one dot at the end is DNS's own.
fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=LABEL).contains(&label.len()) && label.bytes().all(fits)
    };
    name.len() <= NAME && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_what_is_none() {
        for (text, host, port) in [
            ("a", "a", None),
            ("A.b-c.example", "A.b-c.example", None),
            ("a.example.", "a.example.", None),
            ("my_app:8000", "my_app", Some(8000)),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("[::1]", "[::1]", None),
            ("[2001:db8::1]:65535", "[2001:db8::1]", Some(65_535)),
            ("[::ffff:1.2.3.4]", "[::ffff:1.2.3.4]", None),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
        ] {
            assert_eq!(split(text), Some((host, port)), "{text}");
        }
        let long = format!("{}.example", "a".repeat(64));
        let longer = ["a".repeat(60).as_str(); 5].join(".");
        for text in [
            "",
            ".",
            "..",
            ".a",
            "a..b",
            "a..",
            ":",
            ":80",
            "a:",
            "a:80:90",
            "a:80x",
            "a:+80",
            "a:-1",
            "a: 80",
            "a:65536",
            "a:000080",
            "[::1]x",
            "[::1]:",
            "[::1]:80:90",
            "[::1",
            "::1]",
            "::1",
            "[]",
            "[a]",
            "[::1%25eth0]",
            "[v1.a]",
            "[::1]]",
            "[[::1]]",
            "a@b",
            "user:pw@a",
            "a/b",
            "a\\b",
            "a?b",
            "a#b",
            "a,b",
            "a b",
            "a%2eb",
            "a;b",
            "a*",
            "a[b]",
            "é.example",
            &long,
            &longer,
        ] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
