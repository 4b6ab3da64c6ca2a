//! Tokens at the edge: from a request to what its JSON Web Token proves, or a 401 in the same words
//! whatever is wrong; the reason is for metrics and, at debug, the log. Only whose token's time is over, or has
//! not come, is told so.

mod claims;
mod fetch;
mod jwks;
mod place;

use crate::admit::Refused;
use crate::error::BindError;
use crate::metrics::Metrics;
use claims::Rules;
use http::header::{HeaderMap, HeaderName};
use http::request::Parts;
use jwks::Jwks;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use weir_conf::proxy::Token;
use weir_core::jwt::{self, Algorithm, Key};

/// The two causes that a client is told, since it can mend them by fetching another token. Who learns them has shown
/// a token that one of our keys has signed, and that is otherwise good.
pub const EXPIRED: &str = "token_expired";
pub const NOT_YET: &str = "token_not_yet";

/// What a client is told while the keys cannot be had: theirs is not the fault.
const RETRY_KEYS: Duration = Duration::from_secs(5);

pub struct Verifier {
    conf: Token,
    /// Of the conf itself.
    keys: Vec<Key>,
    jwks: Option<Arc<Jwks>>,
    rules: Rules,
    /// Claim to header.
    passed_on: Vec<(String, HeaderName)>,
    metrics: Metrics,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    pub claims: Map<String, Value>,
    /// When a connection that was opened with it has to end, if it has to.
    pub close_at: Option<Instant>,
    passed_on: Vec<(HeaderName, http::HeaderValue)>,
}

/// Why a token does not count: a label for metrics, and words for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub reason: &'static str,
    pub text: String,
}

impl Wrong {
    fn new(reason: &'static str, text: impl Into<String>) -> Wrong {
        Wrong { reason, text: text.into() }
    }
}

impl Verifier {
    /// `before` is the one of this name until now: one that is the same goes on, with the keys that it
    /// has fetched. Sets of keys in files are read here, and must be sound.
    pub fn build(
        name: &str,
        conf: &Token,
        before: Option<&Arc<Verifier>>,
        metrics: &Metrics,
    ) -> Result<Arc<Verifier>, BindError> {
        let bad = |key: &'static str| {
            let token = name.to_owned();
            move |reason| BindError::Token { token, key, reason }
        };
        let from_file = conf.jwks.starts_with("file:");
        if let Some(before) = before.filter(|before| before.conf == *conf && !from_file) {
            return Ok(before.clone());
        }
        let mut keys = Vec::new();
        for secret in [&conf.hmac_secret, &conf.hmac_previous_secret].into_iter().filter(|s| !s.is_empty()) {
            keys.push(Key::hmac(secret.reveal().as_bytes()));
        }
        type Read = fn(&[u8]) -> Result<Key, String>;
        for (key, pem, read) in [
            ("rsa_public_key", &conf.rsa_public_key, Key::rsa as Read),
            ("ecdsa_public_key", &conf.ecdsa_public_key, Key::ec as Read),
            ("ed25519_public_key", &conf.ed25519_public_key, Key::ed25519 as Read),
        ] {
            if !pem.is_empty() {
                keys.push(read(pem.reveal().as_bytes()).map_err(bad(key))?);
            }
        }
        let only = allowed(conf);
        let keys = keys.into_iter().map(|key| key.restricted(&only)).collect();
        let header = |(claim, name): (&String, &String)| {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| bad("claims")(e.to_string()))?;
            Ok((claim.clone(), name))
        };
        let jwks = match conf.jwks.as_str() {
            "" => None,
            _ => Some(Arc::new(Jwks::new(name, conf, only, metrics).map_err(bad("jwks"))?)),
        };
        Ok(Arc::new(Verifier {
            conf: conf.clone(),
            keys,
            jwks,
            rules: Rules::new(conf),
            passed_on: conf.claims.iter().map(header).collect::<Result<_, BindError>>()?,
            metrics: metrics.clone(),
        }))
    }

    /// What the request's token proves. Takes the token off where the server must not see it.
    pub async fn verify(&self, head: &mut Parts, now: SystemTime) -> Result<Proof, Refused> {
        let found = place::find(&self.conf.from, head);
        place::strip(&self.conf.from, head);
        let proof = match found {
            Ok(Some(token)) => self.prove(&token, now).await,
            Ok(None) => Err(Wrong::new("missing", "no token")),
            Err(wrong) => Err(wrong),
        };
        let reason = proof.as_ref().map_or_else(|wrong| wrong.reason, |_| "good");
        self.metrics.token(reason);
        proof.map_err(|wrong| {
            tracing::debug!(reason = wrong.reason, text = wrong.text, "token refused");
            match wrong.reason {
                "no_keys" => Refused { status: 503, cause: "token_keys", retry_after: Some(RETRY_KEYS) },
                "expired" => Refused { status: 401, cause: EXPIRED, retry_after: None },
                "not_yet" => Refused { status: 401, cause: NOT_YET, retry_after: None },
                _ => Refused { status: 401, cause: "token", retry_after: None },
            }
        })
    }

    async fn prove(&self, token: &str, now: SystemTime) -> Result<Proof, Wrong> {
        let header = jwt::header(token).map_err(|text| Wrong::new("malformed", text))?;
        let own = self.keys.iter().any(|key| key.takes(header.alg));
        let published = self.jwks.as_ref().filter(|jwks| jwks.may_have(header.alg));
        if !own && published.is_none() {
            return Err(Wrong::new("algorithm", format!("no key for {:?}", header.alg)));
        }
        let mut claims = jwt::claims(token, &header, &self.keys);
        if let (Err(_), Some(jwks)) = (&claims, published) {
            let keys = jwks.keys(header.kid.as_deref(), header.alg).await?;
            claims = jwt::claims(token, &header, &keys);
        }
        let claims: Map<String, Value> = claims.map_err(|text| Wrong::new("signature", text))?;
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = self.rules.check(&claims, since_epoch.as_secs_f64())?;
        let mut passed_on = Vec::new();
        for (claim, header) in &self.passed_on {
            if let Some(value) = self.rules.header(&claims, claim)? {
                passed_on.push((header.clone(), value));
            }
        }
        Ok(Proof {
            passed_on,
            close_at: left
                .filter(|_| self.conf.close_at_expiry)
                .and_then(|left| Instant::now().checked_add(left)),
            claims,
        })
    }
}

impl Proof {
    /// Who it is.
    pub fn subject(&self) -> Option<&str> {
        self.claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty())
    }

    /// Sets the headers that pass claims on; to be called when nothing of the client's is left under
    /// these names.
    pub fn pass_on(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.passed_on {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// The algorithms that the conf allows.
fn allowed(conf: &Token) -> Vec<Algorithm> {
    let all = [jwt::HMAC, jwt::RSA, jwt::EC, jwt::ED].concat();
    let named = |algorithm: &Algorithm| conf.algorithms.iter().any(|a| a.0 == format!("{algorithm:?}"));
    all.into_iter().filter(|algorithm| conf.algorithms.is_empty() || named(algorithm)).collect()
}

#[cfg(test)]
mod tests;
