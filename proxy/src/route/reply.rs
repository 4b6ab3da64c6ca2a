//! Answers that routes give by themselves. Pure.

use super::edit::{Vars, expand, named, value};
use super::{Action, Route, path};
use crate::answer;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Response, StatusCode};
use weir_conf::proxy::{Answer, Redirect, Var};

impl Route {
    /// `None`: this route sends requests on. With the answer, what the log calls it.
    pub fn reply(&self, head: &Parts, vars: &Vars) -> Option<(Response<Bytes>, &'static str)> {
        match &self.action {
            Action::Forward(_) => None,
            Action::Answer(answer) => Some((fixed(answer, vars), "answered")),
            Action::Redirect(redirect) => Some((self.redirect(redirect, head, vars), "redirected")),
        }
    }

    fn redirect(&self, redirect: &Redirect, head: &Parts, vars: &Vars) -> Response<Bytes> {
        let sent = if head.uri.path().starts_with('/') { head.uri.path() } else { "/" };
        if vars.host.is_empty() && redirect.to.text().contains("{host}") {
            return answer::response(400, None);
        }
        let to = expand(&redirect.to, |var, out| match var {
            Var::Host => out.push_str(&vars.host),
            Var::Path => {
                out.push('/');
                path::escape_odd(path::without_separators(sent), out);
            }
            Var::PathRest => path::escape_odd(&path::rest(sent, self.path.as_deref().unwrap_or("/")), out),
            Var::Query => {
                if let Some(query) = head.uri.query() {
                    out.push('?');
                    path::escape_odd(query, out);
                }
            }
            _ => {}
        });
        let to = if to.starts_with('/') || to.starts_with("http") { to } else { format!("/{to}") };
        let Ok(location) = HeaderValue::try_from(to) else { return answer::response(400, None) };
        let mut response = answer::response(redirect.status, None);
        response.headers_mut().insert(LOCATION, location);
        response
    }
}

fn fixed(answer: &Answer, vars: &Vars) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(answer.body.clone()));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let (false, Ok(kind)) = (answer.body.is_empty(), HeaderValue::try_from(&answer.content_type)) {
        headers.insert(CONTENT_TYPE, kind);
    }
    for (name, template) in named(&answer.headers) {
        if let Some(value) = value(&template, vars) {
            headers.insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::gate::Gate;
    use weir_conf::{Sources, load};
    use weir_wire::id::ConnId;

    fn reply(lines: &str, host: &str, uri: &str) -> Response<Bytes> {
        let text = format!("roles = [\"proxy\"]\n[[proxy.route]]\n{lines}\n");
        let proxy = load(&Sources::new().text("t", text)).unwrap_or_else(|e| panic!("{e}")).config.proxy;
        let action = match &proxy.route[0].action {
            weir_conf::proxy::Action::Answer(answer) => Action::Answer(answer.clone()),
            weir_conf::proxy::Action::Redirect(redirect) => Action::Redirect(redirect.clone()),
            weir_conf::proxy::Action::To(_) => panic!("leads on"),
        };
        let route = Route::new(0, &proxy.route[0], &proxy, action, Gate::open());
        let head = http::Request::get(uri).body(()).unwrap().into_parts().0;
        let vars =
            Vars { client: "1.2.3.4".parse().unwrap(), host: host.into(), conn: ConnId::from_random(7) };
        route.reply(&head, &vars).unwrap().0
    }

    #[test]
    fn a_redirect_keeps_its_host_whatever_the_path_says() {
        let https = "redirect = { to = \"https://{host}{path}{query}\", status = 308 }";
        let rest = "path = \"/old\"\nredirect = { to = \"https://new.example{path_rest}\" }";
        let relative = "redirect = { to = \"{path}\" }";
        for (lines, uri, location) in [
            (https, "/a?b=c", "https://a.example/a?b=c"),
            (https, "//evil.example/a", "https://a.example/evil.example/a"),
            (https, "*", "https://a.example/"),
            (https, "/a\"{x}|y\\z", "https://a.example/a%22%7Bx%7D%7Cy%5Cz"),
            (https, "/%0d%0aX:y", "https://a.example/%0d%0aX:y"),
            (rest, "/old", "https://new.example"),
            (rest, "/old/x?q", "https://new.example/x"),
            (rest, "/old//@evil.example", "https://new.example/@evil.example"),
            (relative, "//evil.example", "/evil.example"),
            (relative, "/\\evil.example", "/evil.example"),
            (relative, "/%5cevil.example", "/evil.example"),
            ("path = \"/old\"\nredirect = { to = \"{path_rest}\" }", "/old", "/"),
        ] {
            let response = reply(lines, "a.example", uri);
            assert_eq!(response.headers()[LOCATION], location, "{lines} {uri}");
        }
        assert_eq!(reply(https, "a", "/").status(), 308);
        assert_eq!(reply(rest, "a", "/old").status(), 302);
        assert_eq!(reply(https, "", "/").status(), 400);
    }

    #[test]
    fn a_fixed_answer_is_what_the_conf_says() {
        let lines = "answer = { status = 503, body = \"soon\", headers = { \"Retry-After\" = \"9\", X-Id = \"{request_id} {client_ip}\" } }";
        let response = reply(lines, "a", "/");
        assert_eq!((response.status().as_u16(), &response.body()[..]), (503, &b"soon"[..]));
        assert_eq!(response.headers()["retry-after"], "9");
        assert_eq!(response.headers()["x-id"], "0000000000000007 1.2.3.4");
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert!(!reply("answer = { status = 204 }", "a", "/").headers().contains_key(CONTENT_TYPE));
    }
}
