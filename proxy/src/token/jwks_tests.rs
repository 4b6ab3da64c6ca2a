//! Sets of keys from files and servers: rotation, failures, floods of unknown keys.

use super::super::tests::{PS256, RS256, part, token};
use super::super::{Proof, Verifier, Wrong};
use super::*;
use futures_util::FutureExt;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weir_conf::units::Secret;

const RSA_JWK: &str = include_str!("testdata/rsa.jwk");

/// Answers each GET with what it holds, and counts.
#[derive(Clone, Default)]
struct Server {
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

impl Server {
    fn set(&self, set: &Value) {
        self.say("200 OK", &set.to_string());
    }

    fn say(&self, status: &str, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    }

    async fn serve(&self, tls: Option<tokio_rustls::TlsAcceptor>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, server) = (listener.local_addr().unwrap(), self.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                match &tls {
                    None => server.answer(tcp).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(tcp).await {
                            server.answer(stream).await;
                        }
                    }
                }
            }
        });
        addr
    }

    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"GET /keys HTTP/1.1\r\n"));
        self.asked.fetch_add(1, Relaxed);
        if self.silent.load(Relaxed) {
            // Until the one who asked has had enough.
            let _gone = stream.read_u8().await;
            return;
        }
        let answer = self.answer.lock().unwrap().clone();
        let _gone = stream.write_all(answer.as_bytes()).await;
        let _gone = stream.shutdown().await;
    }
}

struct Ed {
    kid: &'static str,
    pair: Ed25519KeyPair,
}

impl Ed {
    fn new(kid: &'static str) -> Ed {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Ed { kid, pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap() }
    }

    fn jwk(&self) -> Value {
        use base64::Engine;
        let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x})
    }

    fn token(&self) -> String {
        let header = json!({"alg": "EdDSA", "kid": self.kid});
        token(&header, &json!({"exp": 4_102_444_800_u64}), |m| self.pair.sign(m).as_ref().to_vec())
    }
}

fn conf(jwks: String) -> Token {
    Token { jwks, ..Token::default() }
}

fn verifier(conf: &Token) -> Arc<Verifier> {
    Verifier::build("app", conf, None, &Metrics::default()).unwrap()
}

async fn prove(verifier: &Verifier, token: &str) -> Result<Proof, Wrong> {
    verifier.prove(token.trim(), SystemTime::now()).await
}

async fn reason(verifier: &Verifier, token: &str) -> &'static str {
    prove(verifier, token).await.map_or_else(|wrong| wrong.reason, |_| "good")
}

/// As if the last try lay so far back.
fn age(verifier: &Verifier, by: Duration) {
    let shared = &verifier.jwks.as_ref().unwrap().shared;
    shared.tries.send_modify(|tries| tries.begun = tries.begun.map(|begun| begun - by));
}

/// As if the set had become old: returns when the fetch that follows has ended.
async fn grown_old(verifier: &Verifier) {
    let shared = verifier.jwks.as_ref().unwrap().shared.clone();
    let mut tries = shared.tries.subscribe();
    let before = tries.borrow_and_update().ended;
    age(verifier, Duration::from_secs(3600));
    shared.wanted.notify_one();
    let ended = tries.wait_for(|tries| tries.ended > before);
    timeout(Duration::from_secs(20), ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_key_is_fetched_and_an_old_one_goes() {
    let (first, second) = (Ed::new("a"), Ed::new("b"));
    let server = Server::default();
    server.set(&json!({"keys": [first.jwk()]}));
    let verifier = verifier(&conf(format!("http://{}/keys", server.serve(None).await)));
    for _ in 0..3 {
        assert_eq!(reason(&verifier, &first.token()).await, "good");
    }
    assert_eq!(server.asked.load(Relaxed), 1, "kept");

    server.set(&json!({"keys": [second.jwk()]}));
    for _ in 0..50 {
        assert_eq!(reason(&verifier, &second.token()).await, "key");
    }
    assert_eq!(server.asked.load(Relaxed), 1, "not before the interval has passed, whoever asks");
    age(&verifier, MIN_INTERVAL);
    assert_eq!(reason(&verifier, &second.token()).await, "good");
    assert_eq!(reason(&verifier, &first.token()).await, "key", "the old key is gone");
    assert_eq!(server.asked.load(Relaxed), 2);
}

#[tokio::test]
async fn keys_of_the_conf_need_no_fetch_and_some_tokens_are_not_worth_one() {
    let server = Server::default();
    server.set(&json!({"keys": [Ed::new("a").jwk()]}));
    let url = format!("http://{}/keys", server.serve(None).await);
    let rsa = Secret::new(super::super::tests::RSA_PUBLIC.into());
    let only = ["RS256", "EdDSA"].map(weir_conf::proxy::Algorithm).to_vec();
    let verifier = verifier(&Token { rsa_public_key: rsa, algorithms: only, ..conf(url) });
    assert_eq!(reason(&verifier, RS256).await, "good");
    assert_eq!(reason(&verifier, PS256).await, "algorithm");
    let hmac = token(&json!({"alg": "HS256", "kid": "a"}), &json!({}), |_| vec![0; 32]);
    assert_eq!(reason(&verifier, &hmac).await, "algorithm");
    assert_eq!(server.asked.load(Relaxed), 0);
    assert_eq!(reason(&verifier, &Ed::new("b").token()).await, "key");
    assert_eq!(server.asked.load(Relaxed), 1);
}

#[tokio::test]
async fn many_at_once_make_one_fetch() {
    let key = Ed::new("a");
    let server = Server::default();
    server.set(&json!({"keys": [key.jwk()]}));
    let verifier = verifier(&conf(format!("http://{}/keys", server.serve(None).await)));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), key.token());
            tokio::spawn(async move { reason(&verifier, &token).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), "good");
    }
    assert_eq!(server.asked.load(Relaxed), 1);
}

#[tokio::test]
async fn while_fetches_fail_the_old_set_stays_and_without_one_it_is_nobodys_fault() {
    let key = Ed::new("a");
    let server = Server::default();
    server.say("500 Internal Server Error", "");
    let verifier = verifier(&conf(format!("http://{}/keys", server.serve(None).await)));
    assert_eq!(reason(&verifier, &key.token()).await, "no_keys");
    server.set(&json!({"keys": [key.jwk()]}));
    grown_old(&verifier).await;
    assert_eq!(reason(&verifier, &key.token()).await, "good");
    let too_large = format!("{{\"keys\": [], \"x\": \"{}\"}}", "x".repeat(300 * 1024));
    for (status, body) in [
        ("500 Oh", ""),
        ("200 OK", "<html>"),
        ("200 OK", "{\"keys\": []}"),
        ("302 Found", ""),
        ("200 OK", &too_large),
    ] {
        server.say(status, body);
        grown_old(&verifier).await;
        assert_eq!(reason(&verifier, &key.token()).await, "good", "{status} {:.20}", body);
    }
    assert!(server.asked.load(Relaxed) >= 7, "each of them was asked for");
}

/// With a source that takes connections and says nothing.
#[tokio::test]
async fn nobody_with_a_known_key_waits_and_of_the_others_only_so_many() {
    let (key, other) = (Ed::new("a"), Ed::new("b"));
    let server = Server::default();
    server.set(&json!({"keys": [key.jwk()]}));
    let verifier = verifier(&conf(format!("http://{}/keys", server.serve(None).await)));
    assert_eq!(reason(&verifier, &key.token()).await, "good");
    server.silent.store(true, Relaxed);
    age(&verifier, Duration::from_secs(3600));
    let unknown: Vec<_> = (0..MAX_WAITING + 50)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), other.token());
            tokio::spawn(async move { reason(&verifier, &token).await })
        })
        .collect();
    let mut tries = verifier.jwks.as_ref().unwrap().shared.tries.subscribe();
    tries.wait_for(|tries| tries.under_way).await.unwrap();
    while unknown.iter().filter(|task| task.is_finished()).count() < 50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(unknown.iter().filter(|task| !task.is_finished()).count(), MAX_WAITING);
    // Neither while it is asked in vain ...
    assert_eq!(reason(&verifier, &key.token()).now_or_never(), Some("good"));
    for task in unknown {
        assert_eq!(task.await.unwrap(), "key");
    }
    // ... nor after it was, when nobody at all waits.
    age(&verifier, Duration::from_secs(3600));
    assert_eq!(reason(&verifier, &other.token()).now_or_never(), Some("key"));
    assert_eq!(reason(&verifier, &key.token()).now_or_never(), Some("good"));
    assert!(server.asked.load(Relaxed) <= 3, "a flood of unknown keys is no flood of fetches");
}

#[tokio::test]
async fn over_tls_the_authority_counts() {
    let _known = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let certificates = CertificateDer::pem_slice_iter(include_bytes!("testdata/server.pem"));
    let tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            certificates.map(Result::unwrap).collect(),
            PrivateKeyDer::from_pem_slice(include_bytes!("testdata/server.key")).unwrap(),
        )
        .unwrap();
    let server = Server::default();
    server.say("200 OK", &format!("{{\"keys\": [{RSA_JWK}]}}"));
    let addr = server.serve(Some(tokio_rustls::TlsAcceptor::from(Arc::new(tls)))).await;
    let ca = Secret::new(include_str!("testdata/ca.pem").into());
    let url = format!("https://localhost:{}/keys", addr.port());
    let trusted = verifier(&Token { jwks_ca: ca, ..conf(url.clone()) });
    assert_eq!(prove(&trusted, RS256).await.unwrap().subject(), Some("rsa-user"));
    assert_eq!(reason(&trusted, PS256).await, "good");
    // With another authority (any certificate will do) this server is not believed.
    let other = Secret::new(include_str!("testdata/server.pem").into());
    let stranger = verifier(&Token { jwks_ca: other, ..conf(url) });
    assert_eq!(reason(&stranger, RS256).await, "no_keys");
    assert_eq!(server.asked.load(Relaxed), 1);
}

#[tokio::test]
async fn a_file_is_read_at_once_and_again_when_it_is_old() {
    let (first, second) = (Ed::new("a"), Ed::new("b"));
    let path = std::env::temp_dir().join(format!("weir-jwks-{}", std::process::id()));
    std::fs::write(&path, json!({"keys": [first.jwk()]}).to_string()).unwrap();
    let conf = conf(format!("file:{}", path.display()));
    let verifier = verifier(&conf);
    assert_eq!(reason(&verifier, &first.token()).await, "good");
    std::fs::write(&path, json!({"keys": [second.jwk()]}).to_string()).unwrap();
    assert_eq!(reason(&verifier, &second.token()).await, "good", "a key that is not in it");
    // A reload reads it in any case, and refuses a bad one.
    std::fs::write(&path, json!({"keys": [first.jwk()]}).to_string()).unwrap();
    let reloaded = Verifier::build("app", &conf, Some(&verifier), &Metrics::default()).unwrap();
    assert_eq!(reason(&reloaded, &first.token()).await, "good");
    std::fs::write(&path, "{}").unwrap();
    assert!(Verifier::build("app", &conf, Some(&verifier), &Metrics::default()).is_err());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn only_keys_that_verify_are_taken() {
    let all: Vec<Algorithm> = [jwt::HMAC, jwt::RSA, jwt::EC, jwt::ED].concat();
    let rsa: Value = serde_json::from_str(RSA_JWK).unwrap();
    let with = |key: &str, value: Value| {
        let mut jwk = rsa.clone();
        jwk[key] = value;
        json!({"keys": [jwk]}).to_string()
    };
    let count = |text: &str, only: &[Algorithm]| parse(text.as_bytes(), only).map(|keys| keys.len());
    assert_eq!(count(&with("kid", json!("other")), &all), Ok(1));
    assert_eq!(count(&with("key_ops", json!(["verify"])), &all), Ok(1));
    let mixed = json!({"keys": [{"kty": "oct", "k": part(&json!("s"))}, {"kty": "new"}, 7, rsa]});
    assert_eq!(count(&mixed.to_string(), &all), Ok(1));
    let many = json!({"keys": vec![&rsa; 1000]});
    assert_eq!(count(&many.to_string(), &all), Ok(MAX_KEYS));
    for text in [
        with("use", json!("enc")),
        with("key_ops", json!(["encrypt"])),
        with("alg", json!("RSA-OAEP")),
        with("n", json!("!!")),
        json!({"keys": [{"kty": "oct", "kid": "s", "k": "c2VjcmV0"}]}).to_string(),
        json!({"keys": {}}).to_string(),
        "[]".to_owned(),
        "no json".to_owned(),
    ] {
        assert!(count(&text, &all).is_err(), "{text}");
    }
    assert!(count(&with("kid", json!("r")), jwt::EC).is_err(), "RSA is not among the algorithms allowed");
    let named = parse(with("alg", json!("PS256")).as_bytes(), &all).unwrap();
    assert!(named[0].1.takes(Algorithm::PS256) && !named[0].1.takes(Algorithm::RS256));
}
