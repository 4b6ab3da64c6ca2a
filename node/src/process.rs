//! What this node says of its process; zero where there is no `/proc`.

use std::sync::Mutex;
use std::time::Instant;
use weir_core::process::{self, Usage};
use weir_core::sync::lock;

fn usage() -> Usage {
    process::own().unwrap_or_default()
}

pub fn rss_bytes() -> u64 {
    usage().rss_bytes
}

/// CPU use since the last call, in percent of one core.
pub fn cpu_percent() -> f64 {
    static LAST: Mutex<Option<(Instant, f64)>> = Mutex::new(None);
    let (now, used) = (Instant::now(), usage().cpu.as_secs_f64());
    let mut last = lock(&LAST);
    let percent = last.map_or(0.0, |(then, before)| {
        let passed = now.duration_since(then).as_secs_f64();
        if passed > 0.0 { (used - before).max(0.0) / passed * 100.0 } else { 0.0 }
    });
    *last = Some((now, used));
    (percent * 10.0).round() / 10.0
}
