//! `[proxy.acme]`: certificates from an authority that speaks ACME (RFC 8555).

use crate::section::{Reader, Value, keys};
use crate::tree::{Item, Raw};
use crate::units::Secret;
use crate::value::words;
use crate::write::quote;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Acme {
    /// One certificate each; `[]`: no certificates are asked for.
    pub domains: Vec<Domains>,
    /// Of the authority: `https://…`
    pub directory: String,
    /// An address for mail; "": none.
    pub contact: String,
    /// To the authority's terms of service.
    pub agree_to_terms: bool,
    pub challenge: AcmeChallenge,
    /// Folder for the account and the certificates.
    pub store: String,
    /// PEM file with the authorities that the directory's own certificate is from; "": those of the system.
    pub ca: String,
    /// How long before its end a certificate is renewed; a third of its whole time at most.
    pub renew_before: Duration,
    /// External account binding (RFC 8555 §7.3.4); "": none.
    pub eab_key_id: String,
    /// As the authority gives it: base64url.
    pub eab_hmac: Secret,
}

keys!(Acme {
    domains,
    directory,
    contact,
    agree_to_terms,
    challenge,
    store,
    ca,
    renew_before in Duration::from_secs(60)..,
    eab_key_id,
    eab_hmac,
});

/// How the authority is shown that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// An answer on port 80.
    Http01,
    /// A handshake on port 443.
    TlsAlpn01,
}

words!(AcmeChallenge: "a challenge" { Http01 = "http-01", TlsAlpn01 = "tls-alpn-01" });

/// The names of one certificate, in lower case; one at least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domains(pub Vec<String>);

impl Value for Domains {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Domains> {
        let Raw::List(items) = &item.value else {
            return domain(item, path, reader).map(|name| Domains(vec![name]));
        };
        if items.is_empty() {
            return reader.refuse(item, path, "a certificate's names", "one name or more");
        }
        let names = items.iter().enumerate().map(|(i, item)| domain(item, &format!("{path}[{i}]"), reader));
        // All of them before the first that is wrong decides: each has its own mistake.
        names.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(Domains)
    }

    fn write(&self) -> String {
        match self.0.as_slice() {
            [name] => quote(name),
            names => names.to_vec().write(),
        }
    }
}

fn domain(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<String> {
    let accepted = "a name without port, such as \"example.com\"; others than ASCII as \"xn--…\"";
    let text = item.as_text().unwrap_or_default();
    if text.starts_with("*.") && is_domain(&text[2..]) {
        let text = format!(
            "{text:?} is a wildcard, for which authorities ask for a record in DNS, and Weir writes none; accepted: each name by itself, or a certificate of your own in proxy.tls.certificates"
        );
        reader.mistake(&item.place, path, text);
        return None;
    }
    if !is_domain(text) {
        return reader.refuse(item, path, "a domain for a certificate", accepted);
    }
    Some(text.to_ascii_lowercase())
}

/// Two labels or more of letters, digits and `-` (RFC 1123); no address.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253
        && text.contains('.')
        && text.split('.').all(label)
        && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains() {
        let long = format!("{}.example", "a".repeat(64));
        for good in ["example.com", "a-b.example.co.uk", "xn--mnchen-3ya.example", "1.example", "EXAMPLE.com"]
        {
            assert!(is_domain(good), "{good}");
        }
        for bad in [
            "",
            "localhost",
            "example.com.",
            ".example.com",
            "a..b",
            "-a.example",
            "a-.example",
            "a_b.example",
            "192.0.2.1",
            "[2001:db8::1]",
            "example.com:443",
            "https://example.com",
            "münchen.example",
            "a b.example",
            &long,
        ] {
            assert!(!is_domain(bad), "{bad}");
        }
    }
}
