//! Gives memory back to the system after a crowd has left. The system's allocator keeps what was freed between blocks
//! that are in use, however much of it there is, until it is told to look for whole pages.

use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use weir_core::process;

/// Between two looks at the memory of the process.
const LOOK: Duration = Duration::from_secs(5);
/// Less than this, and less than this part of all, is left where it is.
const LEAST: u64 = 2 << 20;
const PART: u64 = 32;

/// Looks between two times, at most, while there may be something to give back.
const MOST: u32 = 120;

/// When it is worth the effort: the process takes more than it ever needed, and grows no more. Whether that is in use
/// is seen by what is given back: where it is little, the next time is later.
#[derive(Debug)]
struct Policy {
    least: u64,
    last: u64,
    /// After the last time.
    after: u64,
    /// Looks from one time to the next, and those since.
    wait: u32,
    looks: u32,
}

impl Policy {
    fn new(rss: u64) -> Policy {
        Policy { least: rss, last: rss, after: rss, wait: 1, looks: 0 }
    }

    fn is_due(&mut self, rss: u64) -> bool {
        let rests = rss <= self.last.saturating_add(slack(rss) / 4);
        if rss > self.after.saturating_add(slack(rss)) {
            self.wait = 1;
        }
        (self.last, self.least, self.looks) = (rss, self.least.min(rss), self.looks.saturating_add(1));
        rests && rss > self.least.saturating_add(slack(rss)) && self.looks >= self.wait
    }

    fn done(&mut self, rss: u64) {
        let gave = self.last.saturating_sub(rss) >= slack(rss);
        self.wait = if gave { 1 } else { (self.wait * 2).min(MOST) };
        (self.last, self.after, self.looks) = (rss, rss, 0);
    }
}

fn slack(rss: u64) -> u64 {
    LEAST.max(rss / PART)
}

/// Until it is aborted.
pub async fn run() {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let rss = || process::own().map_or(0, |usage| usage.rss_bytes);
    let mut policy = Policy::new(rss());
    loop {
        looks.tick().await;
        if policy.is_due(rss()) {
            if let Err(error) = tokio::task::spawn_blocking(give_back).await {
                tracing::debug!(%error, "memory was not given back");
            }
            policy.done(rss());
        }
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: it takes a number and may be called at any time, from any thread.
    #[allow(unsafe_code)]
    let _whether_any_was = unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_is_given_back_when_a_crowd_has_left_and_seldom_while_it_stays() {
        let mut policy = Policy::new(50 * MIB);
        assert!(!policy.is_due(50 * MIB) && !policy.is_due(51 * MIB), "as ever");
        for grown in [60, 80, 120] {
            assert!(!policy.is_due(grown * MIB), "it grows");
        }
        // All of it is in use for a while: tried after 1, 2, 4 … looks.
        let mut tries = Vec::new();
        for look in 0..60 {
            if policy.is_due(118 * MIB) {
                policy.done(118 * MIB);
                tries.push(look);
            }
        }
        assert_eq!(tries, [0, 2, 6, 14, 30]);
        while !policy.is_due(118 * MIB) {}
        policy.done(55 * MIB);
        assert!(policy.is_due(55 * MIB), "there was much: perhaps there is more");
        policy.done(51 * MIB);
        assert!(!policy.is_due(51 * MIB) && !policy.is_due(90 * MIB) && policy.is_due(90 * MIB), "and anew");
    }
}
