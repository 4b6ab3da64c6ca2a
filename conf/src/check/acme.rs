//! Automatic certificates.

use super::Rules;
use crate::proxy::AcmeChallenge;
use crate::units::Secret;
use std::collections::BTreeMap;

/// What authorities take in one certificate.
const MAX_NAMES: usize = 100;

impl Rules<'_> {
    pub(super) fn acme(&mut self) {
        let acme = &self.config.proxy.acme;
        if !is_directory(&acme.directory) {
            let text =
                format!("{:?} is not an ACME directory; accepted: \"https://HOST/PATH\"", acme.directory);
            self.mistake(&["proxy.acme.directory"], text);
        }
        if !acme.contact.is_empty() && !is_mail(&acme.contact) {
            let text =
                format!("{:?} is not an address for mail; accepted: \"ops@example.com\"", acme.contact);
            self.mistake(&["proxy.acme.contact"], text);
        }
        self.binding(&acme.eab_key_id, &acme.eab_hmac);
        if acme.domains.is_empty() {
            return;
        }
        let domains = "proxy.acme.domains";
        if !acme.agree_to_terms {
            let text = "is needed for certificates from an authority; accepted: true, once you have read its terms of service";
            self.mistake(&["proxy.acme.agree_to_terms", domains], text);
        }
        if acme.store.is_empty() {
            let text = "is needed for certificates from an authority; accepted: a folder, such as \"/var/lib/weir/acme\"";
            self.mistake(&["proxy.acme.store", domains], text);
        }
        if self.config.proxy.tls.listen.is_empty() {
            let keys = [domains, "proxy.tls.listen"];
            match acme.challenge {
                AcmeChallenge::TlsAlpn01 => {
                    let text = "is answered by a listener with TLS, and there is none; accepted: listen in [proxy.tls], or \"http-01\"";
                    self.mistake(&["proxy.acme.challenge", "proxy.tls.listen"], text);
                }
                AcmeChallenge::Http01 => self.warn(&keys, "no listener shows them, as none has TLS"),
            }
        }
        let mut seen: BTreeMap<&str, String> = BTreeMap::new();
        for (i, names) in acme.domains.iter().enumerate() {
            let at = format!("{domains}[{i}]");
            if names.0.len() > MAX_NAMES {
                let text = format!("has {} names; accepted: {MAX_NAMES} at most", names.0.len());
                self.mistake(&[&at], text);
            }
            for name in &names.0 {
                if let Some(other) = seen.insert(name, at.clone()) {
                    let text = format!("{name:?} is in {other} too; accepted: each name once");
                    self.mistake(&[&at], text);
                }
            }
        }
    }

    fn binding(&mut self, id: &str, hmac: &Secret) {
        let (id_key, hmac_key) = ("proxy.acme.eab_key_id", "proxy.acme.eab_hmac");
        match (id.is_empty(), hmac.is_empty()) {
            (false, true) => {
                self.mistake(
                    &[hmac_key, id_key],
                    "is missing beside eab_key_id; accepted: both, or none of them",
                );
            }
            (true, false) => {
                self.mistake(
                    &[id_key, hmac_key],
                    "is missing beside eab_hmac; accepted: both, or none of them",
                );
            }
            _ => {}
        }
        let text = hmac.reveal().trim_end_matches('=');
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !text.bytes().all(fits) || text.len() % 4 == 1 {
            self.mistake(&[hmac_key], "is not base64url; accepted: the key as the authority shows it");
        }
    }
}

fn is_directory(text: &str) -> bool {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    !host.is_empty() && !host.contains('@') && rest.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

fn is_mail(text: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && !b"@,?<>:".contains(&b))
    };
    let text = text.strip_prefix("mailto:").unwrap_or(text);
    text.split_once('@').is_some_and(|(name, host)| fits(name) && fits(host) && host.contains('.'))
}
