//! Upstreams and the routes to them.

use super::Rules;
use crate::Config;
use crate::proxy::{Route, Upstream};
use crate::units::duration_text;
use std::net::SocketAddr;

impl Rules<'_> {
    pub(super) fn upstreams(&mut self) {
        let proxy = &self.config.proxy;
        for (name, upstream) in &proxy.upstream {
            self.upstream(&format!("proxy.upstream.{name}"), upstream);
            if !proxy.route.iter().any(|route| route.to == *name) {
                self.warn(&[&format!("proxy.upstream.{name}"), "proxy.route"], "no route leads to it");
            }
        }
        if proxy.breaker.open_max < proxy.breaker.open_for {
            let text = format!(
                "is shorter than open_for; accepted: {} or more",
                duration_text(proxy.breaker.open_for)
            );
            self.mistake(&["proxy.breaker.open_max", "proxy.breaker.open_for"], text);
        }
        if proxy.dns_max_ttl < proxy.dns_min_ttl {
            let text = format!(
                "is shorter than dns_min_ttl; accepted: {} or more",
                duration_text(proxy.dns_min_ttl)
            );
            self.mistake(&["proxy.dns_max_ttl", "proxy.dns_min_ttl"], text);
        }
    }

    fn upstream(&mut self, path: &str, upstream: &Upstream) {
        let servers: Vec<&str> = upstream.servers.iter().map(|server| server.address.as_str()).collect();
        let key = format!("{path}.servers");
        self.servers(&key, &servers, true);
        if let Some(tls) = &upstream.tls {
            let (tls_key, sni) = (format!("{path}.tls"), format!("{path}.tls.sni"));
            if let Some(name) = &tls.sni
                && !is_host(name)
            {
                let text = format!("{name:?} is not a host; accepted: a name, such as \"app.example.com\"");
                self.mistake(&[&tls_key, &sni], text);
            }
            if tls.sni.is_none() && servers.iter().any(|server| server.starts_with("unix:")) {
                let text =
                    "has no sni, and a unix socket has no host; accepted: { sni = \"app.example.com\" }";
                self.mistake(&[&tls_key, &key], text);
            }
            if !tls.verify {
                let text = "takes any certificate: whoever is in between can read and answer";
                self.warn(&[&tls_key], text);
            }
        }
        if let Some(health) = &upstream.health
            && health.timeout > health.interval
        {
            let text =
                format!("is longer than interval; accepted: {} or less", duration_text(health.interval));
            self.mistake(&[&format!("{path}.health.timeout"), &format!("{path}.health.interval")], text);
        }
    }

    pub(super) fn servers(&mut self, key: &str, servers: &[&str], unix: bool) {
        if servers.is_empty() {
            self.mistake(&[key], "is empty; accepted: one \"HOST:PORT\" or more");
        }
        for (i, server) in servers.iter().enumerate() {
            let at = format!("{key}[{i}]");
            let path = server.strip_prefix("unix:").filter(|_| unix);
            if let Some(path) = path
                && !is_socket_path(path)
            {
                self.mistake(
                    &[&at],
                    format!(
                        "{server:?} is not a socket; accepted: \"unix:/path\", 107 bytes of path at most"
                    ),
                );
            } else if path.is_none() && !is_host_port(server) {
                let socket = if unix { ", \"unix:/run/app.sock\"" } else { "" };
                self.mistake(&[&at], format!("{server:?} is not a server; accepted: \"HOST:PORT\", such as \"127.0.0.1:3000\", \"[::1]:3000\", \"app.local:3000\"{socket}"));
            } else if servers[..i].contains(server) {
                self.mistake(&[&at], format!("{server:?} is listed twice; accepted: once"));
            }
        }
    }

    pub(super) fn routes(&mut self) {
        let Config { proxy, roles, .. } = self.config;
        let nodes = roles.node || proxy.upstream.contains_key("node");
        let given = self.is_given("proxy.route");
        if proxy.route.is_empty() || (!given && !nodes) {
            let text = "no routes: every request would be answered 404; accepted: [[proxy.route]] with to";
            return self.mistake(&["proxy.route", "proxy.upstream", "proxy", "roles"], text);
        }
        for (i, route) in proxy.route.iter().enumerate() {
            let key = |name: &str| format!("proxy.route[{i}].{name}");
            if route.to == "node" && !nodes {
                let text = "this process has no node role; accepted: \"node\" in roles, or [proxy.upstream.node] with servers";
                self.mistake(&[&key("to"), "roles", "proxy.upstream"], text);
            } else if route.to != "node" && !proxy.upstream.contains_key(&route.to) {
                let mut known: Vec<&str> = proxy.upstream.keys().map(String::as_str).collect();
                if nodes && !known.contains(&"node") {
                    known.push("node");
                }
                let known = if known.is_empty() { "none is defined".to_owned() } else { known.join(", ") };
                self.mistake(&[&key("to")], format!("{:?} is not an upstream; accepted: {known}", route.to));
            }
            if let Some(path) = &route.path
                && !is_path(path)
            {
                self.mistake(
                    &[&key("path")],
                    format!("{path:?} is not a path; accepted: \"/…\" without ?, # and spaces"),
                );
            }
            if let Some(host) = &route.host
                && !is_host(host)
            {
                self.mistake(&[&key("host")], format!("{host:?} is not a host; accepted: an exact name without port, such as \"app.example.com\""));
            }
            if let Some(earlier) = proxy.route[..i].iter().position(|earlier| covers(earlier, route)) {
                let text = format!("is never reached: proxy.route[{earlier}] takes all its requests");
                self.warn(&[&format!("proxy.route[{i}]"), &format!("proxy.route[{earlier}]")], text);
            }
        }
    }
}

fn is_host_port(text: &str) -> bool {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return addr.port() != 0;
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        is_host(host) && digits && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// Absolute, and what fits into `sun_path`.
fn is_socket_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= 107 && !path.contains('\0')
}

fn is_host(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let v6 = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    v6.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        || ((1..=253).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(fits))
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
}

/// Whether every request of `later` is one of `earlier` too. Paths match at a `/` boundary.
fn covers(earlier: &Route, later: &Route) -> bool {
    let host = match (&earlier.host, &later.host) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
    };
    let path = match (&earlier.path, &later.path) {
        (None, _) => true,
        (Some(a), None) => a == "/",
        (Some(a), Some(b)) => {
            let a = a.trim_end_matches('/');
            b.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    };
    host && path
}
