//! Two counts over the last stretch of time, in slices of it. Pure: the length and `now` are arguments.

use std::time::{Duration, Instant};

const SLICES: usize = 10;

/// Good and failed ones, requests and retries: whatever is weighed against each other.
#[derive(Debug, Default)]
pub struct Window {
    slices: [(u32, u32); SLICES],
    /// Of the slice that is being filled, and when it began.
    at: usize,
    since: Option<Instant>,
}

impl Window {
    /// Both counts of what happens at `now`; slices that are older than `length` are forgotten.
    pub fn at(&mut self, now: Instant, length: Duration) -> &mut (u32, u32) {
        let slice = (length / SLICES as u32).max(Duration::from_millis(1));
        let mut since = *self.since.get_or_insert(now);
        for _ in 0..=SLICES {
            if now < since + slice {
                break;
            }
            since += slice;
            self.at = (self.at + 1) % SLICES;
            self.slices[self.at] = (0, 0);
        }
        // After a long silence all slices are empty, and the clock starts anew.
        self.since = Some(if now < since + slice { since } else { now });
        &mut self.slices[self.at]
    }

    /// As of the last look.
    pub fn sums(&self) -> (u64, u64) {
        let add = |(a, b): (u64, u64), slice: &(u32, u32)| (a + u64::from(slice.0), b + u64::from(slice.1));
        self.slices.iter().fold((0, 0), add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten_slice_by_slice() {
        let (mut window, t0, length) = (Window::default(), Instant::now(), Duration::from_secs(10));
        window.at(t0, length).0 += 3;
        window.at(t0 + Duration::from_secs(5), length).1 += 1;
        assert_eq!(window.sums(), (3, 1));
        window.at(t0 + Duration::from_secs(10), length);
        assert_eq!(window.sums(), (0, 1));
        window.at(t0 + Duration::from_secs(3600), length).0 += 1;
        assert_eq!(window.sums(), (1, 0));
    }
}
