//! Certificates that the proxy obtains by itself, from a real ACME server.

use std::path::Path;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::http::StatusCode;
use weir_tests::http;
use weir_tests::pebble::{self, Pebble};
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec};
use weir_tests::until;

/// A proxy with a listener of each kind, at the places where the authority looks for challenges.
struct Site {
    plain: Port,
    tls: Port,
    store: TempDir,
}

impl Site {
    fn new() -> Site {
        Site { plain: Port::free(), tls: Port::free(), store: TempDir::new().unwrap() }
    }

    async fn authority(&self) -> Pebble {
        let spec = pebble::Spec { http: self.plain.addr(), tls: self.tls.addr(), external: None };
        Pebble::start(&spec).await
    }

    fn conf(&self, pebble: &Pebble, challenge: &str, domains: &str) -> String {
        let Site { plain, tls, store } = self;
        let (directory, ca, store) = (pebble.directory(), pebble.ca(), store.path());
        let shown = |path: &Path| path.display().to_string();
        format!(
            "roles = [\"proxy\"]\n[proxy]\nlisten = \"{plain}\"\n\
             [proxy.tls]\nlisten = \"{tls}\"\nredirect_http = true\n\
             [proxy.acme]\ndomains = {domains}\ndirectory = \"{directory}\"\nca = \"{}\"\nstore = \"{}\"\n\
             agree_to_terms = true\nchallenge = \"{challenge}\"\n\
             [[proxy.route]]\npath = \"/\"\nanswer = {{ status = 204 }}\n",
            shown(&ca),
            shown(store),
        )
    }

    async fn start(&self, conf: &str) -> Process {
        Spec::text("site", conf).start(&[]).await
    }

    /// Until clients that believe the authority reach this name; then its certificate.
    async fn shows(&self, name: &str, authority: &str) -> Vec<u8> {
        let shown = || async {
            let tls = pebble::handshake(self.tls.addr(), name, authority).await.map_err(|e| e.to_string())?;
            let chain = tls.get_ref().1.peer_certificates().ok_or("no certificate")?;
            Ok(chain[0].as_ref().to_vec())
        };
        until(&format!("a certificate for {name}"), shown).await
    }
}

#[tokio::test]
async fn a_certificate_by_http_01_past_the_redirect_is_there_after_a_restart_without_the_authority() {
    let site = Site::new();
    let mut pebble = site.authority().await;
    let conf = site.conf(&pebble, "http-01", r#"["a.test", ["b.test", "c.test"]]"#);
    let weir = site.start(&conf).await;
    let root = pebble.root().await;
    let a = site.shows("a.test", &root).await;
    let b = site.shows("b.test", &root).await;
    assert_eq!(site.shows("c.test", &root).await, b);
    assert_ne!(a, b);
    assert_eq!(weir.metric("weir_proxy_acme_orders_total", &["outcome=\"issued\""]).await, 2.0);
    let end = weir.metric("weir_proxy_tls_certificate_not_after_seconds", &["certificate=\"a.test\""]).await;
    assert!(end > 1.7e9, "{end}");
    // Nobody's challenge goes the way of all requests.
    let other = http::get(site.plain.addr(), "/.well-known/acme-challenge/other").await;
    assert_eq!(other.status, StatusCode::NO_CONTENT.as_u16());
    let redirected = http::get(site.plain.addr(), "/x").await;
    assert_eq!(redirected.status, StatusCode::PERMANENT_REDIRECT.as_u16());
    weir.kill_9().await;
    pebble.kill().await;
    let weir = site.start(&conf).await;
    assert_eq!(site.shows("a.test", &root).await, a);
    assert_eq!(site.shows("c.test", &root).await, b);
    assert_eq!(weir.metric("weir_proxy_acme_orders_total", &["outcome=\"issued\""]).await, 0.0);
}

#[tokio::test]
async fn a_certificate_by_tls_alpn_01_and_another_by_a_reload_and_one_that_cannot_be() {
    let site = Site::new();
    let pebble = site.authority().await;
    let weir = site.start(&site.conf(&pebble, "tls-alpn-01", r#"["a.test"]"#)).await;
    let root = pebble.root().await;
    let a = site.shows("a.test", &root).await;
    weir.rewrite(&site.conf(&pebble, "tls-alpn-01", r#"["a.test", "b.test", "x.nowhere.test"]"#));
    weir.signal(nix::sys::signal::Signal::SIGHUP);
    site.shows("b.test", &root).await;
    assert_eq!(site.shows("a.test", &root).await, a);
    let why = weir.logged("why there is none", |l| l.contains("no certificate from the authority")).await;
    assert!(why.contains("x.nowhere.test") && why.contains("again_in_s"), "{why}");
}
