//! A request as the server is to get it: its path, its headers, its Host. Pure.

use super::edit::expand;
use super::{Route, path};
use crate::access::Access;
use crate::forward;
use crate::front::head::Bad;
use http::Uri;
use http::request::Parts;
use http::uri::PathAndQuery;
use weir_conf::proxy::{Rewrite, Var};

const BAD: Bad = Bad { status: 400, why: "rewritten path" };

impl Route {
    /// `tidy` is the path that the route was found by.
    pub fn prepare(&self, head: &mut Parts, tidy: &[u8], access: &Access, trusted: bool) -> Result<(), Bad> {
        if let Some(rewrite) = &self.rewrite
            && let Some(path) = rewritten(rewrite, head.uri.path(), tidy)
        {
            head.uri = with_path(&head.uri, path)?;
        }
        if !self.request_headers.is_empty() {
            self.request_headers.apply_to_request(&mut head.headers, &access.vars());
        }
        forward::set_host(head, &self.host_header, trusted);
        Ok(())
    }
}

/// `None`: it stays as it is.
fn rewritten(rewrite: &Rewrite, sent: &str, tidy: &[u8]) -> Option<String> {
    match rewrite {
        Rewrite::Prefix { from, to } => {
            if !tidy.starts_with(b"/") || !path::is_under(from, tidy) {
                return None;
            }
            let rest = path::rest(sent, from);
            let mut out = String::new();
            path::encode(if rest.is_empty() { to } else { to.trim_end_matches('/') }.as_bytes(), &mut out);
            out.push_str(&rest);
            Some(if out.is_empty() { "/".into() } else { out })
        }
        Rewrite::Regex { regex, to } => {
            let groups = regex.captures(tidy)?;
            let path = expand(to, |var, out| {
                if let Var::Group(n) = var {
                    path::encode(groups.get(n).copied().unwrap_or_default(), out);
                }
            });
            Some(format!("/{}", path::without_separators(&path)))
        }
    }
}

/// What comes out is held to what comes in: no groups of a match may make up dot segments.
fn with_path(uri: &Uri, path: String) -> Result<Uri, Bad> {
    path::tidy(&path).map_err(|_| BAD)?;
    let whole = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    PathAndQuery::try_from(whole).map(Uri::from).map_err(|_| BAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_conf::{Sources, load};

    fn rewrite(line: &str) -> Rewrite {
        let text = format!(
            "roles = [\"proxy\"]\n[proxy.upstream.app]\nservers = \"127.0.0.1:1\"\n[[proxy.route]]\nto = \"app\"\npath = \"/app\"\n{line}\n"
        );
        let loaded = load(&Sources::new().text("t", text)).unwrap_or_else(|e| panic!("{e}"));
        loaded.config.proxy.route[0].rewrite.clone().unwrap()
    }

    #[test]
    fn paths_are_rewritten_and_stay_paths() {
        let regex = r#"rewrite = { regex = "/app/(?P<a>[^/]*)/?(.*)", to = "/{2}/{a}" }"#;
        let glue = r#"rewrite = { regex = "/app/(.*)", to = "/.{1}" }"#;
        for (line, sent, expected) in [
            ("strip_prefix = true", "/app/x?q=%2F", Ok("/x?q=%2F")),
            ("strip_prefix = true", "/app", Ok("/")),
            ("strip_prefix = true", "/app?q", Ok("/?q")),
            ("strip_prefix = true", "/app/a%2Fb%20c", Ok("/a%2Fb%20c")),
            ("strip_prefix = true", "/%61pp//x", Ok("/x")),
            ("strip_prefix = true", "/app///evil.example/", Ok("/evil.example/")),
            ("strip_prefix = \"/app/v1\"", "/app/v1/x", Ok("/x")),
            ("strip_prefix = \"/app/v1\"", "/app/v2/x", Ok("/app/v2/x")),
            ("replace_prefix = \"/new/base\"", "/app/x", Ok("/new/base/x")),
            ("replace_prefix = \"/new/\"", "/app/x", Ok("/new/x")),
            ("replace_prefix = \"/new/\"", "/app", Ok("/new/")),
            ("replace_prefix = \"/\"", "/app/x", Ok("/x")),
            ("replace_prefix = \"/ü\"", "/app", Ok("/%C3%BC")),
            (regex, "/app/a/b?q", Ok("/b/a?q")),
            (regex, "/app/a%3Fb%20/c%0Ad", Ok("/c%0Ad/a%3Fb%20")),
            (regex, "/other", Ok("/other")),
            (regex, "/app/%252e/x", Ok("/x/%252e")),
            (glue, "/app/a", Ok("/.a")),
            (glue, "/app/./", Err(BAD)),
            (glue, "/app/.a", Ok("/..a")),
        ] {
            let uri: Uri = sent.parse().unwrap();
            let Ok(tidy) = path::tidy(uri.path()) else {
                assert_eq!(expected, Err(BAD), "{line} {sent}");
                continue;
            };
            let found = match rewritten(&rewrite(line), uri.path(), &tidy) {
                Some(path) => with_path(&uri, path).map(|uri| uri.to_string()),
                None => Ok(sent.to_owned()),
            };
            assert_eq!(found, expected.map(str::to_owned), "{line} {sent}");
        }
        // No dot segment comes in, and none is made up.
        let dots = rewrite(r#"rewrite = { regex = "/app/(.*)", to = "/.{1}./x" }"#);
        let made = rewritten(&dots, "/app/", b"/app/").unwrap();
        assert_eq!(with_path(&Uri::from_static("/"), made), Err(BAD));
    }
}
