//! How many connects may be tried again: a share of all requests, so that retries never multiply an
//! outage, and a few in any case, so that a quiet upstream has them too. One address may have half of them, so
//! that no client uses up those of the others. Pure.

use crate::admit::key::Key;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use weir_core::window::Window;

/// Requests and retries are counted over this.
const WINDOW: Duration = Duration::from_secs(10);
/// Retries that are always allowed, per second.
const MINIMUM: f64 = 3.0;

#[derive(Debug, Default)]
pub struct Budget {
    /// Requests and retries.
    counts: Window,
    /// Retries of each address since then; bounded by those that were granted.
    by_address: (Option<Instant>, HashMap<Key, u64>),
}

impl Budget {
    pub fn request(&mut self, now: Instant) {
        self.counts.at(now, WINDOW).0 += 1;
    }

    /// Whether one more may be tried again; if so, it is counted.
    pub fn retry(&mut self, now: Instant, share: f64, who: Option<Key>) -> bool {
        self.counts.at(now, WINDOW);
        let (since, by_address) = &mut self.by_address;
        if since.is_none_or(|since| now >= since + WINDOW) {
            *since = Some(now);
            by_address.clear();
        }
        let (requests, retries) = self.counts.sums();
        let allowed = (requests as f64 * share).max(MINIMUM * WINDOW.as_secs_f64());
        let mine = who.and_then(|who| by_address.get(&who)).copied().unwrap_or_default();
        let granted = retries as f64 + 1.0 <= allowed && mine as f64 + 1.0 <= (allowed / 2.0).max(1.0);
        if granted {
            if let Some(who) = who {
                *by_address.entry(who).or_default() += 1;
            }
            self.counts.at(now, WINDOW).1 += 1;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_and_a_few_in_any_case() {
        let (mut budget, t0) = (Budget::default(), Instant::now());
        let granted = |budget: &mut Budget, now| (0..10_000).filter(|_| budget.retry(now, 0.2, None)).count();
        assert_eq!(granted(&mut budget, t0), 30, "3/s over 10 s");
        (0..1_000).for_each(|_| budget.request(t0));
        assert_eq!(granted(&mut budget, t0), 170, "a fifth of 1000, less those before");
        assert_eq!(granted(&mut budget, t0 + Duration::from_secs(5)), 0);
        assert_eq!(granted(&mut budget, t0 + Duration::from_secs(10)), 30, "the window has passed");
        assert_eq!(granted(&mut budget, t0 + Duration::from_secs(3600)), 30, "after a silence, too");
    }

    #[test]
    fn one_address_has_half_and_the_others_have_the_rest() {
        use crate::admit::key::of_ip;
        let (mut budget, t0) = (Budget::default(), Instant::now());
        let granted = |budget: &mut Budget, n: u8| {
            let who = Some(of_ip([10, 0, 0, n].into(), 64));
            (0..10_000).filter(|_| budget.retry(t0, 0.2, who)).count()
        };
        assert_eq!([granted(&mut budget, 1), granted(&mut budget, 2), granted(&mut budget, 3)], [15, 15, 0]);
    }

    #[test]
    fn an_outage_is_not_multiplied() {
        // Every connect fails, each client would try three servers, for a minute.
        let (mut budget, t0) = (Budget::default(), Instant::now());
        let mut connects = 0;
        for ms in 0..60_000 {
            let now = t0 + Duration::from_millis(ms);
            budget.request(now);
            connects += 1;
            connects += (0..2).take_while(|_| budget.retry(now, 0.2, None)).count();
        }
        assert!((72_000..72_100).contains(&connects) || connects <= 72_000, "{connects} for 60000 clients");
        assert!(connects > 69_000, "{connects}");
    }
}
