//! Tokens of each algorithm, good and bad.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};
use std::time::Duration;
use weir_conf::units::Secret;

const NOW: i64 = 1_800_000_000;
pub const SECRET: &str = "correct horse battery staple";
const RSA_PUBLIC: &str = include_str!("testdata/rsa.pub");
const EC_PUBLIC: &str = include_str!("testdata/ec.pub");
/// `{"sub":"rsa-user"}`, `{"sub":"ec-user"}`, signed with the private halves, which were thrown away.
const RSA_TOKEN: &str = include_str!("testdata/rsa.jwt");
const EC_TOKEN: &str = include_str!("testdata/ec.jwt");

pub fn conf(secret: &str) -> Token {
    Token {
        hmac_secret: Secret::new(secret.to_owned()),
        hmac_previous_secret: Secret::default(),
        rsa_public_key: Secret::default(),
        ecdsa_public_key: Secret::default(),
        audience: String::new(),
        issuer: String::new(),
        leeway: Duration::from_secs(10),
    }
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn sign(header: &Value, claims: &Value, algorithm: hmac::Algorithm, secret: &[u8]) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let tag = hmac::sign(&hmac::Key::new(algorithm, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A good HS256 token.
pub fn token(secret: &str, claims: &Value) -> String {
    sign(&json!({"alg": "HS256", "typ": "JWT"}), claims, hmac::HMAC_SHA256, secret.as_bytes())
}

fn bad(auth: &Auth, name: &str, token: &str) {
    match auth.connection(token, NOW) {
        Err(TokenError::Invalid(reason)) => assert!(!reason.is_empty(), "{name}: a reason for the log"),
        other => panic!("{name}: {other:?}"),
    }
}

/// What an `Auth` with the secret, `audience = "weir"` and `issuer = "app"` has to refuse, made of claims that are good.
pub fn bad_tokens(good: &Value) -> Vec<(&'static str, String)> {
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        claims
    };
    let header = |header: Value| sign(&header, good, hmac::HMAC_SHA256, SECRET.as_bytes());
    let fine = token(SECRET, good);
    let unsigned = format!("{}.{}.", part(&json!({"alg": "none"})), part(good));
    let swapped = {
        let other = token(SECRET, &with("sub", json!("1")));
        let (message, _) = fine.rsplit_once('.').unwrap();
        format!("{message}.{}", other.rsplit_once('.').unwrap().1)
    };
    vec![
        ("empty", String::new()),
        ("no dots", "abc".into()),
        ("two parts", "a.b".into()),
        ("four parts", format!("{fine}.x")),
        ("not base64", "!!.!!.!!".into()),
        ("alg none", unsigned.clone()),
        ("alg None", unsigned.replace(&part(&json!({"alg": "none"})), &part(&json!({"alg": "None"})))),
        ("no signature", fine.rsplit_once('.').unwrap().0.to_owned() + "."),
        ("another's signature", swapped),
        ("wrong secret", token("guess", good)),
        ("empty secret", token("", good)),
        ("HS256 with the RSA public key as secret", token(RSA_PUBLIC, good)),
        ("HS384 named, HS256 made", header(json!({"alg": "HS384"}))),
        ("RS256 named, HMAC made", header(json!({"alg": "RS256"}))),
        ("ES256 without a key for it", header(json!({"alg": "ES256"}))),
        ("unknown alg", header(json!({"alg": "HS1024"}))),
        ("no alg", header(json!({"typ": "JWT"}))),
        (
            "kid as a path, wrong secret",
            sign(&json!({"alg": "HS256", "kid": "/dev/null"}), good, hmac::HMAC_SHA256, b""),
        ),
        ("wrong aud", token(SECRET, &with("aud", json!("other")))),
        ("aud list without us", token(SECRET, &with("aud", json!(["a", "b"])))),
        ("no aud", token(SECRET, &json!({"sub": "1", "iss": "app"}))),
        ("wrong iss", token(SECRET, &with("iss", json!("other")))),
        ("nbf ahead and wrong aud", token(SECRET, &json!({"aud": "x", "iss": "app", "nbf": NOW + 60}))),
        ("nbf no number", token(SECRET, &with("nbf", json!("soon")))),
        ("iat no number", token(SECRET, &with("iat", json!([])))),
        ("crit", header(json!({"alg": "HS256", "crit": ["b64"], "b64": false}))),
        ("crit that is known to nobody", header(json!({"alg": "HS256", "crit": ["exp"], "exp": 1}))),
        ("crit that is empty", header(json!({"alg": "HS256", "crit": []}))),
        ("crit that is null", header(json!({"alg": "HS256", "crit": null}))),
        ("crit that is no list", header(json!({"alg": "HS256", "crit": "b64"}))),
        ("exp no number", token(SECRET, &with("exp", json!("soon")))),
        ("sub no text", token(SECRET, &with("sub", json!(42)))),
        ("a channel claim", token(SECRET, &with("channel", json!("c")))),
        ("b64info no base64", token(SECRET, &with("b64info", json!("***")))),
        ("b64info no JSON", token(SECRET, &with("b64info", json!("bm9wZQ==")))),
        ("expired and wrong aud", token(SECRET, &json!({"aud": "x", "iss": "app", "exp": 1}))),
        ("claims no object", token(SECRET, &json!([1]))),
        ("too long", token(SECRET, &with("info", json!("x".repeat(9000))))),
    ]
}

#[test]
fn bad_tokens_are_all_invalid() {
    let auth = Auth::new(&Token {
        audience: "weir".into(),
        issuer: "app".into(),
        rsa_public_key: Secret::new(RSA_PUBLIC.into()),
        ..conf(SECRET)
    })
    .unwrap();
    let good = json!({"sub": "42", "aud": "weir", "iss": "app", "exp": NOW + 60});
    assert_eq!(auth.connection(&token(SECRET, &good), NOW).unwrap().user, "42");
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        claims
    };
    for (name, token) in &bad_tokens(&good) {
        bad(&auth, name, token);
    }
    // Out of its time and otherwise good: another one would do.
    for (claim, at, fresh) in [
        ("exp", NOW, false),
        ("exp", NOW - 1, false),
        ("exp", NOW + 1, true),
        ("nbf", NOW + 10, true),
        ("nbf", NOW + 11, false),
        ("iat", NOW + 10, true),
        ("iat", NOW + 11, false),
        ("iat", NOW - 9999, true),
    ] {
        let got = auth.connection(&token(SECRET, &with(claim, json!(at))), NOW);
        assert_eq!(got.is_ok(), fresh, "{claim} = NOW + {}", at - NOW);
        let why = if claim == "exp" { TokenError::Expired } else { TokenError::Early };
        assert!(fresh || got == Err(why), "{claim} = NOW + {}", at - NOW);
    }
}

#[test]
fn each_family_needs_its_key() {
    let none = Auth::new(&conf("")).unwrap();
    bad(&none, "no keys at all", &token("", &json!({"sub": "1"})));
    bad(&none, "RS256 without a key", RSA_TOKEN.trim());
    let keys = Auth::new(&Token {
        rsa_public_key: Secret::new(RSA_PUBLIC.into()),
        ecdsa_public_key: Secret::new(EC_PUBLIC.into()),
        ..conf("")
    })
    .unwrap();
    assert_eq!(keys.connection(RSA_TOKEN.trim(), NOW).unwrap().user, "rsa-user");
    assert_eq!(keys.connection(EC_TOKEN.trim(), NOW).unwrap().user, "ec-user");
    bad(&keys, "HMAC without a secret", &token(RSA_PUBLIC, &json!({"sub": "1"})));
    for (algorithm, name) in [(hmac::HMAC_SHA384, "HS384"), (hmac::HMAC_SHA512, "HS512")] {
        let auth = Auth::new(&conf(SECRET)).unwrap();
        let token = sign(&json!({"alg": name}), &json!({"sub": "x"}), algorithm, SECRET.as_bytes());
        assert_eq!(auth.connection(&token, NOW).unwrap().user, "x", "{name}");
    }
    assert!(matches!(
        Auth::new(&Token { rsa_public_key: Secret::new("no pem".into()), ..conf("") }).err(),
        Some(BindError::Token { key: "rsa_public_key", .. })
    ));
}

#[test]
fn both_secrets_verify_while_a_rotation_lasts() {
    let auth = Auth::new(&Token { hmac_previous_secret: Secret::new("old".into()), ..conf(SECRET) }).unwrap();
    for secret in [SECRET, "old"] {
        assert!(auth.connection(&token(secret, &json!({"sub": "1"})), NOW).is_ok(), "{secret}");
    }
}

#[test]
fn claims_come_to_an_identity() {
    let auth = Auth::new(&conf(SECRET)).unwrap();
    let identity = |claims: Value| auth.connection(&token(SECRET, &claims), NOW).unwrap();
    let full = identity(json!({
        "sub": "42", "exp": NOW + 60, "info": {"name": "Ann"}, "channels": ["a"],
        "subs": {"b": {"b64info": "eyJ4IjoxfQ==", "data": [1], "override": {"presence": {"value": true}}}},
    }));
    assert_eq!(full.expire_at, Some(NOW + 60));
    assert_eq!(full.info, "{\"name\":\"Ann\"}");
    assert_eq!(full.subs[0], ("a".into(), ServerSub::default()));
    let b = &full.subs[1].1;
    assert_eq!((&b.info[..], &b.data[..]), (&b"{\"x\":1}"[..], &b"[1]"[..]));
    assert_eq!(b.overrides.presence, Some(true));
    assert_eq!(identity(json!({"exp": NOW + 60, "expire_at": 0})).expire_at, None);
    assert_eq!(identity(json!({"exp": NOW + 60, "expire_at": NOW + 9})).expire_at, Some(NOW + 9));
    assert_eq!(identity(json!({})), Identity::default(), "a valid token without sub is anonymous");

    let grant = |claims: Value| auth.subscription(&token(SECRET, &claims), NOW);
    let g = grant(json!({"sub": "42", "channel": "c", "client": "x", "exp": NOW + 5, "info": 1})).unwrap();
    assert_eq!((g.user.as_str(), g.channel.as_str(), g.client.as_str()), ("42", "c", "x"));
    assert_eq!((g.expire_at, &g.info[..]), (Some(NOW + 5), &b"1"[..]));
    assert!(matches!(grant(json!({"sub": "42"})), Err(TokenError::Invalid(_))), "no channel");
    assert_eq!(grant(json!({"channel": "c", "exp": NOW - 1})), Err(TokenError::Expired));
}
