//! Which pages may open WebSockets (cross-site WebSocket hijacking, RFC 6455 §10.2). Pure.

use http::HeaderMap;
use http::header::ORIGIN;

/// Origins that may, `*` as a wildcard; none listed: any.
pub struct Origins {
    patterns: Vec<String>,
    required: bool,
}

impl Origins {
    pub fn new(patterns: &[String], required: bool) -> Origins {
        Origins { patterns: patterns.iter().map(|p| p.to_ascii_lowercase()).collect(), required }
    }

    /// No `Origin`: not a browser, so nobody's cookies are used behind his back.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(ORIGIN).iter();
        match (given.next(), given.next()) {
            _ if self.patterns.is_empty() => true,
            (None, _) => !self.required,
            (Some(_), Some(_)) => false,
            (Some(origin), None) => {
                let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
                !origin.is_empty() && self.patterns.iter().any(|pattern| fits(pattern, &origin))
            }
        }
    }
}

/// A `*` in a host stands for one label or more, never for anything but a host's characters; a `*`
/// alone is any origin.
fn fits(pattern: &str, origin: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == origin };
    let Some(rest) = origin.strip_prefix(head) else { return false };
    let host = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    // The longest stretch that the wildcard may cover, and every shorter one.
    let longest = rest.bytes().take_while(host).count();
    (1..=longest).any(|end| match tail.contains('*') {
        true => fits(tail, &rest[end..]),
        false => &rest[end..] == tail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_by_the_list() {
        let list =
            ["https://app.example.com", "https://*.example.com", "http://localhost:*", "https://*.a-*.net"]
                .map(String::from);
        for (origin, want) in [
            (None, true),
            (Some("https://app.example.com"), true),
            (Some("HTTPS://App.Example.com"), true),
            (Some("https://a.b.example.com"), true),
            (Some("https://x.a-y.net"), true),
            (Some("http://localhost:5173"), true),
            (Some("https://example.com"), false),
            (Some("https://.example.com.evil.net"), false),
            (Some("https://evil.net/.example.com"), false),
            (Some("https://evil.net?.example.com"), false),
            (Some("https://user@x.example.com"), false),
            (Some("https://app.example.com.evil.net"), false),
            (Some("https://app.example.com:8443"), false),
            (Some("http://app.example.com"), false),
            (Some("null"), false),
            (Some(""), false),
            (Some("http://localhost:"), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(Origins::new(&list, false).allow(&headers), want, "{origin:?}");
            assert_eq!(Origins::new(&list, true).allow(&headers), want && origin.is_some(), "{origin:?}");
            assert!(Origins::new(&[], false).allow(&headers), "no list: {origin:?}");
        }
        let mut two = HeaderMap::new();
        two.append(ORIGIN, "https://app.example.com".parse().unwrap());
        two.append(ORIGIN, "https://evil.net".parse().unwrap());
        assert!(!Origins::new(&list, false).allow(&two), "two origins are none");
    }
}
