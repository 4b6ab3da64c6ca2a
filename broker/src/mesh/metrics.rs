//! Metric families of the mesh, prefix `weir_broker_mesh_`.

use crate::metrics::Cause;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use weir_wire::mesh::Lane;

const RTT_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InLane {
    lane: &'static str,
}

/// One for each lane, without a look-up by label for each message.
type PerLane = [Counter; Lane::ALL.len()];

pub struct Metrics {
    pub links: Gauge,
    pub link_ups: Counter,
    link_ends: Family<Cause, Counter>,
    refused: Family<Cause, Counter>,
    pub dial_failures: Family<Cause, Counter>,
    sent: PerLane,
    received: PerLane,
    dropped: PerLane,
    sent_bytes: Counter,
    pub received_bytes: Counter,
    pub resyncs: Counter,
    pub trouble: Counter,
    pub rtt: Histogram,
}

fn per_lane(registry: &mut Registry, name: &str, help: &str) -> PerLane {
    let family = Family::<InLane, Counter>::default();
    registry.register(name, help, family.clone());
    Lane::ALL.map(|lane| family.get_or_create_owned(&InLane { lane: lane.name() }))
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Metrics {
        let registry = registry.sub_registry_with_prefix("weir_broker_mesh");
        let m = Metrics {
            links: Gauge::default(),
            link_ups: Counter::default(),
            link_ends: Family::default(),
            refused: Family::default(),
            dial_failures: Family::default(),
            sent: per_lane(registry, "sent", "Messages written to other brokers, by lane"),
            received: per_lane(registry, "received", "Messages from other brokers, by lane"),
            dropped: per_lane(registry, "dropped", "Messages that found no room, by lane"),
            sent_bytes: Counter::default(),
            received_bytes: Counter::default(),
            resyncs: Counter::default(),
            trouble: Counter::default(),
            rtt: Histogram::new(RTT_BUCKETS),
        };
        registry.register("links", "Links to other brokers that are up", m.links.clone());
        registry.register("link_ups", "Links to other brokers that came to be", m.link_ups.clone());
        registry.register("link_ends", "Links to other brokers that ended, by cause", m.link_ends.clone());
        registry.register("refused", "Brokers whose connections were refused, by cause", m.refused.clone());
        registry.register(
            "dial_failures",
            "Attempts to reach a broker that failed, by cause",
            m.dial_failures.clone(),
        );
        registry.register("sent_bytes", "Bytes written to other brokers", m.sent_bytes.clone());
        registry.register("received_bytes", "Bytes from other brokers", m.received_bytes.clone());
        registry.register("resyncs", "Resyncs in place of deliveries", m.resyncs.clone());
        registry.register("trouble", "Times that replica messages had to be sent again", m.trouble.clone());
        registry.register("rtt_seconds", "Way to another broker and back", m.rtt.clone());
        m
    }

    pub fn sent(&self, written: &[u64; Lane::ALL.len()], bytes: usize) {
        for (counter, n) in self.sent.iter().zip(written).filter(|(_, n)| **n > 0) {
            counter.inc_by(*n);
        }
        self.sent_bytes.inc_by(bytes as u64);
    }

    pub fn received(&self, lane: Lane) {
        self.received[lane as usize].inc();
    }

    pub fn dropped(&self, lane: Lane) {
        self.dropped[lane as usize].inc();
    }

    pub fn refused(&self, cause: &'static str) {
        self.refused.get_or_create(&Cause { cause }).inc();
    }

    pub fn link_ended(&self, cause: &'static str) {
        self.link_ends.get_or_create(&Cause { cause }).inc();
    }

    #[cfg(test)]
    pub fn refusals(&self, cause: &'static str) -> u64 {
        self.refused.get_or_create(&Cause { cause }).get()
    }
}
