//! Where in a request its token stands, and how it is taken off before the server sees it. Pure.

use super::Wrong;
use http::Uri;
use http::header::{AUTHORIZATION, COOKIE, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use http::uri::PathAndQuery;
use weir_conf::proxy::TokenPlace;

/// The token of the first place that has one. Two in the same place are none: which one counts is
/// nothing that this proxy and a server behind it may see differently.
pub fn find(places: &[TokenPlace], head: &Parts) -> Result<Option<String>, Wrong> {
    for place in places {
        let mut found = all(place, head).into_iter();
        match (found.next(), found.next()) {
            (None, _) => {}
            (Some(token), None) => return Ok(Some(token.to_owned())),
            // Browsers put the cookie of the nearest path first.
            (Some(token), Some(_)) if matches!(place, TokenPlace::Cookie(_)) => {
                return Ok(Some(token.to_owned()));
            }
            _ => return Err(Wrong::new("malformed", "more than one token")),
        }
    }
    Ok(None)
}

fn all<'a>(place: &'a TokenPlace, head: &'a Parts) -> Vec<&'a str> {
    let lines =
        |name| head.headers.get_all(name).into_iter().map(|v: &HeaderValue| v.to_str().unwrap_or_default());
    match place {
        TokenPlace::Authorization => lines(AUTHORIZATION).filter_map(bearer).collect(),
        TokenPlace::Query(name) => {
            let pairs = head.uri.query().unwrap_or_default().split('&').filter_map(|p| p.split_once('='));
            pairs.filter(|(n, v)| n == name && !v.is_empty()).map(|(_, value)| value).collect()
        }
        TokenPlace::Cookie(name) => {
            let pairs =
                lines(COOKIE).flat_map(|line| line.split(';')).filter_map(|p| p.trim().split_once('='));
            let values = pairs.filter(|(n, _)| n == name).map(|(_, value)| value.trim_matches('"'));
            values.filter(|value| !value.is_empty()).collect()
        }
        TokenPlace::Subprotocol(prefix) => {
            let entries = lines(SEC_WEBSOCKET_PROTOCOL).flat_map(|line| line.split(','));
            entries.filter_map(|entry| entry.trim().strip_prefix(prefix.as_str())).collect()
        }
    }
}

/// RFC 6750; the scheme's case is of no matter. Another scheme is no token.
fn bearer(line: &str) -> Option<&str> {
    let (scheme, token) = line.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Takes tokens out of the query and the subprotocols, all of them: servers write queries to logs, and
/// answer with a subprotocol.
pub fn strip(places: &[TokenPlace], head: &mut Parts) {
    for place in places {
        match place {
            TokenPlace::Query(name) => strip_query(name, &mut head.uri),
            TokenPlace::Subprotocol(prefix) => strip_subprotocol(prefix, head),
            TokenPlace::Authorization | TokenPlace::Cookie(_) => {}
        }
    }
}

fn strip_query(name: &str, uri: &mut Uri) {
    let Some(query) = uri.query() else { return };
    let is_token = |pair: &&str| pair.split('=').next() == Some(name);
    if !query.split('&').any(|pair| is_token(&pair)) {
        return;
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let target = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    // Parts of a sound target are one; if not, the token must go all the same.
    let sound = PathAndQuery::try_from(target).unwrap_or_else(|_| PathAndQuery::from_static("/"));
    *uri = Uri::from(sound);
}

fn strip_subprotocol(prefix: &str, head: &mut Parts) {
    let lines = head.headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    let entries = lines.flat_map(|v| v.to_str().unwrap_or_default().split(',')).map(str::trim);
    let (tokens, kept): (Vec<&str>, Vec<&str>) =
        entries.filter(|entry| !entry.is_empty()).partition(|entry| entry.starts_with(prefix));
    if tokens.is_empty() {
        return;
    }
    match HeaderValue::try_from(kept.join(", ")) {
        Ok(value) if !value.is_empty() => {
            head.headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
        }
        _ => {
            head.headers.remove(SEC_WEBSOCKET_PROTOCOL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut builder = http::Request::get(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_first_place_that_has_one_counts() {
        let places = [
            TokenPlace::Authorization,
            TokenPlace::Query("token".into()),
            TokenPlace::Cookie("sid".into()),
            TokenPlace::Subprotocol("bearer.".into()),
        ];
        type Fields = &'static [(&'static str, &'static str)];
        let cases: [(&str, Fields, Option<&str>); 12] = [
            ("/", &[], None),
            ("/", &[("authorization", "Bearer a.b.c")], Some("a.b.c")),
            ("/", &[("authorization", "bEARER  a.b.c ")], Some("a.b.c")),
            ("/", &[("authorization", "Basic a.b.c")], None),
            ("/?token=q", &[("authorization", "Bearer a")], Some("a")),
            ("/?token=q", &[("authorization", "Basic a")], Some("q")),
            ("/?x=1&token=q&y", &[], Some("q")),
            ("/?tokens=q&token=&token", &[], None),
            ("/", &[("cookie", "x=1; sid=c; sid=d")], Some("c")),
            ("/", &[("cookie", "sid=\"c\"")], Some("c")),
            ("/", &[("sec-websocket-protocol", "chat, bearer.s")], Some("s")),
            ("/", &[("cookie", "Sid=c")], None),
        ];
        for (uri, fields, want) in cases {
            assert_eq!(find(&places, &head(uri, fields)), Ok(want.map(String::from)), "{uri} {fields:?}");
        }
        for (uri, fields) in [
            ("/?token=a&token=b", &[][..]),
            ("/", &[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
            ("/", &[("sec-websocket-protocol", "bearer.a, bearer.b")]),
        ] {
            assert!(find(&places, &head(uri, fields)).is_err(), "{uri} {fields:?}");
        }
    }

    #[test]
    fn the_server_does_not_see_what_is_in_query_or_subprotocol() {
        let places = [TokenPlace::Query("token".into()), TokenPlace::Subprotocol("bearer.".into())];
        for (uri, want) in [
            ("/a?token=q", "/a"),
            ("/a?x=1&token=q&y=2", "/a?x=1&y=2"),
            ("/a?token=q&x&token=r&token", "/a?x"),
            ("/a?x=token=q", "/a?x=token=q"),
            ("/a", "/a"),
        ] {
            let mut parts = head(uri, &[]);
            strip(&places, &mut parts);
            assert_eq!(parts.uri.to_string(), want);
        }
        for (offered, want) in
            [("bearer.t", None), ("chat, bearer.t,v2", Some("chat, v2")), ("chat", Some("chat"))]
        {
            let mut parts = head("/", &[("sec-websocket-protocol", offered)]);
            strip(&places, &mut parts);
            let left = parts.headers.get(SEC_WEBSOCKET_PROTOCOL).map(|v| v.to_str().unwrap());
            assert_eq!(left, want);
        }
    }
}
