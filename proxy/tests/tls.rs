//! Listeners with TLS, from the conf to the sockets.
#![allow(clippy::unwrap_used)]

use prometheus_client::registry::Registry;
use std::path::Path;
use weir_conf::proxy::tls::{Certificate, Listen};
use weir_proxy::{BindError, Inherited, Proxy, self_signed};

/// On a free port, without routes.
fn conf(folder: &Path) -> weir_conf::proxy::Proxy {
    let made = self_signed(&["a.example".to_owned()], 13).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut conf = weir_conf::Config::default().proxy;
    (conf.listen, conf.route) = (vec!["127.0.0.1:0".parse().unwrap()], Vec::new());
    conf.tls.listen = vec![Listen::at(conf.listen[0])];
    conf.tls.certificates =
        vec![Certificate { cert: file("cert.pem", &made.cert_pem), key: file("key.pem", &made.key_pem) }];
    conf
}

fn bind(conf: &weir_conf::proxy::Proxy, registry: &mut Registry) -> Result<Proxy, BindError> {
    Proxy::bind(conf, None, registry, Inherited::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_stop_a_start_and_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let good = conf(folder.path());
    let mut bad = good.clone();
    bad.tls.certificates[0].key = folder.path().join("none").to_str().unwrap().to_owned();
    let error = bind(&bad, &mut Registry::default()).err().unwrap().to_string();
    let expected =
        format!("proxy.tls.certificates[0].key: cannot use the file {:?}: ", bad.tls.certificates[0].key);
    assert!(error.starts_with(&expected), "{error}");

    let mut registry = Registry::default();
    let proxy = bind(&good, &mut registry).unwrap();
    let addrs = proxy.local_addrs();
    assert_eq!((addrs.len(), &addrs[1..]), (2, &proxy.tls_addrs()[..]));
    // A listener that the bad conf leaves out stays, and one that it adds is not opened.
    bad.listen = vec!["127.0.0.2:0".parse().unwrap()];
    let control = proxy.control();
    let error = control.reload(&bad).unwrap_err().to_string();
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(proxy.local_addrs(), addrs);

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find(|l| l.starts_with("weir_proxy_tls_certificate_not_after_seconds{")).unwrap();
    assert!(line.contains("certificate=\"a.example\""), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_section() {
    let folder = tempfile::tempdir().unwrap();
    let mut conf = conf(folder.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    conf.tls.listen = vec![Listen::at(taken.local_addr().unwrap())];
    let error = bind(&conf, &mut Registry::default()).err().unwrap().to_string();
    assert!(error.starts_with("proxy.tls.listen: cannot listen on 127.0.0.1:"), "{error}");
}
