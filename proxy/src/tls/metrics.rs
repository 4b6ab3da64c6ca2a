//! The figures of TLS towards clients: handshakes by outcome, and how long certificates last.

use super::certs::Names;
use crate::metrics::Outcome;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weir_core::sync::lock;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Certificate {
    /// The first name in it: there are as many as the conf has certificates.
    pub certificate: String,
}

#[derive(Clone)]
pub struct TlsMetrics {
    handshakes: Family<Outcome, Counter>,
    seconds: Histogram,
    resumed: Counter,
    pub reload_failures: Counter,
    not_after: Family<Certificate, Gauge>,
    /// Certificates of files that are in `not_after`.
    of_files: Arc<Mutex<BTreeMap<String, i64>>>,
}

impl Default for TlsMetrics {
    fn default() -> TlsMetrics {
        // From a resumption next door to a phone that lost a packet or two.
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        TlsMetrics {
            handshakes: Family::default(),
            seconds: Histogram::new(buckets),
            resumed: Counter::default(),
            reload_failures: Counter::default(),
            not_after: Family::default(),
            of_files: Arc::default(),
        }
    }
}

impl TlsMetrics {
    pub fn register(&self, r: &mut Registry) {
        r.register(
            "tls_handshakes",
            "TLS handshakes over TCP, by outcome: accepted, or what was wrong",
            self.handshakes.clone(),
        );
        r.register(
            "tls_handshake_seconds",
            "Accepted TLS handshakes, from the first byte to the last",
            self.seconds.clone(),
        );
        r.register("tls_resumed", "Accepted TLS handshakes that resumed a session", self.resumed.clone());
        r.register(
            "tls_reload_failures",
            "Files of certificates that changed and cannot be used; the earlier ones are",
            self.reload_failures.clone(),
        );
        r.register(
            "tls_certificate_not_after_seconds",
            "When a certificate ends, in seconds since 1970, by the first name in it",
            self.not_after.clone(),
        );
    }

    pub fn accepted(&self, took: Duration, resumed: bool) {
        self.handshake("accepted");
        self.seconds.observe(took.as_secs_f64());
        if resumed {
            self.resumed.inc();
        }
    }

    pub fn handshake(&self, outcome: &'static str) {
        self.handshakes.get_or_create(&Outcome { outcome }).inc();
    }

    /// The end of a certificate that comes from no file; its name must be one of the conf's.
    pub fn not_after(&self, name: &str, seconds: i64) {
        self.not_after.get_or_create(&Certificate { certificate: name.to_owned() }).set(seconds);
    }

    /// It is shown to nobody any more.
    pub fn gone(&self, name: &str) {
        self.not_after.remove(&Certificate { certificate: name.to_owned() });
    }

    /// All certificates of files. Where several have one name, what ends first is told.
    pub fn set_files<'a>(&self, certs: impl Iterator<Item = &'a Names>) {
        let mut now = BTreeMap::new();
        for names in certs {
            let end = now.entry(names.first()).or_insert(names.not_after);
            *end = names.not_after.min(*end);
        }
        let mut before = lock(&self.of_files);
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            self.not_after.remove(&Certificate { certificate: name.clone() });
        }
        now.iter().for_each(|(name, end)| self.not_after(name, *end));
        *before = now;
    }
}

#[cfg(test)]
impl TlsMetrics {
    pub fn count(&self, outcome: &'static str) -> u64 {
        self.handshakes.get_or_create(&Outcome { outcome }).get()
    }

    pub fn resumed(&self) -> u64 {
        self.resumed.get()
    }
}
