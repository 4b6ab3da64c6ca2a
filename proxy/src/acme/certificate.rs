//! A certificate with its key, as it stands in the store: PEM, the key first. One file, so that the two can
//! never be of different age.

use super::policy::Validity;
use crate::tls::certs::{Cert, Names};
use instant_acme::CertificateIdentifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, Der, PrivateKeyDer};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

/// One that ends sooner is none: it would be renewed without a pause.
const SHORTEST: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert: Cert,
    pub validity: Validity,
    /// What its authority calls it (RFC 9773), if it can be asked about it.
    pub id: Option<CertificateIdentifier<'static>>,
}

impl Certificate {
    /// For these names, and in force now; else why not.
    pub fn read(pem: &[u8], names: &[String], now: SystemTime) -> Result<Certificate, String> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("no key: {error}"))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|error| format!("no certificates: {error}"))?;
        let id = chain.first().and_then(identifier);
        let cert = Cert::new(chain, key).map_err(|error| error.to_string())?;
        if let Some(missing) = names.iter().find(|name| !cert.names.dns.contains(name)) {
            return Err(format!("it is not for {missing}"));
        }
        let validity = validity(&cert.names).ok_or("it has no sound dates")?;
        if validity.left(now) < SHORTEST {
            return Err("it has ended".to_owned());
        }
        Ok(Certificate { cert, validity, id })
    }

    pub fn is(&self, other: &Certificate) -> bool {
        self.cert.key.cert.first() == other.cert.key.cert.first()
    }
}

fn validity(names: &Names) -> Option<Validity> {
    let time =
        |seconds: i64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?));
    Some(Validity { from: time(names.not_before)?, until: time(names.not_after)? })
}

fn identifier(der: &CertificateDer<'static>) -> Option<CertificateIdentifier<'static>> {
    let (_, x509) = X509Certificate::from_der(der).ok()?;
    let authority = x509.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
        _ => None,
    })?;
    let id = CertificateIdentifier::new(
        Der::from_slice(authority.0),
        Der::from_slice(x509.tbs_certificate.raw_serial()),
    );
    Some(id.into_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// Signed by its own key.
    pub fn pem(names: &[&str], from: SystemTime, until: SystemTime) -> String {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (from.into(), until.into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_is_whole_in_force_and_for_the_names_is_taken() {
        let now = SystemTime::now();
        let good = pem(&["a.example", "b.example"], now - DAY, now + DAY);
        let read = |text: &str, of: &[&str]| Certificate::read(text.as_bytes(), &names(of), now);
        let found = read(&good, &["b.example", "a.example"]).unwrap();
        assert_eq!(found.validity.left(now).as_secs().div_ceil(3600), 24);
        assert!(found.is(&found.clone()));
        assert!(!found.is(&read(&pem(&["a.example"], now - DAY, now + DAY), &["a.example"]).unwrap()));
        let why = |text: &str, of: &[&str]| read(text, of).unwrap_err();
        assert_eq!(why(&good, &["a.example", "c.example"]), "it is not for c.example");
        assert_eq!(why(&pem(&["a.example"], now - DAY * 2, now - DAY), &["a.example"]), "it has ended");
        let other = pem(&["a.example"], now - DAY, now + DAY);
        let certificate = other.find("-----BEGIN CERTIFICATE").unwrap();
        let key = good.find("-----BEGIN CERTIFICATE").unwrap();
        let mixed = format!("{}{}", &good[..key], &other[certificate..]);
        assert_eq!(why(&mixed, &["a.example"]), "the key does not belong to the certificate");
    }

    #[test]
    fn a_torn_file_is_no_certificate() {
        let now = SystemTime::now();
        let good = pem(&["a.example"], now - DAY, now + DAY);
        let last = good.trim_end().len();
        for length in 0..last {
            let read = Certificate::read(&good.as_bytes()[..length], &names(&["a.example"]), now);
            assert!(read.is_err(), "{length} of {last} bytes");
        }
    }
}
