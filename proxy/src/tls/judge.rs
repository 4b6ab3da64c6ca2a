//! What is to be said of certificates, keys and authorities before they are used: what stops a start, and what
//! serves all the same, though hardly as it was meant. For `weir check` and the start, so it says it in words and
//! changes nothing.

use super::certs::{Cert, Names, Unusable};
use super::files::{read_certs, read_key};
use rustls::pki_types::CertificateDer;
use std::io::ErrorKind;
use std::time::SystemTime;
use weir_conf::access::exposed;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// Of no matter for a certificate that only a client shows.
pub const NO_NAMES: &str = "the certificate has no alternative names: clients refuse it for any name";

/// Which file of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Cert,
    Key,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub part: Part,
    pub text: String,
    pub weight: Weight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It serves all the same.
    Odd,
    /// There is no such file on this machine, which stops a start; a conf may be checked on another one.
    Missing,
    /// It cannot be used at all.
    Wrong,
}

impl Weight {
    /// Of a file that cannot be used.
    fn of(file: &str) -> Weight {
        let missing = std::fs::metadata(file).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        if missing { Weight::Missing } else { Weight::Wrong }
    }
}

/// Of a certificate with those between it and its authority, and of its key. `others` are the certificates beside
/// which they stand, by what they are called: the key may belong to one of these.
pub fn pair(cert: &str, key: &str, others: &[(String, &str)]) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let mut say = |part, weight, text: String| remarks.push(Remark { part, text, weight });
    let chain = read_certs(cert);
    let secret = read_key(key);
    let swapped = chain.is_err() && secret.is_err() && read_key(cert).is_ok() && read_certs(key).is_ok();
    let hint = if swapped {
        "; the two are swapped: the certificate is where the key should be, and the key where the certificate should be"
    } else {
        ""
    };
    let holds = |file: &str, what: &str| format!("cannot use the file {file:?}: {what}{hint}");
    if let Err(why) = &chain {
        say(Part::Cert, Weight::of(cert), holds(cert, why));
    }
    if let Err(why) = &secret {
        say(Part::Key, Weight::of(key), holds(key, why));
    }
    if let (Ok(chain), Ok(secret)) = (&chain, &secret) {
        match Cert::new(chain.clone(), secret.clone_key()) {
            Ok(_) => {}
            Err(Unusable::Mismatch) => {
                let of = whose(chain, key, others)
                    .map_or_else(String::new, |whose| format!("; it belongs to {whose}"));
                say(
                    Part::Key,
                    Weight::Wrong,
                    format!("cannot use the file {key:?}: {}{of}", Unusable::Mismatch),
                );
            }
            Err(error @ Unusable::Key(_)) => {
                say(Part::Key, Weight::Wrong, format!("cannot use the file {key:?}: {error}"))
            }
            Err(error) => say(Part::Cert, Weight::Wrong, format!("cannot use the file {cert:?}: {error}")),
        }
    }
    for text in chain.iter().flat_map(|chain| of_chain(chain)) {
        say(Part::Cert, Weight::Odd, text);
    }
    let text =
        |file: &str, who| format!("{who} the file {file:?}, and it holds a private key; better: chmod 600");
    if let Some(who) = seen_by(key) {
        say(Part::Key, Weight::Odd, text(key, who));
    }
    // One file may hold both.
    if let Some(who) = seen_by(cert).filter(|_| cert != key) {
        say(Part::Cert, Weight::Odd, text(cert, who));
    }
    remarks
}

/// Who else may read a private key that is in this file; `None`: nobody, or there is none.
fn seen_by(file: &str) -> Option<&'static str> {
    let about = std::fs::metadata(file).ok()?;
    exposed(&about).filter(|_| read_key(file).is_ok())
}

/// Whose key this is, if it is that of a certificate nearby.
fn whose(chain: &[CertificateDer<'static>], key: &str, others: &[(String, &str)]) -> Option<String> {
    let fits = |der: &CertificateDer<'static>| {
        read_key(key).is_ok_and(|key| Cert::new(vec![der.clone()], key).is_ok())
    };
    if let Some(place) = chain.iter().position(fits) {
        return Some(format!("certificate {} of the file, which has to be the first", place + 1));
    }
    let first = |file: &str| read_certs(file).ok().and_then(|chain| chain.into_iter().next());
    others.iter().find(|(_, file)| first(file).as_ref().is_some_and(fits)).map(|(name, _)| name.clone())
}

/// Of the authorities that somebody else's certificates are to come from.
pub fn authorities(file: &str) -> Vec<(String, Weight)> {
    let certs = match read_certs(file) {
        Ok(certs) => certs,
        Err(why) => {
            let hint = if read_key(file).is_ok() { "; it holds a private key" } else { "" };
            return vec![(format!("cannot use the file {file:?}: {why}{hint}"), Weight::of(file))];
        }
    };
    let mut roots = rustls::RootCertStore::empty();
    let unusable = certs.iter().find_map(|cert| roots.add(cert.clone()).err());
    let unusable = unusable.map(|why| (format!("cannot use the file {file:?}: {why}"), Weight::Wrong));
    let out = certs.iter().enumerate().filter_map(|(i, cert)| out_of_time(cert, i, certs.len()));
    let exposed = seen_by(file).map(|who| {
        (
            format!("{who} the file {file:?}, and it holds a private key, which is not needed here"),
            Weight::Odd,
        )
    });
    unusable.into_iter().chain(out.map(|text| (text, Weight::Odd))).chain(exposed).collect()
}

fn of_chain(chain: &[CertificateDer<'static>]) -> Vec<String> {
    let mut said: Vec<String> =
        chain.iter().enumerate().filter_map(|(i, cert)| out_of_time(cert, i, chain.len())).collect();
    let names = chain.first().and_then(|first| Names::of(first).ok());
    if names.is_some_and(|names| names.dns.is_empty() && names.ip.is_empty()) {
        said.push(NO_NAMES.to_owned());
    }
    let parsed: Vec<_> = chain.iter().filter_map(|der| X509Certificate::from_der(der).ok()).collect();
    let unrelated = parsed.windows(2).position(|two| two[0].1.issuer() != two[1].1.subject());
    if let Some(at) = unrelated {
        said.push(format!(
            "the certificates in it are out of order: number {} was not issued by number {}, and some clients take \
             them only one after the other",
            at + 1,
            at + 2
        ));
    }
    said
}

/// What a certificate says of its time, if that is not now.
fn out_of_time(cert: &CertificateDer<'_>, place: usize, of: usize) -> Option<String> {
    let (_, x509) = X509Certificate::from_der(cert).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let now = ASN1Time::from_timestamp(now.as_secs().cast_signed()).ok()?;
    let which =
        if of > 1 { format!("certificate {} of {of}", place + 1) } else { "the certificate".to_owned() };
    let validity = x509.validity();
    if validity.not_after < now {
        Some(format!("{which} has expired ({}): others refuse it", validity.not_after))
    } else if validity.not_before > now {
        Some(format!("{which} is not valid yet (before {}): others refuse it", validity.not_before))
    } else {
        None
    }
}
