//! Authorities made for a test, and certificates of theirs in files.

#![allow(dead_code)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What one process is given; gone with this.
pub struct Files(TempDir);

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// For whoever listens on loopback.
    pub fn files(&self) -> Files {
        self.files_for("127.0.0.1")
    }

    pub fn files_for(&self, host: &str) -> Files {
        self.written(CertificateParams::new(vec![host.to_owned()]).unwrap())
    }

    pub fn expired(&self) -> Files {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.written(params)
    }

    fn written(&self, params: CertificateParams) -> Files {
        let (files, key) = (Files(TempDir::new().unwrap()), KeyPair::generate().unwrap());
        let cert = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(files.cert(), cert.pem()).unwrap();
        std::fs::write(files.key(), key.serialize_pem()).unwrap();
        files.trust(self)
    }
}

impl Files {
    pub fn cert(&self) -> String {
        self.path("cert.pem")
    }

    pub fn key(&self) -> String {
        self.path("key.pem")
    }

    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Believes this authority, wherever its own certificate is from.
    pub fn trust(self, authority: &Authority) -> Files {
        std::fs::write(self.ca(), authority.0.pem()).unwrap();
        self
    }

    /// As a renewal does: each file is replaced as a whole.
    pub fn replace(&self, by: &Files) {
        for name in ["cert.pem", "key.pem", "ca.pem"] {
            self.replace_one(name, by);
        }
    }

    pub fn replace_one(&self, name: &str, by: &Files) {
        std::fs::copy(by.path(name), self.path("new")).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    pub fn set_broker(&self, conf: &mut weir_conf::broker::Broker) {
        (conf.tls_cert, conf.tls_key, conf.tls_ca) = (self.cert(), self.key(), self.ca());
    }

    pub fn set_node(&self, conf: &mut weir_conf::node::Node) {
        (conf.broker_tls_cert, conf.broker_tls_key, conf.broker_tls_ca) =
            (self.cert(), self.key(), self.ca());
    }
}
