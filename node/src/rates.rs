//! How often a client may ask for things: by `governor`, for each connection and for each user, by what it costs.
//!
//! A connection's states live with it, one number for each kind; users' live in a bounded table ([`users`]), since a
//! user who comes back is the same one. Nobody (an empty user id) is no user: for him only his connection counts.
//! Over a rate a command is answered with 111; who goes on in spite of that is closed (3013). Time is an argument.

mod users;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::direct::NotKeyed;
use governor::state::{InMemoryState, StateStore};
use governor::{Quota, RateLimiter};
use std::cell::Cell;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use users::{MAX_USERS, Users};
use weir_conf::node::{Rate as Conf, Rates as OfWhom};

/// Refusals that a client may collect before it is closed, and so many a second that are forgiven: a client that
/// backs off when it is told to never gets there.
const REFUSALS: u32 = 100;
const FORGIVEN: f64 = 10.0;
/// How often, in users that found it full, a full table is searched for paid debts.
const SWEEP_EVERY: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Command,
    Publication,
    Subscribe,
    /// The first subscription here to a name that nobody had.
    NewChannel,
    /// History and presence.
    Read,
    Rpc,
}

const KINDS: usize = 6;

impl Kind {
    const ALL: [Kind; KINDS] =
        [Kind::Command, Kind::Publication, Kind::Subscribe, Kind::NewChannel, Kind::Read, Kind::Rpc];

    /// As the conf's keys have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Command => "commands",
            Kind::Publication => "publications",
            Kind::Subscribe => "subscribes",
            Kind::NewChannel => "new_channels",
            Kind::Read => "reads",
            Kind::Rpc => "rpcs",
        }
    }

    fn of(self, rates: &OfWhom) -> Option<f64> {
        let rate = match self {
            Kind::Command => rates.commands,
            Kind::Publication => rates.publications,
            Kind::Subscribe => rates.subscribes,
            Kind::NewChannel => rates.new_channels,
            Kind::Read => rates.reads,
            Kind::Rpc => rates.rpcs,
        };
        rate.map(|rate| rate.per_second)
    }
}

/// Whose rate it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Connection,
    User,
}

impl By {
    pub fn name(self) -> &'static str {
        match self {
            By::Connection => "connection",
            By::User => "user",
        }
    }
}

/// Too many of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub kind: Kind,
    pub by: By,
}

thread_local! {
    /// The time that the caller of a limiter has.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// Governor asks a clock; ours says what it was told.
#[derive(Clone)]
struct Told;

impl Clock for Told {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        NOW.get().into()
    }
}

/// One connection's state of one kind.
#[derive(Clone)]
struct Own {
    states: Arc<[InMemoryState; KINDS + 1]>,
    at: usize,
}

impl PartialEq for Own {
    fn eq(&self, other: &Own) -> bool {
        Arc::ptr_eq(&self.states, &other.states) && self.at == other.at
    }
}

impl Eq for Own {}

impl Hash for Own {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.states) as usize, self.at).hash(state);
    }
}

/// The state is in the key.
struct InKey;

impl StateStore for InKey {
    type Key = Own;

    fn measure_and_replace<T, F, E>(&self, key: &Own, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        key.states[key.at].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

type OfConnection = RateLimiter<Own, InKey, Told, NoOpMiddleware<Nanos>>;
type OfUser = RateLimiter<u64, Users, Told, NoOpMiddleware<Nanos>>;

/// Of the whole node.
pub struct Rates {
    epoch: Instant,
    /// `None`: no limit.
    connection: [Option<OfConnection>; KINDS],
    user: [Option<OfUser>; KINDS],
    refusals: Option<OfConnection>,
    secret: RandomState,
    found_full: AtomicUsize,
}

/// Of one connection.
pub struct Meter {
    rates: Arc<Rates>,
    states: Arc<[InMemoryState; KINDS + 1]>,
    user: OnceLock<u64>,
}

/// `None`: so many that nobody would ever be refused.
fn quota(per_second: f64, burst: f64, least: u32) -> Option<Quota> {
    if per_second > 1e9 {
        return None;
    }
    let period = Duration::from_secs_f64((1.0 / per_second).min(86_400.0));
    let burst = ((per_second * burst) as u32).clamp(1, 1_000_000).max(least);
    Some(Quota::with_period(period)?.allow_burst(NonZeroU32::new(burst)?))
}

impl Rates {
    /// Of new subscriptions at least `channels_per_client` may come at once: that is what a client does that comes back.
    pub fn new(conf: &Conf, channels_per_client: usize, now: Instant) -> Rates {
        // Limiters count from here.
        NOW.set(0);
        let burst = conf.burst.as_secs_f64();
        let least = |kind| match kind {
            Kind::Command | Kind::Subscribe | Kind::NewChannel => channels_per_client.min(1_000_000) as u32,
            _ => 1,
        };
        let quota_of = |kind: Kind, of: &OfWhom| quota(kind.of(of)?, burst, least(kind));
        Rates {
            epoch: now,
            connection: Kind::ALL.map(|kind| {
                quota_of(kind, &conf.connection).map(|quota| RateLimiter::new(quota, InKey, Told))
            }),
            user: Kind::ALL.map(|kind| {
                quota_of(kind, &conf.user).map(|quota| RateLimiter::new(quota, Users::default(), Told))
            }),
            refusals: quota(FORGIVEN, f64::from(REFUSALS) / FORGIVEN, 1)
                .map(|quota| RateLimiter::new(quota, InKey, Told)),
            secret: RandomState::new(),
            found_full: AtomicUsize::new(0),
        }
    }

    pub fn meter(self: &Arc<Self>) -> Meter {
        Meter { rates: self.clone(), states: Arc::default(), user: OnceLock::new() }
    }

    /// Forgets users who have not asked for anything lately.
    pub fn sweep(&self, now: Instant) {
        self.tell(now);
        for limiter in self.user.iter().flatten() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    fn check(&self, limiter: &OfUser, user: &u64) -> Result<(), ()> {
        // Only the store knows whether it is full, and only the limiter who has paid.
        let full = limiter.len() >= MAX_USERS;
        if full && self.found_full.fetch_add(1, Relaxed).is_multiple_of(SWEEP_EVERY) {
            limiter.retain_recent();
        }
        limiter.check_key(user).map_err(|_| ())
    }

    fn tell(&self, now: Instant) {
        // Some 500 years fit; a second on top, since governor takes a state of 0 for none.
        let since = now.saturating_duration_since(self.epoch) + Duration::from_secs(1);
        NOW.set(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX >> 2));
    }
}

impl Meter {
    /// Whose connection it is; of nobody's there is nothing to know.
    pub fn set_user(&self, user: &str) {
        if !user.is_empty() {
            let _ = self.user.set(self.rates.secret.hash_one(user));
        }
    }

    /// One more of this kind.
    pub fn take(&self, kind: Kind, now: Instant) -> Result<(), Refused> {
        self.rates.tell(now);
        let at = kind as usize;
        if let Some(limiter) = &self.rates.connection[at]
            && limiter.check_key(&self.own(at)).is_err()
        {
            return Err(Refused { kind, by: By::Connection });
        }
        if let (Some(limiter), Some(user)) = (&self.rates.user[at], self.user.get())
            && self.rates.check(limiter, user).is_err()
        {
            return Err(Refused { kind, by: By::User });
        }
        Ok(())
    }

    /// One more was refused. False: that is enough.
    pub fn may_go_on(&self, now: Instant) -> bool {
        self.rates.tell(now);
        let limiter = self.rates.refusals.as_ref();
        limiter.is_none_or(|limiter| limiter.check_key(&self.own(KINDS)).is_ok())
    }

    fn own(&self, at: usize) -> Own {
        Own { states: self.states.clone(), at }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use weir_conf::units::Rate;

    pub fn conf(per_second: f64, of_user: f64) -> Conf {
        let of = |per_second| {
            let rate = (per_second > 0.0).then_some(Rate { per_second });
            OfWhom {
                commands: rate,
                publications: rate,
                subscribes: rate,
                new_channels: rate,
                reads: rate,
                rpcs: rate,
            }
        };
        Conf { burst: Duration::from_secs(2), connection: of(per_second), user: of(of_user) }
    }

    #[test]
    fn a_burst_then_the_rate_for_each_kind_alone() {
        let t0 = Instant::now();
        let rates = Arc::new(Rates::new(&conf(10.0, 0.0), 30, t0));
        let (meter, other) = (rates.meter(), rates.meter());
        for kind in Kind::ALL {
            let burst = if matches!(kind, Kind::Publication | Kind::Read | Kind::Rpc) { 20 } else { 30 };
            for _ in 0..burst {
                meter.take(kind, t0).unwrap();
            }
            assert_eq!(meter.take(kind, t0), Err(Refused { kind, by: By::Connection }));
            other.take(kind, t0).unwrap();
            meter.take(kind, t0 + Duration::from_millis(101)).unwrap();
            assert!(meter.take(kind, t0 + Duration::from_millis(102)).is_err());
        }
    }

    #[test]
    fn a_user_is_all_his_connections_and_nobody_is_none() {
        let t0 = Instant::now();
        let rates = Arc::new(Rates::new(&conf(0.0, 5.0), 1, t0));
        let meters = [0; 4].map(|_| rates.meter());
        meters.iter().for_each(|meter| meter.set_user("bob"));
        let taken = (0..40).filter(|n| meters[n % 4].take(Kind::Publication, t0).is_ok()).count();
        assert_eq!(taken, 10);
        let came_back = rates.meter();
        came_back.set_user("bob");
        let refused = came_back.take(Kind::Publication, t0).unwrap_err();
        assert_eq!((refused.by, refused.kind), (By::User, Kind::Publication));
        let (alice, nobody) = (rates.meter(), rates.meter());
        alice.set_user("alice");
        nobody.set_user("");
        alice.take(Kind::Publication, t0).unwrap();
        assert!((0..100).all(|_| nobody.take(Kind::Publication, t0).is_ok()));
        rates.sweep(t0 + Duration::from_secs(10));
        assert!(rates.user.iter().flatten().all(RateLimiter::is_empty));
    }

    #[test]
    fn who_goes_on_in_spite_of_refusals_has_had_enough() {
        let t0 = Instant::now();
        let rates = Arc::new(Rates::new(&conf(1.0, 1.0), 1, t0));
        let meter = rates.meter();
        assert_eq!((0..1000).filter(|_| meter.may_go_on(t0)).count(), REFUSALS as usize);
        let polite = rates.meter();
        assert!((0..1000).all(|n| polite.may_go_on(t0 + Duration::from_millis(100 * n))));
    }

    #[test]
    fn rates_at_the_ends_of_what_can_be_written() {
        for per_second in [1e-300, 1e-9, 1e9, 1e12, f64::MAX] {
            let rates = Arc::new(Rates::new(&conf(per_second, per_second), 1, Instant::now()));
            let meter = rates.meter();
            meter.set_user("u");
            for n in 0..100 {
                let _ = meter.take(Kind::Command, Instant::now() + Duration::from_secs(n * 1_000_000_000));
            }
        }
    }
}
