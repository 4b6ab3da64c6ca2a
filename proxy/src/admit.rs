//! Who may come in: WebSocket handshakes per address and second, and open connections per
//! address and in total. Every address counts alike, loopback too.
//!
//! An IPv6 client is its prefix (a host is given a whole /64 and can change within it at will);
//! an IPv4-mapped address is its IPv4 address.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use prometheus_client::metrics::gauge::Gauge;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// What a client over a count of connections is told: they end when somebody leaves, so nobody
/// knows when.
const RETRY_CONNECTIONS: Duration = Duration::from_secs(5);

/// Addresses that the rate limiter tells apart. Beyond it, it counts by larger networks, so
/// that its memory stays bounded and nobody's debt is forgotten to make room.
const MAX_KEYS: usize = 65_536;
/// How often (in handshakes) that bound is looked at.
const CHECK_EVERY: u32 = 4_096;

/// Not now; worth trying again after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many handshakes from this address: 429.
    Rate(Duration),
    /// Too many open connections from this address: 503.
    PerAddress(Duration),
    /// Too many open connections: 503.
    Total(Duration),
}

impl Refused {
    pub fn cause(self) -> &'static str {
        match self {
            Refused::Rate(_) => "rate",
            Refused::PerAddress(_) => "connections_per_ip",
            Refused::Total(_) => "connections",
        }
    }

    pub fn status(self) -> u16 {
        if matches!(self, Refused::Rate(_)) { 429 } else { 503 }
    }

    pub fn retry_after(self) -> Duration {
        match self {
            Refused::Rate(wait) | Refused::PerAddress(wait) | Refused::Total(wait) => wait,
        }
    }
}

/// What counts as one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpKey(u128);

fn key(ip: IpAddr, v4_prefix: u8, v6_prefix: u8) -> IpKey {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(v4_prefix.min(32))).unwrap_or(0);
            IpKey(u128::from(v4.to_bits() & mask) | (0xffff << 32))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6_prefix.min(128))).unwrap_or(0);
            IpKey(v6.to_bits() & mask)
        }
    }
}

/// Limits of one conf, over counts that outlive it.
pub struct Admit<C: Clock = DefaultClock> {
    counts: Arc<Counts>,
    max_total: i64,
    max_per_address: usize,
    ipv6_prefix: u8,
    rates: Option<Rates<C>>,
}

#[derive(Default)]
struct Counts {
    /// Open connections: the figure that is shown is the one that limits.
    total: Gauge,
    per_address: DashMap<IpKey, usize>,
}

impl Admit {
    pub fn new(conf: &weir_conf::proxy::Proxy, connections: Gauge) -> Admit {
        let counts = Counts { total: connections, ..Counts::default() };
        Admit::with_clock(conf, Arc::new(counts), DefaultClock::default())
    }

    /// The limits of another conf, over the same counts.
    pub fn renew(&self, conf: &weir_conf::proxy::Proxy) -> Admit {
        Admit::with_clock(conf, self.counts.clone(), DefaultClock::default())
    }
}

impl<C: Clock + Clone> Admit<C> {
    fn with_clock(conf: &weir_conf::proxy::Proxy, counts: Arc<Counts>, clock: C) -> Admit<C> {
        Admit {
            counts,
            max_total: match conf.max_connections {
                0 => i64::MAX,
                limit => i64::try_from(limit).unwrap_or(i64::MAX),
            },
            max_per_address: conf.max_connections_per_ip,
            ipv6_prefix: conf.ipv6_prefix,
            rates: conf.handshake_rate.and_then(|rate| Rates::new(rate.per_second, conf, clock)),
        }
    }

    /// A place among all connections.
    pub fn connection(&self) -> Result<Place, Refused> {
        let place = Place { counts: self.counts.clone() };
        if self.counts.total.inc() >= self.max_total {
            return Err(Refused::Total(RETRY_CONNECTIONS)); // dropping `place` gives it back
        }
        Ok(place)
    }

    /// A place among the connections of this address; `None` if they are not limited.
    pub fn address(&self, ip: IpAddr) -> Result<Option<AddressPlace>, Refused> {
        if self.max_per_address == 0 {
            return Ok(None);
        }
        let key = key(ip, 32, self.ipv6_prefix);
        let mut open = self.counts.per_address.entry(key).or_insert(0);
        if *open >= self.max_per_address {
            return Err(Refused::PerAddress(RETRY_CONNECTIONS));
        }
        *open += 1;
        Ok(Some(AddressPlace { counts: self.counts.clone(), key }))
    }

    /// One more WebSocket handshake from this address.
    pub fn handshake(&self, ip: IpAddr) -> Result<(), Refused> {
        self.rates.as_ref().map_or(Ok(()), |rates| rates.check(ip, self.ipv6_prefix))
    }

    /// Forgets addresses that have no debt. To be called every few seconds.
    pub fn sweep(&self) {
        if let Some(rates) = &self.rates {
            rates.sweep();
        }
    }
}

/// One open connection, counted until this is dropped.
pub struct Place {
    counts: Arc<Counts>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.total.dec();
    }
}

/// The same for its address.
pub struct AddressPlace {
    counts: Arc<Counts>,
    key: IpKey,
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.counts.per_address.entry(self.key) {
            match open.get().saturating_sub(1) {
                0 => drop(open.remove()),
                left => *open.get_mut() = left,
            }
        }
    }
}

type Limiter<C> = RateLimiter<IpKey, DashMapStateStore<IpKey>, C, NoOpMiddleware<<C as Clock>::Instant>>;

struct Rates<C: Clock> {
    limiter: Limiter<C>,
    clock: C,
    crowded: AtomicBool,
    checks: AtomicU32,
}

impl<C: Clock + Clone> Rates<C> {
    fn new(per_second: f64, conf: &weir_conf::proxy::Proxy, clock: C) -> Option<Rates<C>> {
        let period = Duration::try_from_secs_f64(1.0 / per_second).ok()?;
        let burst = NonZeroU32::new(conf.handshake_burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)?.allow_burst(burst);
        Some(Rates {
            limiter: RateLimiter::dashmap_with_clock(quota, clock.clone()),
            clock,
            crowded: AtomicBool::new(false),
            checks: AtomicU32::new(1),
        })
    }

    fn check(&self, ip: IpAddr, ipv6_prefix: u8) -> Result<(), Refused> {
        if self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(CHECK_EVERY) {
            self.crowd();
        }
        let key = match self.crowded.load(Ordering::Relaxed) {
            false => key(ip, 32, ipv6_prefix),
            true => key(ip, 16, ipv6_prefix.min(32)),
        };
        self.limiter.check_key(&key).map_err(|until| {
            let wait = until.wait_time_from(self.clock.now());
            Refused::Rate(wait.max(Duration::from_millis(1)))
        })
    }

    fn crowd(&self) {
        if self.limiter.len() > MAX_KEYS {
            self.limiter.retain_recent();
        }
        self.crowded.store(self.limiter.len() > MAX_KEYS, Ordering::Relaxed);
    }

    fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
        self.crowd();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conf;
    use governor::clock::FakeRelativeClock;
    use weir_conf::units::Rate;

    fn admit(
        change: impl FnOnce(&mut weir_conf::proxy::Proxy),
    ) -> (Admit<FakeRelativeClock>, FakeRelativeClock) {
        let mut conf = conf();
        change(&mut conf);
        let clock = FakeRelativeClock::default();
        (Admit::with_clock(&conf, Arc::default(), clock.clone()), clock)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_then_the_rate_and_the_wait_is_told() {
        let (admit, clock) = admit(|c| {
            c.handshake_rate = Some(Rate { per_second: 0.5 });
            c.handshake_burst = 3;
        });
        for _ in 0..3 {
            admit.handshake(ip("127.0.0.1")).unwrap();
        }
        assert_eq!(admit.handshake(ip("127.0.0.1")), Err(Refused::Rate(Duration::from_secs(2))));
        admit.handshake(ip("127.0.0.2")).unwrap();
        clock.advance(Duration::from_secs(2));
        admit.handshake(ip("127.0.0.1")).unwrap();
        assert!(admit.handshake(ip("::ffff:127.0.0.1")).is_err(), "a mapped address is the same client");
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let (admit, _) = admit(|c| {
            c.handshake_rate = Some(Rate { per_second: 1.0 });
            c.handshake_burst = 2;
            c.max_connections_per_ip = 2;
        });
        admit.handshake(ip("2001:db8::1")).unwrap();
        admit.handshake(ip("2001:db8::ffff:2")).unwrap();
        assert!(admit.handshake(ip("2001:db8::3")).is_err());
        admit.handshake(ip("2001:db8:0:1::3")).unwrap();

        let first = admit.address(ip("2001:db8::1")).unwrap();
        let _second = admit.address(ip("2001:db8::2")).unwrap();
        assert!(admit.address(ip("2001:db8::3")).is_err());
        let _elsewhere = admit.address(ip("2001:db8:0:1::3")).unwrap();
        drop(first);
        assert!(admit.address(ip("2001:db8::3")).is_ok());
    }

    #[test]
    fn counts_are_exact_and_given_back() {
        let (admit, _) = admit(|c| {
            c.max_connections = 2;
            c.max_connections_per_ip = 5;
        });
        let a = admit.connection().unwrap();
        let _b = admit.connection().unwrap();
        assert!(admit.connection().is_err());
        assert!(admit.connection().is_err());
        drop(a);
        assert!(admit.connection().is_ok());
        assert_eq!(admit.counts.total.get(), 1);
        drop(admit.address(ip("1.1.1.1")).unwrap());
        assert!(admit.counts.per_address.is_empty());
    }

    #[test]
    fn a_million_addresses_do_not_grow_it_and_do_not_free_an_offender() {
        let (admit, clock) = admit(|c| {
            c.handshake_rate = Some(Rate { per_second: 0.1 });
            c.handshake_burst = 1;
        });
        let network = |n: u32| {
            IpAddr::V6(std::net::Ipv6Addr::from_bits(((0x2001_0db8_u128 << 32) | u128::from(n)) << 64))
        };
        let offender = ip("9.9.9.9");
        admit.handshake(offender).unwrap();
        for n in 0..1_000_000 {
            let _ = admit.handshake(network(n));
        }
        let rates = admit.rates.as_ref().unwrap();
        assert!(rates.limiter.len() < MAX_KEYS + 2 * CHECK_EVERY as usize, "{}", rates.limiter.len());
        let _ = admit.handshake(offender); // its network's bucket, once
        assert!(admit.handshake(offender).is_err());
        clock.advance(Duration::from_secs(60));
        admit.sweep();
        assert_eq!(rates.limiter.len(), 0);
        admit.handshake(offender).unwrap();
    }
}
