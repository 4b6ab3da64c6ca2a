//! From a request, the key that decides which of an upstream's servers it goes to. Pure.

use super::affinity::{Affinity, Issue};
use http::HeaderMap;
use http::header::COOKIE;
use http::request::Parts;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::time::SystemTime;
use weir_conf::proxy::{Pattern, Sticky};
use weir_wire::hop::FORWARDED_PROTO;

pub enum Key {
    Of(Sticky),
    /// A group of this pattern.
    Group(Pattern, usize),
    Affinity(std::sync::Arc<Affinity>),
}

/// What there is to make a key of.
pub struct Known<'a> {
    pub head: &'a Parts,
    /// Tidied.
    pub path: &'a [u8],
    pub client: IpAddr,
    /// Of the token that was verified here.
    pub claims: Option<&'a Map<String, Value>>,
}

/// Where the balancing is asked to begin.
pub struct Pick {
    pub key: Vec<u8>,
    /// The server that the client's cookie names, if it is there.
    pub prefer: Option<String>,
    /// A cookie that the answer is to bring.
    pub issue: Option<Issue>,
}

impl Key {
    /// A request without the key that the route asks for is spread by its address, so that it still
    /// comes back to the same server.
    pub fn pick(&self, known: &Known<'_>, servers: impl Iterator<Item = String>, now: SystemTime) -> Pick {
        if let Key::Affinity(affinity) = self {
            return by_cookie(affinity, known, servers, now);
        }
        let key = self.given(known).unwrap_or_else(|| known.client.to_string().into_bytes());
        Pick { key, prefer: None, issue: None }
    }

    /// What the request itself brings of it.
    pub fn given(&self, known: &Known<'_>) -> Option<Vec<u8>> {
        let key = match self {
            Key::Affinity(_) => None,
            Key::Of(sticky) => from_request(sticky, known),
            Key::Group(regex, group) => {
                regex.captures(known.path).and_then(|groups| groups.get(*group).map(|g| g.to_vec()))
            }
        };
        key.filter(|key| !key.is_empty())
    }
}

fn from_request(sticky: &Sticky, known: &Known<'_>) -> Option<Vec<u8>> {
    let Known { head, path, claims, .. } = known;
    match sticky {
        Sticky::Header(name) => head.headers.get(name).map(|v| v.as_bytes().to_vec()),
        Sticky::Cookie(name) => cookies(&head.headers, name).next().map(|v| v.as_bytes().to_vec()),
        Sticky::Query(name) => query(head.uri.query().unwrap_or_default(), name).map(<[u8]>::to_vec),
        Sticky::Segment(n) => {
            path.split(|b| *b == b'/').filter(|s| !s.is_empty()).nth(n.saturating_sub(1)).map(<[u8]>::to_vec)
        }
        Sticky::Claim(name) => match claims.and_then(|claims| claims.get(name))? {
            Value::String(text) => Some(text.clone().into_bytes()),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string().into_bytes()),
            _ => None,
        },
        Sticky::Ip | Sticky::Group(_) | Sticky::Affinity(_) => None,
    }
}

/// The server of the client's cookie; else any, and the answer tells the client which it was. Each
/// client has a key of its own, so that those of an absent server are spread over all others.
fn by_cookie(
    affinity: &std::sync::Arc<Affinity>,
    known: &Known<'_>,
    servers: impl Iterator<Item = String>,
    now: SystemTime,
) -> Pick {
    let tls = known.head.headers.get(FORWARDED_PROTO).is_some_and(|proto| proto == "https");
    let issue = |client, only| Some(Issue { affinity: affinity.clone(), client, tls, only });
    match affinity.read(cookies(&known.head.headers, affinity.name()), now) {
        Some(cookie) => {
            let prefer = affinity.server_of(&cookie, servers);
            let renew = prefer.is_some() && affinity.is_old(&cookie, now);
            let issue = if renew { issue(cookie.client, prefer.clone()) } else { None };
            Pick { key: cookie.client.to_vec(), prefer, issue }
        }
        None => {
            let client: [u8; 8] = rand::random();
            Pick { key: client.to_vec(), prefer: None, issue: issue(client, None) }
        }
    }
}

fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs =
        headers.get_all(COOKIE).into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).filter(move |(n, _)| *n == name).map(|(_, v)| v)
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
    fn keys_come_from_where_the_route_says_or_from_the_address() {
        let request = http::Request::get("/x?a=1&sid=42&b")
            .header("cookie", "x=1; sid=abc")
            .header("cookie", "y=2")
            .header("x-user", "u7");
        let head = request.body(()).unwrap().into_parts().0;
        let claims = serde_json::json!({"sub": "u9", "n": 7, "list": [1]});
        let client: IpAddr = "10.1.2.3".parse().unwrap();
        let rooms = Pattern::parse("/rooms/([0-9]+)(/.*)?").unwrap();
        for (key, expected) in [
            (Key::Of(Sticky::Ip), "10.1.2.3"),
            (Key::Of(Sticky::Cookie("sid".into())), "abc"),
            (Key::Of(Sticky::Cookie("y".into())), "2"),
            (Key::Of(Sticky::Cookie("none".into())), "10.1.2.3"),
            (Key::Of(Sticky::Query("sid".into())), "42"),
            (Key::Of(Sticky::Query("b".into())), "10.1.2.3"),
            (Key::Of(Sticky::Header("X-User".into())), "u7"),
            (Key::Of(Sticky::Header("x-none".into())), "10.1.2.3"),
            (Key::Of(Sticky::Segment(2)), "7"),
            (Key::Of(Sticky::Segment(4)), "10.1.2.3"),
            (Key::Of(Sticky::Claim("sub".into())), "u9"),
            (Key::Of(Sticky::Claim("n".into())), "7"),
            (Key::Of(Sticky::Claim("list".into())), "10.1.2.3"),
            (Key::Group(rooms.clone(), 1), "7"),
            (Key::Group(rooms, 2), "/x"),
        ] {
            let known = Known { head: &head, path: b"/rooms/7/x", client, claims: claims.as_object() };
            let pick = key.pick(&known, std::iter::empty(), SystemTime::UNIX_EPOCH);
            assert_eq!(pick.key, expected.as_bytes());
        }
    }
}
