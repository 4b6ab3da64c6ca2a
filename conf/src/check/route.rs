//! Routes: where they lead, what they look at and what they change.

use super::Rules;
use super::proxy::is_host;
use crate::Config;
use crate::proxy::{Action, HeaderEdits, Rewrite, Route, Sticky, is_token};

/// Of one connection, or of the handshake: a route that changed them would break the framing.
const OF_THE_HOP: [&str; 15] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
];
/// What servers are told of the client is the proxy's own; so is everything under `x-forwarded-`.
const TOLD: [&str; 3] = ["forwarded", "host", "x-request-id"];
/// What a client offers and a server need not take.
const OFFERS: [&str; 2] = ["sec-websocket-extensions", "sec-websocket-protocol"];

impl Rules<'_> {
    pub(super) fn routes(&mut self) {
        let Config { proxy, roles, .. } = self.config;
        let nodes = roles.node || proxy.upstream.contains_key("node");
        let given = self.is_given("proxy.route");
        if proxy.route.is_empty() || (!given && !nodes) {
            let text = "no routes: every request would be answered 404; accepted: [[proxy.route]] with to";
            return self.mistake(&["proxy.route", "proxy.upstream", "proxy", "roles"], text);
        }
        for (i, route) in proxy.route.iter().enumerate() {
            self.route_name(i, route);
            self.route_leads(i, route, nodes);
            self.route_conditions(i, route);
            self.route_changes(i, route);
            self.route_key(i, route);
            if let Some(earlier) = proxy.route[..i].iter().position(|earlier| earlier.covers(route)) {
                let text = format!("is never reached: proxy.route[{earlier}] takes all its requests");
                self.warn(&[&format!("proxy.route[{i}]"), &format!("proxy.route[{earlier}]")], text);
            }
        }
    }

    fn route_name(&mut self, i: usize, route: &Route) {
        let Some(name) = &route.name else { return };
        let key = format!("proxy.route[{i}].name");
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(fits) {
            let text =
                format!("{name:?} is not a route's name; accepted: letters, digits, -, _ and ., 64 at most");
            return self.mistake(&[&key], text);
        }
        let before = &self.config.proxy.route[..i];
        if let Some(other) = before.iter().position(|other| other.name.as_ref() == Some(name)) {
            let text =
                format!("{name:?} is the name of proxy.route[{other}] too; accepted: a name of its own");
            self.mistake(&[&key, &format!("proxy.route[{other}].name")], text);
        }
    }

    fn route_leads(&mut self, i: usize, route: &Route, nodes: bool) {
        let proxy = &self.config.proxy;
        let key = |name: &str| format!("proxy.route[{i}].{name}");
        // An answer with a mistake of its own leaves no upstream to be named.
        let Some(to) = route.upstream() else { return };
        let (answer, redirect) = (key("answer"), key("redirect"));
        if self.is_given(&answer) || self.is_given(&redirect) {
            return;
        }
        if to == "node" && !nodes {
            let text = "this process has no node role; accepted: \"node\" in roles, or [proxy.upstream.node] with servers";
            self.mistake(&[&key("to"), "roles", "proxy.upstream"], text);
        } else if to != "node" && !proxy.upstream.contains_key(to) {
            let mut known: Vec<&str> = proxy.upstream.keys().map(String::as_str).collect();
            if nodes && !known.contains(&"node") {
                known.push("node");
            }
            let known = if known.is_empty() { "none is defined".to_owned() } else { known.join(", ") };
            self.mistake(&[&key("to")], format!("{to:?} is not an upstream; accepted: {known}"));
        }
    }

    fn route_conditions(&mut self, i: usize, route: &Route) {
        let key = |name: &str| format!("proxy.route[{i}].{name}");
        for (name, path) in [("path", &route.path), ("path_exact", &route.path_exact)] {
            if let Some(path) = path
                && !is_path(path)
            {
                self.mistake(&[&key(name)], format!("{path:?} {NOT_A_PATH}"));
            }
        }
        for (n, host) in route.host.iter().enumerate() {
            let exact = host.strip_prefix("*.").unwrap_or(host);
            if !is_host(exact) || exact.ends_with('.') || (exact != host && exact.starts_with('[')) {
                self.mistake(&[&key(&format!("host[{n}]")), &key("host")], format!("{host:?} is not a host; accepted: a name without port, such as \"app.example.com\" or \"*.example.com\""));
            }
        }
        for method in &route.method {
            if !is_token(method) || method.bytes().any(|b| b.is_ascii_lowercase()) {
                self.mistake(
                    &[&key("method")],
                    format!(
                        "{method:?} is not a method; accepted: names in capitals, such as \"GET\", \"POST\""
                    ),
                );
            }
        }
        if route.websocket == Some(true)
            && !route.method.is_empty()
            && !route.method.iter().any(|m| m == "GET")
        {
            self.mistake(
                &[&key("method"), &key("websocket")],
                "a WebSocket handshake is a GET; accepted: \"GET\", or no method",
            );
        }
    }

    fn route_changes(&mut self, i: usize, route: &Route) {
        let key = |name: &str| format!("proxy.route[{i}].{name}");
        let (name, path) = match &route.rewrite {
            Some(Rewrite::Prefix { from, to }) if to.is_empty() => ("strip_prefix", from.as_str()),
            Some(Rewrite::Prefix { to, .. }) => ("replace_prefix", to.as_str()),
            _ => ("rewrite", "/"),
        };
        if !is_path(path) {
            self.mistake(&[&key(name), &key("path")], format!("{path:?} {NOT_A_PATH}"));
        }
        if !matches!(route.action, Action::To(_)) {
            let given = [
                ("strip_prefix", route.rewrite.is_some()),
                ("request_headers", !route.request_headers.is_empty()),
                ("response_headers", !route.response_headers.is_empty()),
            ];
            for (name, _) in given.into_iter().filter(|(_, given)| *given) {
                let name =
                    if name == "strip_prefix" && !self.is_given(&key(name)) { "rewrite" } else { name };
                self.mistake(&[&key(name)], "nothing is sent on by this route; accepted: a route with to");
            }
        }
        self.edits(&key("request_headers"), &route.request_headers, true);
        self.edits(&key("response_headers"), &route.response_headers, false);
        if let Action::Answer(answer) = &route.action {
            let edits = HeaderEdits { set: answer.headers.clone(), ..HeaderEdits::default() };
            self.edits(&key("answer"), &edits, false);
        }
    }

    fn edits(&mut self, key: &str, edits: &HeaderEdits, of_requests: bool) {
        let put = edits.set.0.iter().chain(&edits.add.0).map(|(name, _)| (name, false));
        let removed = edits.remove.iter().map(|name| (name, true));
        for (name, remove) in put.chain(removed) {
            let told = of_requests && (TOLD.contains(&name.as_str()) || name.starts_with("x-forwarded-"));
            let ours = OF_THE_HOP.contains(&name.as_str()) || told;
            if ours && !(remove && of_requests && OFFERS.contains(&name.as_str())) {
                let text = match name.as_str() {
                    "host" => "\"host\" is not changed here; accepted: host_header".to_owned(),
                    _ => {
                        format!("{name:?} belongs to the connection or to the proxy; accepted: other headers")
                    }
                };
                self.mistake(&[key], text);
            }
        }
    }

    fn route_key(&mut self, i: usize, route: &Route) {
        let sticky = format!("proxy.route[{i}].sticky");
        match &route.sticky {
            Sticky::Affinity(_) if self.config.proxy.affinity_secret.is_empty() => {
                self.mistake(&[&sticky, "proxy.affinity_secret"], "an affinity cookie is signed; accepted: with [proxy] affinity_secret, such as \"file:/path\" of 32 bytes or more");
            }
            Sticky::Group(group)
                if route.path_regex.as_ref().and_then(|regex| regex.group(group)).is_none() =>
            {
                let text = format!(
                    "there is no group {group:?}; accepted: a group of this route's path_regex, such as (?P<room>[^/]+)"
                );
                self.mistake(&[&sticky, &format!("proxy.route[{i}].path_regex")], text);
            }
            Sticky::Claim(_) if route.gate.token.is_none() => {
                self.mistake(&[&sticky], "no token is verified on this route; accepted: token with the name of a [proxy.token.NAME], or another key");
            }
            _ => {}
        }
    }
}

const NOT_A_PATH: &str = "is not a path; accepted: \"/…\" as it reads decoded, without ?, #, %, ;, \\, spaces, empty and dot segments";

/// Requests' paths are decoded and tidied before they are compared, so one that is not tidy never fits.
fn is_path(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else { return false };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let tidy = rest.is_empty() || rest.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    tidy && text != "//" && !text.chars().any(|c| c.is_control() || c.is_whitespace() || "?#%;\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tidy() {
        for good in ["/", "/a", "/a/", "/a/b.c/..d", "/ü"] {
            assert!(is_path(good), "{good}");
        }
        for bad in
            ["", "a", "//", "/a//b", "/a//", "/a/../b", "/.", "/a?b", "/a%20b", "/a b", "/a;b", "/a\\b"]
        {
            assert!(!is_path(bad), "{bad}");
        }
    }
}
