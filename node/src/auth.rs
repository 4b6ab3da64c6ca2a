//! From a token to who the client is and what it may. Pure: keys and the time are arguments.
//!
//! Which algorithms count follows from which keys are configured, never from the token: an HMAC
//! secret allows HS*, an RSA key RS*, an EC key ES*. `kid`, `jku`, `jwk` and `x5u` of the header
//! are not looked at. A client learns only whether its token is expired or not valid; the reason
//! is for the log.

mod claims;

use crate::error::BindError;
use claims::{ConnectionToken, SubscriptionToken, Terms};
pub use claims::{Overrides, ServerSub};
use serde::de::DeserializeOwned;
use weir_conf::node::Token;
use weir_core::jwt::{self, Key};

use bytes::Bytes;

pub struct Auth {
    keys: Vec<Key>,
    terms: Terms,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Its time is over: a fresh one of the same kind would do.
    Expired,
    /// Its time has not come: the same.
    Early,
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

impl Auth {
    pub fn new(conf: &Token) -> Result<Auth, BindError> {
        let mut keys = Vec::new();
        for secret in [&conf.hmac_secret, &conf.hmac_previous_secret] {
            if !secret.is_empty() {
                keys.push(Key::hmac(secret.reveal().as_bytes()));
            }
        }
        let bad = |key| move |reason| BindError::Token { key, reason };
        if !conf.rsa_public_key.is_empty() {
            let key = Key::rsa(conf.rsa_public_key.reveal().as_bytes());
            keys.push(key.map_err(bad("rsa_public_key"))?);
        }
        if !conf.ecdsa_public_key.is_empty() {
            let key = Key::ec(conf.ecdsa_public_key.reveal().as_bytes());
            keys.push(key.map_err(bad("ecdsa_public_key"))?);
        }
        let terms = Terms {
            audience: conf.audience.clone(),
            issuer: conf.issuer.clone(),
            leeway: conf.leeway.as_secs_f64(),
        };
        Ok(Auth { keys, terms })
    }

    /// Verifies a connection token at `now` (Unix seconds).
    pub fn connection(&self, token: &str, now: i64) -> Result<Identity, TokenError> {
        let claims: ConnectionToken = self.decode(token)?;
        claims.registered.check(now, &self.terms)?;
        claims.into_identity()
    }

    /// Verifies a subscription token at `now` (Unix seconds). Whose and for what is the caller's to compare.
    pub fn subscription(&self, token: &str, now: i64) -> Result<Grant, TokenError> {
        let claims: SubscriptionToken = self.decode(token)?;
        claims.registered.check(now, &self.terms)?;
        claims.into_grant()
    }

    fn decode<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        let header = jwt::header(token).map_err(TokenError::Invalid)?;
        jwt::claims(token, &header, &self.keys).map_err(TokenError::Invalid)
    }
}

fn invalid(reason: impl ToString) -> TokenError {
    TokenError::Invalid(reason.to_string())
}

#[cfg(test)]
pub mod tests;
