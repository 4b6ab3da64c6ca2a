//! Host and path to an upstream, and from the request the key that decides which of its
//! servers. Pure. The first route that matches wins.

use crate::admit::gate::Gate;
use crate::upstream::Upstream;
use http::HeaderMap;
use http::header::{COOKIE, HOST};
use http::request::Parts;
use std::net::IpAddr;
use std::sync::Arc;
use weir_conf::proxy::Sticky;
use weir_core::accept::Acceptor;

/// Where a request goes.
#[derive(Clone)]
pub enum Target {
    /// Servers over the network.
    Upstream(Arc<Upstream>),
    /// The node tier of this process: WebSockets are handed over, all else goes to its listener.
    Node { acceptor: Arc<dyn Acceptor>, listener: Arc<Upstream> },
}

impl Target {
    /// The servers that plain requests go to.
    pub fn upstream(&self) -> &Arc<Upstream> {
        match self {
            Target::Upstream(upstream) => upstream,
            Target::Node { listener, .. } => listener,
        }
    }
}

pub struct Route {
    pub host: Option<String>,
    pub path: Option<String>,
    pub sticky: Sticky,
    pub target: Target,
    /// Whom it lets in.
    pub gate: Gate,
}

pub struct Routes(Vec<Arc<Route>>);

impl Routes {
    pub fn new(routes: Vec<Route>) -> Routes {
        Routes(routes.into_iter().map(Arc::new).collect())
    }

    pub fn find(&self, head: &Parts) -> Option<&Arc<Route>> {
        let (host, path) = (host(&head.headers), head.uri.path());
        self.0.iter().find(|route| route.matches(host, path))
    }
}

impl Route {
    pub fn new(conf: &weir_conf::proxy::Route, target: Target, gate: Gate) -> Route {
        Route { host: conf.host.clone(), path: conf.path.clone(), sticky: conf.sticky.clone(), target, gate }
    }

    fn matches(&self, host: &str, path: &str) -> bool {
        let host_fits = self.host.as_deref().is_none_or(|h| h.eq_ignore_ascii_case(host));
        host_fits && self.path.as_deref().is_none_or(|prefix| is_under(prefix, path))
    }
}

/// `/app` covers `/app` and `/app/x`, not `/apple`; `/app/` covers `/app/x`.
fn is_under(prefix: &str, path: &str) -> bool {
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
}

/// The host that was asked for, without its port.
pub fn host(headers: &HeaderMap) -> &str {
    let host = headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let after_v6 = host.rfind(']').map_or(0, |i| i + 1);
    host[after_v6..].find(':').map_or(host, |colon| &host[..after_v6 + colon])
}

/// The key of consistent hashing. A request without the one that the route asks for is spread
/// by its address, so that it still comes back to the same server.
pub fn sticky_key(sticky: &Sticky, head: &Parts, client: IpAddr) -> Vec<u8> {
    let chosen = match sticky {
        Sticky::Ip => None,
        Sticky::Header(name) => head.headers.get(name).map(|v| v.as_bytes()),
        Sticky::Cookie(name) => cookie(&head.headers, name),
        Sticky::Query(name) => query(head.uri.query().unwrap_or_default(), name),
    };
    match chosen {
        Some(key) if !key.is_empty() => key.to_vec(),
        _ => client.to_string().into_bytes(),
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs =
        headers.get_all(COOKIE).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes())
}

fn query<'a>(query: &'a str, name: &str) -> Option<&'a [u8]> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(n, _)| *n == name)
        .map(|(_, v)| v.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_slash() {
        for (prefix, path, under) in [
            ("/app", "/app", true),
            ("/app", "/app/x", true),
            ("/app", "/apple", false),
            ("/app/", "/app/x", true),
            ("/app/", "/app", false),
            ("/", "/anything", true),
            ("/app", "/App", false),
        ] {
            assert_eq!(is_under(prefix, path), under, "{prefix} {path}");
        }
    }

    fn request(uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut builder = http::Request::get(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn hosts_lose_their_port() {
        for (header, expected) in
            [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")]
        {
            assert_eq!(host(&request("/", &[("host", header)]).headers), expected);
        }
    }

    #[test]
    fn keys_come_from_where_the_route_says_or_from_the_address() {
        let head =
            request("/x?a=1&sid=42&b", &[("cookie", "x=1; sid=abc"), ("cookie", "y=2"), ("x-user", "u7")]);
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        for (sticky, key) in [
            (Sticky::Ip, "10.1.2.3"),
            (Sticky::Cookie("sid".into()), "abc"),
            (Sticky::Cookie("y".into()), "2"),
            (Sticky::Cookie("none".into()), "10.1.2.3"),
            (Sticky::Query("sid".into()), "42"),
            (Sticky::Query("b".into()), "10.1.2.3"),
            (Sticky::Header("X-User".into()), "u7"),
            (Sticky::Header("x-none".into()), "10.1.2.3"),
        ] {
            assert_eq!(sticky_key(&sticky, &head, ip), key.as_bytes(), "{sticky:?}");
        }
    }
}
