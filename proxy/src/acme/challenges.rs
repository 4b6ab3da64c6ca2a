//! What is shown to an authority that looks whether a name is ours, while an order is under way.

use crate::tls::certs::Certs;
use dashmap::DashMap;
use instant_acme::{ChallengeHandle, ChallengeType};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// Where an authority looks (RFC 8555 §8.3).
pub const PATH: &str = "/.well-known/acme-challenge/";

pub struct Challenges {
    /// By token. No more than orders under way have names.
    http: DashMap<String, Arc<str>>,
    certs: Arc<Certs>,
}

/// Shown until this is dropped, whatever becomes of the order.
pub struct Shown {
    of: Arc<Challenges>,
    what: What,
}

enum What {
    Http { token: String },
    Tls { name: String },
}

impl Challenges {
    pub fn new(certs: Arc<Certs>) -> Challenges {
        Challenges { http: DashMap::new(), certs }
    }

    /// By path alone: who sits in front may have changed the host, and a token is of one order.
    pub fn http(&self, path: &str) -> Option<Arc<str>> {
        let token = path.strip_prefix(PATH)?;
        self.http.get(token).map(|answer| answer.clone())
    }

    pub fn show(self: &Arc<Self>, name: &str, challenge: &ChallengeHandle<'_>) -> Result<Shown, String> {
        let answer = challenge.key_authorization();
        let what = match challenge.r#type {
            ChallengeType::TlsAlpn01 => {
                self.certs.set_challenge(name, certificate(name, answer.digest().as_ref())?);
                What::Tls { name: name.to_owned() }
            }
            _ => {
                let token = challenge.token.clone();
                self.http.insert(token.clone(), answer.as_str().into());
                What::Http { token }
            }
        };
        Ok(Shown { of: self.clone(), what })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        match &self.what {
            What::Http { token } => drop(self.of.http.remove(token)),
            What::Tls { name } => self.of.certs.remove_challenge(name),
        }
    }
}

/// RFC 8737 §3: for this name, signed by itself, with the digest in an extension of its own.
fn certificate(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    if digest.len() != 32 {
        return Err("a digest of an odd size".to_owned());
    }
    let told = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(told)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(told)?;
    let der = params.self_signed(&key).map_err(told)?.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
    // Not `from_der`: it looks into the certificate, and knows nothing of this extension.
    let key =
        ring::default_provider().key_provider.load_private_key(key).map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![der], key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn a_token_is_answered_while_it_is_shown() {
        let challenges = Arc::new(Challenges::new(Arc::new(Certs::new())));
        challenges.http.insert("token-1".to_owned(), "token-1.thumb".into());
        let shown = Shown { of: challenges.clone(), what: What::Http { token: "token-1".to_owned() } };
        assert_eq!(challenges.http("/.well-known/acme-challenge/token-1").as_deref(), Some("token-1.thumb"));
        for other in
            ["", "/", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/token-2", "token-1"]
        {
            assert_eq!(challenges.http(other), None, "{other}");
        }
        drop(shown);
        assert_eq!(challenges.http("/.well-known/acme-challenge/token-1"), None);
    }

    #[test]
    fn the_certificate_of_a_challenge_carries_its_digest_as_a_critical_extension() {
        let key = certificate("a.example", &[7; 32]).unwrap();
        let (_, x509) = X509Certificate::from_der(&key.cert[0]).unwrap();
        let extension =
            x509.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31").unwrap();
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32], [7; 32].as_slice()].concat());
        assert!(certificate("a.example", &[7; 31]).is_err());
    }
}
