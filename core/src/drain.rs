//! Stopping in an orderly way: one signal down, one completion up.
//!
//! Whoever owns signals calls [`Drain::begin`] and then [`Drain::complete`] with a deadline;
//! tiers hold a [`Drain`] clone, watch [`Drain::begun`], and keep a [`Busy`] for whatever must be
//! finished first. [`Drain::stop`] ends the wait: what watches [`Drain::stopped`] leaves at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

#[derive(Clone, Default)]
pub struct Drain {
    pace: Arc<OnceLock<Pace>>,
    begin: CancellationToken,
    stop: CancellationToken,
    busy: TaskTracker,
}

/// How fast a drain goes; what an operator asked for, over what the conf says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Connections told to go, per second.
    pub per_second: Option<f64>,
    /// Whoever is left after this is closed.
    pub timeout: Option<Duration>,
}

/// Held by work that a drain waits for.
pub type Busy = TaskTrackerToken;

impl Drain {
    pub fn new() -> Drain {
        Drain::default()
    }

    pub fn begin(&self) {
        let _first_wins = self.pace.set(Pace::default());
        self.begin.cancel();
        self.busy.close();
    }

    /// As [`Drain::begin`], at a pace of its own. A drain that is under way keeps the one it has.
    pub fn begin_at(&self, pace: Pace) {
        let _first_wins = self.pace.set(pace);
        self.begin();
    }

    /// What an operator asked for; to be read once it has begun.
    pub fn pace(&self) -> Pace {
        self.pace.get().copied().unwrap_or_default()
    }

    /// Stop now, finished or not.
    pub fn stop(&self) {
        self.begin();
        self.stop.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.begin.is_cancelled()
    }

    pub fn has_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub async fn begun(&self) {
        self.begin.cancelled().await;
    }

    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub fn busy(&self) -> Busy {
        self.busy.token()
    }

    /// How much is still under way.
    pub fn remaining(&self) -> usize {
        self.busy.len()
    }

    /// Waits until nothing is busy, the deadline passed or `stop` was called; says whether all
    /// was finished.
    pub async fn complete(&self, deadline: Duration) -> bool {
        tokio::select! {
            () = self.busy.wait() => true,
            () = tokio::time::sleep(deadline) => false,
            () = self.stop.cancelled() => self.busy.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_busy_and_no_longer_than_the_deadline() {
        let drain = Drain::new();
        let busy = drain.busy();
        drain.begin();
        assert!(!drain.complete(Duration::from_secs(3)).await);
        drop(busy);
        assert!(drain.complete(Duration::from_secs(3)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn stop_ends_the_wait() {
        let drain = Drain::new();
        let _busy = drain.busy();
        drain.stop();
        assert!(!drain.complete(Duration::from_secs(3600)).await);
    }
}
