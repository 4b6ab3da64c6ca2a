//! The affinity cookie: a signed name of the server that a client was given. Pure.
//!
//! Base64url of version, expiry (seconds, 0: none), an id of the client (its key for the balancing while its
//! server is away), an id of the server, and HMAC-SHA-256 over all of it and the upstream's name. The
//! server's id is a keyed hash too: nothing of its address can be read or guessed from it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use ring::hmac;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use weir_conf::proxy::Secure;

const VERSION: u8 = 1;
const SERVER: std::ops::Range<usize> = 17..29;
const SIGNED: usize = SERVER.end;
const LENGTH: usize = SIGNED + 32;
/// Cookies of one name that are looked at: a browser has one or two, and each costs a hash.
const MAX_COOKIES: usize = 8;

pub struct Affinity {
    conf: weir_conf::proxy::Affinity,
    upstream: String,
    /// The first signs.
    keys: Vec<hmac::Key>,
}

/// A cookie with a good signature whose time has not run out.
#[derive(Debug, PartialEq, Eq)]
pub struct Cookie {
    pub client: [u8; 8],
    server: [u8; 12],
    expires: u64,
    key: usize,
}

/// A cookie that waits for the name of the server.
pub struct Issue {
    pub affinity: Arc<Affinity>,
    pub client: [u8; 8],
    pub tls: bool,
    /// Only if it is this server.
    pub only: Option<String>,
}

impl Issue {
    /// `Set-Cookie` for the server that has answered.
    pub fn set_cookie(&self, server: &str, now: SystemTime) -> Option<HeaderValue> {
        let wanted = self.only.as_deref().is_none_or(|only| only == server);
        if wanted { self.affinity.set_cookie(self.client, server, self.tls, now) } else { None }
    }
}

impl Affinity {
    pub fn new(
        conf: &weir_conf::proxy::Affinity,
        proxy: &weir_conf::proxy::Proxy,
        upstream: &str,
    ) -> Affinity {
        let secrets = [&proxy.affinity_secret, &proxy.affinity_previous_secret];
        let given = secrets.into_iter().filter(|secret| !secret.is_empty());
        let keys = given.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes()));
        Affinity { conf: conf.clone(), upstream: upstream.into(), keys: keys.collect() }
    }

    pub fn name(&self) -> &str {
        &self.conf.name
    }

    /// The first good one. Others are as good as none.
    pub fn read<'a>(&self, cookies: impl Iterator<Item = &'a str>, now: SystemTime) -> Option<Cookie> {
        let now = seconds(now);
        cookies.take(MAX_COOKIES).find_map(|text| {
            let mut bytes = [0u8; LENGTH + 2];
            if URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) != Ok(LENGTH) || bytes[0] != VERSION {
                return None;
            }
            let (signed, tag) = bytes[..LENGTH].split_at(SIGNED);
            let what = self.to_sign(signed);
            let key = self.keys.iter().position(|key| hmac::verify(key, &what, tag).is_ok())?;
            let expires = u64::from_be_bytes(signed[1..9].try_into().ok()?);
            let (client, server) = (signed[9..17].try_into().ok()?, signed[SERVER].try_into().ok()?);
            (expires == 0 || expires > now).then_some(Cookie { client, server, expires, key })
        })
    }

    /// Which of these the cookie names; `None`: it is away.
    pub fn server_of(&self, cookie: &Cookie, mut servers: impl Iterator<Item = String>) -> Option<String> {
        let key = self.keys.get(cookie.key)?;
        servers.find(|server| self.server_id(key, server) == cookie.server)
    }

    /// To be replaced: more than half of its time is over, or its key will go.
    pub fn is_old(&self, cookie: &Cookie, now: SystemTime) -> bool {
        let left = cookie.expires.saturating_sub(seconds(now));
        cookie.key > 0 || (cookie.expires > 0 && left < self.conf.ttl.as_secs() / 2)
    }

    fn set_cookie(&self, client: [u8; 8], server: &str, tls: bool, now: SystemTime) -> Option<HeaderValue> {
        let key = self.keys.first()?;
        let expires = if self.conf.ttl.is_zero() { 0 } else { seconds(now + self.conf.ttl) };
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(VERSION);
        bytes.extend_from_slice(&expires.to_be_bytes());
        bytes.extend_from_slice(&client);
        bytes.extend_from_slice(&self.server_id(key, server));
        let tag = hmac::sign(key, &self.to_sign(&bytes));
        bytes.extend_from_slice(tag.as_ref());
        HeaderValue::try_from(self.attributes(&URL_SAFE_NO_PAD.encode(bytes), tls)).ok()
    }

    fn attributes(&self, value: &str, tls: bool) -> String {
        let conf = &self.conf;
        let mut out = format!("{}={value}; Path={}; HttpOnly", conf.name, conf.path);
        // Writing to a string cannot fail.
        let _ = write!(out, "; SameSite={}", conf.same_site.as_str());
        if !conf.ttl.is_zero() {
            let _ = write!(out, "; Max-Age={}", conf.ttl.as_secs());
        }
        if conf.secure == Secure::Always || (conf.secure == Secure::Auto && tls) {
            out.push_str("; Secure");
        }
        if let Some(domain) = &conf.domain {
            let _ = write!(out, "; Domain={domain}");
        }
        out
    }

    fn to_sign(&self, signed: &[u8]) -> Vec<u8> {
        [b"weir affinity cookie\0", self.upstream.as_bytes(), b"\0", signed].concat()
    }

    fn server_id(&self, key: &hmac::Key, server: &str) -> [u8; 12] {
        let what = [b"weir affinity server\0", self.upstream.as_bytes(), b"\0", server.as_bytes()].concat();
        let mut id = [0; 12];
        id.copy_from_slice(&hmac::sign(key, &what).as_ref()[..12]);
        id
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_conf::proxy::SameSite;
    use weir_conf::units::Secret;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn affinity(secrets: [&str; 2], change: impl FnOnce(&mut weir_conf::proxy::Affinity)) -> Affinity {
        let mut conf = weir_conf::proxy::Affinity::default();
        change(&mut conf);
        let mut proxy = crate::testing::conf();
        [proxy.affinity_secret, proxy.affinity_previous_secret] =
            secrets.map(|text| Secret::new(text.to_owned()));
        Affinity::new(&conf, &proxy, "app")
    }

    fn value(affinity: &Affinity, server: &str, now: SystemTime) -> String {
        let set = affinity.set_cookie([7; 8], server, false, now).unwrap();
        set.to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned()
    }

    fn servers() -> impl Iterator<Item = String> {
        (1..4).map(|n| format!("10.0.0.{n}:80"))
    }

    #[test]
    fn a_cookie_leads_to_its_server_until_its_time_is_over() {
        let ours = affinity(["secret", ""], |c| c.ttl = Duration::from_secs(100));
        let text = value(&ours, "10.0.0.2:80", NOW);
        let at = |s| NOW + Duration::from_secs(s);
        let cookie = ours.read(["garbage", &text].into_iter(), at(99)).unwrap();
        assert_eq!(ours.server_of(&cookie, servers()).as_deref(), Some("10.0.0.2:80"));
        assert_eq!(ours.server_of(&cookie, servers().filter(|s| !s.contains(".2:"))), None);
        assert!(!ours.is_old(&cookie, at(49)) && ours.is_old(&cookie, at(51)));
        assert_eq!(ours.read([text.as_str()].into_iter(), at(100)), None);
        let session = affinity(["secret", ""], |c| c.ttl = Duration::ZERO);
        let text = value(&session, "10.0.0.2:80", NOW);
        let cookie = session.read([text.as_str()].into_iter(), at(1 << 40)).unwrap();
        assert!(!session.is_old(&cookie, at(1 << 40)));
    }

    #[test]
    fn forged_cookies_are_as_good_as_none() {
        let ours = affinity(["secret", ""], |_| {});
        let text = value(&ours, "10.0.0.2:80", NOW);
        assert!(ours.read([text.as_str()].into_iter(), NOW).is_some());
        for i in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(ours.read([forged.as_str()].into_iter(), NOW), None, "{i}");
        }
        let others = [
            affinity(["other", ""], |_| {}),
            Affinity { upstream: "else".into(), ..affinity(["secret", ""], |_| {}) },
        ];
        for other in others {
            assert_eq!(other.read([text.as_str()].into_iter(), NOW), None);
        }
        for odd in ["", "A", &text[..text.len() - 1], &format!("{text}A"), &"A".repeat(5000)] {
            assert_eq!(ours.read([odd].into_iter(), NOW), None, "{odd}");
        }
    }

    #[test]
    fn a_cookie_of_the_secret_before_is_honoured_and_replaced() {
        let before = affinity(["old", ""], |_| {});
        let text = value(&before, "10.0.0.3:80", NOW);
        let now = affinity(["new", "old"], |_| {});
        let cookie = now.read([text.as_str()].into_iter(), NOW).unwrap();
        assert_eq!(now.server_of(&cookie, servers()).as_deref(), Some("10.0.0.3:80"));
        assert!(now.is_old(&cookie, NOW));
        let fresh = value(&now, "10.0.0.3:80", NOW);
        assert!(!now.is_old(&now.read([fresh.as_str()].into_iter(), NOW).unwrap(), NOW));
    }

    #[test]
    fn attributes_are_those_of_the_conf() {
        let text = |affinity: Affinity, tls| affinity.attributes("V", tls);
        assert_eq!(
            text(affinity(["s", ""], |_| {}), false),
            "weir_affinity=V; Path=/; HttpOnly; SameSite=Lax; Max-Age=86400"
        );
        assert!(text(affinity(["s", ""], |_| {}), true).ends_with("; Secure"));
        assert!(!text(affinity(["s", ""], |c| c.secure = Secure::Never), true).contains("Secure"));
        let all = affinity(["s", ""], |c| {
            (c.ttl, c.secure, c.same_site) = (Duration::ZERO, Secure::Always, SameSite::None);
            (c.path, c.domain) = ("/x".into(), Some("example.com".into()));
        });
        assert_eq!(
            text(all, false),
            "weir_affinity=V; Path=/x; HttpOnly; SameSite=None; Secure; Domain=example.com"
        );
    }
}
