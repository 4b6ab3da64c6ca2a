//! Rules across keys and sections: each value alone is sound, together they are not.
//!
//! A rule names every key it looked at. It is silent when one of them has a mistake of its own: what
//! was meant there is not known.

use crate::Config;
use crate::channel::ChannelOptions;
use crate::error::{Mistake, Place};
use crate::proxy::Route;
use crate::section::Reader;
use crate::units::{Bytes, Secret, duration_text};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Secrets of shipped files: known to everyone.
const PLACEHOLDERS: [&str; 2] = ["change-me", "demo"];

pub(crate) fn check(config: &Config, reader: &mut Reader<'_>, whole: &Place) {
    let mut rules =
        Rules { config, places: &reader.places, earlier: &reader.mistakes, whole, found: Found::default() };
    rules.roles();
    rules.telemetry();
    rules.listeners();
    rules.exposed();
    rules.placeholders();
    if config.roles.proxy {
        rules.upstreams();
        rules.routes();
    }
    if config.roles.node {
        rules.node();
        rules.brokers();
        rules.channels();
    }
    let Found { mistakes, warnings } = rules.found;
    reader.mistakes.extend(mistakes);
    reader.warnings.extend(warnings);
}

#[derive(Default)]
struct Found {
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

struct Rules<'a> {
    config: &'a Config,
    places: &'a BTreeMap<String, Place>,
    earlier: &'a [Mistake],
    whole: &'a Place,
    found: Found,
}

impl Rules<'_> {
    /// The first key is the one to blame; the place is that of the first that was given.
    fn mistake(&mut self, keys: &[&str], text: impl Into<String>) {
        if let Some(mistake) = self.found_at(keys, text) {
            self.found.mistakes.push(mistake);
        }
    }

    fn warn(&mut self, keys: &[&str], text: impl Into<String>) {
        if let Some(mistake) = self.found_at(keys, text) {
            self.found.warnings.push(mistake);
        }
    }

    fn found_at(&self, keys: &[&str], text: impl Into<String>) -> Option<Mistake> {
        if keys.iter().any(|key| self.is_bad(key)) {
            return None;
        }
        let place = keys.iter().find_map(|key| self.place(key)).unwrap_or(self.whole).clone();
        Some(Mistake { place, key: keys.first()?.to_string(), text: text.into() })
    }

    /// Where a key was given, or the nearest table around it.
    fn place(&self, key: &str) -> Option<&Place> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return Some(place);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    fn is_bad(&self, key: &str) -> bool {
        let below = |long: &str, short: &str| {
            long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.earlier.iter().any(|m| !m.key.is_empty() && (below(&m.key, key) || below(key, &m.key)))
    }

    fn is_given(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    fn roles(&mut self) {
        let roles = self.config.roles;
        let sections = [
            ("proxy", "proxy", roles.proxy),
            ("node", "node", roles.node),
            ("channel", "node", roles.node),
            ("broker", "broker", roles.broker),
        ];
        for (section, role, listed) in sections {
            if !listed
                && let Some(place) = self.places.get(section)
                && !self.is_bad("roles")
            {
                let text = format!(
                    "this process has no {role} role; accepted: \"{role}\" in roles, or no [{section}] section"
                );
                self.found.mistakes.push(Mistake { place: place.clone(), key: section.to_owned(), text });
            }
        }
    }

    /// The shape of a `tracing` filter; target names are free.
    fn telemetry(&mut self) {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        for part in self.config.telemetry.filter.split(',').map(str::trim) {
            // Spans and fields have commas and signs of their own; what reads the filter judges those.
            if part.contains(['[', ']', '{', '}']) {
                return;
            }
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level).to_lowercase();
            let sound = if part.contains('=') { levels.contains(&level.as_str()) } else { !part.is_empty() };
            if !sound && !(part.is_empty() && self.config.telemetry.filter.is_empty()) {
                let text = format!(
                    "{part:?} is not a part of a log filter; accepted: a level (off, error, warn, info, debug, trace) or TARGET=LEVEL"
                );
                self.mistake(&["telemetry.filter"], text);
            }
        }
    }

    /// Addresses that this process binds.
    fn bound(&self) -> Vec<(String, SocketAddr)> {
        let config = self.config;
        let mut bound = Vec::new();
        if config.roles.proxy {
            bound.extend(
                config.proxy.listen.iter().enumerate().map(|(i, addr)| (format!("proxy.listen[{i}]"), *addr)),
            );
        }
        if config.roles.node {
            bound.push(("node.listen".to_owned(), config.node.listen));
        }
        if config.roles.broker {
            bound.push(("broker.listen".to_owned(), config.broker.listen));
        }
        if config.admin.enabled {
            bound.push(("admin.listen".to_owned(), config.admin.listen));
        }
        bound
    }

    fn listeners(&mut self) {
        if self.config.roles.proxy && self.config.proxy.listen.is_empty() {
            self.mistake(&["proxy.listen"], "is empty; accepted: one address or more");
        }
        let bound = self.bound();
        for (i, (key, addr)) in bound.iter().enumerate() {
            // Blame the later one, unless only the earlier one was written down.
            let Some((other, taken)) = bound[..i].iter().find(|(_, other)| collide(*other, *addr)) else {
                continue;
            };
            let (key, other, addr) = if self.place(key).is_none() && self.place(other).is_some() {
                (other, key, taken)
            } else {
                (key, other, addr)
            };
            self.mistake(
                &[key, other],
                format!("{addr} is taken by {other} of this process; accepted: another port"),
            );
        }
    }

    /// What is reachable from other machines must ask for proof.
    fn exposed(&mut self) {
        let Config { admin, broker, roles, .. } = self.config;
        if admin.enabled && !is_loopback(admin.listen) && admin.token.is_empty() {
            let text = format!(
                "admin.listen {} is not loopback: a token is needed; accepted: \"file:/path\", \"env:NAME\", or admin.listen on 127.0.0.1",
                admin.listen
            );
            self.mistake(&["admin.token", "admin.listen"], text);
        }
        if roles.broker && !is_loopback(broker.listen) && broker.secret.is_empty() {
            let text = format!(
                "broker.listen {} is not loopback: a secret is needed; accepted: \"file:/path\", \"env:NAME\", or broker.listen on 127.0.0.1",
                broker.listen
            );
            self.mistake(&["broker.secret", "broker.listen"], text);
        }
    }

    /// Secrets that everyone knows, or could guess.
    fn placeholders(&mut self) {
        let Config { node, broker, admin, roles, .. } = self.config;
        let secrets: [(&str, &Secret, bool, usize); 6] = [
            ("admin.token", &admin.token, true, 0),
            ("node.api_key", &node.api_key, roles.node, 0),
            ("node.token.hmac_secret", &node.token.hmac_secret, roles.node, 32),
            ("node.token.hmac_previous_secret", &node.token.hmac_previous_secret, roles.node, 32),
            ("node.broker_secret", &node.broker_secret, roles.node, 0),
            ("broker.secret", &broker.secret, roles.broker, 16),
        ];
        let open = self.bound().into_iter().find(|(_, addr)| !is_loopback(*addr));
        for (key, secret, used, length) in secrets {
            if !used || secret.is_empty() {
                continue;
            }
            if PLACEHOLDERS.contains(&secret.reveal()) {
                match &open {
                    Some((listener, addr)) => self.mistake(
                        &[key, listener],
                        format!("is a published example, and {listener} {addr} is not loopback; accepted: a secret of your own"),
                    ),
                    // Who may reach it through a proxy in another process is not known here.
                    None if roles.node && !roles.proxy => self.warn(
                        &[key],
                        "is a published example; good for a trial on one machine, but set your own before a proxy in front of this node listens to others",
                    ),
                    None => {}
                }
            } else if secret.reveal().len() < length {
                let reason = if length == 32 { " (RFC 7518 §3.2)" } else { "" };
                self.warn(&[key], format!("is shorter than {length} bytes{reason}, so it may be guessed; better: openssl rand -hex 32"));
            }
        }
    }

    fn upstreams(&mut self) {
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

    fn servers(&mut self, key: &str, servers: &[String]) {
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

    fn routes(&mut self) {
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

    fn node(&mut self) {
        let Config { node, broker, roles, .. } = self.config;
        if !node.ping_interval.is_zero() && node.pong_timeout >= node.ping_interval {
            let text = format!(
                "is not shorter than ping_interval; accepted: less than {}",
                duration_text(node.ping_interval)
            );
            self.mistake(&["node.pong_timeout", "node.ping_interval"], text);
        }
        for (i, origin) in node.allowed_origins.iter().enumerate() {
            if !is_origin(origin) {
                let text = format!(
                    "{origin:?} is not an origin; accepted: \"*\", or SCHEME://HOST with a port if it is not the usual one and without a path, such as \"https://*.example.com\""
                );
                self.mistake(&[&format!("node.allowed_origins[{i}]")], text);
            }
        }
        let fits = [
            (
                "node.api_body_size",
                node.api_body_size,
                "node.outbox_size",
                node.outbox_size,
                "one publication could overflow every subscriber's outbox",
            ),
            (
                "node.message_size",
                node.message_size,
                "node.outbox_size",
                node.outbox_size,
                "one publication could overflow every subscriber's outbox",
            ),
        ];
        for (key, size, other, limit, why) in fits {
            if size > limit {
                self.warn(
                    &[key, other],
                    format!("{} is more than {other} {}: {why}", Bytes(size), Bytes(limit)),
                );
            }
        }
        if roles.broker && node.message_size > broker.message_size {
            let text = format!(
                "{} is more than broker.message_size {}: the broker would refuse what the node accepts",
                Bytes(node.message_size),
                Bytes(broker.message_size)
            );
            self.warn(&["node.message_size", "broker.message_size"], text);
        }
    }

    fn brokers(&mut self) {
        let Config { node, roles, .. } = self.config;
        if roles.broker {
            if !node.brokers.is_empty() {
                let text =
                    "the broker is in this process; accepted: no brokers here, or no \"broker\" in roles";
                self.mistake(&["node.brokers", "roles"], text);
            }
            return;
        }
        if node.brokers.is_empty() {
            let text = "no broker in this process and none to attach to; accepted: [\"HOST:PORT\"], or \"broker\" in roles";
            return self.mistake(&["node.brokers", "node", "roles"], text);
        }
        self.servers("node.brokers", &node.brokers);
        let remote = |server: &String| server.parse().is_ok_and(|addr: SocketAddr| !is_loopback(addr));
        if node.broker_secret.is_empty() && node.brokers.iter().any(remote) {
            let text =
                "brokers on other machines ask for their secret; accepted: \"file:/path\", \"env:NAME\"";
            self.mistake(&["node.broker_secret", "node.brokers"], text);
        }
    }

    fn channels(&mut self) {
        let channel = &self.config.channel;
        self.channel("channel", &channel.without_namespace);
        for (name, options) in &channel.namespace {
            self.channel(&format!("channel.namespace[{name}]"), options);
        }
    }

    fn channel(&mut self, section: &str, options: &ChannelOptions) {
        let key = |name: &str| format!("{section}.{name}");
        let (size, ttl) = (key("history_size"), key("history_ttl"));
        let history = options.history_size > 0 && !options.history_ttl.is_zero();
        if options.history_size > 0 && !history {
            self.mistake(
                &[&size, &ttl],
                "history is kept only with history_ttl too; accepted: 0, or history_ttl above \"0s\"",
            );
        } else if !options.history_ttl.is_zero() && !history {
            self.mistake(
                &[&ttl, &size],
                "history is kept only with history_size too; accepted: \"0s\", or history_size above 0",
            );
        }
        let positions = [
            ("force_positioning", options.force_positioning),
            ("allow_positioning", options.allow_positioning),
            ("force_recovery", options.force_recovery),
            ("allow_recovery", options.allow_recovery),
        ];
        for (name, on) in positions {
            if on && !history {
                self.mistake(
                    &[&key(name), &size, &ttl],
                    "needs history; accepted: false, or history_size and history_ttl",
                );
            }
        }
        if history && options.history_meta_ttl < options.history_ttl {
            let text = format!(
                "is shorter than history_ttl; accepted: {} or more",
                duration_text(options.history_ttl)
            );
            self.mistake(&[&key("history_meta_ttl"), &ttl], text);
        }
        if options.force_push_join_leave && !options.join_leave {
            self.mistake(
                &[&key("force_push_join_leave"), &key("join_leave")],
                "needs join_leave; accepted: false, or join_leave = true",
            );
        }
    }
}

fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

/// Whether both cannot be bound. Port 0 is any free one; an unspecified address takes all of its family.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (x, y) = (a.ip(), b.ip());
    let same = x == y || (x.is_ipv4() == y.is_ipv4() && (x.is_unspecified() || y.is_unspecified()));
    a.port() != 0 && a.port() == b.port() && same
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

fn is_origin(text: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !b"/?#".contains(&b));
    text == "*"
        || text == "null"
        || text.split_once("://").is_some_and(|(scheme, host)| plain(scheme) && plain(host))
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
