//! A steady beat by a timer of the kernel (tokio's own are no finer than a millisecond), and latencies.

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;

pub struct Beat(AsyncFd<OwnedFd>);

impl Beat {
    pub fn new(rate: f64) -> Beat {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).unwrap();
        let every = TimeSpec::from_duration(Duration::from_secs_f64(1.0 / rate));
        timer.set(Expiration::Interval(every), TimerSetTimeFlags::empty()).unwrap();
        // Its successor is unsafe, for descriptors that others may close; this one is owned.
        #[allow(deprecated)]
        Beat(AsyncFd::new(timer.into()).unwrap())
    }

    /// How many are due.
    pub async fn next(&self) -> u64 {
        loop {
            let mut ready = self.0.readable().await.unwrap();
            let mut due = [0; 8];
            match nix::unistd::read(self.0.get_ref(), &mut due) {
                Ok(_) => return u64::from_ne_bytes(due),
                Err(_) => ready.clear_ready(),
            }
        }
    }
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[derive(Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    pub fn since(&mut self, stamp: u64) {
        self.0.push(now().saturating_sub(stamp));
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// In microseconds; forgets them.
    pub fn take(&mut self) -> Value {
        let mut all = std::mem::take(&mut self.0);
        all.sort_unstable();
        let at = |share: f64| {
            all.get((all.len() as f64 * share) as usize).or(all.last()).map(|ns| *ns as f64 / 1000.0)
        };
        json!({"count": all.len(), "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)})
    }
}
