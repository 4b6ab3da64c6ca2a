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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::key::of_ip;

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
