//! Certificates of clients.

use super::common::{Authority, Pair, Site, speaks};
use crate::tls::accept::Cause;
use crate::tls::subject::{ClientCert, tell};
use http::{HeaderMap, HeaderValue};
use rcgen::{CertificateParams, DnType, DnValue, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_conf::proxy::tls::ClientCerts;

fn person(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Pair {
    authority.sign_as(&[], &PKCS_ECDSA_P256_SHA256, change)
}

fn named(authority: &Authority, name: &str) -> Pair {
    person(authority, |params| params.distinguished_name.push(DnType::CommonName, name))
}

fn site(authority: &Authority) -> Site {
    Site::new(|conf, folder| {
        conf.certificates = vec![authority.sign(&["a.example"]).put(folder, "site")];
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, &authority.pem).unwrap();
        conf.client_ca = ca.to_str().unwrap().to_owned();
    })
}

#[tokio::test(start_paused = true)]
async fn off_optional_required() {
    let (authority, other) = (Authority::new(), Authority::new());
    let site = site(&authority);
    let (good, bad) = (named(&authority, "alice"), named(&other, "mallory"));
    let long = named(&authority, &"x".repeat(2000));
    use ClientCerts::{Off, Optional, Required};
    for version in [&TLS12, &TLS13] {
        for (asks, shows, expected) in [
            (Off, Some(&good), Ok(None)),
            (Off, Some(&bad), Ok(None)),
            (Optional, None, Ok(None)),
            (Optional, Some(&good), Ok(Some("CN=alice"))),
            (Optional, Some(&bad), Err(Cause::ClientCert)),
            (Optional, Some(&long), Err(Cause::ClientCert)),
            (Required, None, Err(Cause::ClientCert)),
            (Required, Some(&good), Ok(Some("CN=alice"))),
            (Required, Some(&bad), Err(Cause::ClientCert)),
        ] {
            let client = Arc::new(authority.client_of(&[version], shows));
            let shaken = site.shake_as(&client, "a.example", speaks(asks)).await;
            let subject = shaken.server.map(|server| {
                let shown = server.get_ref().1.peer_certificates();
                shown.and_then(ClientCert::of).map(|cert| cert.subject)
            });
            let subject = subject.as_ref().map(|subject| subject.as_deref());
            assert_eq!(subject, expected.as_ref().map(|s| *s), "{version:?} {asks:?}");
        }
    }
}

/// The ticket of a listener that asks nobody must not open one that does; nor may its own be used twice.
#[tokio::test]
async fn who_resumes_does_not_get_around_being_asked() {
    let authority = Authority::new();
    let site = site(&authority);
    for version in [&TLS12, &TLS13] {
        let alice = named(&authority, "alice");
        for (shows, expected) in [(None, Some(Cause::ClientCert)), (Some(&alice), None)] {
            let client = Arc::new(authority.client_of(&[version], shows));
            let open = site.shake_as(&client, "a.example", speaks(ClientCerts::Off)).await;
            let (mut theirs, mut ours) = (open.client.unwrap(), open.server.unwrap());
            ours.write_all(b"x").await.unwrap();
            ours.flush().await.unwrap();
            theirs.read_exact(&mut [0]).await.unwrap();
            for _ in 0..2 {
                let shaken = site.shake_as(&client, "a.example", speaks(ClientCerts::Required)).await;
                assert_eq!(shaken.server.as_ref().err().copied(), expected, "{version:?}");
                if let Ok(mut ours) = shaken.server {
                    assert_eq!(ours.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
                    ours.write_all(b"x").await.unwrap();
                    ours.flush().await.unwrap();
                    shaken.client.unwrap().read_exact(&mut [0]).await.unwrap();
                }
            }
        }
    }
}

/// A listener that asks while nobody is believed any more lets nobody in.
#[tokio::test]
async fn without_authorities_nobody_comes_in() {
    let authority = Authority::new();
    let mut site = site(&authority);
    site.conf.client_ca.clear();
    site.reload();
    let alice = named(&authority, "alice");
    let client = Arc::new(authority.client_of(&[&TLS13], Some(&alice)));
    for asks in [ClientCerts::Optional, ClientCerts::Required] {
        assert!(site.shake_as(&client, "a.example", speaks(asks)).await.server.is_err(), "{asks:?}");
    }
}

#[test]
fn what_servers_are_told_is_printable_and_whole() {
    let authority = Authority::new();
    let of = |change: &dyn Fn(&mut CertificateParams)| {
        ClientCert::of(&person(&authority, |params| change(params)).chain)
    };
    let cert = of(&|params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap()));
        name.push(DnType::OrganizationName, "Müller, \"Söhne\" + Co; #1");
        name.push(
            DnType::CustomDnType(vec![1, 2, 840, 113549, 1, 9, 1]),
            DnValue::Ia5String("a@b".try_into().unwrap()),
        );
        name.push(DnType::CommonName, " #a\r\nX-Admin: 1 ");
        params.subject_alt_names = vec![
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::URI("spiffe://a/b,DNS:admin".try_into().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
            SanType::Rfc822Name("a@b".try_into().unwrap()),
        ];
    })
    .unwrap();
    assert_eq!(
        &*cert.subject,
        r#"CN=\ #a\0D\0AX-Admin: 1\ ,1.2.840.113549.1.9.1=#1603614062,O=M\C3\BCller\, \"S\C3\B6hne\" \+ Co\; #1,C=DE"#
    );
    assert_eq!(&*cert.names, r"DNS:a.example,URI:spiffe://a/b\,DNS:admin,IP:2001:db8::1,email:a@b");
    // Nothing at all is a subject, too; what is too long is none, rather than half of one.
    let empty = ClientCert { subject: "".into(), names: "".into() };
    assert_eq!(of(&|_| {}), Some(empty));
    let long = |n: usize| of(&|params| params.distinguished_name.push(DnType::CommonName, "x".repeat(n)));
    assert_eq!((long(1021).map(|c| c.subject.len()), long(1022)), (Some(1024), None));
    let many = |params: &mut CertificateParams| {
        let name = |i: usize| SanType::DnsName(format!("{i:04}.example").as_str().try_into().unwrap());
        params.subject_alt_names = (0..100).map(name).collect();
    };
    assert_eq!(of(&many), None);
    // Names of other kinds are told as well as they can be, and none is left out.
    let other = |params: &mut CertificateParams| {
        let upn = rcgen::OtherNameValue::Utf8String("ann@corp.example".to_owned());
        params.subject_alt_names = vec![SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], upn))];
    };
    let told = of(&other).unwrap().names;
    assert!(told.starts_with("otherName:1.3.6.1.4.1.311.20.2.3=#"), "{told}");
    assert_eq!(ClientCert::of(&[]), None);
}

#[test]
fn what_clients_say_of_themselves_is_gone() {
    let claimed = || {
        let mut headers = HeaderMap::new();
        for value in ["CN=root", "CN=admin"] {
            headers.append("x-client-cert-subject", HeaderValue::from_static(value));
            headers.append("x-client-cert-san", HeaderValue::from_static("DNS:root"));
        }
        headers
    };
    let mut headers = claimed();
    tell(&mut headers, None);
    assert!(headers.is_empty(), "{headers:?}");
    let mut headers = claimed();
    tell(&mut headers, Some(&ClientCert { subject: "CN=alice".into(), names: "".into() }));
    assert_eq!(
        (headers.len(), &headers["x-client-cert-subject"]),
        (1, &HeaderValue::from_static("CN=alice"))
    );
}
