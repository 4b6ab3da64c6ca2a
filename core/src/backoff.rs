//! Exponential backoff with full jitter: each wait is drawn from [base/2, current], so that many
//! that failed together do not come back together. Pure: the random source is an argument.

use rand::Rng;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    pub fn new(base: Duration, max: Duration) -> Backoff {
        Backoff { base, max, current: base }
    }

    /// The next wait.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let low = self.base / 2;
        let wait = low + (self.current.saturating_sub(low)).mul_f64(rng.random::<f64>());
        self.current = (self.current * 2).min(self.max);
        wait
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.current = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};

    #[test]
    fn grows_to_its_cap_and_starts_anew() {
        let (base, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let (mut b, mut rng) = (Backoff::new(base, max), SmallRng::seed_from_u64(1));
        let waits: Vec<_> = (0..200).map(|_| b.next(&mut rng)).collect();
        assert!(waits.iter().all(|w| *w >= base / 2 && *w <= max));
        assert!(waits[0] <= base);
        let late: Duration = waits[100..].iter().sum();
        assert!(late / 100 > Duration::from_millis(400), "jitter spreads over the whole range");
        b.reset();
        assert!(b.next(&mut rng) <= base);
    }
}
