//! Upstreams and the routes to them.

use super::Rules;
use crate::Config;
use crate::proxy::{Route, Tunnel};
use crate::units::duration_text;
use std::net::SocketAddr;
use std::time::Duration;

impl Rules<'_> {
    pub(super) fn upstreams(&mut self) {
        let proxy = &self.config.proxy;
        for (name, upstream) in &proxy.upstream {
            let key = format!("proxy.upstream.{name}.servers");
            self.servers(&key, &upstream.servers);
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
    }

    pub(super) fn servers(&mut self, key: &str, servers: &[String]) {
        if servers.is_empty() {
            self.mistake(&[key], "is empty; accepted: one \"HOST:PORT\" or more");
        }
        for (i, server) in servers.iter().enumerate() {
            let at = format!("{key}[{i}]");
            if !is_host_port(server) {
                self.mistake(&[&at], format!("{server:?} is not a server; accepted: \"HOST:PORT\", such as \"127.0.0.1:3000\", \"[::1]:3000\", \"app.local:3000\""));
            } else if servers[..i].contains(server) {
                self.mistake(&[&at], format!("{server:?} is listed twice; accepted: once"));
            }
        }
    }

    /// `[proxy.tunnel]`, and each route's own over it.
    pub(super) fn tunnels(&mut self) {
        let proxy = &self.config.proxy;
        self.tunnel(&proxy.tunnel, "proxy.tunnel");
        for (i, route) in proxy.route.iter().enumerate() {
            let tunnel = proxy.tunnel.with(&route.tunnel);
            self.tunnel(&tunnel, &format!("proxy.route[{i}].tunnel"));
        }
        let (keepalive, user_timeout) = (proxy.tcp_keepalive, proxy.tcp_user_timeout);
        for (key, value) in [("tcp_keepalive", keepalive), ("tcp_user_timeout", user_timeout)] {
            if !value.is_zero() && value < Duration::from_secs(1) {
                let text =
                    "is shorter than a second, which the kernel counts in; accepted: 1s or more, or 0s";
                self.mistake(&[&format!("proxy.{key}")], text);
            }
        }
    }

    /// Of a route, only what has to do with a key of its own: the rest was said of `[proxy.tunnel]`.
    fn tunnel(&mut self, tunnel: &Tunnel, section: &str) {
        let general = section == "proxy.tunnel";
        let rule = |rules: &Self, names: &[&str]| -> Option<Vec<String>> {
            let own: Vec<String> = names.iter().map(|name| format!("{section}.{name}")).collect();
            let concerned = general || own.iter().any(|key| rules.is_given(key));
            concerned.then(|| {
                own.into_iter().chain(names.iter().map(|name| format!("proxy.tunnel.{name}"))).collect()
            })
        };
        let pings = !tunnel.ping_interval.is_zero();
        let mut found: Vec<(Option<Vec<String>>, String)> = Vec::new();
        if pings && tunnel.ping_timeout >= tunnel.ping_interval {
            let most = duration_text(tunnel.ping_interval);
            let text = format!("is not shorter than ping_interval; accepted: less than {most}");
            found.push((rule(self, &["ping_timeout", "ping_interval"]), text));
        }
        for (name, value) in [("ping_timeout", tunnel.ping_timeout), ("write_timeout", tunnel.write_timeout)]
        {
            if value.is_zero() {
                let text = "\"0s\" is out of range; accepted: \"1ms\" or more";
                found.push((rule(self, &[name]), text.to_owned()));
            }
        }
        if tunnel.max_age_jitter > 100 {
            let text = format!("{} is out of range; accepted: 0 to 100", tunnel.max_age_jitter);
            found.push((rule(self, &["max_age_jitter"]), text));
        }
        for (keys, text) in found {
            if let Some(keys) = keys {
                self.mistake(&keys.iter().map(String::as_str).collect::<Vec<_>>(), text);
            }
        }
        let idle = tunnel.idle_timeout;
        if pings
            && !idle.is_zero()
            && idle <= tunnel.ping_interval
            && let Some(keys) = rule(self, &["idle_timeout", "ping_interval"])
        {
            let text = "is not longer than ping_interval, so no client is ever pinged";
            self.warn(&keys.iter().map(String::as_str).collect::<Vec<_>>(), text);
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
