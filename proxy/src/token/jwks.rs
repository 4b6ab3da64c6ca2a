//! A set of public keys (RFC 7517) that is fetched, kept, and fetched again: when it is old, and for
//! a key that is not in it, at most every few seconds. While that fails the old set stays.

use super::Wrong;
use super::fetch::Source;
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use weir_conf::proxy::Token;
use weir_core::jwt::{self, Algorithm, DecodingKey, Key};
use weir_core::sync::lock;

/// Keys of one set; the rest is left out.
const MAX_KEYS: usize = 64;
/// Between two fetches, whoever asks: a token names any key it likes.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// The same while there is no set at all.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

pub struct Jwks {
    /// The token's name in the conf, for the log.
    name: String,
    source: Source,
    refresh: Duration,
    only: Vec<Algorithm>,
    set: ArcSwapOption<Set>,
    /// When a fetch last began.
    tried: Mutex<Option<Instant>>,
    /// Held by the one that fetches; the others wait for its outcome.
    flight: tokio::sync::Mutex<()>,
    metrics: Metrics,
}

struct Set {
    keys: Vec<(Option<String>, Key)>,
    fetched: Instant,
}

impl Jwks {
    /// A file is read now; what has an address when it is first needed.
    pub fn new(name: &str, conf: &Token, only: Vec<Algorithm>, metrics: &Metrics) -> Result<Jwks, String> {
        let source = Source::new(conf)?;
        let first = match source.read_file() {
            None => None,
            Some(text) => {
                let keys = parse(&text?, &only)?;
                Some(Arc::new(Set { keys, fetched: Instant::now() }))
            }
        };
        Ok(Jwks {
            name: name.to_owned(),
            source,
            refresh: conf.jwks_refresh,
            only,
            set: ArcSwapOption::new(first),
            tried: Mutex::new(None),
            flight: tokio::sync::Mutex::new(()),
            metrics: metrics.clone(),
        })
    }

    /// Whether such keys are looked for in it at all.
    pub fn may_have(&self, algorithm: Algorithm) -> bool {
        self.only.contains(&algorithm) && !jwt::HMAC.contains(&algorithm)
    }

    /// The keys that may have signed a token: the one that it names, or without a name all.
    pub async fn keys(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: Instant,
    ) -> Result<Vec<Key>, Wrong> {
        if let Some(set) = self.set.load_full() {
            let found = set.find(kid, algorithm);
            if !found.is_empty() {
                let age = now.saturating_duration_since(set.fetched);
                if age > self.refresh * 2 {
                    self.fetch(now, MIN_INTERVAL).await; // idle for long: its keys may be long revoked
                    return self.again(kid, algorithm);
                }
                if age > self.refresh && self.is_due(now, MIN_INTERVAL) {
                    let own = self.clone();
                    tokio::spawn(async move { own.fetch(now, MIN_INTERVAL).await });
                }
                return Ok(found);
            }
        }
        let interval = if self.set.load().is_some() { MIN_INTERVAL } else { FIRST_INTERVAL };
        self.fetch(now, interval).await;
        self.again(kid, algorithm)
    }

    fn again(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<Key>, Wrong> {
        let Some(set) = self.set.load_full() else {
            return Err(Wrong::new("no_keys", "the set of keys could not be had yet"));
        };
        match set.find(kid, algorithm) {
            found if found.is_empty() => Err(Wrong::new("key", "signed with a key that is not in the set")),
            found => Ok(found),
        }
    }

    /// Fetches, unless somebody did within the interval. Who comes while a fetch is under way waits
    /// for it.
    async fn fetch(&self, now: Instant, interval: Duration) {
        let _one_at_a_time = self.flight.lock().await;
        if !self.is_due(now, interval) {
            return;
        }
        *lock(&self.tried) = Some(Instant::now());
        let outcome = match self.source.fetch().await.and_then(|text| parse(&text, &self.only)) {
            Ok(keys) => {
                tracing::debug!(token = self.name, keys = keys.len(), "keys of tokens fetched");
                self.set.store(Some(Arc::new(Set { keys, fetched: Instant::now() })));
                "ok"
            }
            Err(why) => {
                let kept = self.set.load().is_some();
                tracing::warn!(token = self.name, why, kept, "keys of tokens could not be fetched");
                "failed"
            }
        };
        self.metrics.jwks_fetch(outcome);
    }

    fn is_due(&self, now: Instant, interval: Duration) -> bool {
        let tried = *lock(&self.tried);
        tried.is_none_or(|tried| now.saturating_duration_since(tried) >= interval)
    }
}

impl Set {
    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<Key> {
        // A key without a name may be any.
        let named = |own: &Option<String>| match (kid, own) {
            (Some(kid), Some(own)) => kid == own,
            _ => true,
        };
        let fits = self.keys.iter().filter(|(own, key)| named(own) && key.takes(algorithm));
        fits.map(|(_, key)| key.clone()).collect()
    }
}

/// Keys of kinds that are not known, or not for signatures, are left out; a set without any that is
/// left is none. Symmetric keys do not belong into a set that is published.
fn parse(text: &[u8], only: &[Algorithm]) -> Result<Vec<(Option<String>, Key)>, String> {
    let whole: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let all = whole.get("keys").and_then(Value::as_array).ok_or("no set of keys: \"keys\" is missing")?;
    let keys: Vec<_> = all.iter().filter_map(|jwk| key(jwk, only)).take(MAX_KEYS).collect();
    if keys.is_empty() {
        return Err("no key in the set can verify tokens".to_owned());
    }
    Ok(keys)
}

fn key(jwk: &Value, only: &[Algorithm]) -> Option<(Option<String>, Key)> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|for_what| for_what != "sig") {
        return None;
    }
    if let Some(operations) = jwk.get("key_ops").and_then(Value::as_array)
        && !operations.iter().any(|operation| operation == "verify")
    {
        return None;
    }
    let (key, family): (_, &[Algorithm]) = match (text("kty")?, text("crv")) {
        ("RSA", _) => (DecodingKey::from_rsa_components(text("n")?, text("e")?), jwt::RSA),
        ("EC", Some("P-256")) => (DecodingKey::from_ec_components(text("x")?, text("y")?), &jwt::EC[..1]),
        ("EC", Some("P-384")) => (DecodingKey::from_ec_components(text("x")?, text("y")?), &jwt::EC[1..]),
        ("OKP", Some("Ed25519")) => (DecodingKey::from_ed_components(text("x")?), jwt::ED),
        _ => return None,
    };
    let of_key = |algorithm: &&Algorithm| text("alg").is_none_or(|alg| alg == format!("{algorithm:?}"));
    let own: Vec<Algorithm> = family.iter().filter(of_key).copied().collect();
    let key = Key::new(key.ok()?, &own).restricted(only);
    key.takes_any().then(|| (text("kid").map(str::to_owned), key))
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
