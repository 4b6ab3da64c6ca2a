//! Upstreams.

use super::Rules;
use crate::proxy::{Tunnel, Upstream};
use crate::units::duration_text;
use std::net::SocketAddr;
use std::time::Duration;

impl Rules<'_> {
    pub(super) fn upstreams(&mut self) {
        let proxy = &self.config.proxy;
        for (name, upstream) in &proxy.upstream {
            self.upstream(&format!("proxy.upstream.{name}"), upstream);
            if !proxy.route.iter().any(|route| route.upstream() == Some(name)) {
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
}

pub(super) fn is_host_port(text: &str) -> bool {
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

pub(super) fn is_host(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let v6 = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    v6.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        || ((1..=253).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(fits))
}
