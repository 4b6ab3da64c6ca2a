//! The budget of the whole process for WebSocket handshakes: a token bucket with a short wait, and
//! a cap on those under way, with a share for each address. Pure but for the cap's semaphore: the time is an argument.
//!
//! Who is refused is told a second to come back in. Those seconds are a ledger: each has as many
//! places as the rate allows, and a refused client is given one of the next seconds that have any
//! left, by chance. So thousands that were refused at once come back spread over the time that their
//! number needs at this rate, later the more of them there are, and those that obey find a place.
//! Places of clients that never come back lapse with their second.

use super::counts::{Counts, KeyPlace, share};
use super::key::Key;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_conf::proxy::Admission;
use weir_conf::units::Rate;
use weir_core::sync::lock;

/// The ledger's seconds: with more ahead than these hold, a client is told one of the later half.
const HORIZON: usize = 600;
/// The line may get longer by one part in so many for the sake of chance.
const SPREAD: usize = 4;
/// What a second of the ledger holds of what the rate allows; the rest is for newcomers.
const PROMISED: f64 = 0.95;

pub struct Budget {
    conf: Admission,
    slots: Option<Slots>,
    state: Mutex<State>,
}

struct State {
    epoch: Instant,
    /// When the bucket is full again, in seconds after `epoch`.
    full_at: f64,
    /// The same for those that have really left.
    left_at: f64,
    /// The ledger: how many clients were told each of the seconds that follow `second`.
    promised: Box<[u32; HORIZON]>,
    second: u64,
}

struct Slots {
    free: Arc<Semaphore>,
    /// What each address has of them, and waits for.
    of: Arc<Counts>,
    share: usize,
}

/// A place among the handshakes under way, until it is dropped.
pub struct Slot {
    _slot: OwnedSemaphorePermit,
    _of_address: Option<KeyPlace>,
}

impl Budget {
    /// `None`: no budget is set.
    pub fn new(conf: Admission, now: Instant) -> Option<Budget> {
        let cap = conf.max_handshakes.min(Semaphore::MAX_PERMITS);
        if conf.rate.is_none() && cap == 0 {
            return None;
        }
        let state =
            State { epoch: now, full_at: 0.0, left_at: 0.0, promised: Box::new([0; HORIZON]), second: 0 };
        let slots = (cap > 0).then(|| Slots {
            free: Arc::new(Semaphore::new(cap)),
            of: Arc::default(),
            share: share(cap, conf.max_share_per_ip),
        });
        Some(Budget { conf, slots, state: Mutex::new(state) })
    }

    pub fn conf(&self) -> Admission {
        self.conf
    }

    /// A handshake's turn comes after this, at most `wait`; `None`: not within it.
    pub fn turn(&self, now: Instant) -> Option<Duration> {
        let Some(rate) = self.conf.rate else { return Some(Duration::ZERO) };
        let mut state = self.state();
        let now = state.at(now);
        let from = state.full_at.max(now);
        let turn = (from - now - self.slack(rate)).max(0.0);
        if turn > self.conf.wait.as_secs_f64() {
            return None;
        }
        state.full_at = from + 1.0 / rate.per_second;
        Some(Duration::from_secs_f64(turn))
    }

    /// How much longer a handshake must wait whose turn has come. Nothing, unless many come late to
    /// theirs at once (a stall of the machine, a cap that was full): those leave at the rate, too.
    pub fn leave(&self, now: Instant) -> Duration {
        let Some(rate) = self.conf.rate else { return Duration::ZERO };
        let mut state = self.state();
        let now = state.at(now);
        let from = state.left_at.max(now);
        state.left_at = from + 1.0 / rate.per_second;
        Duration::from_secs_f64((from - now - self.slack(rate)).max(0.0))
    }

    /// What may be ahead of the pace, in seconds.
    fn slack(&self, rate: Rate) -> f64 {
        f64::from(self.conf.burst.saturating_sub(1)) / rate.per_second
    }

    /// A turn was not used after all.
    pub fn give_back(&self) {
        if let Some(rate) = self.conf.rate {
            self.state().full_at -= 1.0 / rate.per_second;
        }
    }

    /// A place among the handshakes under way, awaited for `wait` at most. `Ok(None)`: they are not
    /// limited.
    pub async fn slot(&self, address: Key) -> Result<Option<Slot>, ()> {
        let Some(slots) = &self.slots else { return Ok(None) };
        let of_address = slots.of.place(address, slots.share)?;
        let free = slots.free.clone();
        let slot = match free.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => match tokio::time::timeout(self.conf.wait, free.acquire_owned()).await {
                Ok(Ok(slot)) => slot,
                _ => return Err(()),
            },
        };
        Ok(Some(Slot { _slot: slot, _of_address: of_address }))
    }

    /// When a client that is refused should come back, in whole seconds. `dice` is any number.
    pub fn later(&self, now: Instant, dice: u32) -> Duration {
        let mut state = self.state();
        let now = state.at(now);
        state.lapse(now as u64);
        // Without a rate, as if each handshake under way took a second.
        let pace = self.conf.rate.map_or(self.conf.max_handshakes as f64, |rate| rate.per_second);
        let each = (pace * PROMISED).min(f64::from(u32::MAX));
        let chosen = match each {
            1.0.. => of_many(&state.promised[..], each as u32, dice),
            // Fewer than one to a second: one, and then seconds with none.
            _ => of_few(&state.promised[..], (1.0 / each).ceil() as usize, dice),
        };
        state.promised[chosen] = state.promised[chosen].saturating_add(1);
        Duration::from_secs(chosen as u64 + 1)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two of its changes.
        lock(&self.state)
    }
}

/// Any of the next free seconds, of more of them the longer the line is: who was refused in the same
/// instant does not come back in the same one.
fn of_many(promised: &[u32], each: u32, dice: u32) -> usize {
    let free = || (0..promised.len()).filter(|second| promised[*second] < each);
    let Some(first) = free().next() else { return late(promised.len(), dice) };
    let within = free().take_while(|second| *second <= first + 1 + first / SPREAD);
    let nth = dice as usize % within.clone().count().max(1);
    within.clone().nth(nth).unwrap_or(first)
}

fn of_few(promised: &[u32], gap: usize, dice: u32) -> usize {
    let last = promised.iter().rposition(|clients| *clients > 0);
    let next = last.map_or(0, |last| last.saturating_add(gap));
    if next < promised.len() { next } else { late(promised.len(), dice) }
}

fn late(seconds: usize, dice: u32) -> usize {
    let half = seconds / 2;
    half + dice as usize % (seconds - half)
}

impl State {
    fn at(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.epoch).as_secs_f64()
    }

    /// Drops the seconds that have passed.
    fn lapse(&mut self, second: u64) {
        let passed = usize::try_from(second.saturating_sub(self.second)).unwrap_or(HORIZON).min(HORIZON);
        self.promised.rotate_left(passed);
        self.promised[HORIZON - passed..].fill(0);
        self.second = self.second.max(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::key::of_ip;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    fn conf(per_second: f64, burst: u32, wait_ms: u64) -> Admission {
        let wait = Duration::from_millis(wait_ms);
        Admission { rate: Some(Rate { per_second }), burst, max_handshakes: 0, max_share_per_ip: 0.5, wait }
    }

    /// The turn, or when to come back.
    fn take(budget: &Budget, now: Instant, dice: u32) -> Result<Duration, Duration> {
        budget.turn(now).ok_or_else(|| budget.later(now, dice))
    }

    struct Storm {
        /// When each handshake was offered to what is behind, in milliseconds.
        offered: Vec<u64>,
        tries: usize,
        longest_told: u64,
    }

    /// Clients that come within `within` ms and do as they are told, but for some network delay, and
    /// ten newcomers a second besides.
    fn storm(conf: Admission, clients: usize, within: u64, seed: u64) -> Storm {
        let mut rng = SmallRng::seed_from_u64(seed);
        let start = Instant::now();
        let budget = Budget::new(conf, start).unwrap();
        let mut coming: BinaryHeap<Reverse<(u64, bool)>> =
            (0..clients).map(|_| Reverse((rng.random_range(0..=within), true))).collect();
        coming.extend((0..400).map(|n| Reverse((n * 100, false))));
        let mut storm = Storm { offered: Vec::new(), tries: 0, longest_told: 0 };
        let mut out = clients;
        while let Some(Reverse((at, returning))) = coming.pop().filter(|_| out > 0) {
            storm.tries += usize::from(returning);
            match take(&budget, start + Duration::from_millis(at), rng.random()) {
                Ok(turn) => {
                    storm.offered.push(at + turn.as_millis() as u64);
                    out -= usize::from(returning);
                }
                Err(told) => {
                    storm.longest_told = storm.longest_told.max(told.as_secs());
                    let again = at + told.as_millis() as u64 + rng.random_range(0..30);
                    coming.push(Reverse((again, returning)));
                }
            }
        }
        storm.offered.sort_unstable();
        storm
    }

    #[test]
    fn eight_thousand_at_once_are_let_in_at_the_pace_and_no_later() {
        // Spread over a second or all in one instant. Without a wait, what of a second comes in the
        // same moment is more than the burst, and some have to come again.
        for (within, wait, burst, slack) in [
            (1000, 1000, 100, 1.3),
            (0, 1000, 100, 1.3),
            (50, 1000, 1, 1.3),
            (0, 0, 300, 1.3),
            (1000, 0, 100, 1.8),
        ] {
            for seed in 0..5 {
                let case = format!("within {within} ms, wait {wait} ms, burst {burst}, seed {seed}");
                let storm = storm(conf(300.0, burst, wait), 8000, within, seed);
                for (i, from) in storm.offered.iter().enumerate() {
                    let in_a_second = storm.offered[i..].iter().take_while(|at| **at < from + 1000).count();
                    assert!(in_a_second <= 300 + burst as usize, "{in_a_second} after {from} ms: {case}");
                }
                let last = *storm.offered.last().unwrap() as f64 / 1000.0;
                assert!(last < 8000.0 / 300.0 * slack, "all in after {last} s: {case}");
                assert!(storm.tries < 8000 * 3, "{} tries: {case}", storm.tries);
                assert!(storm.longest_told <= 50, "told {} s: {case}", storm.longest_told);
            }
        }
    }

    #[test]
    fn after_a_stall_those_that_are_late_leave_at_the_rate_too() {
        let start = Instant::now();
        let budget = Budget::new(conf(300.0, 10, 1000), start).unwrap();
        let turns = (0..400).filter_map(|_| budget.turn(start)).count();
        assert_eq!(turns, 310, "a burst, and a second's worth that waits");
        // For two seconds nothing runs; then all of them, and a second's worth of others.
        let awake = start + Duration::from_secs(2);
        let late = (0..310).map(|_| awake);
        let others = (0..300_u32).map(|n| awake + Duration::from_secs(1) * n / 300);
        let mut left: Vec<Duration> = late.chain(others).map(|at| at - start + budget.leave(at)).collect();
        left.sort_unstable();
        for from in &left {
            let within =
                left.iter().filter(|at| **at >= *from && **at < *from + Duration::from_secs(1)).count();
            assert!(within <= 311, "{within} left within the second from {from:?}");
        }
        assert!(left[609] < Duration::from_secs(5), "{:?}", left[609]);
    }

    #[test]
    fn a_short_overload_is_told_a_short_wait() {
        let now = Instant::now();
        let budget = Budget::new(conf(10.0, 2, 0), now).unwrap();
        assert_eq!(take(&budget, now, 0), Ok(Duration::ZERO));
        assert_eq!(take(&budget, now, 0), Ok(Duration::ZERO));
        assert_eq!(take(&budget, now, 0), Err(Duration::from_secs(1)));
        assert_eq!(take(&budget, now, 1), Err(Duration::from_secs(2)), "not all in the same second");
        assert_eq!(take(&budget, now + Duration::from_millis(100), 0), Ok(Duration::ZERO));
    }

    #[test]
    fn a_wait_makes_turns_and_slow_rates_leave_gaps() {
        let now = Instant::now();
        let budget = Budget::new(conf(2.0, 1, 1000), now).unwrap();
        let turns: Vec<_> = (0..3).map(|_| take(&budget, now, 0).unwrap().as_millis()).collect();
        assert_eq!(turns, [0, 500, 1000]);
        assert!(take(&budget, now, 0).is_err());
        let budget = Budget::new(conf(0.1, 1, 0), now).unwrap();
        take(&budget, now, 0).unwrap();
        let told: Vec<_> = (0..3).map(|_| take(&budget, now, 0).unwrap_err().as_secs()).collect();
        assert_eq!(told, [1, 12, 23], "at 0.1/s a place comes every ten seconds or so");
    }

    #[test]
    fn more_than_the_ledger_holds_are_told_one_of_its_later_seconds() {
        let now = Instant::now();
        let budget = Budget::new(conf(2.0, 1, 0), now).unwrap();
        for dice in 0..5000 {
            if let Err(told) = take(&budget, now, dice) {
                assert!((1..=HORIZON as u64).contains(&told.as_secs()), "{told:?}");
            }
        }
        let later = now + Duration::from_secs(3600);
        take(&budget, later, 0).unwrap();
        assert_eq!(take(&budget, later, 0), Err(Duration::from_secs(1)), "it has lapsed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_cap_waits_a_moment_and_then_refuses() {
        let conf = Admission {
            rate: None,
            burst: 1,
            max_handshakes: 1,
            max_share_per_ip: 0.5,
            wait: Duration::from_millis(500),
        };
        let budget = Budget::new(conf, Instant::now()).unwrap();
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| of_ip(ip.parse().unwrap(), 64));
        let first = budget.slot(one).await.unwrap();
        assert!(first.is_some());
        let before = tokio::time::Instant::now();
        assert!(budget.slot(other).await.is_err());
        assert_eq!(before.elapsed(), Duration::from_millis(500));
        assert_eq!(budget.later(Instant::now(), 0), Duration::from_secs(1));
        drop(first);
        assert!(budget.slot(other).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_leaves_places_to_others_and_does_not_stand_in_their_line() {
        let conf = Admission {
            rate: None,
            burst: 1,
            max_handshakes: 4,
            max_share_per_ip: 0.5,
            wait: Duration::from_millis(500),
        };
        let budget = Budget::new(conf, Instant::now()).unwrap();
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| of_ip(ip.parse().unwrap(), 64));
        let slow = [budget.slot(one).await.unwrap(), budget.slot(one).await.unwrap()];
        let before = tokio::time::Instant::now();
        assert!(budget.slot(one).await.is_err());
        assert!(before.elapsed().is_zero(), "who has his share does not wait for others' places");
        let _others = [budget.slot(other).await.unwrap(), budget.slot(other).await.unwrap()];
        drop(slow);
        assert!(budget.slot(one).await.is_ok());
    }
}
