//! Which pages may open a WebSocket here (cross-site WebSocket hijacking), and whose address and
//! name for a connection count.

use http::header;
use http::request::Parts;
use std::net::IpAddr;
use weir_conf::proxy::ForwardedHeader;
use weir_conf::units::Cidr;
use weir_core::client_addr::Trusted;
use weir_wire::hop;
use weir_wire::id::ConnId;

/// No `Origin`: not a browser, so nothing to protect. Otherwise it has to be on the list, or,
/// with an empty list, the very host that is asked.
pub fn allowed(head: &Parts, list: &[String]) -> bool {
    let Some(origin) = head.headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    if list.iter().any(|pattern| crate::control::glob(&pattern.to_lowercase(), &origin.to_lowercase())) {
        return true;
    }
    list.is_empty() && same_host(head, origin)
}

fn same_host(head: &Parts, origin: &str) -> bool {
    let host = head.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let Some(host) = host.or_else(|| head.uri.authority().map(|a| a.as_str())) else { return false };
    let Some((scheme, of_origin)) = origin.split_once("://") else { return false };
    let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let bare = |name: &str| name.strip_suffix(default).unwrap_or(name).to_ascii_lowercase();
    bare(host) == bare(of_origin)
}

/// The client's address: the peer's, or what trusted peers say. They are Weir's proxies.
pub fn client_address(head: &Parts, peer: IpAddr, trusted: &[Cidr]) -> IpAddr {
    Trusted::new(trusted).client(peer, &head.headers, ForwardedHeader::XForwardedFor).client
}

/// The name that a trusted peer gave the connection, or a new one.
pub fn conn_id(head: &Parts, peer: IpAddr, trusted: &[Cidr]) -> ConnId {
    let given = head.headers.get(hop::REQUEST_ID).and_then(|v| v.to_str().ok()).and_then(ConnId::parse);
    given
        .filter(|_| trusted.iter().any(|net| net.contains(peer)))
        .unwrap_or_else(|| ConnId::from_random(rand::random()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn origins() {
        let list = ["https://*.example.com".to_owned(), "http://app:3000".to_owned()];
        let cases: &[(Option<&str>, &[String], bool)] = &[
            (None, &[], true),
            (None, &list, true),
            (Some("http://weir.test:8100"), &[], true),
            (Some("HTTP://WEIR.test:8100"), &[], true),
            (Some("http://weir.test"), &[], false),
            (Some("http://weir.test:8100.evil"), &[], false),
            (Some("null"), &[], false),
            (Some("https://a.example.com"), &list, true),
            (Some("https://example.com"), &list, false),
            (Some("https://a.example.com.evil"), &list, false),
            (Some("http://a.example.com"), &list, false),
            (Some("http://app:3000"), &list, true),
            (Some("http://weir.test:8100"), &list, false),
        ];
        for (origin, list, want) in cases {
            let mut headers = vec![("host", "weir.test:8100")];
            headers.extend(origin.map(|o| ("origin", o)));
            assert_eq!(allowed(&head(&headers), list), *want, "{origin:?} {list:?}");
        }
        assert!(allowed(&head(&[("host", "weir.test"), ("origin", "https://weir.test:443")]), &[]));
    }

    #[test]
    fn only_trusted_peers_speak_for_others() {
        let net = |addr: &str, prefix| Cidr { addr: addr.parse().unwrap(), prefix };
        let trusted = [net("10.0.0.0", 8), net("::1", 128)];
        let cases = [
            ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
            ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
            ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            ("10.0.0.1", "6.6.6.6, junk, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("::1", "2001:db8::1", "2001:db8::1"),
            ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ];
        for (peer, forwarded, want) in cases {
            let h = head(&[("x-forwarded-for", forwarded)]);
            let got = client_address(&h, peer.parse().unwrap(), &trusted);
            assert_eq!(got, want.parse::<IpAddr>().unwrap(), "{peer} {forwarded}");
        }
        let named = head(&[("x-request-id", "abc")]);
        assert_eq!(conn_id(&named, "10.1.1.1".parse().unwrap(), &trusted).as_str(), "abc");
        assert_ne!(conn_id(&named, "1.1.1.1".parse().unwrap(), &trusted).as_str(), "abc");
    }
}
