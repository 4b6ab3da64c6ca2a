//! Who may come in: lists, origins, limits of routes, tokens.

use super::Rules;
use crate::proxy::{ProxyProtocol, Route, Sticky, Token, is_token};

/// What the proxy itself or HTTP gives a meaning to: no claim may stand there.
const TAKEN: [&str; 16] = [
    "host",
    "connection",
    "upgrade",
    "content-length",
    "content-type",
    "transfer-encoding",
    "expect",
    "te",
    "trailer",
    "origin",
    "cookie",
    "authorization",
    "forwarded",
    "x-real-ip",
    "x-request-id",
    "keep-alive",
];

impl Rules<'_> {
    pub(super) fn admission(&mut self) {
        let proxy = &self.config.proxy;
        if proxy.proxy_protocol != ProxyProtocol::Off && proxy.trusted.is_empty() {
            let text = "is only taken from trusted peers, and there are none; accepted: proxy.trusted with your load balancer's addresses";
            self.mistake(&["proxy.proxy_protocol", "proxy.trusted"], text);
        }
        for (i, route) in proxy.route.iter().enumerate() {
            self.gate(&format!("proxy.route[{i}]"), route);
        }
    }

    fn gate(&mut self, route_key: &str, route: &Route) {
        let key = |name: &str| format!("{route_key}.{name}");
        for (n, origin) in route.gate.origins.iter().enumerate() {
            if !is_origin(origin) {
                let text = format!(
                    "{origin:?} is not an origin; accepted: \"SCHEME://HOST\" or \"SCHEME://HOST:PORT\", such as \"https://app.example.com\", \"https://*.example.com\", or \"*\""
                );
                self.mistake(&[&format!("{}[{n}]", key("origins"))], text);
            }
        }
        if route.gate.origin_required && route.gate.origins.is_empty() {
            let text = "there is no list that an origin must be on; accepted: origins with the pages that may connect";
            self.mistake(&[&key("origin_required"), &key("origins")], text);
        }
        if let Some(name) = &route.gate.token
            && !self.config.proxy.token.contains_key(name)
        {
            let known: Vec<&str> = self.config.proxy.token.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none is defined".to_owned() } else { known.join(", ") };
            let text = format!("{name:?} is not a token; accepted: {known}");
            self.mistake(&[&key("token")], text);
        }
        let keyless = matches!(route.sticky, Sticky::Ip | Sticky::Affinity(_)) && route.gate.token.is_none();
        let of_key: [(&str, bool); 2] = [
            ("limits.max_connections_per_key", route.limits.max_connections_per_key > 0),
            ("limits.key_rate", route.limits.key_rate.is_some()),
        ];
        for (name, _) in of_key.into_iter().filter(|(_, set)| *set && keyless) {
            let text = "clients of this route have no key; accepted: token, or sticky by something that requests bring, or a limit per address";
            self.mistake(&[&key(name), &key("sticky"), &key("token")], text);
        }
    }

    pub(super) fn tokens(&mut self) {
        for (name, token) in &self.config.proxy.token {
            let at = format!("proxy.token.{name}");
            if !self.config.proxy.route.iter().any(|route| route.gate.token.as_ref() == Some(name)) {
                self.warn(&[&at, "proxy.route"], "no route asks for it");
            }
            self.keys_of(&at, token);
            self.claims(&at, token);
        }
    }

    fn keys_of(&mut self, at: &str, token: &Token) {
        let families = families(token);
        if families.is_empty() {
            let text = "has no key; accepted: hmac_secret, rsa_public_key, ecdsa_public_key, ed25519_public_key or jwks";
            return self.mistake(&[at], text);
        }
        for (n, algorithm) in token.algorithms.iter().enumerate() {
            if !families.iter().any(|family| algorithm.0.starts_with(family)) {
                let text = format!("no key here is for {}; accepted: {}*", algorithm.0, families.join("*, "));
                self.mistake(&[&format!("{at}.algorithms[{n}]")], text);
            }
        }
        // RFC 7518 §3.2
        for (key, secret) in
            [("hmac_secret", &token.hmac_secret), ("hmac_previous_secret", &token.hmac_previous_secret)]
        {
            if !secret.is_empty() && secret.reveal().len() < 32 {
                self.warn(
                    &[&format!("{at}.{key}")],
                    "is short; better: 32 bytes or more (openssl rand -hex 32)",
                );
            }
        }
        let jwks = &token.jwks;
        let key = format!("{at}.jwks");
        if !jwks.is_empty() && !is_url(jwks) {
            let text = format!(
                "{jwks:?} is not where keys can be; accepted: \"https://HOST/PATH\", \"http://HOST/PATH\", \"file:/PATH\""
            );
            self.mistake(&[&key], text);
        } else if jwks.strip_prefix("http://").is_some_and(|rest| !is_loopback(rest)) {
            self.warn(&[&key], "whoever is on the way can put in keys of his own; better: https://");
        }
    }

    fn claims(&mut self, at: &str, token: &Token) {
        let mut seen: Vec<String> = Vec::new();
        for (claim, header) in &token.claims {
            let key = format!("{at}.claims.{claim}");
            let name = header.to_ascii_lowercase();
            let taken = TAKEN.contains(&name.as_str())
                || ["sec-", "x-forwarded-", "x-client-cert-", "proxy-"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
            if !is_token(header) || header.contains('_') {
                let text = format!(
                    "{header:?} is not a header for a claim; accepted: letters, digits and -, such as \"X-Auth-Subject\""
                );
                self.mistake(&[&key, &format!("{at}.claims")], text);
            } else if taken {
                let text = format!(
                    "{header:?} has a meaning of its own; accepted: a header of yours, such as \"X-Auth-Subject\""
                );
                self.mistake(&[&key, &format!("{at}.claims")], text);
            } else if seen.contains(&name) {
                let text = format!("{header:?} has another claim already; accepted: one claim to a header");
                self.mistake(&[&key, &format!("{at}.claims")], text);
            }
            seen.push(name);
        }
    }
}

/// What the algorithms of a token's keys begin with.
fn families(token: &Token) -> Vec<&'static str> {
    let set = !token.jwks.is_empty();
    let there = [
        ("HS", !token.hmac_secret.is_empty() || !token.hmac_previous_secret.is_empty()),
        ("RS", set || !token.rsa_public_key.is_empty()),
        ("PS", set || !token.rsa_public_key.is_empty()),
        ("ES", set || !token.ecdsa_public_key.is_empty()),
        ("Ed", set || !token.ed25519_public_key.is_empty()),
    ];
    there.into_iter().filter(|(_, there)| *there).map(|(family, _)| family).collect()
}

fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"*-_.:[]".contains(&b);
    let named =
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    named && !authority.is_empty() && authority.bytes().all(fits)
}

fn is_url(text: &str) -> bool {
    if let Some(path) = text.strip_prefix("file:") {
        return path.starts_with('/');
    }
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let fits = |b: u8| b.is_ascii_graphic() && b != b'#';
    !rest.is_empty()
        && !rest.starts_with(['/', ':', '?'])
        && rest.bytes().all(fits)
        && !authority(rest).contains('@')
}

fn authority(rest: &str) -> &str {
    rest.split(['/', '?']).next().unwrap_or_default()
}

fn is_loopback(rest: &str) -> bool {
    let authority = authority(rest);
    let host =
        authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(authority, |(h, _)| h);
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
