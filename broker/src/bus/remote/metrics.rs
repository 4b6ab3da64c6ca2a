//! Metric families of a node's link to its broker, prefix `weir_bus_`.

use crate::bus::BusError;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weir_wire::peer::{Op, Outcome};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    op: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Default)]
pub struct Metrics {
    pub up: Gauge,
    pub links: Counter,
    pub queue_refusals: Counter,
    pub resyncs: Counter,
    pub events_dropped: Counter,
    failures: Family<CauseLabel, Counter>,
    calls: Family<CallLabels, Counter>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Metrics {
        let m = Metrics::default();
        let registry = registry.sub_registry_with_prefix("weir_bus");
        registry.register("link_up", "Whether there is a link to a broker", m.up.clone());
        registry.register("links", "Links established, the first one included", m.links.clone());
        registry.register("link_failures", "Links lost or not established, by cause", m.failures.clone());
        registry.register("calls", "Calls to the broker", m.calls.clone());
        registry.register("queue_refusals", "Calls refused by a full queue", m.queue_refusals.clone());
        registry.register("resyncs", "Resyncs received", m.resyncs.clone());
        registry.register(
            "events_dropped",
            "Commands and surveys dropped by a full inbox",
            m.events_dropped.clone(),
        );
        m
    }

    pub fn failure(&self, cause: &'static str) {
        self.failures.get_or_create(&CauseLabel { cause }).inc();
    }

    pub fn call(&self, op: &'static str, result: &Result<Outcome, BusError>) {
        let outcome = match result {
            Ok(_) => "ok",
            Err(BusError::Unavailable(_)) => "unavailable",
            Err(BusError::Limit(_)) => "limit",
            Err(BusError::Refused(_)) => "refused",
        };
        self.calls.get_or_create(&CallLabels { op, outcome }).inc();
    }
}

pub fn name(op: &Op) -> &'static str {
    match op {
        Op::Publish(_) => "publish",
        Op::Subscribe { .. } => "subscribe",
        Op::Unsubscribe { .. } => "unsubscribe",
        Op::History { .. } => "history",
        Op::HistoryRemove { .. } => "history_remove",
        Op::Join { .. } => "join",
        Op::Leave { .. } => "leave",
        Op::Presence { .. } => "presence",
        Op::PresenceStats { .. } => "presence_stats",
        Op::Control(_) => "control",
        Op::Survey(_) => "survey",
        Op::Answer { .. } => "answer",
    }
}
