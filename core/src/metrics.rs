//! Metrics: each tier registers its own families with a [`Registry`] at bind; here are those of
//! the process and the text that Prometheus reads.

use crate::process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::time::{SystemTime, UNIX_EPOCH};

pub use prometheus_client::registry::Registry;

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry that already has the process's families, under the names that the Prometheus
/// client libraries agree on.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    registry.register_collector(Box::new(ProcessCollector { started }));
    registry
}

/// All families as OpenMetrics text.
pub fn render(registry: &Registry) -> String {
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a String fails only if an encoder gives up; what was written before still stands.
    if text::encode(&mut out, registry).is_err() {
        tracing::warn!("a metric could not be encoded");
    }
    out
}

#[derive(Debug)]
struct ProcessCollector {
    started: f64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Ok(usage) = process::own() else { return Ok(()) };
        let mut counter = |name: &str, help: &str, value: f64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("process_cpu_seconds", "User and system CPU time in seconds", usage.cpu.as_secs_f64())?;
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("process_resident_memory_bytes", "Resident memory in bytes", usage.rss_bytes as f64)?;
        gauge("process_open_fds", "Open file descriptors", process::own_open_fds().unwrap_or(0) as f64)?;
        gauge("process_start_time_seconds", "Start time, seconds since 1970", self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_in_the_text() {
        let text = render(&registry());
        for name in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds "] {
            let value = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
            assert!(value.parse::<f64>().unwrap() >= 0.0);
        }
    }
}
