//! From a token to who the client is and what it may. Pure: keys and the time are arguments.
//!
//! Which algorithms count follows from which keys are configured, never from the token: an HMAC
//! secret allows HS*, an RSA key RS*, an EC key ES*. `kid`, `jku`, `jwk` and `x5u` of the header
//! are not looked at. A client learns only whether its token is expired or not valid; the reason
//! is for the log.

mod claims;
mod crypto;

use crate::error::BindError;
use claims::{ConnectionToken, SubscriptionToken};
pub use claims::{Overrides, ServerSub};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::de::DeserializeOwned;
use weir_conf::node::Token;

use bytes::Bytes;

/// Longer ones are refused unread.
const MAX_TOKEN: usize = 8 << 10;

pub struct Auth {
    keys: Vec<Key>,
    audience: String,
    issuer: String,
}

struct Key {
    key: DecodingKey,
    algorithms: &'static [Algorithm],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// A fresh one of the same kind would do.
    Expired,
    /// The reason is for the log, not for the client.
    Invalid(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    pub user: String,
    /// Unix seconds; `None`: never.
    pub expire_at: Option<i64>,
    /// JSON; empty if none.
    pub info: Bytes,
    pub subs: Vec<(String, ServerSub)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    pub user: String,
    pub channel: String,
    /// Empty: any connection of that user.
    pub client: String,
    pub expire_at: Option<i64>,
    pub info: Bytes,
    pub data: Bytes,
    pub overrides: Overrides,
}

const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] = &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];
const EC: &[Algorithm] = &[Algorithm::ES256, Algorithm::ES384];

impl Auth {
    pub fn new(conf: &Token) -> Result<Auth, BindError> {
        crypto::install();
        let mut keys = Vec::new();
        for secret in [&conf.hmac_secret, &conf.hmac_previous_secret] {
            if !secret.is_empty() {
                keys.push(Key {
                    key: DecodingKey::from_secret(secret.reveal().as_bytes()),
                    algorithms: HMAC,
                });
            }
        }
        let pem = |key, error: jsonwebtoken::errors::Error| BindError::Token {
            key,
            reason: format!("not a public key in PEM form: {error}"),
        };
        if !conf.rsa_public_key.is_empty() {
            let key = DecodingKey::from_rsa_pem(conf.rsa_public_key.reveal().as_bytes());
            keys.push(Key { key: key.map_err(|e| pem("rsa_public_key", e))?, algorithms: RSA });
        }
        if !conf.ecdsa_public_key.is_empty() {
            let key = DecodingKey::from_ec_pem(conf.ecdsa_public_key.reveal().as_bytes());
            keys.push(Key { key: key.map_err(|e| pem("ecdsa_public_key", e))?, algorithms: EC });
        }
        Ok(Auth { keys, audience: conf.audience.clone(), issuer: conf.issuer.clone() })
    }

    /// Verifies a connection token at `now` (Unix seconds).
    pub fn connection(&self, token: &str, now: i64) -> Result<Identity, TokenError> {
        let claims: ConnectionToken = self.decode(token)?;
        claims.registered.check(now, &self.audience, &self.issuer)?;
        claims.into_identity()
    }

    /// Verifies a subscription token at `now` (Unix seconds). Whose and for what is the caller's to compare.
    pub fn subscription(&self, token: &str, now: i64) -> Result<Grant, TokenError> {
        let claims: SubscriptionToken = self.decode(token)?;
        claims.registered.check(now, &self.audience, &self.issuer)?;
        claims.into_grant()
    }

    fn decode<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(invalid("longer than 8 KiB"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(invalid)?;
        let mut reason = format!("no key configured for {:?}", header.alg);
        for key in self.keys.iter().filter(|k| k.algorithms.contains(&header.alg)) {
            let mut validation = Validation::new(header.alg);
            // Ours to check: with the time that is given, and with two outcomes instead of one.
            validation.required_spec_claims.clear();
            validation.validate_exp = false;
            validation.validate_aud = false;
            match jsonwebtoken::decode(token, &key.key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(TokenError::Invalid(reason))
    }
}

fn invalid(reason: impl ToString) -> TokenError {
    TokenError::Invalid(reason.to_string())
}

#[cfg(test)]
pub mod tests;
