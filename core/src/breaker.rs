//! A circuit breaker: pure, `now` is an argument, the caller does the calling.
//!
//! ```text
//!   failures in a row, or a share of failures in the window
//!   Closed ───────────────────────────────► Open { until }
//!     ▲                                       │ until has passed; the next `allow` is a probe
//!     │ enough probes succeed                 ▼
//!     └──────────────────────────────────  HalfOpen ── a probe fails ──► Open, twice as long (capped)
//! ```
//!
//! Half open, one probe goes alone, and each that succeeds lets one more go beside the next: twice as
//! many from round to round, so that those who waited do not all come in the same moment.
//!
//! Closed lets through, Open refuses: the usual words of the pattern.

use crate::window::Window;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Consecutive failures that open it.
    pub failures: u32,
    /// A share of failures that opens it, too.
    pub ratio: Option<Ratio>,
    /// How long it stays open the first time; doubled on each failed probe.
    pub open_for: Duration,
    /// The cap of that doubling.
    pub open_max: Duration,
    /// A probe that got no answer for so long counts as lost, and another may go.
    pub probe_timeout: Duration,
    /// Probes that must succeed until it closes.
    pub probes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Of all outcomes in the window, 0 to 1.
    pub failed: f64,
    pub window: Duration,
    /// With fewer outcomes in the window, the share says nothing.
    pub min_volume: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half open",
        }
    }
}

/// What the breaker says to a caller that wants to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Pass, as a probe: its outcome decides.
    Probe,
    /// Not now; worth asking again after this time.
    Refuse(Duration),
}

/// Whether an outcome is that of a probe. One that was under way when the breaker opened is not: it
/// says nothing about now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Anyone,
    Probe,
}

impl Verdict {
    /// Leave to try, and as whom; or the wait.
    pub fn leave(self) -> Result<By, Duration> {
        match self {
            Verdict::Pass => Ok(By::Anyone),
            Verdict::Probe => Ok(By::Probe),
            Verdict::Refuse(wait) => Err(wait),
        }
    }
}

#[derive(Debug)]
enum Inner {
    Closed { failures: u32, recent: Window },
    Open { until: Instant, open_for: Duration },
    HalfOpen { since: Instant, open_for: Duration, under_way: u32, passed: u32 },
}

#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    inner: Inner,
}

impl Breaker {
    pub fn new(settings: Settings) -> Breaker {
        Breaker { settings, inner: Inner::closed() }
    }

    /// From here on these count; the state stays.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
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
        match &mut self.inner {
            Inner::Closed { .. } => Verdict::Pass,
            Inner::Open { until, open_for } if now >= *until => {
                let open_for = *open_for;
                self.inner = Inner::HalfOpen { since: now, open_for, under_way: 1, passed: 0 };
                Verdict::Probe
            }
            Inner::Open { until, .. } => Verdict::Refuse(*until - now),
            Inner::HalfOpen { since, under_way, passed, .. } => {
                let lost = *since + self.settings.probe_timeout;
                if *under_way <= *passed {
                    *under_way += 1;
                } else if now >= lost {
                    *under_way = 1;
                } else {
                    return Verdict::Refuse(lost - now);
                }
                *since = now;
                Verdict::Probe
            }
        }
    }

    pub fn success(&mut self, now: Instant, by: By) {
        match &mut self.inner {
            Inner::Closed { failures, recent } => {
                *failures = 0;
                if let Some(ratio) = &self.settings.ratio {
                    recent.at(now, ratio.window).0 += 1;
                }
            }
            Inner::HalfOpen { under_way, passed, .. } if by == By::Probe => {
                (*under_way, *passed) = (under_way.saturating_sub(1), *passed + 1);
                if *passed >= self.settings.probes {
                    self.inner = Inner::closed();
                }
            }
            Inner::Open { .. } | Inner::HalfOpen { .. } => {}
        }
    }

    pub fn failure(&mut self, now: Instant, by: By) {
        match &mut self.inner {
            Inner::Closed { failures, recent } => {
                *failures += 1;
                let too_many = self.settings.ratio.is_some_and(|ratio| {
                    recent.at(now, ratio.window).1 += 1;
                    is_over(recent, &ratio)
                });
                if *failures >= self.settings.failures || too_many {
                    let open_for = self.settings.open_for;
                    self.inner = Inner::Open { until: now + open_for, open_for };
                }
            }
            Inner::HalfOpen { open_for, .. } if by == By::Probe => {
                let open_for = (*open_for * 2).min(self.settings.open_max);
                self.inner = Inner::Open { until: now + open_for, open_for };
            }
            Inner::Open { .. } | Inner::HalfOpen { .. } => {}
        }
    }

    /// A probe was given up before its outcome was known (the client left): as if never asked.
    pub fn abandon(&mut self, by: By) {
        if let Inner::HalfOpen { under_way, .. } = &mut self.inner
            && by == By::Probe
        {
            *under_way = under_way.saturating_sub(1);
        }
    }
}

impl Inner {
    fn closed() -> Inner {
        Inner::Closed { failures: 0, recent: Window::default() }
    }
}

/// Whether the share of failures says that it is to open.
fn is_over(recent: &Window, ratio: &Ratio) -> bool {
    let (ok, failed) = recent.sums();
    ok + failed >= u64::from(ratio.min_volume) && failed as f64 >= ratio.failed * (ok + failed) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Settings = Settings {
        failures: 3,
        ratio: None,
        open_for: Duration::from_secs(5),
        open_max: Duration::from_secs(15),
        probe_timeout: Duration::from_secs(2),
        probes: 1,
    };

    fn opened(settings: Settings, now: Instant) -> Breaker {
        let mut b = Breaker::new(settings);
        (0..settings.failures).for_each(|_| b.failure(now, By::Anyone));
        b
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let (mut b, now) = (Breaker::new(S), Instant::now());
        for _ in 0..2 {
            b.failure(now, By::Anyone);
        }
        b.success(now, By::Anyone);
        for _ in 0..2 {
            b.failure(now, By::Anyone);
            assert_eq!(b.allow(now), Verdict::Pass);
        }
        b.failure(now, By::Anyone);
        assert_eq!(b.allow(now), Verdict::Refuse(Duration::from_secs(5)));
    }

    #[test]
    fn opens_at_a_share_of_failures_once_there_are_enough() {
        let ratio = Ratio { failed: 0.5, window: Duration::from_secs(10), min_volume: 20 };
        let settings = Settings { failures: 100, ratio: Some(ratio), ..S };
        let (mut b, t0) = (Breaker::new(settings), Instant::now());
        let at = |ms| t0 + Duration::from_millis(ms);
        // Every second one fails, slowly: 10 in a window are too few to tell.
        for n in 0..100 {
            b.success(at(n * 2000), By::Anyone);
            b.failure(at(n * 2000 + 1000), By::Anyone);
        }
        assert_eq!(b.state(), State::Closed);
        // The same share, ten times as often.
        for n in 0..9 {
            b.success(at(300_000 + n * 200), By::Anyone);
            b.failure(at(300_100 + n * 200), By::Anyone);
        }
        assert_eq!(b.state(), State::Closed);
        b.success(at(302_000), By::Anyone);
        b.failure(at(302_000), By::Anyone);
        assert_eq!(b.state(), State::Open);

        let mut b = Breaker::new(settings);
        for n in 0..1000 {
            b.success(at(n), By::Anyone);
            b.success(at(n), By::Anyone);
            b.failure(at(n), By::Anyone);
        }
        assert_eq!(b.state(), State::Closed, "a third is less than half");
    }

    #[test]
    fn a_probe_decides_and_failed_ones_wait_longer() {
        let t0 = Instant::now();
        let mut b = opened(S, t0);
        let t1 = t0 + Duration::from_secs(5);
        assert_eq!(b.allow(t1), Verdict::Probe);
        assert_eq!(b.allow(t1), Verdict::Refuse(Duration::from_secs(2)));
        b.failure(t1, By::Probe);
        assert_eq!(b.allow(t1), Verdict::Refuse(Duration::from_secs(10)));
        let t2 = t1 + Duration::from_secs(10);
        assert_eq!(b.allow(t2), Verdict::Probe);
        b.failure(t2, By::Probe);
        assert_eq!(b.allow(t2), Verdict::Refuse(Duration::from_secs(15)), "capped");
        let t3 = t2 + Duration::from_secs(15);
        assert_eq!(b.allow(t3), Verdict::Probe);
        b.success(t3, By::Probe);
        assert_eq!(b.state(), State::Closed);
    }

    #[test]
    fn half_open_lets_more_go_with_each_that_comes_back() {
        let t0 = Instant::now();
        let mut b = opened(Settings { probes: 7, ..S }, t0);
        let t1 = t0 + Duration::from_secs(5);
        let mut rounds = Vec::new();
        while b.state() != State::Closed {
            let mut gone = 0;
            while b.allow(t1) == Verdict::Probe {
                gone += 1;
            }
            rounds.push(gone);
            (0..gone).for_each(|_| b.success(t1, By::Probe));
        }
        assert_eq!(rounds, [1, 2, 4]);
    }

    #[test]
    fn a_lost_or_abandoned_probe_is_not_the_end() {
        let t0 = Instant::now();
        let mut b = opened(S, t0);
        let t1 = t0 + Duration::from_secs(5);
        assert_eq!(b.allow(t1), Verdict::Probe);
        assert_eq!(b.allow(t1 + Duration::from_secs(2)), Verdict::Probe);
        b.abandon(By::Probe);
        assert_eq!(b.allow(t1), Verdict::Probe);
    }

    #[test]
    fn outcomes_of_before_it_opened_say_nothing() {
        let t0 = Instant::now();
        let mut b = opened(S, t0);
        b.success(t0, By::Anyone);
        assert_eq!(b.state(), State::Open);
        let t1 = t0 + Duration::from_secs(5);
        assert_eq!(b.allow(t1), Verdict::Probe);
        b.failure(t1, By::Anyone);
        b.success(t1, By::Anyone);
        assert_eq!(b.state(), State::HalfOpen);
    }
}
