//! What the kernel says about this process (`/proc`; zero where there is none).

use crate::sync::lock;
use std::fs;
use std::sync::Mutex;
use std::time::Instant;

/// Linux counts process times in hundredths of a second for everybody (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE: u64 = 4096;

pub fn rss_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE
}

/// CPU use since the last call, in percent of one core.
pub fn cpu_percent() -> f64 {
    static LAST: Mutex<Option<(Instant, f64)>> = Mutex::new(None);
    let (now, used) = (Instant::now(), cpu_seconds());
    let mut last = lock(&LAST);
    let percent = last.map_or(0.0, |(then, before)| {
        let passed = now.duration_since(then).as_secs_f64();
        if passed > 0.0 { (used - before).max(0.0) / passed * 100.0 } else { 0.0 }
    });
    *last = Some((now, used));
    (percent * 10.0).round() / 10.0
}

fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name may hold anything, and ends at the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
