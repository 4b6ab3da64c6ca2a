//! Where clients are, by their keys: who has something open at a server, or had it a moment ago, stays there however
//! much that one holds. Pure. An app that keeps a session in memory is lost when the session's next request goes
//! elsewhere; so a bound on load is for clients that come, not for those that are there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A client with nothing open is known for so long: longer than apps with several requests a session let one rest
/// (Socket.IO: 45 s).
const RECENT: Duration = Duration::from_secs(120);
/// Clients with nothing open that are known at once; then those of longest ago go first.
const MAX_RESTING: usize = 100_000;

#[derive(Debug, Default)]
pub struct Homes {
    homes: HashMap<u64, Home>,
    resting: usize,
}

#[derive(Debug)]
struct Home {
    server: Arc<str>,
    open: usize,
    /// When its last one ended.
    since: Instant,
}

impl Homes {
    pub fn of(&self, key: u64, now: Instant) -> Option<&Arc<str>> {
        self.homes
            .get(&key)
            .filter(|home| home.open > 0 || now < home.since + RECENT)
            .map(|home| &home.server)
    }

    pub fn enter(&mut self, key: u64, server: &Arc<str>, now: Instant) {
        match self.homes.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Home { server: server.clone(), open: 1, since: now });
            }
            Entry::Occupied(mut home) => {
                let home = home.get_mut();
                self.resting -= usize::from(home.open == 0);
                (home.server, home.open) = (server.clone(), home.open + 1);
            }
        }
    }

    pub fn leave(&mut self, key: u64, now: Instant) {
        let Some(home) = self.homes.get_mut(&key) else { return };
        home.open = home.open.saturating_sub(1);
        if home.open > 0 {
            return;
        }
        home.since = now;
        self.resting += 1;
        if self.resting > MAX_RESTING {
            self.tidy(now);
        }
    }

    /// Forgets what is old; if that is not a quarter, the oldest.
    fn tidy(&mut self, now: Instant) {
        self.homes.retain(|_, home| home.open > 0 || now < home.since + RECENT);
        let mut since: Vec<Instant> =
            self.homes.values().filter(|home| home.open == 0).map(|home| home.since).collect();
        let keep = MAX_RESTING / 4 * 3;
        if since.len() > keep {
            let cut = since.len() - keep;
            let oldest = *since.select_nth_unstable(cut).1;
            self.homes.retain(|_, home| home.open > 0 || home.since > oldest);
        }
        self.resting = self.homes.values().filter(|home| home.open == 0).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_something_open_or_had_it_lately_has_a_home() {
        let (mut homes, t0) = (Homes::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let at = |s| t0 + Duration::from_secs(s);
        assert_eq!(homes.of(1, t0), None);
        homes.enter(1, &a, t0);
        homes.enter(1, &a, t0);
        homes.leave(1, at(1));
        assert_eq!(homes.of(1, at(10_000)), Some(&a), "one is still open");
        homes.leave(1, at(10_000));
        assert_eq!(homes.of(1, at(10_119)), Some(&a));
        assert_eq!(homes.of(1, at(10_120)), None);
        homes.enter(1, &b, at(10_200));
        assert_eq!(homes.of(1, at(10_200)), Some(&b));
        assert_eq!(homes.resting, 0);
    }

    #[test]
    fn it_does_not_grow_with_all_who_ever_came() {
        let (mut homes, t0) = (Homes::default(), Instant::now());
        let a: Arc<str> = "a".into();
        homes.enter(u64::MAX, &a, t0);
        for n in 0..3 * MAX_RESTING as u64 {
            let now = t0 + Duration::from_micros(n);
            homes.enter(n, &a, now);
            homes.leave(n, now + Duration::from_nanos(1));
        }
        assert!(homes.homes.len() <= MAX_RESTING + 1, "{}", homes.homes.len());
        assert!(homes.of(u64::MAX, t0).is_some(), "it has something open");
        let last = 3 * MAX_RESTING as u64 - 1;
        assert!(homes.of(last, t0 + Duration::from_secs(1)).is_some() && homes.of(0, t0).is_none());
    }
}
