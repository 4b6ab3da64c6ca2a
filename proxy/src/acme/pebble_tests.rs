//! Against pebble: a real ACME server as a process, with listeners for challenges around our hooks.

use super::certificate::tests::pem;
use super::*;
use crate::metrics::Outcome;
use crate::tls::certs::{ACME_TLS_1, Names};
use arc_swap::ArcSwapOption;
use instant_acme::{BodyWrapper, HttpClient};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme, crypto::ring};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use weir_conf::proxy::AcmeChallenge;
use weir_conf::units::Secret;
use weir_tests::pebble::{Pebble, Spec};
use weir_tests::until;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// As authorities hand it out.
const EAB: (&str, &str) = ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W");

/// Where names lead to, and the one folder that outlives processes.
struct Machine {
    spec: Spec,
    store: TempDir,
    current: Arc<ArcSwapOption<Acme>>,
}

/// The part of a proxy that an authority sees, from a start to a stop.
struct Process {
    acme: Arc<Acme>,
    running: JoinHandle<()>,
}

impl Machine {
    async fn start() -> Machine {
        let current = Arc::new(ArcSwapOption::empty());
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let [http_addr, tls_addr] = [&http, &tls].map(|listener| listener.local_addr().unwrap());
        tokio::spawn(answer_http(http, current.clone()));
        tokio::spawn(shake_hands(tls, current.clone()));
        let spec = Spec { http: http_addr, tls: tls_addr, external: None };
        Machine { spec, store: tempfile::tempdir().unwrap(), current }
    }

    fn conf(&self, pebble: &Pebble, domains: &[&[&str]]) -> Conf {
        let names = |names: &&[&str]| Domains(names.iter().map(ToString::to_string).collect());
        Conf {
            domains: domains.iter().map(names).collect(),
            directory: pebble.directory(),
            contact: "ops@example.com".to_owned(),
            agree_to_terms: true,
            store: self.store.path().display().to_string(),
            ca: pebble.ca().display().to_string(),
            ..crate::testing::conf().acme
        }
    }

    fn process(&self, conf: &Conf) -> Process {
        let acme = Arc::new(Acme::new(Arc::new(Certs::new()), Metrics::default()));
        self.current.store(Some(acme.clone()));
        acme.apply(acme.plan(conf).unwrap());
        // One worker: what it does begins with the first await of the test.
        let running = tokio::spawn(acme.clone().run());
        Process { acme, running }
    }

    fn file(&self, conf: &Conf, name: &str) -> PathBuf {
        Store::open(self.store.path(), &conf.directory).unwrap().path(name)
    }

    fn account(&self, conf: &Conf) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.file(conf, "account.json")).unwrap()).unwrap()
    }
}

impl Process {
    fn reload(&self, conf: &Conf) {
        self.acme.apply(self.acme.plan(conf).unwrap());
    }

    /// Not the one that clients of unknown names get.
    fn shown(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let key = self.acme.certs.find(Some(name), &[SignatureScheme::ECDSA_NISTP256_SHA256])?;
        let names = Names::of(&key.cert[0]).unwrap().dns;
        names.iter().any(|known| known == name).then_some(key)
    }

    fn orders(&self, outcome: &'static str) -> u64 {
        self.acme.metrics.acme_orders.get_or_create(&Outcome { outcome }).get()
    }

    async fn counted(&self, outcome: &'static str, count: u64) {
        until(&format!("{count} {outcome}"), || async {
            match self.orders(outcome) {
                now if now == count => Ok(()),
                now => Err(format!("{now}; all: {:?}", self.acme.metrics.acme_orders)),
            }
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn answer_http(listener: TcpListener, current: Arc<ArcSwapOption<Acme>>) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = tcp.read_u8().await else { break };
            head.push(byte);
        }
        let head = String::from_utf8_lossy(&head);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = current.load_full().and_then(|acme| acme.http_challenge(path));
        let body = answer.as_ref().map_or("", |answer| std::str::from_utf8(answer.body()).unwrap());
        let status = if answer.is_some() { "200 OK" } else { "404 Not Found" };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        drop(tcp.write_all(answer.as_bytes()).await);
    }
}

struct Challenge(Arc<ArcSwapOption<Acme>>);

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenge")
    }
}

impl ResolvesServerCert for Challenge {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()?.certs.alpn_challenge(hello.server_name()?)
    }
}

async fn shake_hands(listener: TcpListener, current: Arc<ArcSwapOption<Acme>>) {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Challenge(current)));
    config.alpn_protocols = vec![ACME_TLS_1.to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    while let Ok((tcp, _)) = listener.accept().await {
        drop(acceptor.accept(tcp).await);
    }
}

#[tokio::test]
async fn certificates_by_http_01_outlive_a_restart_and_the_authority() {
    let machine = Machine::start().await;
    let mut pebble = Pebble::start(&machine.spec).await;
    let conf = machine.conf(&pebble, &[&["a.test"], &["b.test", "c.test"]]);
    let first = machine.process(&conf);
    assert!(first.shown("a.test").is_none());
    first.counted("issued", 2).await;
    let [a, b, c] = ["a.test", "b.test", "c.test"].map(|name| first.shown(name).unwrap());
    assert!(a.cert.len() == 2 && Arc::ptr_eq(&b, &c) && !Arc::ptr_eq(&a, &b));
    for file in [store::certificate(&conf.domains[0].0), store::certificate(&conf.domains[1].0)] {
        let mode = std::fs::metadata(machine.file(&conf, &file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    drop(first);

    pebble.kill().await;
    let second = machine.process(&conf);
    assert_eq!(second.shown("a.test").unwrap().cert, a.cert);
    assert_eq!(second.shown("c.test").unwrap().cert, c.cert);
    // One that is not there is tried in vain, and does no harm to the others.
    let more = [conf.domains.clone(), vec![Domains(vec!["d.test".into()])]].concat();
    second.reload(&Conf { domains: more, ..conf });
    second.counted("unreachable", 1).await;
    assert!(second.shown("a.test").is_some() && second.shown("d.test").is_none());
}

#[tokio::test]
async fn certificates_by_tls_alpn_01_with_an_account_that_is_bound_to_another() {
    let mut machine = Machine::start().await;
    machine.spec.external = Some(EAB);
    let pebble = Pebble::start(&machine.spec).await;
    let bound = Conf {
        challenge: AcmeChallenge::TlsAlpn01,
        eab_key_id: EAB.0.to_owned(),
        eab_hmac: Secret::new(EAB.1.to_owned()),
        ..machine.conf(&pebble, &[&["a.test", "b.test"]])
    };
    let unbound = Conf { eab_key_id: String::new(), eab_hmac: Secret::default(), ..bound.clone() };
    let process = machine.process(&unbound);
    process.counted("refused", 1).await;
    process.reload(&bound);
    process.counted("issued", 1).await;
    assert!(process.shown("b.test").is_some());
    assert!(process.acme.certs.alpn_challenge("a.test").is_none(), "a challenge that is over is still shown");
}

#[tokio::test]
async fn the_account_is_made_once_and_again_where_it_is_not_known_any_more() {
    let machine = Machine::start().await;
    let pebble = Pebble::start(&machine.spec).await;
    let one = machine.conf(&pebble, &[&["a.test"]]);
    let process = machine.process(&one);
    process.counted("issued", 1).await;
    drop(process);
    let made = machine.account(&one);

    let two = Conf { contact: "root@example.com".into(), ..machine.conf(&pebble, &[&["b.test"]]) };
    let process = machine.process(&two);
    process.counted("issued", 1).await;
    drop(process);
    let kept = machine.account(&two);
    assert_eq!(kept["credentials"], made["credentials"]);
    assert_eq!(kept["contact"], "root@example.com");

    // As after a server that lost its memory: an account that it never made.
    let (file, id) = (machine.file(&two, "account.json"), made["credentials"]["id"].as_str().unwrap());
    std::fs::write(&file, kept.to_string().replace(id, &format!("{id}0000"))).unwrap();
    let three = Conf { domains: vec![Domains(vec!["c.test".into()])], ..two };
    let process = machine.process(&three);
    process.counted("issued", 1).await;
    assert_ne!(machine.account(&three)["credentials"]["id"], id);
    assert!(machine.file(&three, "account.json.old").exists());
}

#[tokio::test]
async fn one_that_ends_soon_is_replaced_while_it_is_shown() {
    let machine = Machine::start().await;
    let pebble = Pebble::start(&machine.spec).await;
    let conf = machine.conf(&pebble, &[&["a.test"]]);
    let (now, file) = (SystemTime::now(), machine.file(&conf, "a.test.pem"));
    std::fs::write(&file, pem(&["a.test"], now - DAY * 89, now + DAY)).unwrap();
    let process = machine.process(&conf);
    let before = process.shown("a.test").unwrap();
    process.counted("renewed", 1).await;
    let after = process.shown("a.test").unwrap();
    assert_ne!(before.cert, after.cert);
    until("the new one is in the store", || async {
        let stored = std::fs::read(&file).map_err(|error| error.to_string())?;
        let stored = Certificate::read(&stored, &conf.domains[0].0, now)?;
        if stored.cert.key.cert == after.cert { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(process.orders("issued"), 0);
}

#[tokio::test]
async fn the_authority_may_ask_for_a_renewal() {
    let machine = Machine::start().await;
    let pebble = Pebble::start(&machine.spec).await;
    let conf = machine.conf(&pebble, &[&["a.test"]]);
    let process = machine.process(&conf);
    process.counted("issued", 1).await;
    let before = process.shown("a.test").unwrap();
    drop(process);
    let text = std::fs::read_to_string(machine.file(&conf, "a.test.pem")).unwrap();
    let certificate = &text[text.find("-----BEGIN CERTIFICATE").unwrap()..];
    let window = r#"{"suggestedWindow":{"start":"2020-01-01T00:00:00Z","end":"2020-01-02T00:00:00Z"}}"#;
    let wish = serde_json::json!({ "Certificate": certificate, "ARIResponse": window });
    let request = http::Request::post(format!("{}/set-renewal-info/", pebble.management()));
    let request = request.body(BodyWrapper::from(wish.to_string().into_bytes())).unwrap();
    let http = Http::new(read_ca(&conf.ca).unwrap().as_deref()).unwrap();
    assert_eq!(http.request(request).await.unwrap().parts.status, 200);
    // It asks when it starts.
    let process = machine.process(&conf);
    process.counted("renewed", 1).await;
    assert_ne!(process.shown("a.test").unwrap().cert, before.cert);
}

#[tokio::test]
async fn a_reload_takes_up_names_and_lets_go_of_them_and_one_that_fails_fails_alone() {
    let machine = Machine::start().await;
    let pebble = Pebble::start(&machine.spec).await;
    let process = machine.process(&machine.conf(&pebble, &[&["x.nowhere.test"], &["a.test"]]));
    process.counted("issued", 1).await;
    process.counted("refused", 1).await;
    let a = process.shown("a.test").unwrap();
    let next = machine.conf(&pebble, &[&["x.nowhere.test"], &["b.test"], &["a.test", "c.test"]]);
    process.reload(&next);
    assert!(Arc::ptr_eq(&process.shown("a.test").unwrap(), &a), "what is still asked for is shown meanwhile");
    process.counted("issued", 3).await;
    assert!(!Arc::ptr_eq(&process.shown("a.test").unwrap(), &a));
    assert!(process.shown("b.test").is_some() && process.shown("c.test").is_some());
    // Nothing of this made the one that fails try again before its time.
    assert_eq!(process.orders("refused"), 1);
    process.reload(&machine.conf(&pebble, &[&["b.test"]]));
    assert!(process.shown("a.test").is_none() && process.shown("b.test").is_some());
    process.reload(&Conf { domains: Vec::new(), ..next });
    assert!(process.shown("b.test").is_none());
}
