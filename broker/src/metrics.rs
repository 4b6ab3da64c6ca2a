//! Metric families of the broker, prefix `weir_broker_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Cause {
    pub cause: &'static str,
}

#[derive(Clone, Default)]
pub struct Metrics {
    pub publications: Counter,
    pub bytes_in: Counter,
    pub deliveries: Counter,
    pub bytes_out: Counter,
    pub evicted: Counter,
    pub streams_evicted: Counter,
    pub control_dropped: Counter,
    pub router_rebuilds: Counter,
    pub nodes: Gauge,
    pub channels: Gauge,
    pub interest: Gauge,
    pub streams: Gauge,
    pub history_bytes: Gauge,
    pub key_bytes: Gauge,
    /// Calls that were not taken since a limit was reached, by its key.
    refused: Family<Cause, Counter>,
    /// Links from nodes that ended, or never came to be, by cause.
    pub links_refused: Family<Cause, Counter>,
    drops: Family<Cause, Counter>,
    resyncs: Family<Cause, Counter>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Metrics {
        let m = Metrics::default();
        let registry = registry.sub_registry_with_prefix("weir_broker");
        registry.register("publications", "Publications taken", m.publications.clone());
        registry.register("publication_bytes", "Bytes of data in publications taken", m.bytes_in.clone());
        registry.register("deliveries", "Deliveries handed to nodes", m.deliveries.clone());
        registry.register("delivery_bytes", "Bytes of deliveries handed to nodes", m.bytes_out.clone());
        registry.register("evicted", "Publications dropped by broker.history_memory", m.evicted.clone());
        let help = "Idle streams that ended before their time, by broker.max_channels";
        registry.register("streams_evicted", help, m.streams_evicted.clone());
        registry.register("control_dropped", "Control frames that found no room", m.control_dropped.clone());
        registry.register("router_rebuilds", "Routers built anew after one ended", m.router_rebuilds.clone());
        registry.register("nodes", "Attached nodes", m.nodes.clone());
        registry.register("channels", "Channels known", m.channels.clone());
        registry.register("interest", "Channels that nodes or other brokers want", m.interest.clone());
        registry.register("streams", "Streams kept, of channels with history", m.streams.clone());
        registry.register("history_bytes", "Memory of history", m.history_bytes.clone());
        registry.register("key_bytes", "Of that, idempotency keys", m.key_bytes.clone());
        registry.register("refused", "Calls refused over a limit, by its key", m.refused.clone());
        registry.register("links_refused", "Links refused or cut, by cause", m.links_refused.clone());
        registry.register("dropped", "Deliveries dropped before a resync, by cause", m.drops.clone());
        registry.register("resyncs", "Nodes that had to be resynced, by cause", m.resyncs.clone());
        m
    }

    pub fn refused(&self, cause: &'static str) {
        self.refused.get_or_create(&Cause { cause }).inc();
    }

    pub fn dropped(&self, cause: &'static str) {
        self.drops.get_or_create(&Cause { cause }).inc();
    }

    pub fn resync(&self, cause: &'static str) {
        self.resyncs.get_or_create(&Cause { cause }).inc();
    }
}
