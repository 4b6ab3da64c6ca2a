//! `[proxy.token.NAME]`: JSON Web Tokens that a route may ask for, by `token = "NAME"`.

use super::admission::find_from;
use super::route::is_token;
use super::upstream::is_name;
use crate::section::{Field, Reader, Section, Value};
use crate::tree::Item;
use crate::units::Secret;
use crate::write::{Writer, quote};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub hmac_secret: Secret,
    /// Accepted too, while a rotation lasts.
    pub hmac_previous_secret: Secret,
    /// PEM, as are the next two.
    pub rsa_public_key: Secret,
    pub ecdsa_public_key: Secret,
    pub ed25519_public_key: Secret,
    /// A set of public keys (RFC 7517): `https://…`, `http://…` or `file:/…`; "": none.
    pub jwks: String,
    /// How old the set may be before it is fetched again.
    pub jwks_refresh: Duration,
    /// PEM of authorities for `https://`; unset: those of the system.
    pub jwks_ca: Secret,
    /// `[]`: all that fit the keys.
    pub algorithms: Vec<Algorithm>,
    /// One of them must be in `aud`; `[]`: not looked at.
    pub audience: Vec<String>,
    /// `iss` must be one of them; `[]`: not looked at.
    pub issuer: Vec<String>,
    /// What clocks may differ by, for `exp`, `nbf` and `iat`.
    pub leeway: Duration,
    /// A token without `exp` is refused.
    pub require_exp: bool,
    /// Where requests carry it; the first place that has one counts.
    pub from: Vec<TokenPlace>,
    /// Claims passed on, by the header that each goes into.
    pub claims: BTreeMap<String, String>,
    /// Claims without which a token is refused; `None`: see [`Token::required`].
    pub required_claims: Option<Vec<String>>,
    /// Whether a WebSocket ends with its token.
    pub close_at_expiry: bool,
}

impl Default for Token {
    fn default() -> Token {
        Token {
            hmac_secret: Secret::default(),
            hmac_previous_secret: Secret::default(),
            rsa_public_key: Secret::default(),
            ecdsa_public_key: Secret::default(),
            ed25519_public_key: Secret::default(),
            jwks: String::new(),
            jwks_refresh: Duration::from_secs(600),
            jwks_ca: Secret::default(),
            algorithms: Vec::new(),
            audience: Vec::new(),
            issuer: Vec::new(),
            leeway: Duration::from_secs(10),
            require_exp: true,
            from: vec![TokenPlace::Authorization],
            claims: BTreeMap::new(),
            required_claims: None,
            close_at_expiry: false,
        }
    }
}

impl Token {
    /// Claims without which a token is refused; if nothing is said, `sub` where it is passed on: a server that got
    /// no header of it would take somebody for nobody.
    pub fn required(&self) -> Vec<String> {
        let usual = || self.claims.contains_key("sub").then(|| "sub".to_owned()).into_iter().collect();
        self.required_claims.clone().unwrap_or_else(usual)
    }
}

/// Where a token stands in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// `Authorization: Bearer …`
    Authorization,
    Query(String),
    Cookie(String),
    /// An entry of `Sec-WebSocket-Protocol` that begins so.
    Subprotocol(String),
}

/// By its name in RFC 7518 and RFC 8037.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(pub &'static str);

pub(crate) const ALGORITHMS: [&str; 12] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
    "EdDSA",
];

/// `[proxy.token.NAME]`
impl Field for BTreeMap<String, Token> {
    fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> Self {
        let path = section.path(key);
        let Some(item) = section.given(key) else { return BTreeMap::new() };
        let Some(table) = item.as_table() else {
            let _: Option<()> = section.reader.refuse(item, &path, "a table", "[proxy.token.NAME] with keys");
            return BTreeMap::new();
        };
        let defaults = section.reader.defaults;
        let mut tokens = BTreeMap::new();
        for (name, item) in table {
            let path = format!("{path}.{name}");
            if !is_name(name) {
                let text =
                    format!("{name:?} is not a token's name; accepted: letters, digits, - and _, 64 at most");
                section.reader.mistake(&item.key_place, &path, text);
            }
            let token = section.table(Some(item), path, defaults, read);
            tokens.insert(name.clone(), token);
        }
        tokens
    }

    fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
        for (name, token) in self {
            writer.section(&format!("{key}.{name}"), |w| write(token, w));
        }
    }
}

fn read(s: &mut Section<'_, '_>) -> Token {
    let usual = Token::default();
    Token {
        hmac_secret: s.find("hmac_secret").unwrap_or_default(),
        hmac_previous_secret: s.find("hmac_previous_secret").unwrap_or_default(),
        rsa_public_key: s.find("rsa_public_key").unwrap_or_default(),
        ecdsa_public_key: s.find("ecdsa_public_key").unwrap_or_default(),
        ed25519_public_key: s.find("ed25519_public_key").unwrap_or_default(),
        jwks: s.find("jwks").unwrap_or_default(),
        jwks_refresh: find_from(s, "jwks_refresh", Duration::from_secs(1)..).unwrap_or(usual.jwks_refresh),
        jwks_ca: s.find("jwks_ca").unwrap_or_default(),
        algorithms: s.find("algorithms").unwrap_or_default(),
        audience: s.find("audience").unwrap_or_default(),
        issuer: s.find("issuer").unwrap_or_default(),
        leeway: s.find("leeway").unwrap_or(usual.leeway),
        require_exp: s.find("require_exp").unwrap_or(usual.require_exp),
        from: s.find("from").unwrap_or(usual.from),
        claims: s.find("claims").unwrap_or_default(),
        required_claims: s.find("required_claims"),
        close_at_expiry: s.find("close_at_expiry").unwrap_or(usual.close_at_expiry),
    }
}

fn write(token: &Token, w: &mut Writer<'_>) {
    for (key, secret) in [
        ("hmac_secret", &token.hmac_secret),
        ("hmac_previous_secret", &token.hmac_previous_secret),
        ("rsa_public_key", &token.rsa_public_key),
        ("ecdsa_public_key", &token.ecdsa_public_key),
        ("ed25519_public_key", &token.ed25519_public_key),
        ("jwks_ca", &token.jwks_ca),
    ] {
        if !secret.is_empty() {
            w.value(key, secret.write());
        }
    }
    if !token.jwks.is_empty() {
        w.value("jwks", quote(&token.jwks));
        w.value("jwks_refresh", token.jwks_refresh.write());
    }
    w.value("algorithms", token.algorithms.write());
    w.value("audience", token.audience.write());
    w.value("issuer", token.issuer.write());
    w.value("leeway", token.leeway.write());
    w.value("require_exp", token.require_exp.write());
    w.value("from", token.from.write());
    w.value("claims", token.claims.write());
    if let Some(required) = &token.required_claims {
        w.value("required_claims", required.write());
    }
    w.value("close_at_expiry", token.close_at_expiry.write());
}

impl Value for Algorithm {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Algorithm> {
        let named = item.as_text().and_then(|text| ALGORITHMS.into_iter().find(|known| *known == text));
        match named {
            Some(name) => Some(Algorithm(name)),
            None => reader.refuse(item, path, "an algorithm", &ALGORITHMS.join(", ")),
        }
    }

    fn write(&self) -> String {
        quote(self.0)
    }
}

impl Value for TokenPlace {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<TokenPlace> {
        let text = item.as_text().unwrap_or_default();
        let name = |rest: &str| is_token(rest).then(|| rest.to_owned());
        let place = match text.split_once(':') {
            None if text == "authorization" => Some(TokenPlace::Authorization),
            Some(("query", rest)) => name(rest).map(TokenPlace::Query),
            Some(("cookie", rest)) => name(rest).map(TokenPlace::Cookie),
            Some(("subprotocol", rest)) => name(rest).map(TokenPlace::Subprotocol),
            _ => None,
        };
        let accepted = "\"authorization\", \"query:NAME\", \"cookie:NAME\", \"subprotocol:PREFIX\"";
        if place.is_none() {
            return reader.refuse(item, path, "a place of a token", accepted);
        }
        place
    }

    fn write(&self) -> String {
        quote(&match self {
            TokenPlace::Authorization => "authorization".to_owned(),
            TokenPlace::Query(name) => format!("query:{name}"),
            TokenPlace::Cookie(name) => format!("cookie:{name}"),
            TokenPlace::Subprotocol(prefix) => format!("subprotocol:{prefix}"),
        })
    }
}
