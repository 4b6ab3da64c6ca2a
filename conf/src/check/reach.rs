//! Whether a route can be reached at all, or an earlier one takes every request that it would.
//! Says yes only where that is certain.

use crate::proxy::{HeaderMatch, HeaderTest, Route};

impl Route {
    /// Whether every request of `later` is one of this route too.
    pub(super) fn covers(&self, later: &Route) -> bool {
        self.covers_host(later)
            && self.covers_path(later)
            && self.header.iter().all(|test| later.header.iter().any(|other| implies(other, test)))
            && self.covers_method(later)
            && (self.websocket.is_none() || self.websocket == later.websocket)
    }

    fn covers_host(&self, later: &Route) -> bool {
        let one = |host: &String| self.host.iter().any(|wide| is_within(host, wide));
        self.host.is_empty() || (!later.host.is_empty() && later.host.iter().all(one))
    }

    /// Each condition on the path, by whether one of the later's has it as a consequence.
    fn covers_path(&self, later: &Route) -> bool {
        let exact = later.path_exact.as_deref();
        let prefix = self.path.as_deref().is_none_or(|prefix| {
            prefix == "/" || [exact, later.path.as_deref()].into_iter().flatten().any(|p| is_under(prefix, p))
        });
        let same = self.path_exact.as_deref().is_none_or(|path| exact == Some(path));
        let regex = self.path_regex.as_ref().is_none_or(|regex| {
            later.path_regex.as_ref() == Some(regex)
                || exact.is_some_and(|path| regex.is_match(path.as_bytes()))
        });
        prefix && same && regex
    }

    fn covers_method(&self, later: &Route) -> bool {
        let takes = |method: &String| self.method.contains(method);
        self.method.is_empty()
            || (!later.method.is_empty() && later.method.iter().all(takes))
            // A handshake is a GET.
            || (later.websocket == Some(true) && self.method.iter().any(|m| m == "GET"))
    }
}

/// `narrow` is a host or `*.host`, as is `wide`.
fn is_within(narrow: &str, wide: &str) -> bool {
    let (narrow, wide) = (narrow.to_ascii_lowercase(), wide.to_ascii_lowercase());
    let below = |domain: &str| {
        narrow.trim_start_matches("*.").strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    narrow == wide || wide.strip_prefix("*.").is_some_and(below)
}

/// `/app` covers `/app` and `/app/x`, not `/apple`; `/app/` covers `/app/x`, not `/app`.
fn is_under(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// Whether what satisfies `narrow` satisfies `wide`.
fn implies(narrow: &HeaderMatch, wide: &HeaderMatch) -> bool {
    if narrow.name != wide.name {
        return false;
    }
    match (&narrow.test, &wide.test) {
        (HeaderTest::Value(_) | HeaderTest::Regex(_), HeaderTest::Present(true)) => true,
        (HeaderTest::Value(value), HeaderTest::Regex(regex)) => regex.is_match(value.as_bytes()),
        (narrow, wide) => narrow == wide,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Pattern;

    fn route(change: impl FnOnce(&mut Route)) -> Route {
        let mut route = Route::to("app");
        change(&mut route);
        route
    }

    fn host(hosts: &[&str]) -> Route {
        route(|r| r.host = hosts.iter().map(ToString::to_string).collect())
    }

    fn path(path: &str) -> Route {
        route(|r| r.path = Some(path.into()))
    }

    fn exact(path: &str) -> Route {
        route(|r| r.path_exact = Some(path.into()))
    }

    fn regex(text: &str) -> Route {
        route(|r| r.path_regex = Some(Pattern::parse(text).unwrap()))
    }

    fn header(test: HeaderTest) -> Route {
        route(|r| r.header = vec![HeaderMatch { name: "x".into(), test }])
    }

    fn value(text: &str) -> HeaderTest {
        HeaderTest::Value(text.into())
    }

    #[test]
    fn only_what_is_certain_is_unreachable() {
        let any = || host(&[]);
        let websocket = |is| route(|r| r.websocket = Some(is));
        let method = |names: &[&str]| route(|r| r.method = names.iter().map(ToString::to_string).collect());
        for (earlier, later, covered) in [
            (any(), host(&["a"]), true),
            (host(&["a"]), any(), false),
            (host(&["a", "B"]), host(&["b"]), true),
            (host(&["a"]), host(&["a", "b"]), false),
            (host(&["*.a.b"]), host(&["x.a.b", "*.y.a.b"]), true),
            (host(&["*.a.b"]), host(&["a.b"]), false),
            (host(&["*.a.b"]), host(&["xa.b"]), false),
            (host(&["*.x.a.b"]), host(&["*.a.b"]), false),
            (path("/"), any(), true),
            (path("/a"), path("/a/b"), true),
            (path("/a"), path("/a/"), true),
            (path("/a/"), path("/a"), false),
            (path("/a"), path("/ab"), false),
            (path("/a"), exact("/a/b"), true),
            (path("/a"), regex("/a/.*"), false),
            (exact("/a"), path("/a"), false),
            (exact("/a"), exact("/a"), true),
            (regex("/a.*"), exact("/ab"), true),
            (regex("/a.*"), regex("/a.*"), true),
            (regex("/a.*"), path("/a"), false),
            (header(HeaderTest::Present(true)), header(value("1")), true),
            (header(HeaderTest::Present(false)), header(value("1")), false),
            (header(HeaderTest::Regex(Pattern::parse("[0-9]").unwrap())), header(value("1")), true),
            (header(value("1")), header(value("2")), false),
            (header(value("1")), any(), false),
            (websocket(true), any(), false),
            (websocket(true), websocket(true), true),
            (websocket(true), websocket(false), false),
            (any(), websocket(true), true),
            (method(&["GET", "HEAD"]), method(&["GET"]), true),
            (method(&["GET"]), method(&["GET", "HEAD"]), false),
            (method(&["GET"]), websocket(true), true),
            (method(&["GET"]), any(), false),
        ] {
            assert_eq!(earlier.covers(&later), covered, "{earlier:?}\n{later:?}");
        }
    }
}
