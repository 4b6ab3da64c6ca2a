//! Upstreams.

use super::Rules;
use crate::units::duration_text;
use std::net::SocketAddr;

impl Rules<'_> {
    pub(super) fn upstreams(&mut self) {
        let proxy = &self.config.proxy;
        for (name, upstream) in &proxy.upstream {
            let key = format!("proxy.upstream.{name}.servers");
            self.servers(&key, &upstream.servers);
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

pub(super) fn is_host(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let v6 = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    v6.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        || ((1..=253).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(fits))
}
