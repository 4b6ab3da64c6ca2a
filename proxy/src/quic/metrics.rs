//! The metric families of QUIC, under `weir_proxy_quic_`.

use crate::metrics::Outcome;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Default)]
pub struct Metrics {
    /// Under way. It is also the figure that limits.
    pub handshakes: Gauge,
    pub connections: Gauge,
    incoming: Family<Outcome, Counter>,
    ended: Family<Outcome, Counter>,
    migrations: Family<Outcome, Counter>,
    forwarded: Family<Outcome, Counter>,
    pub packets_sent: Counter,
    pub packets_lost: Counter,
}

impl Metrics {
    pub fn register(&self, r: &mut Registry) {
        let r = r.sub_registry_with_prefix("quic");
        r.register("handshakes_open", "QUIC handshakes under way", self.handshakes.clone());
        r.register("connections", "Open QUIC connections", self.connections.clone());
        r.register(
            "incoming",
            "First packets of clients: accepted, retry (asked to come again with a token), ignored, refused \
             (both: too many handshakes), denied (a list or a limit), broken, closing",
            self.incoming.clone(),
        );
        r.register(
            "handshakes",
            "QUIC handshakes by outcome: done, failed, timeout, denied",
            self.ended.clone(),
        );
        r.register(
            "migrations",
            "Connections that went on from another address: seen; and of those with another IP, followed (its \
             count has them), denied (closed)",
            self.migrations.clone(),
        );
        r.register(
            "forwarded",
            "Packets for a predecessor that drains: sent, dropped (it does not keep up); and stray: the \
             successor's, read in the moment of the hand-over",
            self.forwarded.clone(),
        );
        r.register("packets_sent", "Packets sent on connections that have ended", self.packets_sent.clone());
        r.register("packets_lost", "Of those, packets taken for lost", self.packets_lost.clone());
    }

    pub fn incoming(&self, outcome: &'static str) {
        self.incoming.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn handshake(&self, outcome: &'static str) {
        self.ended.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn migration(&self, outcome: &'static str) {
        self.migrations.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn forwarded(&self, outcome: &'static str, packets: usize) {
        self.forwarded.get_or_create(&Outcome { outcome }).inc_by(packets as u64);
    }

    #[cfg(test)]
    pub fn count(&self, family: &str, outcome: &'static str) -> u64 {
        let families = [
            ("incoming", &self.incoming),
            ("handshakes", &self.ended),
            ("migrations", &self.migrations),
            ("forwarded", &self.forwarded),
        ];
        let (_, family) = families.into_iter().find(|(name, _)| *name == family).unwrap();
        family.get_or_create(&Outcome { outcome }).get()
    }
}
