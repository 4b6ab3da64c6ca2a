//! What each address holds of one server's places: its open requests and tunnels, and its handshakes under way. Pure.

use crate::admit::key::Key;
use std::collections::HashMap;

/// Bounded by the places themselves.
#[derive(Debug, Default)]
pub struct Places(HashMap<Key, Held>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub open: usize,
    pub handshakes: usize,
}

impl Places {
    pub fn of(&self, who: Key) -> Held {
        self.0.get(&who).copied().unwrap_or_default()
    }

    pub fn take(&mut self, who: Key, what: impl FnOnce(&mut Held)) {
        what(self.0.entry(who).or_default());
    }

    pub fn give(&mut self, who: Key, what: impl FnOnce(&mut Held)) {
        if let Some(held) = self.0.get_mut(&who) {
            what(held);
            if *held == Held::default() {
                self.0.remove(&who);
            }
        }
    }
}

/// How many of these places one address may have. One at least, or nobody had any.
pub fn share(places: usize, share: f64) -> usize {
    // A share is 0 to 1, so this is no more than there are.
    ((places as f64 * share).ceil() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::key::of_ip;

    #[test]
    fn a_share_is_one_at_least_and_leaves_something_from_two_places_on() {
        for (places, of, expected) in
            [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (10, 0.5, 5), (10, 1.0, 10), (4, 0.0, 1)]
        {
            assert_eq!(share(places, of), expected, "{places} × {of}");
        }
    }

    #[test]
    fn what_is_given_back_is_forgotten() {
        let mut places = Places::default();
        let who = of_ip("10.0.0.1".parse().unwrap(), 64);
        places.take(who, |held| held.open += 1);
        places.take(who, |held| held.handshakes += 1);
        assert_eq!(places.of(who), Held { open: 1, handshakes: 1 });
        places.give(who, |held| held.handshakes -= 1);
        places.give(who, |held| held.open -= 1);
        assert!(places.0.is_empty());
    }
}
