//! An authority, what it signs, and both ends of a handshake.

use crate::tls::Tls;
use crate::tls::accept::{Arrived, Cause};
use crate::tls::certs::Cert;
use crate::tls::config::Speaks;
use crate::tls::metrics::TlsMetrics;
use bytes::BytesMut;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, SignatureAlgorithm,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as Client;
use tokio_rustls::server::TlsStream as Server;
use weir_conf::proxy::tls::{Certificate, ClientCerts};

pub const LIMIT: Duration = Duration::from_secs(10);
pub const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub der: CertificateDer<'static>,
    pub pem: String,
}

/// A certificate and its key, in PEM and as rustls takes them.
pub struct Pair {
    pub cert: String,
    pub key: String,
    pub chain: Vec<CertificateDer<'static>>,
    pub private: PrivateKeyDer<'static>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Testing");
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Authority { der: cert.der().clone(), pem: cert.pem(), issuer: Issuer::new(params, key) }
    }

    pub fn sign(&self, names: &[&str]) -> Pair {
        self.sign_as(names, &PKCS_ECDSA_P256_SHA256, |_| {})
    }

    pub fn sign_as(
        &self,
        names: &[&str],
        kind: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate_for(kind).unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
            chain: vec![cert.der().clone()],
            private: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        roots
    }

    /// A client that believes this authority.
    pub fn client(&self) -> ClientConfig {
        self.client_of(&[&rustls::version::TLS13, &rustls::version::TLS12], None)
    }

    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        shows: Option<&Pair>,
    ) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(self.roots());
        let mut client = match shows {
            Some(pair) => {
                builder.with_client_auth_cert(pair.chain.clone(), pair.private.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        client
    }
}

impl Pair {
    pub fn cert(&self) -> Cert {
        Cert::new(self.chain.clone(), self.private.clone_key()).unwrap()
    }

    /// Writes both files; `name` is without its ending.
    pub fn put(&self, folder: &Path, name: &str) -> Certificate {
        let at = |end: &str| folder.join(format!("{name}.{end}")).to_str().unwrap().to_owned();
        let conf = Certificate { cert: at("pem"), key: at("key") };
        replace(conf.cert.as_ref(), &self.cert);
        replace(conf.key.as_ref(), &self.key);
        conf
    }
}

/// As those do it who renew certificates: the file is another one, whatever the clock's resolution.
pub fn replace(file: &Path, text: &str) {
    let next: PathBuf = file.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, file).unwrap();
}

/// A server, and where its files are.
pub struct Site {
    pub folder: TempDir,
    pub conf: weir_conf::proxy::tls::Tls,
    pub metrics: TlsMetrics,
    pub tls: Arc<Tls>,
}

impl Site {
    /// In force is what the conf says after `change`.
    pub fn new(change: impl FnOnce(&mut weir_conf::proxy::tls::Tls, &Path)) -> Site {
        let (folder, mut conf) = (tempfile::tempdir().unwrap(), crate::testing::conf().tls);
        change(&mut conf, folder.path());
        let metrics = TlsMetrics::default();
        let tls = Tls::new(&conf, &metrics).unwrap();
        let site = Site { folder, conf, metrics, tls };
        site.reload();
        site
    }

    /// Showing one certificate.
    pub fn showing(pair: &Pair) -> Site {
        Site::new(|conf, folder| conf.certificates = vec![pair.put(folder, "site")])
    }

    pub fn reload(&self) {
        self.tls.enforce(self.tls.load(&self.conf).unwrap());
    }

    pub async fn shake(&self, client: &Arc<ClientConfig>, name: &str) -> Shaken {
        self.shake_as(client, name, SPEAKS).await
    }

    pub async fn shake_as(&self, client: &Arc<ClientConfig>, name: &str, speaks: Speaks) -> Shaken {
        let (theirs, ours) = tokio::io::duplex(64 << 10);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(client.clone());
        let arrived = Arrived { stream: ours, ahead: BytesMut::new(), local: LOCAL, speaks };
        let (client, server) = tokio::join!(connector.connect(name, theirs), self.tls.accept(arrived, LIMIT));
        Shaken { client, server }
    }
}

pub const SPEAKS: Speaks = Speaks { http2: true, http3: false, client_certs: ClientCerts::Off };

pub struct Shaken {
    pub client: io::Result<Client<DuplexStream>>,
    pub server: Result<Server<DuplexStream>, Cause>,
}

impl Shaken {
    /// What the client was shown.
    pub fn shown(&self) -> &CertificateDer<'static> {
        let client = self.client.as_ref().unwrap();
        &client.get_ref().1.peer_certificates().unwrap()[0]
    }

    pub fn cause(&self) -> Cause {
        *self.server.as_ref().unwrap_err()
    }
}

pub fn speaks(client_certs: ClientCerts) -> Speaks {
    Speaks { client_certs, ..SPEAKS }
}
