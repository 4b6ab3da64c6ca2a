//! Which certificate a name gets.

use super::common::{Authority, LOCAL, Site};
use crate::tls::certs::Certs;
use rcgen::PKCS_ED25519;
use rustls::SignatureScheme;
use std::sync::Arc;

const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];

#[test]
fn exact_before_wildcard_and_the_first_for_the_rest() {
    let authority = Authority::new();
    let first = authority.sign(&["first.example"]).cert();
    let wild = authority.sign(&["*.Wild.example", "127.0.0.1", "2001:db8::1"]).cert();
    let exact = authority.sign(&["a.wild.example"]).cert();
    let certs = Certs::new();
    assert!(certs.find(Some("a"), ECDSA).is_none());
    certs.set_files(&[first.clone(), wild.clone(), exact.clone()]);
    for (name, expected) in [
        (Some("first.example"), &first),
        (Some("FIRST.example."), &first),
        (Some("a.wild.example"), &exact),
        (Some("b.wild.example"), &wild),
        (Some("B.WILD.EXAMPLE"), &wild),
        // A wildcard is for one label.
        (Some("b.a.wild.example"), &first),
        (Some("wild.example"), &first),
        (Some(".wild.example"), &first),
        (Some("xwild.example"), &first),
        (Some("127.0.0.1"), &wild),
        (Some("127.0.0.2"), &first),
        (Some(""), &first),
        (None, &first),
    ] {
        assert!(Arc::ptr_eq(&certs.find(name, ECDSA).unwrap(), &expected.key), "{name:?}");
    }
    let of_ip = |ip: &str| certs.find_ip(ip.parse().unwrap(), ECDSA).map(|key| Arc::ptr_eq(&key, &wild.key));
    assert_eq!(of_ip("2001:db8::1"), Some(true));
    assert_eq!(of_ip("::ffff:127.0.0.1"), Some(true));
    assert_eq!(of_ip("192.0.2.1"), None);
}

#[test]
fn a_name_with_two_kinds_of_keys_shows_what_the_client_understands() {
    let authority = Authority::new();
    let ecdsa = authority.sign(&["a.example"]).cert();
    let ed25519 = authority.sign_as(&["a.example"], &PKCS_ED25519, |_| {}).cert();
    let certs = Certs::new();
    certs.set_files(&[ecdsa.clone(), ed25519.clone()]);
    let shown = |schemes: &[SignatureScheme]| certs.find(Some("a.example"), schemes).unwrap();
    assert!(Arc::ptr_eq(&shown(ECDSA), &ecdsa.key));
    assert!(Arc::ptr_eq(&shown(&[SignatureScheme::ED25519]), &ed25519.key));
    assert!(Arc::ptr_eq(&shown(&[SignatureScheme::RSA_PSS_SHA256]), &ecdsa.key));
}

#[test]
fn what_comes_at_run_time_fills_the_gaps() {
    let authority = Authority::new();
    let [file, own, wild, later] = [&["a.example"], &["b.example"], &["*.c.example"], &["b.example"]]
        .map(|names| authority.sign(names).cert());
    let certs = Certs::new();
    certs.set_dynamic("B.example", own.key.clone());
    certs.set_dynamic("*.c.example", wild.key.clone());
    certs.set_dynamic("a.example", own.key.clone());
    let shows = |name: Option<&str>, cert: &crate::tls::certs::Cert| {
        Arc::ptr_eq(&certs.find(name, ECDSA).unwrap(), &cert.key)
    };
    assert!(shows(None, &own) && shows(Some("x.c.example"), &wild) && shows(Some("a.example"), &own));
    certs.set_files(std::slice::from_ref(&file));
    assert!(shows(None, &file) && shows(Some("a.example"), &file) && shows(Some("b.example"), &own));
    // Renewed.
    certs.set_dynamic("b.example", later.key.clone());
    assert!(shows(Some("b.example"), &later));
    certs.remove_dynamic("B.EXAMPLE");
    assert!(shows(Some("b.example"), &file));
}

#[tokio::test]
async fn clients_are_shown_what_they_ask_for() {
    let authority = Authority::new();
    let (a, b) = (authority.sign(&["a.example"]), authority.sign(&["*.b.example", &LOCAL.to_string()]));
    let site = Site::new(|conf, folder| conf.certificates = vec![a.put(folder, "a"), b.put(folder, "b")]);
    let client = Arc::new(authority.client());
    assert_eq!(site.shake(&client, "a.example").await.shown(), &a.chain[0]);
    assert_eq!(site.shake(&client, "x.b.example").await.shown(), &b.chain[0]);
    // No name goes with an address; the one that was connected to tells.
    assert_eq!(site.shake(&client, &LOCAL.to_string()).await.shown(), &b.chain[0]);
    assert_eq!(site.metrics.count("accepted"), 3);
}
