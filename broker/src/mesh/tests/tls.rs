//! Links in TLS: those that come to be, and all that must not.

use super::rig::{NOWHERE, Rig, ack, all_up, broker, conf, eventually, introduce, soon, within};
use crate::certs::{Authority, Files};
use crate::error::BindError;
use crate::link::HANDSHAKE_DEADLINE;
use crate::listener::Listener;
use crate::mesh::Conf;
use crate::meta::Peers;
use crate::metrics::Cause;
use crate::tls::Tls;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// `None`: plain.
pub fn tls(files: Option<&Files>, secret: &str) -> Conf {
    let tls = files.and_then(|files| {
        let mut conf = weir_conf::Config::default().broker;
        files.set_broker(&mut conf);
        Tls::of_broker(&conf).unwrap()
    });
    Conf { tls, ..conf(secret) }
}

fn refused(rig: &Rig, cause: &'static str) -> u64 {
    rig.metrics.links_refused.get_or_create(&Cause { cause }).get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_are_linked_and_answer_over_tls_with_and_without_a_secret() {
    let authority = Authority::new("ours");
    for secret in ["", "secret"] {
        let files = [1, 2, 3].map(|_| authority.files());
        let brokers = [1, 2, 3].map(|id| broker(id, tls(Some(&files[id as usize - 1]), secret)));
        let all: Vec<_> = brokers.iter().collect();
        introduce(&all);
        all_up(&all).await;
        let large = Bytes::from(vec![7; 3 << 20]);
        for from in &brokers {
            for to in brokers.iter().filter(|to| to.id != from.id) {
                let answer = soon(from.mesh.call(Some(to.id), NOWHERE, large.clone(), within(20_000))).await;
                assert!(answer.unwrap().ends_with(&large));
                assert!(from.mesh.send_replica(to.id, 3, ack(5)));
                to.seen.until("ack", || to.seen.messages.lock().unwrap().contains(&(from.id, 3, 5))).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_the_secret_is_still_asked_for() {
    let authority = Authority::new("ours");
    let (one, two) = (authority.files(), authority.files());
    let (a, b) = (broker(1, tls(Some(&one), "right")), broker(2, tls(Some(&two), "wrong")));
    introduce(&[&a, &b]);
    eventually(|| a.mesh.shared.metrics.refusals("secret") > 0).await;
    assert!(!a.seen.is_up(b.id) && !b.seen.is_up(a.id));
}

/// Who dials, who is dialled, and what the one that dials says of it; both count it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_certified_is_refused_with_the_cause_and_in_time() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = || Some(ours.files());
    for (what, dials, listens, says) in [
        ("another authority", Some(theirs.files()), good(), "UnknownIssuer"),
        ("only its certificate from there", Some(theirs.files().trust(&ours)), good(), "refuses our TLS: "),
        ("the listener's from there", good(), Some(theirs.files().trust(&ours)), "UnknownIssuer"),
        ("another host", good(), Some(ours.files_for("elsewhere.test")), "not valid for name"),
        ("expired, of the listener", good(), Some(ours.expired()), "expired"),
        ("expired, of the dialler", Some(ours.expired()), good(), "CertificateExpired"),
        ("plain to TLS", None, good(), "speaks TLS, and here it is off (broker.tls_cert"),
        ("TLS to plain", good(), None, "does not speak TLS, and here it is set"),
    ] {
        let (a, b) = (broker(1, tls(dials.as_ref(), "secret")), broker(2, tls(listens.as_ref(), "secret")));
        let start = Instant::now();
        a.mesh.set_members(&[(b.id, b.addr.to_string())]);
        let error = || a.mesh.peers()[0].error.clone().unwrap_or_default();
        eventually(|| !error().is_empty() && refused(&b, "tls") > 0).await;
        assert!(start.elapsed() < HANDSHAKE_DEADLINE, "{what}: {:?}", start.elapsed());
        assert!(error().contains(says), "{what}: {}", error());
        let failures = &a.mesh.shared.metrics.dial_failures;
        assert!(failures.get_or_create(&Cause { cause: "tls" }).get() > 0, "{what}");
        assert!(!a.seen.is_up(b.id) && !b.seen.is_up(a.id), "{what}");
    }
}

/// Of a client that is none of ours: connects, says something, and reads to the end.
async fn stranger(b: &Rig, version: &'static SupportedProtocolVersion, roots: &Files, own: Option<&Files>) {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from_pem_file(roots.ca()).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(store);
    let client = match own {
        Some(own) => {
            let cert = CertificateDer::from_pem_file(own.cert()).unwrap();
            client
                .with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_file(own.key()).unwrap())
                .unwrap()
        }
        None => client.with_no_client_auth(),
    };
    let stream = TcpStream::connect(b.addr).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let talk = async {
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
        stream.write_all(b"hello?").await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    let end = soon(talk).await;
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_certificate_old_tls_and_plain_noise_get_nowhere() {
    let authority = Authority::new("ours");
    let (files, b) = (authority.files(), broker(2, tls(Some(&authority.files()), "")));
    stranger(&b, &TLS13, &files, None).await;
    eventually(|| refused(&b, "tls") == 1).await;
    stranger(&b, &TLS12, &files, Some(&files)).await;
    eventually(|| refused(&b, "tls") == 2).await;
    let mut http = TcpStream::connect(b.addr).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _an_alert = soon(http.read_to_end(&mut Vec::new())).await;
    eventually(|| refused(&b, "tls") == 3).await;
    // One that says nothing is let go by the deadline.
    let (start, mut quiet) = (Instant::now(), TcpStream::connect(b.addr).await.unwrap());
    let _end = soon(quiet.read_to_end(&mut Vec::new())).await;
    let took = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
    eventually(|| refused(&b, "timeout") == 1).await;
}

#[tokio::test]
async fn tls_is_as_good_as_a_secret_beyond_loopback() {
    let files = Authority::new("ours").files();
    let mut open = weir_conf::Config::default().broker;
    open.listen = "0.0.0.0:0".parse().unwrap();
    let bound = Listener::bind(&open, None);
    assert!(matches!(bound, Err(BindError::SecretNeeded(_))));
    let conf = tls(Some(&files), "");
    Listener::bind(&open, conf.tls.clone()).unwrap();
    let a = broker(1, conf);
    assert!(a.mesh.shared.may_talk_to("10.0.0.1".parse().unwrap()).is_ok());
}
