//! When a certificate is renewed, and how soon what failed is tried again. Clocks and chance are handed in.
//!
//! Ends of certificates are by the calendar; waiting after a failure is by a clock that nobody sets.

use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Five tries in the first hour: as many failures as Let's Encrypt allows for a name.
const FIRST_RETRY: Duration = Duration::from_secs(120);
const LAST_RETRY: Duration = Duration::from_secs(24 * 3600);
/// An authority that asks for more patience is not waited for longer.
const MAX_WISH: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of a wait, at most, so that what failed together is not tried again together; the same of the time before
/// an end, so that what was issued together is not renewed together.
const JITTER: f64 = 0.1;

#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub calendar: SystemTime,
    pub clock: Instant,
}

impl Now {
    pub fn read() -> Now {
        Now { calendar: SystemTime::now(), clock: Instant::now() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Validity {
    pub fn left(&self, now: SystemTime) -> Duration {
        self.until.duration_since(now).unwrap_or_default()
    }
}

/// Of one certificate.
#[derive(Debug)]
pub struct Schedule {
    renew_before: Duration,
    /// `None`: there is no certificate.
    renew_at: Option<SystemTime>,
    failures: u32,
    /// Nothing is tried before.
    blocked: Option<Instant>,
}

impl Schedule {
    pub fn new(renew_before: Duration) -> Schedule {
        Schedule { renew_before, renew_at: None, failures: 0, blocked: None }
    }

    /// There is a certificate that was obtained some time ago. `chance` is 0 to 1.
    pub fn found(&mut self, validity: Validity, chance: f64) {
        let whole = validity.until.duration_since(validity.from).unwrap_or_default();
        let before = self.renew_before.min(whole / 3);
        let before = before + before.mul_f64(JITTER * share(chance));
        self.renew_at = Some(validity.until.checked_sub(before).unwrap_or(validity.from));
        (self.failures, self.blocked) = (0, None);
    }

    /// A new certificate. However it was dated, it is used for a third of what is left of it.
    pub fn issued(&mut self, validity: Validity, now: Now, chance: f64) {
        self.found(validity, chance);
        let soonest = now.calendar + validity.left(now.calendar) / 3;
        self.renew_at = self.renew_at.map(|at| at.max(soonest));
    }

    /// The authority's own wish (RFC 9773): a moment of this window, if that is earlier than ours.
    pub fn suggested(&mut self, start: SystemTime, end: SystemTime, chance: f64) {
        let length = end.duration_since(start).unwrap_or_default();
        let at = start.checked_add(length.mul_f64(share(chance))).unwrap_or(start);
        self.renew_at = self.renew_at.map(|ours| ours.min(at));
    }

    /// A try failed; `wish` is what the authority said of when to come again. Returns how long it waits now.
    pub fn failed(&mut self, now: Now, wish: Option<Duration>, chance: f64) -> Duration {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        let wait = doubled.max(wish.unwrap_or_default().min(MAX_WISH));
        let wait = wait + wait.mul_f64(JITTER * share(chance));
        self.blocked = Some(now.clock + wait);
        wait
    }

    /// Not tried, and not failed: somebody else is at it.
    pub fn postponed(&mut self, now: Now, wait: Duration) {
        self.blocked = Some(now.clock + wait);
    }

    /// How long until the next try; zero: it is due.
    pub fn wait(&self, now: Now) -> Duration {
        let until_due =
            self.renew_at.map_or(Duration::ZERO, |at| at.duration_since(now.calendar).unwrap_or_default());
        let blocked = self.blocked.map_or(Duration::ZERO, |until| until.saturating_duration_since(now.clock));
        until_due.max(blocked)
    }

    /// In a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

fn share(chance: f64) -> f64 {
    if chance.is_finite() { chance.clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn day(n: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000 + DAY * n
    }

    fn at(calendar: SystemTime) -> Now {
        Now { calendar, clock: Instant::now() }
    }

    fn days(n: u32) -> Validity {
        Validity { from: day(0), until: day(n) }
    }

    #[test]
    fn without_a_certificate_one_is_due_at_once() {
        assert_eq!(Schedule::new(DAY * 30).wait(at(day(0))), Duration::ZERO);
    }

    #[test]
    fn renewed_before_its_end_and_with_a_third_left_when_it_is_short() {
        for (whole, renew_before, earliest, latest) in
            [(90, 30, 57, 60), (365, 30, 332, 335), (6, 30, 4, 4), (90, 10, 79, 80)]
        {
            for chance in [0.0, 0.5, 1.0] {
                let mut schedule = Schedule::new(DAY * renew_before);
                schedule.found(days(whole), chance);
                let wait = schedule.wait(at(day(0)));
                let before = (DAY * renew_before).min(DAY * whole / 3);
                assert_eq!(wait, DAY * whole - before - before.mul_f64(0.1 * chance), "{whole} {chance}");
                assert!(
                    wait >= DAY * earliest - DAY / 4 && wait <= DAY * latest,
                    "{whole} {chance} {wait:?}"
                );
                assert_eq!(schedule.wait(at(day(whole))), Duration::ZERO);
            }
        }
    }

    #[test]
    fn a_new_one_is_never_due_at_once() {
        // Dated back so far that two thirds of its time are over.
        let mut schedule = Schedule::new(DAY * 30);
        schedule.issued(days(9), at(day(6)), 1.0);
        assert_eq!(schedule.wait(at(day(6))), DAY);
        schedule.found(days(9), 1.0);
        assert_eq!(schedule.wait(at(day(6))), Duration::ZERO);
    }

    #[test]
    fn the_authority_may_ask_for_it_earlier_but_not_later() {
        let mut schedule = Schedule::new(DAY * 30);
        schedule.found(days(90), 0.0);
        schedule.suggested(day(62), day(64), 0.5);
        assert_eq!(schedule.wait(at(day(0))), DAY * 60);
        schedule.suggested(day(40), day(42), 0.5);
        assert_eq!(schedule.wait(at(day(0))), DAY * 41);
        // A window that ends before it begins is its beginning.
        schedule.suggested(day(10), day(9), 0.5);
        assert_eq!(schedule.wait(at(day(0))), DAY * 10);
    }

    #[test]
    fn failures_wait_longer_each_up_to_a_day() {
        let start = at(day(0));
        let mut schedule = Schedule::new(DAY * 30);
        let mut waits = Vec::new();
        for _ in 0..14 {
            waits.push(schedule.failed(start, None, 0.0));
            assert_eq!(schedule.wait(start), *waits.last().unwrap());
        }
        assert_eq!(waits[..5], [2, 4, 8, 16, 32].map(|minutes| MINUTE * minutes));
        assert_eq!(waits[9..], [DAY * 32 / 45, DAY, DAY, DAY, DAY].map(|wait| wait.min(DAY)));
        assert!(waits.is_sorted());
        // After the wait it is due; a success begins anew.
        let later = Now { clock: start.clock + DAY, ..start };
        assert_eq!(schedule.wait(later), Duration::ZERO);
        schedule.issued(days(90), start, 0.0);
        assert_eq!(schedule.failures(), 0);
        assert_eq!(schedule.failed(start, None, 0.0), MINUTE * 2);
    }

    #[test]
    fn what_the_authority_says_of_coming_again_is_kept_within_reason() {
        let now = at(day(0));
        let mut schedule = Schedule::new(DAY * 30);
        assert_eq!(schedule.failed(now, Some(Duration::from_secs(5)), 0.0), MINUTE * 2);
        assert_eq!(schedule.failed(now, Some(DAY * 2), 0.0), DAY * 2);
        assert_eq!(schedule.failed(now, Some(Duration::MAX), 0.0), DAY * 7);
    }

    #[test]
    fn those_that_go_together_do_not_come_again_together() {
        let seed = 0x5eed;
        let mut rng = StdRng::seed_from_u64(seed);
        let now = at(day(0));
        let mut draw = |wish| Schedule::new(DAY * 30).failed(now, wish, rng.random());
        for (wish, least) in [(None, MINUTE * 2), (Some(DAY), DAY)] {
            let waits: Vec<Duration> = (0..100).map(|_| draw(wish)).collect();
            let (low, high) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(*low >= least && *high <= least.mul_f64(1.1), "seed {seed}: {low:?} {high:?}");
            assert!(*high - *low > least.mul_f64(0.05), "seed {seed}: {low:?} {high:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stretch_a_wait() {
        let start = at(day(100));
        let mut schedule = Schedule::new(DAY * 30);
        schedule.failed(start, None, 0.0);
        let set_back = Now { calendar: day(0), clock: start.clock + MINUTE * 2 };
        assert_eq!(schedule.wait(set_back), Duration::ZERO);
    }
}
