//! The certificates that clients are shown, by the name that they ask for: an exact name goes before a
//! wildcard, and the first certificate is for those who ask for none, or for one that nobody has.
//!
//! Certificates come from files (`files.rs`), and at run time from whoever obtains them (ACME). Both may be
//! replaced at any moment: handshakes see what is in force when they begin, connections keep what they have.

use super::subject::address;
use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The protocol by which an ACME server looks at a challenge (RFC 8737). Nothing else is spoken over it.
pub const ACME_TLS_1: &[u8] = b"acme-tls/1";

/// Outlives confs: a reload, a changed file and a renewal put their certificates in here.
#[derive(Debug, Default)]
pub struct Certs {
    files: ArcSwap<Table>,
    dynamic: ArcSwap<Vec<(String, Arc<CertifiedKey>)>>,
    challenges: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
}

/// A certificate, its key, and the names that it is for.
#[derive(Clone, Debug)]
pub struct Cert {
    pub key: Arc<CertifiedKey>,
    pub names: Names,
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Lower case; a wildcard as `*.example.com`.
    pub dns: Vec<String>,
    pub ip: Vec<IpAddr>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

/// Why a certificate cannot be shown to anyone.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("there is no certificate in it")]
    Empty,
    #[error("its first certificate cannot be read: {0}")]
    Malformed(String),
    #[error("the key does not belong to the certificate")]
    Mismatch,
    #[error("the key cannot be used: {0}")]
    Key(rustls::Error),
}

#[derive(Debug, Default)]
struct Table {
    /// More than one where a name has certificates of several kinds of key.
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what comes after the `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    ip: HashMap<IpAddr, Vec<Arc<CertifiedKey>>>,
    first: Option<Arc<CertifiedKey>>,
}

impl Cert {
    /// Checks that key and certificate belong together; whether it has expired is for the caller to judge.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Cert, Unusable> {
        let names = Names::of(chain.first().ok_or(Unusable::Empty)?)?;
        let key =
            CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => Unusable::Mismatch,
                rustls::Error::InvalidCertificate(why) => Unusable::Malformed(format!("{why:?}")),
                error => Unusable::Key(error),
            })?;
        Ok(Cert { key: Arc::new(key), names })
    }
}

impl Names {
    /// Of a certificate's alternative names; its common name is looked at by nobody any more.
    pub fn of(der: &CertificateDer<'_>) -> Result<Names, Unusable> {
        let malformed = |error: String| Unusable::Malformed(error);
        let parsed = webpki::EndEntityCert::try_from(der).map_err(|error| malformed(error.to_string()))?;
        let (_, x509) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        let alternatives = x509.subject_alternative_name().ok().flatten();
        let ip =
            alternatives.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::IPAddress(bytes) => address(bytes),
                _ => None,
            });
        Ok(Names {
            dns: parsed.valid_dns_names().map(str::to_ascii_lowercase).collect(),
            ip: ip.collect(),
            not_before: x509.validity().not_before.timestamp(),
            not_after: x509.validity().not_after.timestamp(),
        })
    }

    /// The first one, to be recognized by.
    pub fn first(&self) -> String {
        let ip = || self.ip.first().map(ToString::to_string);
        self.dns.first().cloned().or_else(ip).unwrap_or_else(|| "unnamed".to_owned())
    }
}

impl Certs {
    pub fn new() -> Certs {
        Certs::default()
    }

    /// Replaces all that came from files.
    pub fn set_files(&self, certs: &[Cert]) {
        self.files.store(Arc::new(Table::new(certs)));
    }

    /// A certificate for one name (exact, or `*.example.com`), in place of an earlier one for it. Where files
    /// have the same name, theirs is shown. The first name that was set is the default if there is no file.
    pub fn set_dynamic(&self, name: &str, key: Arc<CertifiedKey>) {
        let name = name.to_ascii_lowercase();
        self.dynamic.rcu(|before| {
            let mut names = Vec::clone(before);
            match names.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = key.clone(),
                None => names.push((name.clone(), key.clone())),
            }
            names
        });
    }

    pub fn remove_dynamic(&self, name: &str) {
        let others = |(known, _): &&(String, _)| !known.eq_ignore_ascii_case(name);
        self.dynamic.rcu(|before| before.iter().filter(others).cloned().collect::<Vec<_>>());
    }

    /// What to show to an ACME server that looks for the challenge of this name.
    pub fn set_challenge(&self, name: &str, key: Arc<CertifiedKey>) {
        let name = name.to_ascii_lowercase();
        self.challenges.rcu(|before| {
            let mut challenges = HashMap::clone(before);
            challenges.insert(name.clone(), key.clone());
            challenges
        });
    }

    pub fn remove_challenge(&self, name: &str) {
        let name = name.to_ascii_lowercase();
        self.challenges.rcu(|before| {
            let mut challenges = HashMap::clone(before);
            challenges.remove(&name);
            challenges
        });
    }

    /// For a client whose only protocol is [`ACME_TLS_1`].
    pub fn alpn_challenge(&self, sni: &str) -> Option<Arc<CertifiedKey>> {
        self.challenges.load().get(&normal(sni)).cloned()
    }

    /// For a client that asks for this name, or none, and takes these signatures.
    pub fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let (files, dynamic) = (self.files.load(), self.dynamic.load());
        let name = name.map(normal);
        let of_dynamic = |name: &str| {
            let found = dynamic.iter().find(|(known, _)| known == name);
            found.map(|(_, key)| key.clone())
        };
        let named = name.and_then(|name| {
            let exact = || fitting(files.exact.get(&name), schemes).or_else(|| of_dynamic(&name));
            let wildcard = || {
                let (_, parent) = name.split_once('.').filter(|(label, _)| !label.is_empty())?;
                let wide = || of_dynamic(&format!("*.{parent}"));
                fitting(files.wildcard.get(parent), schemes).or_else(wide)
            };
            let ip = || fitting(files.ip.get(&name.parse().ok()?), schemes);
            exact().or_else(wildcard).or_else(ip)
        });
        let default = || files.first.clone().or_else(|| dynamic.first().map(|(_, key)| key.clone()));
        named.or_else(default)
    }

    /// For a client that asks for no name, which is what it does when it was given an address.
    pub fn find_ip(&self, ip: IpAddr, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        fitting(self.files.load().ip.get(&ip.to_canonical()), schemes)
    }
}

impl ResolvesServerCert for Certs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
    }
}

impl Table {
    fn new(certs: &[Cert]) -> Table {
        let mut table = Table { first: certs.first().map(|cert| cert.key.clone()), ..Table::default() };
        for Cert { key, names } in certs {
            for name in &names.dns {
                let keys = match name.strip_prefix("*.") {
                    Some(parent) => table.wildcard.entry(parent.to_owned()),
                    None => table.exact.entry(name.clone()),
                };
                keys.or_default().push(key.clone());
            }
            for ip in &names.ip {
                table.ip.entry(ip.to_canonical()).or_default().push(key.clone());
            }
        }
        table
    }
}

/// Names are compared without case, and without the dot of the root.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The first whose signatures the client takes; else the first, and the handshake says what is wrong.
fn fitting(keys: Option<&Vec<Arc<CertifiedKey>>>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
    let keys = keys?;
    let fits = keys.iter().find(|key| key.key.choose_scheme(schemes).is_some());
    fits.or(keys.first()).cloned()
}
