//! `[proxy.tls]`: what a listener with TLS cannot do without. Its ports: see `listeners.rs`.

use super::Rules;
use crate::proxy::Proxy;
use crate::proxy::tls::ClientCerts;

/// Whether anything will ever be there to be shown to clients.
fn has_certificates(proxy: &Proxy) -> bool {
    !proxy.tls.certificates.is_empty() || !proxy.acme.domains.is_empty()
}

impl Rules<'_> {
    pub(super) fn tls(&mut self) {
        let proxy = &self.config.proxy;
        let tls = &proxy.tls;
        let listens = !tls.listen.is_empty();
        if listens && !has_certificates(proxy) {
            let text = format!(
                "{} needs a certificate; accepted: certificates = [{{ cert = \"…\", key = \"…\" }}], or proxy.acme.domains",
                tls.listen[0].addr
            );
            self.mistake(&["proxy.tls.listen", "proxy.tls.certificates"], text);
        }
        for (i, listen) in tls.listen.iter().enumerate() {
            if listen.client_certs != ClientCerts::Off && tls.client_ca.is_empty() {
                let text = "asks for certificates of clients, and nobody is believed; accepted: client_ca = \"/path.pem\", or client_certs = \"off\"";
                self.mistake(&[&format!("proxy.tls.listen[{i}]"), "proxy.tls.client_ca"], text);
            }
        }
        if tls.redirect_http && !listens {
            let text =
                "there is no listener with TLS to be sent to; accepted: false, or listen in [proxy.tls]";
            self.mistake(&["proxy.tls.redirect_http", "proxy.tls.listen"], text);
        }
        if !listens && !tls.certificates.is_empty() {
            self.warn(&["proxy.tls.certificates", "proxy.tls.listen"], "no listener shows them");
        }
        if !listens && !tls.hsts.is_zero() {
            self.warn(&["proxy.tls.hsts", "proxy.tls.listen"], "no listener sends it, as none has TLS");
        }
        if listens && !tls.client_ca.is_empty() && !tls.asks_clients() {
            let text =
                "no listener asks for certificates of clients; meant: client_certs = \"required\" in listen?";
            self.warn(&["proxy.tls.client_ca", "proxy.tls.listen"], text);
        }
    }
}
