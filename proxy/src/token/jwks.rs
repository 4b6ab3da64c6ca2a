//! A set of public keys (RFC 7517) that is fetched, kept, and fetched again by a task of its own: when it is
//! old, and for a key that is not in it, at most every few seconds.
//!
//! Who shows a key that is in the set is never kept waiting, whatever becomes of fetches: while they fail, the
//! set stays. Who shows another key waits for the fetch that may bring it, unless the one before has failed:
//! then the source is known to be away, and waiting would help nobody but those who want to hold places.

use super::Wrong;
use super::fetch::Source;
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use weir_conf::proxy::Token;
use weir_core::jwt::{self, Algorithm, DecodingKey, Key};
use weir_core::sync::lock;

/// Keys of one set; the rest is left out.
const MAX_KEYS: usize = 64;
/// Between two fetches, whoever asks: a token names any key it likes.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// The same while there is no set at all.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// Requests that wait for a fetch at once; each holds its places meanwhile.
const MAX_WAITING: usize = 256;
/// For a fetch to begin and end, which has a deadline of its own.
const PATIENCE: Duration = Duration::from_secs(6);

/// A handle; the task that fetches ends with it.
pub struct Jwks {
    shared: Arc<Shared>,
    only: Vec<Algorithm>,
    waiting: Semaphore,
    /// Runs from the first time that a key is needed.
    keeper: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct Shared {
    /// The token's name in the conf, for the log.
    name: String,
    source: Source,
    times: Times,
    only: Vec<Algorithm>,
    set: ArcSwapOption<Set>,
    /// Somebody showed a key that is not in the set.
    wanted: Notify,
    tries: watch::Sender<Tries>,
    metrics: Metrics,
}

#[derive(Clone, Copy)]
struct Times {
    refresh: Duration,
    between: Duration,
    first: Duration,
}

/// What became of fetches.
#[derive(Clone, Copy, Default)]
struct Tries {
    /// When the last one began.
    begun: Option<Instant>,
    ended: u64,
    failed: bool,
    under_way: bool,
}

struct Set {
    keys: Vec<(Option<String>, Key)>,
}

impl Jwks {
    /// A file is read now; what has an address when it is first needed.
    pub fn new(name: &str, conf: &Token, only: Vec<Algorithm>, metrics: &Metrics) -> Result<Jwks, String> {
        let source = Source::new(conf)?;
        let first = match source.read_file() {
            None => None,
            Some(text) => Some(Arc::new(Set { keys: parse(&text?, &only)? })),
        };
        // A file may have changed by the time that the first key is missed.
        let begun = first.as_ref().and_then(|_| Instant::now().checked_sub(MIN_INTERVAL));
        let shared = Shared {
            name: name.to_owned(),
            source,
            times: Times { refresh: conf.jwks_refresh, between: MIN_INTERVAL, first: FIRST_INTERVAL },
            only: only.clone(),
            set: ArcSwapOption::new(first),
            wanted: Notify::new(),
            tries: watch::Sender::new(Tries { begun, ..Tries::default() }),
            metrics: metrics.clone(),
        };
        let (shared, waiting) = (Arc::new(shared), Semaphore::new(MAX_WAITING));
        Ok(Jwks { shared, only, waiting, keeper: Mutex::new(None) })
    }

    /// Whether such keys are looked for in it at all.
    pub fn may_have(&self, algorithm: Algorithm) -> bool {
        self.only.contains(&algorithm) && !jwt::HMAC.contains(&algorithm)
    }

    /// The keys that may have signed a token: the one that it names, or without a name all.
    pub async fn keys(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<Key>, Wrong> {
        let begins = self.keep();
        let found = self.shared.find(kid, algorithm);
        if found.as_ref().is_ok_and(|keys| !keys.is_empty()) {
            return found;
        }
        self.fetched(begins).await;
        match self.shared.find(kid, algorithm)? {
            keys if keys.is_empty() => Err(Wrong::new("key", "signed with a key that is not in the set")),
            keys => Ok(keys),
        }
    }

    /// Has the set kept from now on. True: this call began that.
    fn keep(&self) -> bool {
        let mut keeper = lock(&self.keeper);
        let begins = keeper.as_ref().is_none_or(AbortOnDropHandle::is_finished);
        if begins {
            let shared = self.shared.clone();
            *keeper = Some(AbortOnDropHandle::new(tokio::spawn(async move { shared.run().await })));
        }
        begins
    }

    /// Returns when the set is as new as it may be now.
    async fn fetched(&self, begins: bool) {
        let mut tries = self.shared.tries.subscribe();
        let seen = *tries.borrow_and_update();
        let due = self.shared.is_due(&seen, Instant::now());
        if due && !seen.under_way {
            self.shared.wanted.notify_one();
        }
        let hopeless = seen.failed && !begins;
        if hopeless || !(due || seen.under_way) {
            return;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return };
        let ended = tries.wait_for(|tries| tries.ended != seen.ended);
        // Too late is the same as not at all.
        let _in_time = timeout(PATIENCE, ended).await;
    }
}

impl Shared {
    /// Without end.
    async fn run(&self) {
        let times = self.times;
        loop {
            let tries = *self.tries.borrow();
            let has_set = self.set.load().is_some();
            let rest = match (has_set, tries.failed) {
                (true, false) => times.refresh,
                (true, true) => times.between.min(times.refresh),
                (false, _) => times.first,
            };
            if let Some(begun) = tries.begun {
                tokio::select! {
                    () = sleep_until(begun + rest) => {}
                    () = self.wanted.notified() => {
                        let tries = *self.tries.borrow();
                        if !self.is_due(&tries, Instant::now()) {
                            continue;
                        }
                    }
                }
            }
            self.fetch().await;
        }
    }

    async fn fetch(&self) {
        self.tries.send_modify(|tries| (tries.begun, tries.under_way) = (Some(Instant::now()), true));
        let fetched = self.source.fetch().await.and_then(|text| parse(&text, &self.only));
        let failed = fetched.is_err();
        match fetched {
            Ok(keys) => {
                tracing::debug!(token = self.name, keys = keys.len(), "keys of tokens fetched");
                self.set.store(Some(Arc::new(Set { keys })));
            }
            Err(why) => {
                let kept = self.set.load().is_some();
                // Said once for each time that the source is away, and not for each of its tries.
                match self.tries.borrow().failed {
                    false => {
                        tracing::warn!(token = self.name, why, kept, "keys of tokens could not be fetched")
                    }
                    true => {
                        tracing::debug!(token = self.name, why, kept, "keys of tokens could not be fetched")
                    }
                }
            }
        }
        self.metrics.jwks_fetch(if failed { "failed" } else { "ok" });
        self.tries.send_modify(|tries| {
            *tries = Tries { ended: tries.ended + 1, failed, under_way: false, ..*tries };
        });
    }

    /// Whether a fetch may begin for a key that is not in the set.
    fn is_due(&self, tries: &Tries, now: Instant) -> bool {
        let between = if self.set.load().is_some() { self.times.between } else { self.times.first };
        tries.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= between)
    }

    /// None that fits may be there.
    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<Key>, Wrong> {
        let set = self.set.load_full();
        let set = set.ok_or_else(|| Wrong::new("no_keys", "the set of keys could not be had yet"))?;
        Ok(set.find(kid, algorithm))
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
