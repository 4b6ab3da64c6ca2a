//! A circuit breaker: pure, `now` is an argument, the caller does the calling.
//!
//! ```text
//!            failures in a row ≥ threshold
//!   Closed ───────────────────────────────► Open { until }
//!     ▲                                       │ until has passed; the next `allow` is a probe
//!     │ probe succeeds                        ▼
//!     └──────────────────────────────────  HalfOpen ── probe fails ──► Open, twice as long (capped)
//! ```
//!
//! Closed lets through, Open refuses: the usual words of the pattern.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Consecutive failures that open it.
    pub failures: u32,
    /// How long it stays open the first time; doubled on each failed probe.
    pub open_for: Duration,
    /// The cap of that doubling.
    pub open_max: Duration,
    /// A probe that got no answer for so long counts as lost, and another may go.
    pub probe_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

/// What the breaker says to a caller that wants to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Pass, as the one probe: its outcome decides.
    Probe,
    /// Not now; worth asking again after this time.
    Refuse(Duration),
}

#[derive(Debug)]
enum Inner {
    Closed { failures: u32 },
    Open { until: Instant, open_for: Duration },
    HalfOpen { since: Instant, open_for: Duration },
}

#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    inner: Inner,
}

impl Breaker {
    pub fn new(settings: Settings) -> Breaker {
        Breaker { settings, inner: Inner::Closed { failures: 0 } }
    }

    pub fn state(&self) -> State {
        match self.inner {
            Inner::Closed { .. } => State::Closed,
            Inner::Open { .. } => State::Open,
            Inner::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Asks for leave to try. After `Pass` or `Probe` the caller reports the outcome.
    pub fn allow(&mut self, now: Instant) -> Verdict {
        match self.inner {
            Inner::Closed { .. } => Verdict::Pass,
            Inner::Open { until, open_for } if now >= until => {
                self.inner = Inner::HalfOpen { since: now, open_for };
                Verdict::Probe
            }
            Inner::Open { until, .. } => Verdict::Refuse(until - now),
            Inner::HalfOpen { since, open_for } => {
                let lost = since + self.settings.probe_timeout;
                if now >= lost {
                    self.inner = Inner::HalfOpen { since: now, open_for };
                    Verdict::Probe
                } else {
                    Verdict::Refuse(lost - now)
                }
            }
        }
    }

    pub fn success(&mut self) {
        // A success that was under way when it opened says nothing about now.
        if !matches!(self.inner, Inner::Open { .. }) {
            self.inner = Inner::Closed { failures: 0 };
        }
    }

    pub fn failure(&mut self, now: Instant) {
        self.inner = match self.inner {
            Inner::Closed { failures } if failures + 1 < self.settings.failures => {
                Inner::Closed { failures: failures + 1 }
            }
            Inner::Closed { .. } => {
                Inner::Open { until: now + self.settings.open_for, open_for: self.settings.open_for }
            }
            Inner::HalfOpen { open_for, .. } => {
                let open_for = (open_for * 2).min(self.settings.open_max);
                Inner::Open { until: now + open_for, open_for }
            }
            Inner::Open { until, open_for } => Inner::Open { until, open_for },
        };
    }

    /// The probe was given up before its outcome was known (the client left): as if never asked.
    pub fn abandon(&mut self, now: Instant) {
        if let Inner::HalfOpen { open_for, .. } = self.inner {
            self.inner = Inner::Open { until: now, open_for };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Settings = Settings {
        failures: 3,
        open_for: Duration::from_secs(5),
        open_max: Duration::from_secs(15),
        probe_timeout: Duration::from_secs(2),
    };

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let (mut b, now) = (Breaker::new(S), Instant::now());
        for _ in 0..2 {
            b.failure(now);
        }
        b.success();
        for _ in 0..2 {
            b.failure(now);
            assert_eq!(b.allow(now), Verdict::Pass);
        }
        b.failure(now);
        assert_eq!(b.allow(now), Verdict::Refuse(Duration::from_secs(5)));
    }

    #[test]
    fn one_probe_decides_and_failed_ones_wait_longer() {
        let (mut b, t0) = (Breaker::new(S), Instant::now());
        (0..3).for_each(|_| b.failure(t0));
        let t1 = t0 + Duration::from_secs(5);
        assert_eq!(b.allow(t1), Verdict::Probe);
        assert_eq!(b.allow(t1), Verdict::Refuse(Duration::from_secs(2)));
        b.failure(t1);
        assert_eq!(b.allow(t1), Verdict::Refuse(Duration::from_secs(10)));
        let t2 = t1 + Duration::from_secs(10);
        assert_eq!(b.allow(t2), Verdict::Probe);
        b.failure(t2);
        assert_eq!(b.allow(t2), Verdict::Refuse(Duration::from_secs(15)), "capped");
        let t3 = t2 + Duration::from_secs(15);
        assert_eq!(b.allow(t3), Verdict::Probe);
        b.success();
        assert_eq!(b.state(), State::Closed);
    }

    #[test]
    fn a_lost_or_abandoned_probe_is_not_the_end() {
        let (mut b, t0) = (Breaker::new(S), Instant::now());
        (0..3).for_each(|_| b.failure(t0));
        let t1 = t0 + Duration::from_secs(5);
        assert_eq!(b.allow(t1), Verdict::Probe);
        assert_eq!(b.allow(t1 + Duration::from_secs(2)), Verdict::Probe);
        b.abandon(t1);
        assert_eq!(b.allow(t1), Verdict::Probe);
    }

    #[test]
    fn a_late_success_does_not_close_an_open_breaker() {
        let (mut b, t0) = (Breaker::new(S), Instant::now());
        (0..3).for_each(|_| b.failure(t0));
        b.success();
        assert_eq!(b.state(), State::Open);
    }
}
