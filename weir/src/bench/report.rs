//! What a run showed, as text and as JSON.

use super::client::Stats;
use super::publisher::Outcome;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;
use weir_core::process::Usage;

/// A measured process: before the first client, when publishing began, when it ended.
pub struct Process {
    pub pid: u32,
    pub before: Usage,
    pub from: Usage,
    pub to: Usage,
}

impl Process {
    fn cpu(&self) -> Duration {
        self.to.cpu.saturating_sub(self.from.cpu)
    }
}

pub struct Report {
    pub clients: usize,
    pub stats: Stats,
    pub outcome: Outcome,
    pub published_for: Duration,
    /// CPU that this tool used while publishing.
    pub own_cpu: Duration,
    /// Threads that could have used it.
    pub cores: usize,
    pub lag: Duration,
    pub lag_limit: Duration,
    pub processes: Vec<Process>,
}

impl Report {
    /// Why the numbers do not count, if so: the tool was the bottleneck.
    pub fn void(&self) -> Option<String> {
        if self.lag > self.lag_limit {
            return Some(format!(
                "a timer of this tool fired {} ms late (limit {} ms): it had too little CPU",
                self.lag.as_millis(),
                self.lag_limit.as_millis()
            ));
        }
        let due = self.outcome.published + self.outcome.behind + self.refused();
        if self.outcome.behind * 50 > due {
            return Some(format!("{} of {due} publications fell behind schedule", self.outcome.behind));
        }
        None
    }

    fn refused(&self) -> u64 {
        self.outcome.refused.values().sum()
    }

    fn failed(&self) -> bool {
        let s = &self.stats;
        s.lost + s.duplicated + self.refused() > 0 || !s.dropped.is_empty() || !s.failed_to_connect.is_empty()
    }

    pub fn exit_code(&self) -> ExitCode {
        match (self.void(), self.failed()) {
            (Some(_), _) => ExitCode::from(2),
            (None, true) => ExitCode::from(1),
            (None, false) => ExitCode::SUCCESS,
        }
    }

    fn deliveries_per_second(&self) -> f64 {
        self.stats.deliveries as f64 / self.published_for.as_secs_f64().max(0.001)
    }

    fn acknowledged(&self) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap_or_else(|_| unreachable!("3 digits are valid"));
        histogram.auto(true);
        for us in &self.outcome.acknowledged_us {
            let _in_range = histogram.record(*us);
        }
        histogram
    }

    pub fn to_json(&self) -> Value {
        let latency = |h: &Histogram<u64>| {
            json!({
                "p50": h.value_at_quantile(0.5), "p99": h.value_at_quantile(0.99),
                "p99.9": h.value_at_quantile(0.999), "max": h.max(), "count": h.len(),
            })
        };
        let processes: Vec<Value> = self
            .processes
            .iter()
            .map(|p| {
                json!({
                    "pid": p.pid,
                    "cpu_s": p.cpu().as_secs_f64(),
                    "rss_before_bytes": p.before.rss_bytes,
                    "rss_connected_bytes": p.from.rss_bytes,
                    "rss_end_bytes": p.to.rss_bytes,
                })
            })
            .collect();
        json!({
            "void": self.void(),
            "clients": self.clients,
            "published": self.outcome.published,
            "refused": self.outcome.refused,
            "behind_schedule": self.outcome.behind,
            "published_for_s": self.published_for.as_secs_f64(),
            "deliveries": self.stats.deliveries,
            "deliveries_per_s": self.deliveries_per_second(),
            "bytes": self.stats.bytes,
            "lost": self.stats.lost,
            "duplicated": self.stats.duplicated,
            "latency_us": latency(&self.stats.latency),
            "acknowledge_us": latency(&self.acknowledged()),
            "connect_and_subscribe_us": latency(&self.stats.connect),
            "dropped": self.stats.dropped,
            "failed_to_connect": self.stats.failed_to_connect,
            "stalled": self.stats.stalled,
            "mute": self.stats.mute,
            "processes": processes,
            "tool": { "cpu_s": self.own_cpu.as_secs_f64(), "threads": self.cores, "max_timer_lag_us": self.lag.as_micros() as u64 },
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, o) = (&self.stats, &self.outcome);
        let seconds = self.published_for.as_secs_f64();
        writeln!(f, "clients         {} connected and subscribed", s.connect.len())?;
        writeln!(f, "published       {} in {seconds:.1} s, {} refused", o.published, self.refused())?;
        writeln!(f, "delivered       {} ({:.0}/s)", s.deliveries, self.deliveries_per_second())?;
        writeln!(f, "lost            {}", s.lost)?;
        writeln!(f, "duplicated      {}", s.duplicated)?;
        line(f, "latency", &s.latency)?;
        line(f, "acknowledged", &self.acknowledged())?;
        line(f, "connect + sub", &s.connect)?;
        causes(f, "dropped", &s.dropped)?;
        causes(f, "not connected", &s.failed_to_connect)?;
        causes(f, "refused", &o.refused)?;
        causes(f, "stalled", &s.stalled)?;
        causes(f, "mute", &s.mute)?;
        for p in &self.processes {
            let cpu = p.cpu().as_secs_f64();
            let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
            let each = p.from.rss_bytes.saturating_sub(p.before.rss_bytes) as f64
                / 1024.0
                / self.clients.max(1) as f64;
            writeln!(
                f,
                "process {:<7} CPU {cpu:.2} s ({:.0} %), {:.2} µs per delivery; memory {:.1} MiB before, {:.1} connected ({each:.1} KiB per client), {:.1} at the end",
                p.pid,
                cpu / seconds.max(0.001) * 100.0,
                cpu * 1e6 / s.deliveries.max(1) as f64,
                mib(p.before.rss_bytes),
                mib(p.from.rss_bytes),
                mib(p.to.rss_bytes),
            )?;
        }
        writeln!(
            f,
            "this tool       CPU {:.2} s on {} threads, latest timer {:.1} ms",
            self.own_cpu.as_secs_f64(),
            self.cores,
            self.lag.as_secs_f64() * 1e3
        )?;
        match self.void() {
            Some(why) => writeln!(f, "VOID            {why}"),
            None => Ok(()),
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, h: &Histogram<u64>) -> fmt::Result {
    let ms = |q: f64| h.value_at_quantile(q) as f64 / 1000.0;
    let max = h.max() as f64 / 1000.0;
    writeln!(
        f,
        "{name:<15} p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {max:.2} ms",
        ms(0.5),
        ms(0.99),
        ms(0.999)
    )
}

fn causes(f: &mut fmt::Formatter<'_>, name: &str, causes: &BTreeMap<String, u64>) -> fmt::Result {
    for (cause, n) in causes {
        writeln!(f, "{name:<15} {n} × {cause}")?;
    }
    Ok(())
}
