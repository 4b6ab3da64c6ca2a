//! What this process binds, and what must be asked of whoever can reach it.

use super::Rules;
use crate::Config;
use crate::units::Secret;
use crate::value::PLACEHOLDERS;
use std::net::SocketAddr;

impl Rules<'_> {
    pub(super) fn listeners(&mut self) {
        let Config { proxy, roles, .. } = self.config;
        if roles.proxy && proxy.listen.is_empty() && proxy.tls.listen.is_empty() {
            let text = "is empty; accepted: one address or more, or listen in [proxy.tls]";
            self.mistake(&["proxy.listen", "proxy.tls.listen"], text);
        }
        let bound = self.bound();
        for (i, (key, addr)) in bound.iter().enumerate() {
            // Blame the later one, unless only the earlier one was written down.
            // Only the proxy's lists give each family a socket of its own.
            let lists = |other: &str| key.starts_with("proxy.") && other.starts_with("proxy.");
            let mut earlier = bound[..i].iter();
            let collides = |(other, taken): &&(String, SocketAddr)| {
                collide(*taken, *addr) || (!lists(other) && covers(*taken, *addr))
            };
            let Some((other, taken)) = earlier.find(collides) else { continue };
            let (key, other, addr, taken) = if !self.is_given(key) && self.is_given(other) {
                (other, key, taken, addr)
            } else {
                (key, other, addr, taken)
            };
            self.mistake(
                &[key, other],
                format!("{addr} collides with {other} {taken}; accepted: another port"),
            );
        }
    }

    /// What is reachable from other machines must ask for proof. The broker: see `broker`.
    pub(super) fn exposed(&mut self) {
        let admin = &self.config.admin;
        if admin.enabled && !is_loopback(admin.listen) && admin.token.is_empty() {
            let text = format!(
                "admin.listen {} is not loopback: a token is needed; accepted: \"file:/path\", \"env:NAME\", or admin.listen on 127.0.0.1",
                admin.listen
            );
            self.mistake(&["admin.token", "admin.listen"], text);
        }
    }

    /// Secrets that everyone knows, or could guess.
    pub(super) fn placeholders(&mut self) {
        let Config { proxy, node, broker, admin, roles, .. } = self.config;
        let secrets: [(&str, &Secret, bool, usize); 9] = [
            ("admin.token", &admin.token, true, 0),
            ("node.api_key", &node.api_key, roles.node, 0),
            ("node.token.hmac_secret", &node.token.hmac_secret, roles.node, 32),
            ("node.token.hmac_previous_secret", &node.token.hmac_previous_secret, roles.node, 32),
            ("node.broker_secret", &node.broker_secret, roles.node, 0),
            ("broker.secret", &broker.secret, roles.broker, 16),
            ("proxy.affinity_secret", &proxy.affinity_secret, roles.proxy, 32),
            ("proxy.affinity_previous_secret", &proxy.affinity_previous_secret, roles.proxy, 32),
            ("proxy.quic.token_key", &proxy.quic.token_key, roles.proxy, 32),
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

    /// Addresses that this process binds.
    fn bound(&self) -> Vec<(String, SocketAddr)> {
        let config = self.config;
        let mut bound = Vec::new();
        if config.roles.proxy {
            let (plain, tls) = (&config.proxy.listen, &config.proxy.tls.listen);
            bound.extend(plain.iter().enumerate().map(|(i, addr)| (format!("proxy.listen[{i}]"), *addr)));
            bound.extend(tls.iter().enumerate().map(|(i, l)| (format!("proxy.tls.listen[{i}]"), l.addr)));
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
}

pub(super) fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

/// Whether both cannot be bound. Port 0 is any free one; an unspecified address takes all of its family.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (x, y) = (a.ip(), b.ip());
    let same = x == y || (x.is_ipv4() == y.is_ipv4() && (x.is_unspecified() || y.is_unspecified()));
    a.port() != 0 && a.port() == b.port() && same
}

/// Whether one of them is `[::]`, and takes the other's connections of IPv4 as well.
fn covers(a: SocketAddr, b: SocketAddr) -> bool {
    let wide = |addr: SocketAddr| addr.is_ipv6() && addr.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && ((wide(a) && b.is_ipv4()) || (wide(b) && a.is_ipv4()))
}
