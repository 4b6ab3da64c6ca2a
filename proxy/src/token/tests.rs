//! Tokens of each algorithm, good and bad, as a request brings them.

use super::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};
use ring::{hmac, signature};
use serde_json::json;
use weir_conf::proxy::TokenPlace;
use weir_conf::units::Secret;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "correct horse battery staple, twice";
pub const RSA_PUBLIC: &str = include_str!("testdata/rsa.pub");
pub const RS256: &str = include_str!("testdata/rs256.jwt");
pub const PS256: &str = include_str!("testdata/ps256.jwt");

pub fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token of this header, signed by `sign`.
pub fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signed = sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signed))
}

fn hs(algorithm: hmac::Algorithm, secret: &str) -> impl FnOnce(&[u8]) -> Vec<u8> {
    move |message| hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), message).as_ref().to_vec()
}

fn hs256(secret: &str, claims: &Value) -> String {
    token(&json!({"alg": "HS256", "typ": "JWT"}), claims, hs(hmac::HMAC_SHA256, secret))
}

fn conf() -> Token {
    Token { hmac_secret: Secret::new(SECRET.into()), leeway: Duration::ZERO, ..Token::default() }
}

fn verifier(conf: &Token) -> Arc<Verifier> {
    Verifier::build("app", conf, None, &Metrics::default()).unwrap()
}

fn head(token: &str) -> Parts {
    let request = http::Request::get("/?x=1").header("authorization", format!("Bearer {token}"));
    request.body(()).unwrap().into_parts().0
}

async fn prove(verifier: &Verifier, token: &str) -> Result<Proof, Wrong> {
    verifier.prove(token, UNIX_EPOCH + Duration::from_secs(NOW)).await
}

async fn reason(verifier: &Verifier, token: &str) -> &'static str {
    prove(verifier, token).await.map_or_else(|wrong| wrong.reason, |_| "good")
}

fn good_claims() -> Value {
    json!({"sub": "42", "aud": ["x", "app"], "iss": "us", "exp": NOW + 60, "nbf": NOW - 60, "iat": NOW - 60})
}

/// Each with the label that metrics give it.
fn bad_tokens() -> Vec<(&'static str, String, &'static str)> {
    let good = good_claims();
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        hs256(SECRET, &claims)
    };
    let without = |key: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(key);
        hs256(SECRET, &claims)
    };
    let header = |header: Value| token(&header, &good, hs(hmac::HMAC_SHA256, SECRET));
    let fine = hs256(SECRET, &good);
    let none = part(&json!({"alg": "none"}));
    let body = fine.split('.').nth(1).unwrap().to_owned();
    let stolen = format!(
        "{}.{}",
        fine.rsplit_once('.').unwrap().0,
        with("sub", json!("1")).rsplit_once('.').unwrap().1
    );
    vec![
        ("no dots", "abc".into(), "malformed"),
        ("two parts", "a.b".into(), "malformed"),
        ("four parts", format!("{fine}.x"), "malformed"),
        ("not base64", "!!.!!.!!".into(), "malformed"),
        ("alg none", format!("{none}.{body}."), "malformed"),
        ("alg nOnE", format!("{}.{body}.", part(&json!({"alg": "nOnE"}))), "malformed"),
        ("no alg", header(json!({"typ": "JWT"})), "malformed"),
        ("unknown alg", header(json!({"alg": "HS1024"})), "malformed"),
        ("crit", header(json!({"alg": "HS256", "crit": ["b64"], "b64": false})), "malformed"),
        ("too long", with("pad", json!("x".repeat(9000))), "malformed"),
        ("no signature", format!("{}.", fine.rsplit_once('.').unwrap().0), "signature"),
        ("another's signature", stolen, "signature"),
        ("wrong secret", hs256("guess", &good), "signature"),
        ("empty secret", hs256("", &good), "signature"),
        ("HS256 with the RSA public key as secret", hs256(RSA_PUBLIC, &good), "signature"),
        ("RS256 named, HMAC made", header(json!({"alg": "RS256"})), "signature"),
        ("HS384 named, HS256 made", header(json!({"alg": "HS384"})), "signature"),
        (
            "HS512, which the conf leaves out",
            token(&json!({"alg": "HS512"}), &good, hs(hmac::HMAC_SHA512, SECRET)),
            "algorithm",
        ),
        ("ES256 without a key for it", header(json!({"alg": "ES256"})), "algorithm"),
        ("EdDSA without a key for it", header(json!({"alg": "EdDSA"})), "algorithm"),
        (
            "kid as a path",
            token(&json!({"alg": "HS256", "kid": "/dev/null"}), &good, hs(hmac::HMAC_SHA256, "")),
            "signature",
        ),
        (
            "jku",
            token(&json!({"alg": "HS256", "jku": "http://127.0.0.1:1/"}), &good, hs(hmac::HMAC_SHA256, "x")),
            "signature",
        ),
        ("claims no object", hs256(SECRET, &json!([1])), "signature"),
        ("expired", with("exp", json!(NOW)), "expired"),
        ("exp no number", with("exp", json!("soon")), "claims"),
        ("no exp", without("exp"), "claims"),
        ("nbf ahead", with("nbf", json!(NOW + 1)), "not_yet"),
        ("iat no number", with("iat", json!({})), "claims"),
        ("iat ahead", with("iat", json!(NOW + 1)), "not_yet"),
        (
            "nbf ahead and wrong aud",
            hs256(SECRET, &json!({"aud": "x", "iss": "us", "nbf": NOW + 9, "exp": NOW + 60})),
            "audience",
        ),
        ("crit that is null", header(json!({"alg": "HS256", "crit": null})), "malformed"),
        ("crit that is empty", header(json!({"alg": "HS256", "crit": []})), "malformed"),
        ("crit that is no list", header(json!({"alg": "HS256", "crit": "exp"})), "malformed"),
        ("wrong aud", with("aud", json!("other")), "audience"),
        ("aud list without us", with("aud", json!(["a", 1])), "audience"),
        ("no aud", without("aud"), "audience"),
        ("wrong iss", with("iss", json!("them")), "issuer"),
        ("no iss", without("iss"), "issuer"),
        ("expired and wrong aud", hs256(SECRET, &json!({"aud": "x", "iss": "us", "exp": 1})), "audience"),
    ]
}

#[tokio::test]
async fn bad_tokens_are_refused_in_the_same_words() {
    let algorithms = ["HS256", "HS384", "RS256"].map(weir_conf::proxy::Algorithm).to_vec();
    let verifier = verifier(&Token {
        rsa_public_key: Secret::new(RSA_PUBLIC.into()),
        audience: vec!["app".into(), "other app".into()],
        issuer: vec!["us".into()],
        algorithms,
        ..conf()
    });
    assert_eq!(prove(&verifier, &hs256(SECRET, &good_claims())).await.unwrap().subject(), Some("42"));
    for (name, token, expected) in bad_tokens() {
        assert_eq!(reason(&verifier, &token).await, expected, "{name}");
        let refused = verifier.verify(&mut head(&token), UNIX_EPOCH + Duration::from_secs(NOW)).await;
        let cause = match expected {
            "expired" => EXPIRED,
            "not_yet" => NOT_YET,
            _ => "token",
        };
        assert_eq!(refused, Err(Refused { status: 401, cause, retry_after: None }), "{name}");
    }
}

#[tokio::test]
async fn each_algorithm_with_its_key() {
    let random = SystemRandom::new();
    let claims = json!({"sub": "x", "exp": NOW + 60});
    for (algorithm, name) in
        [(hmac::HMAC_SHA256, "HS256"), (hmac::HMAC_SHA384, "HS384"), (hmac::HMAC_SHA512, "HS512")]
    {
        let token = token(&json!({"alg": name}), &claims, hs(algorithm, SECRET));
        assert_eq!(reason(&verifier(&conf()), &token).await, "good", "{name}");
    }
    let rsa = verifier(&Token { rsa_public_key: Secret::new(RSA_PUBLIC.into()), ..Token::default() });
    for token in [RS256, PS256] {
        assert_eq!(prove(&rsa, token.trim()).await.unwrap().subject(), Some("rsa-user"));
    }
    let pem = |der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        Secret::new(format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"))
    };
    // What stands before a key in its SubjectPublicKeyInfo (RFC 5480, RFC 8410).
    let p256 = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let p384 = [
        0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
        0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
    ];
    for (name, signing, info) in [
        ("ES256", &ECDSA_P256_SHA256_FIXED_SIGNING, &p256[..]),
        ("ES384", &ECDSA_P384_SHA384_FIXED_SIGNING, &p384[..]),
    ] {
        let document = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(signing, document.as_ref(), &random).unwrap();
        let public = pem(&[info, pair.public_key().as_ref()].concat());
        let verifier = verifier(&Token { ecdsa_public_key: public, ..Token::default() });
        let sign = |message: &[u8]| pair.sign(&random, message).unwrap().as_ref().to_vec();
        assert_eq!(reason(&verifier, &token(&json!({"alg": name}), &claims, sign)).await, "good", "{name}");
    }
    let document = signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = signature::Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let info = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let public = pem(&[&info[..], pair.public_key().as_ref()].concat());
    let ed = verifier(&Token { ed25519_public_key: public, ..Token::default() });
    let sign = |message: &[u8]| pair.sign(message).as_ref().to_vec();
    assert_eq!(reason(&ed, &token(&json!({"alg": "EdDSA"}), &claims, sign)).await, "good");
}

#[tokio::test]
async fn rotation_leeway_and_tokens_without_an_end() {
    let old = "the secret before, and long enough";
    let rotating = verifier(&Token { hmac_previous_secret: Secret::new(old.into()), ..conf() });
    for secret in [SECRET, old] {
        assert_eq!(reason(&rotating, &hs256(secret, &json!({"exp": NOW + 1}))).await, "good");
    }
    let lenient = verifier(&Token { leeway: Duration::from_secs(10), require_exp: false, ..conf() });
    for (claims, expected) in [
        (json!({"exp": NOW - 9}), "good"),
        (json!({"exp": NOW - 10}), "expired"),
        (json!({"nbf": NOW + 10}), "good"),
        (json!({"nbf": NOW + 11}), "not_yet"),
        (json!({"iat": NOW + 10}), "good"),
        (json!({"iat": NOW + 11}), "not_yet"),
        (json!({}), "good"),
        (json!({"exp": 1e300}), "good"),
    ] {
        assert_eq!(reason(&lenient, &hs256(SECRET, &claims)).await, expected, "{claims}");
    }
    assert_eq!(prove(&lenient, &hs256(SECRET, &json!({"exp": NOW + 60}))).await.unwrap().close_at, None);
    let closing = verifier(&Token { close_at_expiry: true, ..conf() });
    let proof = prove(&closing, &hs256(SECRET, &json!({"exp": NOW + 60}))).await.unwrap();
    let left = proof.close_at.unwrap().saturating_duration_since(Instant::now());
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60), "{left:?}");
}

#[tokio::test]
async fn claims_are_passed_on_and_the_token_in_the_query_is_not() {
    let claims = [("sub", "X-Auth-Subject"), ("roles", "X-Auth-Roles"), ("none", "X-Auth-None")];
    let verifier = verifier(&Token {
        from: vec![TokenPlace::Query("token".into())],
        claims: claims.map(|(claim, header)| (claim.into(), header.into())).into(),
        ..conf()
    });
    let token = hs256(SECRET, &json!({"sub": "ann", "roles": ["a"], "exp": NOW + 60}));
    let request = http::Request::get(format!("/ws?a=1&token={token}&b=2"));
    let mut head = request.body(()).unwrap().into_parts().0;
    let proof = verifier.verify(&mut head, UNIX_EPOCH + Duration::from_secs(NOW)).await.unwrap();
    assert_eq!(head.uri, "/ws?a=1&b=2");
    proof.pass_on(&mut head.headers);
    assert_eq!(head.headers["x-auth-subject"], "ann");
    assert_eq!(head.headers["x-auth-roles"], "[\"a\"]");
    assert_eq!(head.headers.len(), 2);
    // Whom the server would not hear of is not let in as nobody.
    for sub in [json!("ann\r\nX-Admin: 1"), json!(" ann"), json!(""), json!(null), json!("a\u{0}b")] {
        let token = hs256(SECRET, &json!({"sub": sub, "exp": NOW + 60}));
        let request = http::Request::get(format!("/ws?token={token}"));
        let mut head = request.body(()).unwrap().into_parts().0;
        let refused = verifier.verify(&mut head, UNIX_EPOCH + Duration::from_secs(NOW)).await;
        assert_eq!(refused.unwrap_err().status, 401, "{sub}");
    }
    let mut none = http::Request::get("/ws?token=").body(()).unwrap().into_parts().0;
    assert_eq!(verifier.verify(&mut none, SystemTime::now()).await.unwrap_err().status, 401);
    let good = verifier.metrics.tokens.get_or_create(&crate::metrics::Outcome { outcome: "good" }).get();
    let missing =
        verifier.metrics.tokens.get_or_create(&crate::metrics::Outcome { outcome: "missing" }).get();
    assert_eq!((good, missing), (1, 1));
}

#[test]
fn keys_that_are_none_are_named() {
    let bad = |conf: Token| match Verifier::build("app", &conf, None, &Metrics::default()) {
        Err(error) => error.to_string(),
        Ok(_) => "built".to_owned(),
    };
    let pem = |text: &str| Secret::new(text.into());
    for (conf, start) in [
        (Token { rsa_public_key: pem("no pem"), ..conf() }, "proxy.token.app.rsa_public_key: "),
        (Token { ecdsa_public_key: pem(RSA_PUBLIC), ..conf() }, "proxy.token.app.ecdsa_public_key: "),
        (
            Token { jwks: "file:/nowhere/keys".into(), ..conf() },
            "proxy.token.app.jwks: cannot read /nowhere/keys",
        ),
    ] {
        let text = bad(conf);
        assert!(text.starts_with(start), "{text}");
    }
}
