//! Metric families of a broker in a cluster, prefix `weir_broker_cluster_`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Default)]
pub struct Metrics {
    pub forwards: Counter,
    pub forward_retries: Counter,
    pub forwards_refused: Counter,
    pub lives: Counter,
    pub resyncs: Counter,
    pub stale: Counter,
    pub asks_dropped: Counter,
    pub broken: Counter,
    pub lease: Gauge,
    pub members: Gauge,
    pub held: Gauge,
    pub owned: Gauge,
    pub serving: Gauge,
    pub lagging: Gauge,
    pub max_lag: Gauge,
    pub without_owner: Gauge,
    pub short_of_copies: Gauge,
    pub disk_waiting: Gauge,
    pub disk_ok: Gauge,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Metrics {
        let m = Metrics::default();
        let registry = registry.sub_registry_with_prefix("weir_broker_cluster");
        let mut counter = |name: &str, help: &str, c: &Counter| registry.register(name, help, c.clone());
        counter("forwards", "Calls passed on to the owner of their shard", &m.forwards);
        counter("forward_retries", "Attempts after the first to reach an owner", &m.forward_retries);
        counter("forwards_refused", "Calls refused since too many wait for an owner", &m.forwards_refused);
        counter(
            "live_publications",
            "Publications without a place, where no owner could be reached",
            &m.lives,
        );
        counter("resyncs", "Shards whose positions were asked of their owner", &m.resyncs);
        counter("stale_deliveries", "Deliveries of owners of before, dropped", &m.stale);
        counter(
            "asks_dropped",
            "Changes of shards that found no room on their way to the group",
            &m.asks_dropped,
        );
        counter("broken_copies", "Copies of shards that cannot go on", &m.broken);
        let mut gauge = |name: &str, help: &str, g: &Gauge| registry.register(name, help, g.clone());
        gauge("lease", "1 while this broker has its lease", &m.lease);
        gauge("members", "Brokers in the cluster, as this one knows it", &m.members);
        gauge("shards_held", "Shards of which this broker has a copy", &m.held);
        gauge("shards_owned", "Shards that this broker owns", &m.owned);
        gauge("shards_serving", "Shards that this broker serves", &m.serving);
        gauge("shards_lagging", "Shards owned here of which a holder lacks entries", &m.lagging);
        gauge("max_lag_entries", "The most entries that a holder of a shard owned here lacks", &m.max_lag);
        gauge("shards_without_owner", "Shards of the cluster that nobody owns", &m.without_owner);
        gauge("shards_short_of_copies", "Shards of the cluster with too few copies", &m.short_of_copies);
        gauge("disk_waiting_bytes", "Bytes that wait for broker.data_dir", &m.disk_waiting);
        gauge("disk_ok", "1 while broker.data_dir can be written, or is not used", &m.disk_ok);
        m
    }
}
