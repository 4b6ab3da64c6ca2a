//! So many a second for each client, in bounded memory: GCRA, the token bucket that is one number
//! a client. Pure: the time is an argument.
//!
//! The table never forgets who is in debt to make room. When it is full, clients that it does not
//! know share buckets by groups, until others' debts are paid; those that it knows go on as before.

use super::key::Key;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Clients told apart; with the groups some 4 MiB at most.
pub const MAX_KEYS: usize = 65_536;
/// How often, in clients that found it full, a full table is searched for paid debts.
const SWEEP_EVERY: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// From one to the next, in nanoseconds.
    period: u64,
    burst: u32,
}

impl Quota {
    /// `None`: so fast that nobody would ever be refused.
    pub fn new(per_second: f64, burst: u32) -> Option<Quota> {
        let period = (1e9 / per_second).min(SLOWEST) as u64;
        (period > 0).then_some(Quota { period, burst: burst.clamp(1, 1_000_000) })
    }

    /// What a client may be ahead of its pace.
    fn slack(self) -> u64 {
        self.period.saturating_mul(u64::from(self.burst - 1))
    }
}

/// One in a day, in nanoseconds: times a burst it still fits.
const SLOWEST: f64 = 86_400e9;

pub struct Rates {
    quota: Quota,
    epoch: Instant,
    /// When each client's debt is paid, in nanoseconds after `epoch`.
    known: DashMap<Key, u64>,
    groups: DashMap<u16, u64>,
    /// Of `known`; its own count would lock every part of it.
    len: AtomicUsize,
    found_full: AtomicUsize,
}

impl Rates {
    pub fn new(quota: Quota, now: Instant) -> Rates {
        Rates {
            quota,
            epoch: now,
            known: DashMap::new(),
            groups: DashMap::new(),
            len: AtomicUsize::new(0),
            found_full: AtomicUsize::new(0),
        }
    }

    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// One more of this client's, or how long it should wait.
    pub fn take(&self, key: Key, now: Instant) -> Result<(), Duration> {
        let now = self.since(now);
        if let Some(mut paid) = self.known.get_mut(&key) {
            return self.judge(&mut paid, now);
        }
        if self.has_room(now) {
            return match self.known.entry(key) {
                Entry::Occupied(mut paid) => self.judge(paid.get_mut(), now),
                Entry::Vacant(free) => {
                    self.len.fetch_add(1, Relaxed);
                    self.judge(free.insert(0).value_mut(), now)
                }
            };
        }
        self.judge(self.groups.entry(key.group()).or_insert(0).value_mut(), now)
    }

    /// Whether this client would be refused now. Nothing is taken.
    pub fn owes(&self, key: Key, now: Instant) -> bool {
        let now = self.since(now);
        let known = self.known.get(&key).map(|paid| *paid);
        let paid = known.or_else(|| self.groups.get(&key.group()).map(|paid| *paid));
        paid.is_some_and(|paid| paid.saturating_sub(now) > self.quota.slack())
    }

    /// What was taken was not used after all.
    pub fn give_back(&self, key: Key) {
        if let Some(mut paid) = self.known.get_mut(&key) {
            *paid = paid.saturating_sub(self.quota.period);
        }
    }

    /// Forgets who has no debt.
    pub fn sweep(&self, now: Instant) {
        let now = self.since(now);
        self.forget_paid(now);
        self.known.shrink_to_fit();
        self.groups.retain(|_, paid| *paid > now);
    }

    fn judge(&self, paid: &mut u64, now: u64) -> Result<(), Duration> {
        let from = (*paid).max(now);
        let (ahead, slack) = (from - now, self.quota.slack());
        if ahead > slack {
            return Err(Duration::from_nanos(ahead - slack));
        }
        *paid = from.saturating_add(self.quota.period);
        Ok(())
    }

    fn has_room(&self, now: u64) -> bool {
        if self.len.load(Relaxed) < MAX_KEYS {
            return true;
        }
        if self.found_full.fetch_add(1, Relaxed).is_multiple_of(SWEEP_EVERY) {
            self.forget_paid(now);
        }
        self.len.load(Relaxed) < MAX_KEYS
    }

    fn forget_paid(&self, now: u64) {
        let mut gone = 0;
        self.known.retain(|_, paid| {
            let owes = *paid > now;
            gone += usize::from(!owes);
            owes
        });
        self.len.fetch_sub(gone, Relaxed);
    }

    fn since(&self, now: Instant) -> u64 {
        // Some 500 years fit.
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key;
    use super::*;
    use std::hash::RandomState;
    use std::net::{IpAddr, Ipv6Addr};

    fn ip(text: &str) -> Key {
        key::of_ip(text.parse().unwrap(), 64)
    }

    fn rates(per_second: f64, burst: u32) -> (Rates, Instant) {
        let now = Instant::now();
        (Rates::new(Quota::new(per_second, burst).unwrap(), now), now)
    }

    #[test]
    fn a_burst_then_the_rate_and_the_wait_is_told() {
        let (rates, now) = rates(0.5, 3);
        for _ in 0..3 {
            assert!(!rates.owes(ip("127.0.0.1"), now));
            rates.take(ip("127.0.0.1"), now).unwrap();
        }
        assert!(rates.owes(ip("127.0.0.1"), now) && !rates.owes(ip("127.0.0.2"), now));
        assert_eq!(rates.take(ip("127.0.0.1"), now), Err(Duration::from_secs(2)));
        rates.take(ip("127.0.0.2"), now).unwrap();
        let later = now + Duration::from_secs(2);
        rates.take(ip("127.0.0.1"), later).unwrap();
        assert!(rates.take(ip("::ffff:127.0.0.1"), later).is_err(), "a mapped address is the same client");
        rates.give_back(ip("127.0.0.1"));
        rates.take(ip("127.0.0.1"), later).unwrap();
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let (rates, now) = rates(1.0, 2);
        rates.take(ip("2001:db8::1"), now).unwrap();
        rates.take(ip("2001:db8::ffff:2"), now).unwrap();
        assert!(rates.take(ip("2001:db8::3"), now).is_err());
        rates.take(ip("2001:db8:0:1::3"), now).unwrap();
    }

    #[test]
    fn rates_at_the_ends_of_what_can_be_written() {
        assert_eq!(Quota::new(1e12, 1), None, "no limit");
        let slow = Quota::new(1e-300, u32::MAX).unwrap();
        let now = Instant::now();
        let rates = Rates::new(slow, now);
        for _ in 0..1000 {
            rates.take(ip("1.1.1.1"), now).unwrap(); // a burst of a million
        }
        let rates = Rates::new(Quota::new(1e-300, 1).unwrap(), now);
        rates.take(ip("1.1.1.1"), now).unwrap();
        assert_eq!(rates.take(ip("1.1.1.1"), now), Err(Duration::from_secs(86_400)), "a day, not for ever");
    }

    #[test]
    fn a_million_addresses_do_not_grow_it_and_do_not_free_an_offender() {
        let (rates, now) = rates(0.1, 1);
        let network = |n: u32| {
            let bits = ((0x2001_0db8_u128 << 32) | u128::from(n)) << 64;
            key::of_ip(IpAddr::V6(Ipv6Addr::from_bits(bits)), 64)
        };
        let offender = ip("9.9.9.9");
        rates.take(offender, now).unwrap();
        for n in 0..1_000_000 {
            let _ = rates.take(network(n), now);
        }
        assert!(rates.known.len() <= MAX_KEYS && rates.groups.len() <= MAX_KEYS);
        assert!(rates.take(offender, now).is_err(), "forgotten to make room");
        assert!(rates.take(network(2_000_000), now).is_err(), "a stranger of a full table shares a bucket");
        rates.take(ip("1.2.3.4"), now).unwrap();
        let later = now + Duration::from_secs(60);
        rates.sweep(later);
        assert_eq!((rates.known.len(), rates.len.load(Relaxed), rates.groups.len()), (0, 0, 0));
        rates.take(offender, later).unwrap();
    }

    #[test]
    fn hashed_keys_fill_the_table_and_no_more() {
        let (rates, now) = rates(0.1, 1);
        let secret = RandomState::new();
        for n in 0..200_000_u32 {
            let _ = rates.take(key::of_bytes(&n.to_le_bytes(), &secret), now);
        }
        assert!(rates.known.len() <= MAX_KEYS);
        assert!(rates.groups.len() > 30_000, "groups are spread: {}", rates.groups.len());
    }
}
