//! TLS towards clients, by rustls over ring: certificates, what each kind of listener speaks, handshakes.
//!
//! One [`Tls`] lives as long as the proxy. A conf is read into a [`Loaded`], which changes nothing, and put in
//! force as a whole; a changed file is put in force by itself.

pub mod accept;
pub mod certs;
pub mod clients;
pub mod config;
pub mod files;
pub mod judge;
pub mod metrics;
pub mod redirect;
pub mod self_signed;
pub mod subject;

use crate::answer;
use crate::error::BindError;
use arc_swap::ArcSwap;
use bytes::Bytes;
use certs::Certs;
use config::{Configs, Parts, Sessions, Speaks};
use files::Files;
use metrics::TlsMetrics;
use quinn::crypto::rustls::QuicServerConfig;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weir_conf::proxy::tls::ClientCerts;
use weir_core::sync::lock;

/// How often files are looked at.
pub const LOOK: Duration = Duration::from_secs(2);

pub struct Tls {
    pub certs: Arc<Certs>,
    pub metrics: TlsMetrics,
    configs: ArcSwap<Configs>,
    sessions: Sessions,
    used: Mutex<Used>,
    /// Of the first listener with TLS; 0: there is none.
    port: AtomicU16,
}

/// What is in force was made of this.
struct Used {
    conf: weir_conf::proxy::tls::Tls,
    files: Files,
}

/// A conf whose files are sound, to be put in force.
pub struct Loaded {
    used: Used,
    configs: Configs,
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Tls(Speaks),
}

impl Tls {
    /// As it is with nothing to be shown.
    pub fn new(conf: &weir_conf::proxy::tls::Tls, metrics: &TlsMetrics) -> Result<Arc<Tls>, BindError> {
        let (certs, sessions) = (Arc::new(Certs::new()), Sessions::new()?);
        let configs = Configs::build(&Parts { conf, certs: &certs, sessions: &sessions, roots: None })?;
        Ok(Arc::new(Tls {
            certs,
            metrics: metrics.clone(),
            configs: ArcSwap::from_pointee(configs),
            sessions,
            used: Mutex::new(Used { conf: conf.clone(), files: Files::none() }),
            port: AtomicU16::new(0),
        }))
    }

    /// Reads every file of this conf, or says which one cannot be used. Changes nothing. Blocks.
    pub fn load(&self, conf: &weir_conf::proxy::tls::Tls) -> Result<Loaded, BindError> {
        let files = Files::read(conf)?;
        let configs = self.configs(conf, &files)?;
        Ok(Loaded { used: Used { conf: conf.clone(), files }, configs })
    }

    /// From the next handshake on; open connections keep what they have.
    pub fn enforce(&self, loaded: Loaded) {
        let mut used = lock(&self.used);
        *used = loaded.used;
        self.show(&used.files);
        self.configs.store(Arc::new(loaded.configs));
    }

    /// Whether a file has changed; if so it is read and put in force. Blocks.
    pub fn look(&self) {
        let mut used = lock(&self.used);
        let changed = used.files.look();
        self.metrics.reload_failures.inc_by(changed.failures);
        if changed.certificates {
            self.show(&used.files);
        }
        if changed.authorities {
            match self.configs(&used.conf, &used.files) {
                Ok(configs) => self.configs.store(Arc::new(configs)),
                Err(error) => {
                    self.metrics.reload_failures.inc();
                    tracing::error!(%error, "the authorities of clients stay as they were");
                }
            }
        }
    }

    /// Of the first listener with TLS, where others send their clients.
    pub fn port(&self) -> Option<u16> {
        Some(self.port.load(Relaxed)).filter(|port| *port != 0)
    }

    pub fn set_port(&self, port: Option<u16>) {
        self.port.store(port.unwrap_or(0), Relaxed);
    }

    /// Of connections over QUIC, from now on: ask for it with each connection (`Incoming::accept_with`).
    /// `early`: clients may send with their first packet, which can be replayed by whoever sees it; ignored
    /// where they are asked for certificates.
    pub fn quic(&self, client_certs: ClientCerts, early: bool) -> Arc<QuicServerConfig> {
        self.configs.load().quic(client_certs, early).clone()
    }

    fn configs(&self, conf: &weir_conf::proxy::tls::Tls, files: &Files) -> Result<Configs, BindError> {
        let (certs, sessions) = (&self.certs, &self.sessions);
        Configs::build(&Parts { conf, certs, sessions, roots: files.roots() })
    }

    fn show(&self, files: &Files) {
        let certs = files.certs();
        self.certs.set_files(&certs);
        self.metrics.set_files(certs.iter().map(|cert| &cert.names));
    }
}

/// As nginx says it.
fn answer_plain() -> http::Response<Bytes> {
    let text = Bytes::from_static(b"400 The plain HTTP request was sent to HTTPS port\n");
    answer::response(400, None).map(|_| text)
}

#[cfg(test)]
mod tests;
