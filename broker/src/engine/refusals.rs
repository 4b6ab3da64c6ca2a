//! Calls that are refused over a limit that all share: counted, and told in the log now and then, with their number.

use super::{Engine, Refusal, Submitted};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use weir_core::sync::lock;

/// Between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Refusals {
    max_channels: Untold,
    keys: Untold,
}

#[derive(Default)]
struct Untold {
    count: AtomicU64,
    told: Mutex<Option<Instant>>,
}

impl Untold {
    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// How many there were since the last line, if it is time for another one.
    fn take(&self, now: Instant) -> Option<u64> {
        if self.count.load(Relaxed) == 0 {
            return None;
        }
        let mut told = lock(&self.told);
        if told.is_some_and(|told| now.duration_since(told) < PAUSE) {
            return None;
        }
        *told = Some(now);
        Some(self.count.swap(0, Relaxed))
    }
}

impl Engine {
    pub(super) fn refuse(&self, refusal: Refusal, channel: &str) -> Submitted {
        self.metrics.refused(refusal.key());
        tracing::debug!(channel, key = refusal.key(), "refused over a limit of the broker");
        match refusal {
            Refusal::MaxChannels => self.refusals.max_channels.add(),
            Refusal::Keys => self.refusals.keys.add(),
            Refusal::TooLarge => {}
        }
        refusal.into()
    }

    /// With each tick.
    pub(super) fn tell_refusals(&self, now: Instant) {
        if let Some(refused) = self.refusals.max_channels.take(now) {
            tracing::warn!(
                refused,
                "publications that would begin another stream were refused: broker.max_channels or channel.broker_share"
            );
        }
        if let Some(refused) = self.refusals.keys.take(now) {
            tracing::warn!(
                refused,
                "publications with new idempotency keys were refused: broker.history_memory or channel.broker_share"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_now_and_then_says_how_many() {
        let (untold, now) = (Untold::default(), Instant::now());
        assert_eq!(untold.take(now), None);
        untold.count.fetch_add(3, Relaxed);
        assert_eq!((untold.take(now), untold.take(now)), (Some(3), None));
        untold.count.fetch_add(2, Relaxed);
        assert_eq!((untold.take(now + PAUSE / 2), untold.take(now + PAUSE)), (None, Some(2)));
    }
}
