//! Names of headers that a client may not use: for what Weir itself says, for what only a proxy in front could
//! know, and for what something here looks at, in another spelling. Pure.
//!
//! Servers make variables of names. CGI, WSGI, PHP, Rack and their like write a name in capitals and `_` for `-`,
//! some of them for any sign, so that `X_Forwarded_For` or `X.Forwarded.For` arrive as the header that was
//! overwritten. Names are compared in one normal form that is at least as coarse as any of those.

use crate::front::upgrade::tokens;
use http::header::{CONNECTION, HeaderMap, HeaderName};
use std::borrow::Cow;

/// What a proxy says to servers of a client: believed from trusted peers, dropped from everybody else. That of
/// other makers is here too: a server may have been behind such a proxy before, and still believe it.
const TOLD: [&str; 48] = [
    "ali-cdn-real-ip",
    "cdn-src-ip",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "do-connecting-ip",
    "fastly-client-ip",
    "fastly-ssl",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "front-end-https",
    "incap-client-ip",
    "proxy-client-ip",
    "remote-addr",
    "remote-host",
    "remote-user",
    "true-client-ip",
    "wl-proxy-client-ip",
    "wl-proxy-ssl",
    "x-appengine-user-ip",
    "x-arr-clientcert",
    "x-arr-ssl",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forward-for",
    "x-forwarded",
    "x-host",
    "x-https",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-host",
    "x-real-ip",
    "x-real-port",
    "x-remote-addr",
    "x-remote-host",
    "x-remote-ip",
    "x-remote-user",
    "x-scheme",
    "x-sucuri-clientip",
    "x-true-client-ip",
    "x-url-scheme",
];

/// The same by how they begin. Two of them name another place than the one that was routed and guarded:
/// `X-Original-URL`, `X-Rewrite-URL`.
const TOLD_FAMILIES: [&str; 10] = [
    "cf-access-",
    "cf-connecting-",
    "ssl-client-",
    "x-client-cert-",
    "x-envoy-",
    "x-forwarded-",
    "x-original-",
    "x-rewrite-",
    "x-ssl-",
    "x-vercel-",
];

/// Nobody has a use for it, and CGI makes `HTTP_PROXY` of it, by which programs find their proxy (httpoxy).
const NEVER: &str = "proxy";

/// What HTTP, a gate or a node gives a meaning to, and what Weir sets. In this spelling it is the client's to say
/// (or is overwritten); no other spelling passes.
const OURS: [&str; 14] = [
    "authorization",
    "connection",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "origin",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-request-id",
    "http2-settings",
];

const OUR_FAMILIES: [&str; 3] = ["content-", "proxy-", "sec-"];

/// What else says who somebody is, or keeps others from speaking for him: `Connection` does not take it away.
const CREDENTIALS: [&str; 6] = ["api-key", "apikey", "x-access-", "x-auth", "x-csrf", "x-xsrf"];

/// What servers may read a name as: letters and digits, all else `-`, of which there is one at a time and none
/// at the ends.
pub fn normal(name: &str) -> Cow<'_, str> {
    let bytes = name.as_bytes();
    let plain = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !bytes.windows(2).any(|pair| pair == b"--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    if plain {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len());
    for part in name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        if !out.is_empty() {
            out.push('-');
        }
        out.extend(part.chars().map(|c| c.to_ascii_lowercase()));
    }
    Cow::Owned(out)
}

/// Takes a header away, with all that a server may read as it.
pub fn remove(headers: &mut HeaderMap, name: &str) {
    drop_if(headers, |_, read| read == &*normal(name));
}

/// What is guarded besides, by one conf.
#[derive(Default)]
pub struct Guarded {
    /// Headers with claims of a token.
    claims: Vec<Box<str>>,
    /// Headers that conditions of routes and sticky keys look at.
    looked_at: Vec<Box<str>>,
}

impl Guarded {
    pub fn new(conf: &weir_conf::proxy::Proxy) -> Guarded {
        let claims = conf.token.values().flat_map(|token| token.claims.values());
        let conditions = conf.route.iter().flat_map(|route| &route.header).map(|header| &header.name);
        let keys = conf.route.iter().filter_map(|route| match &route.sticky {
            weir_conf::proxy::Sticky::Header(name) => Some(name),
            _ => None,
        });
        Guarded {
            claims: claims.map(|name| normal(name).into()).collect(),
            looked_at: conditions.chain(keys).map(|name| normal(name).into()).collect(),
        }
    }

    /// Drops what this client may not say. `trusted`: it is a peer that speaks for others.
    pub fn clean(&self, headers: &mut HeaderMap, trusted: bool) {
        drop_if(headers, |name, read| {
            let disguised = name != read;
            let told = is_told(read);
            read == NEVER
                || is_one(&self.claims, read)
                || (told && (disguised || !trusted))
                || (disguised && (is_ours(read) || is_one(&self.looked_at, read)))
        });
    }

    /// Drops what `Connection` names: further headers of this hop, but none that something behind us goes by.
    pub fn strip_named(&self, headers: &mut HeaderMap) {
        let kept = |read: &str| {
            is_ours(read)
                || is_told(read)
                || CREDENTIALS.iter().any(|part| read.contains(part))
                || is_one(&self.claims, read)
                || is_one(&self.looked_at, read)
        };
        let named: Vec<HeaderName> = tokens(headers, CONNECTION).filter_map(|t| t.parse().ok()).collect();
        for name in named.into_iter().filter(|name| !kept(&normal(name.as_str()))) {
            headers.remove(name);
        }
    }
}

fn is_told(read: &str) -> bool {
    TOLD.contains(&read) || TOLD_FAMILIES.iter().any(|family| read.starts_with(family))
}

fn is_ours(read: &str) -> bool {
    OURS.contains(&read) || OUR_FAMILIES.iter().any(|family| read.starts_with(family))
}

fn is_one(names: &[Box<str>], read: &str) -> bool {
    names.iter().any(|name| **name == *read)
}

fn drop_if(headers: &mut HeaderMap, is_bad: impl Fn(&str, &str) -> bool) {
    let bad = |name: &&HeaderName| is_bad(name.as_str(), &normal(name.as_str()));
    let names: Vec<HeaderName> = headers.keys().filter(bad).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// What a server may make `name` of; the first is the name itself.
    fn spellings(name: &str) -> Vec<String> {
        let signs = ["_", ".", "~", "--", "-_", "!"];
        let mut all: Vec<String> = signs.iter().map(|sign| name.replace('-', sign)).collect();
        all.push(format!("{name}_"));
        all.push(format!("-{name}"));
        all.retain(|spelled| spelled != name);
        all.insert(0, name.to_owned());
        all
    }

    fn left(guarded: &Guarded, name: &str, trusted: bool) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("x"));
        guarded.clean(&mut headers, trusted);
        !headers.is_empty()
    }

    fn of_conf() -> Guarded {
        let mut conf = crate::testing::conf();
        let mut token = weir_conf::proxy::Token::default();
        token.claims.insert("sub".into(), "X-Auth-Subject".into());
        conf.token.insert("users".into(), token);
        let guarded = Guarded::new(&conf);
        Guarded { looked_at: vec!["x-tenant".into()], ..guarded }
    }

    #[test]
    fn no_spelling_of_a_guarded_name_passes() {
        let guarded = of_conf();
        let told = TOLD.iter().map(|name| (*name).to_owned());
        let families = TOLD_FAMILIES.iter().map(|family| format!("{family}x-y"));
        for name in told.chain(families) {
            for (i, spelled) in spellings(&name).iter().enumerate() {
                assert!(!left(&guarded, spelled, false), "{spelled}");
                assert_eq!(left(&guarded, spelled, true), i == 0, "{spelled} of a trusted peer");
            }
        }
        for name in OURS.iter().chain(&["content-length", "sec-fetch-site", "x-tenant"]) {
            for (i, spelled) in spellings(name).iter().enumerate() {
                assert_eq!(left(&guarded, spelled, false), i == 0, "{spelled}");
                assert_eq!(left(&guarded, spelled, true), i == 0, "{spelled} of a trusted peer");
            }
        }
        for name in [NEVER, "x-auth-subject"] {
            for spelled in spellings(name) {
                assert!(!left(&guarded, &spelled, false) && !left(&guarded, &spelled, true), "{spelled}");
            }
        }
        for name in ["my_id", "x_custom", "x-http-method-override", "accept", "x-forward", "dnt", "x.y"] {
            assert!(left(&guarded, name, false), "{name}");
        }
    }

    #[test]
    fn connection_names_away_what_is_of_this_hop_alone() {
        let guarded = of_conf();
        for (name, goes) in [
            ("x-hop", true),
            ("accept", true),
            ("origin", false),
            ("host", false),
            ("cookie", false),
            ("authorization", false),
            ("content-length", false),
            ("content-type", false),
            ("transfer-encoding", false),
            ("sec-websocket-key", false),
            ("x-api-key", false),
            ("x-my-api-key", false),
            ("x-csrf-token", false),
            ("x-auth-subject", false),
            ("x-tenant", false),
            ("x-request-id", false),
            ("x-forwarded-for", false),
            ("x-client-cert-san", false),
        ] {
            for named in [name.to_owned(), name.to_uppercase(), format!("close, {name}")] {
                let mut headers = HeaderMap::new();
                headers.insert(CONNECTION, named.parse().unwrap());
                headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("x"));
                guarded.strip_named(&mut headers);
                assert_eq!(!headers.contains_key(name), goes, "{named}");
            }
        }
    }

    #[test]
    fn a_header_goes_with_all_that_is_read_as_it() {
        let mut headers = HeaderMap::new();
        for name in ["x-tier", "x_tier", "x.tier", "x-tiers"] {
            headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("x"));
        }
        remove(&mut headers, "X-Tier");
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-tiers"]);
    }
}
