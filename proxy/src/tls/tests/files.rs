//! Files that change, and files that are not what they should be.

use super::common::{Authority, Site, replace};
use std::path::Path;
use std::sync::Arc;
use weir_conf::proxy::tls::{Certificate, ClientCerts};

#[tokio::test]
async fn a_changed_certificate_is_shown_and_a_bad_one_is_not() {
    let authority = Authority::new();
    let [first, second, third] = [(); 3].map(|()| authority.sign(&["a.example"]));
    let site = Site::showing(&first);
    let conf = site.conf.certificates[0].clone();
    let client = Arc::new(authority.client());
    let shown = async || site.shake(&client, "a.example").await.shown().clone();
    assert_eq!(shown().await, first.chain[0]);

    second.put(site.folder.path(), "site");
    site.tls.look();
    assert_eq!(shown().await, first.chain[0], "read before it was known to be complete");
    site.tls.look();
    assert_eq!(shown().await, second.chain[0]);

    // A certificate whose key has not come: said once, and nothing changes.
    replace(conf.cert.as_ref(), &third.cert);
    for _ in 0..4 {
        site.tls.look();
    }
    assert_eq!((shown().await, site.metrics.reload_failures.get()), (second.chain[0].clone(), 1));
    replace(conf.key.as_ref(), &third.key);
    site.tls.look();
    site.tls.look();
    assert_eq!((shown().await, site.metrics.reload_failures.get()), (third.chain[0].clone(), 1));

    std::fs::remove_file(&conf.cert).unwrap();
    site.tls.look();
    site.tls.look();
    assert_eq!((shown().await, site.metrics.reload_failures.get()), (third.chain[0].clone(), 2));
}

/// Written in place, and the same size: what is left to tell is the time.
#[test]
fn a_file_that_is_still_being_written_is_left_alone() {
    let authority = Authority::new();
    let site = Site::showing(&authority.sign(&["a.example"]));
    let file = Path::new(&site.conf.certificates[0].cert);
    let text = std::fs::read_to_string(file).unwrap();
    for length in [0, 10, 100, text.len()] {
        std::fs::write(file, &text[..length]).unwrap();
        site.tls.look();
    }
    site.tls.look();
    assert_eq!(site.metrics.reload_failures.get(), 0);
}

#[test]
fn what_cannot_be_used_is_said_with_its_file() {
    let authority = Authority::new();
    let (good, other) = (authority.sign(&["a.example"]), authority.sign(&["b.example"]));
    let site = Site::showing(&good);
    let folder = site.folder.path();
    let (good, other) = (good.put(folder, "good"), other.put(folder, "other"));
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, broken) = (file("empty", ""), file("broken", "-----BEGIN CERTIFICATE-----\n!\n"));
    let no_der = file("no_der", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = file("locked", locked);
    let missing = folder.join("missing").to_str().unwrap().to_owned();
    for (cert, key, wrong, why) in [
        (&missing, &good.key, "cert", "No such file"),
        (&good.cert, &missing, "key", "No such file"),
        (&empty, &good.key, "cert", "there is no certificate in it"),
        (&broken, &good.key, "cert", "it is no sound PEM"),
        (&no_der, &good.key, "cert", "its first certificate cannot be read"),
        (&good.key, &good.key, "cert", "there is no certificate in it"),
        (&good.cert, &good.cert, "key", "there is no private key in it"),
        (&good.cert, &locked, "key", "an encrypted one cannot be used"),
        (&good.cert, &other.key, "key", "the key does not belong to the certificate"),
    ] {
        let mut conf = site.conf.clone();
        conf.certificates = vec![good.clone(), Certificate { cert: cert.clone(), key: key.clone() }];
        let error = site.tls.load(&conf).err().unwrap().to_string();
        let file = if wrong == "cert" { cert } else { key };
        let expected = format!("proxy.tls.certificates[1].{wrong}: cannot use the file {file:?}: ");
        assert!(error.starts_with(&expected) && error.contains(why), "{error}\nnot\n{expected}{why}");
    }
    let mut conf = site.conf.clone();
    conf.client_ca = empty;
    let error = site.tls.load(&conf).err().unwrap().to_string();
    assert!(error.starts_with("proxy.tls.client_ca: cannot use the file"), "{error}");
}

#[tokio::test]
async fn changed_authorities_count_for_those_who_come() {
    let (authority, next) = (Authority::new(), Authority::new());
    let client = authority.sign_as(&["a.example"], &rcgen::PKCS_ECDSA_P256_SHA256, |_| {});
    let site = Site::new(|conf, folder| {
        conf.certificates = vec![authority.sign(&["a.example"]).put(folder, "site")];
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, &authority.pem).unwrap();
        conf.client_ca = ca.to_str().unwrap().to_owned();
    });
    let config = Arc::new(authority.client_of(&[&rustls::version::TLS13], Some(&client)));
    let speaks = super::common::speaks(ClientCerts::Required);
    assert!(site.shake_as(&config, "a.example", speaks).await.server.is_ok());
    replace(site.conf.client_ca.as_ref(), &next.pem);
    site.tls.look();
    site.tls.look();
    assert_eq!(site.shake_as(&config, "a.example", speaks).await.cause().name(), "client_cert");
}
