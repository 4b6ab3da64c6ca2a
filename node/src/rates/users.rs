//! The states of users: a table of bounded size for `governor`. It never forgets who is in debt to make room: when it
//! is full, users that it does not know share states by groups until others' debts are paid.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Users told apart, some 3 MiB.
pub const MAX_USERS: usize = 65_536;
const GROUPS: u64 = 1024;

#[derive(Default)]
pub struct Users {
    /// By the hash of a user's id: when his debt is paid.
    known: DashMap<u64, u64>,
    groups: DashMap<u64, u64>,
    /// Of `known`; its own count would lock every part of it.
    len: AtomicUsize,
}

impl StateStore for Users {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, user: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let judge = |paid: &mut u64| {
            let (result, next) = f(NonZeroU64::new(*paid).map(|paid| paid.get().into()))?;
            *paid = next.into();
            Ok(result)
        };
        if let Some(mut paid) = self.known.get_mut(user) {
            return judge(&mut paid);
        }
        if self.len.load(Relaxed) >= MAX_USERS {
            return judge(self.groups.entry(user % GROUPS).or_insert(0).value_mut());
        }
        match self.known.entry(*user) {
            Entry::Occupied(mut paid) => judge(paid.get_mut()),
            Entry::Vacant(free) => {
                self.len.fetch_add(1, Relaxed);
                judge(free.insert(0).value_mut())
            }
        }
    }
}

impl ShrinkableKeyedStateStore<u64> for Users {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut gone = 0;
        self.known.retain(|_, paid| {
            let owes = *paid > drop_below.as_u64();
            gone += usize::from(!owes);
            owes
        });
        self.len.fetch_sub(gone, Relaxed);
        self.groups.retain(|_, paid| *paid > drop_below.as_u64());
    }

    fn shrink_to_fit(&self) {
        self.known.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::conf;
    use super::super::{Kind, Rates};
    use super::*;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn a_million_users_do_not_grow_it_and_do_not_free_an_offender() {
        let t0 = Instant::now();
        let rates = Arc::new(Rates::new(&conf(0.0, 0.5), 1, t0));
        let take = |user: &str, at| {
            let meter = rates.meter();
            meter.set_user(user);
            meter.take(Kind::Publication, at)
        };
        take("offender", t0).unwrap();
        assert!(take("offender", t0).is_err());
        for n in 0..1_000_000 {
            let _ = take(&n.to_string(), t0 + Duration::from_millis(n / 1000));
        }
        let publications = rates.user[Kind::Publication as usize].as_ref().unwrap();
        assert_eq!(publications.len(), MAX_USERS);
        let at = t0 + Duration::from_secs(1);
        assert!(take("offender", at).is_err(), "forgotten to make room");
        assert!(take("a stranger", at).is_err(), "of a full table shares a state");
        take("a stranger", t0 + Duration::from_secs(100)).unwrap();
        rates.sweep(t0 + Duration::from_secs(200));
        assert!(publications.is_empty());
        take("offender", t0 + Duration::from_secs(200)).unwrap();
    }
}
