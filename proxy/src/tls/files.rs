//! The files of `[proxy.tls]`: read at start and at a reload, and looked at again while they are in use.
//! One that has gone bad leaves in force what it held before.

use super::certs::{Cert, Unusable};
use super::judge;
use crate::error::BindError;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use weir_conf::proxy::tls::{Certificate, Tls};

/// What the files held when they were read last and could be used.
pub struct Files {
    pairs: Vec<Pair>,
    authorities: Option<Authorities>,
}

struct Pair {
    place: usize,
    conf: Certificate,
    cert: Cert,
    look: Look<[Stamp; 2]>,
}

struct Authorities {
    file: String,
    roots: Arc<RootCertStore>,
    look: Look<Stamp>,
}

/// What a look at the files found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub certificates: bool,
    pub authorities: bool,
    pub failures: u64,
}

/// Of a file that is there: another one when it is written, replaced, or given other rights.
type Stamp = Option<[i64; 4]>;

/// Changed files are read once they have stayed the same from one look to the next: a certificate comes
/// before its key, and a file in pieces.
struct Look<S> {
    read: S,
    seen: S,
}

impl<S: PartialEq + Clone> Look<S> {
    fn new(read: S) -> Look<S> {
        Look { seen: read.clone(), read }
    }

    /// Whether to read, which is then said to have been done.
    fn is_due(&mut self, now: S) -> bool {
        let due = now != self.read && now == self.seen;
        if due {
            self.read = now.clone();
        }
        self.seen = now;
        due
    }
}

impl Files {
    pub fn none() -> Files {
        Files { pairs: Vec::new(), authorities: None }
    }

    /// All of them, or what is wrong with one.
    pub fn read(conf: &Tls) -> Result<Files, BindError> {
        let pair = |(place, conf): (usize, &Certificate)| {
            let look = Look::new(stamps(conf));
            Ok(Pair { place, conf: conf.clone(), cert: read_pair(place, conf)?, look })
        };
        let authorities = |file: &String| {
            let look = Look::new(stamp(file));
            Ok(Authorities { file: file.clone(), roots: Arc::new(read_roots(file)?), look })
        };
        let file = Some(&conf.client_ca).filter(|file| !file.is_empty());
        Ok(Files {
            pairs: conf.certificates.iter().enumerate().map(pair).collect::<Result<_, _>>()?,
            authorities: file.map(authorities).transpose()?,
        })
    }

    pub fn certs(&self) -> Vec<Cert> {
        self.pairs.iter().map(|pair| pair.cert.clone()).collect()
    }

    /// Whose clients are believed. `None`: nobody's.
    pub fn roots(&self) -> Option<Arc<RootCertStore>> {
        self.authorities.as_ref().map(|authorities| authorities.roots.clone())
    }

    /// Reads what has changed.
    pub fn look(&mut self) -> Changed {
        let mut changed = Changed::default();
        for pair in &mut self.pairs {
            if !pair.look.is_due(stamps(&pair.conf)) {
                continue;
            }
            match read_pair(pair.place, &pair.conf) {
                Ok(cert) => {
                    tracing::info!(
                        file = pair.conf.cert,
                        name = cert.names.first(),
                        "a certificate has changed and is in use"
                    );
                    warn(&pair.conf);
                    pair.cert = cert;
                    changed.certificates = true;
                }
                Err(error) => changed.failed(&error),
            }
        }
        if let Some(authorities) = &mut self.authorities
            && authorities.look.is_due(stamp(&authorities.file))
        {
            match read_roots(&authorities.file) {
                Ok(roots) => {
                    tracing::info!(
                        file = authorities.file,
                        "the authorities of clients have changed and count"
                    );
                    authorities.roots = Arc::new(roots);
                    changed.authorities = true;
                }
                Err(error) => changed.failed(&error),
            }
        }
        changed
    }
}

impl Changed {
    fn failed(&mut self, error: &BindError) {
        tracing::error!(%error, "a file has changed; what it held before stays in use");
        self.failures += 1;
    }
}

fn stamp(file: &str) -> Stamp {
    let of = std::fs::metadata(file).ok()?;
    Some([of.ino().cast_signed(), of.size().cast_signed(), of.mtime(), of.mtime_nsec()])
}

fn stamps(conf: &Certificate) -> [Stamp; 2] {
    [stamp(&conf.cert), stamp(&conf.key)]
}

fn read_pair(place: usize, conf: &Certificate) -> Result<Cert, BindError> {
    let wrong = |key: &str, file: &str, why: String| BindError::TlsFile {
        key: format!("certificates[{place}].{key}"),
        file: file.to_owned(),
        why,
    };
    let chain = read_certs(&conf.cert).map_err(|why| wrong("cert", &conf.cert, why))?;
    let key = read_key(&conf.key).map_err(|why| wrong("key", &conf.key, why))?;
    let cert = Cert::new(chain, key).map_err(|error| match &error {
        Unusable::Mismatch | Unusable::Key(_) => wrong("key", &conf.key, error.to_string()),
        Unusable::Empty | Unusable::Malformed(_) => wrong("cert", &conf.cert, error.to_string()),
    })?;
    Ok(cert)
}

pub fn read_key(file: &str) -> Result<PrivateKeyDer<'static>, String> {
    let none = "there is no private key in it; an encrypted one cannot be used";
    PrivateKeyDer::from_pem_file(file).map_err(|error| told(&error, none))
}

fn read_roots(file: &str) -> Result<RootCertStore, BindError> {
    let wrong = |why| BindError::TlsFile { key: "client_ca".to_owned(), file: file.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for cert in read_certs(file).map_err(wrong)? {
        roots.add(cert).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(roots)
}

pub fn read_certs(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let none = "there is no certificate in it";
    let certs = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certs = certs.map_err(|error| told(&error, none))?;
    if certs.is_empty() { Err(none.to_owned()) } else { Ok(certs) }
}

fn told(error: &pem::Error, none: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => none.to_owned(),
        error => format!("it is no sound PEM: {error}"),
    }
}

/// What serves all the same, though hardly as it was meant. At a start and a reload `weir check` says it, too.
fn warn(conf: &Certificate) {
    for remark in judge::pair(&conf.cert, &conf.key, &[]) {
        tracing::warn!(cert = conf.cert, key = conf.key, "{}", remark.text);
    }
}
