//! What was published under which idempotency key of one channel, for five minutes of the shard's
//! time. Nothing shortens that: a repeat must find the same answer at every holder, so short memory
//! is met by refusing new keys, before they are in the shard's log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use weir_wire::envelope::Published;
use weir_wire::id::Epoch;

/// How long a repeat is recognised, in milliseconds.
pub const KEPT: u64 = 300_000;

#[derive(Debug, Default)]
pub struct Keys {
    results: HashMap<Arc<str>, Published>,
    order: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
}

impl Keys {
    /// The result of the first publication with this key.
    pub fn get(&mut self, now: u64, key: &str) -> Option<Published> {
        self.expire(now);
        self.results.get(key).copied()
    }

    pub fn has(&self, key: &str) -> bool {
        self.results.contains_key(key)
    }

    /// Keeps the result of a key that [`get`](Self::get) did not know.
    pub fn insert(&mut self, now: u64, key: String, published: Published) {
        let key: Arc<str> = key.into();
        if self.results.insert(key.clone(), published).is_none() {
            self.bytes += size(&key);
            self.order.push_back((now, key));
        }
    }

    pub fn expire(&mut self, now: u64) {
        while self.order.front().is_some_and(|(at, _)| at.saturating_add(KEPT) <= now) {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.bytes -= size(&key);
            self.results.remove(&key);
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest one ends.
    pub fn end(&self) -> Option<u64> {
        self.order.front().map(|(at, _)| at.saturating_add(KEPT))
    }

    /// In the order of their times; for a snapshot.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str, Published)> {
        self.order.iter().map(|(at, key)| (*at, &**key, self.results.get(key).copied().flatten()))
    }

    /// Positions of one epoch become positions of another.
    pub fn renumber(&mut self, from: Epoch, to: Epoch) {
        let positions = self.results.values_mut().flatten();
        positions.filter(|p| p.epoch == from).for_each(|p| p.epoch = to);
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// The key once, and its places in map and queue.
fn size(key: &str) -> usize {
    key.len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_known_for_five_minutes() {
        let (t0, mut keys) = (1_000_000, Keys::default());
        assert_eq!(keys.get(t0, "a"), None);
        keys.insert(t0, "a".into(), None);
        assert_eq!(keys.get(t0 + KEPT - 1, "a"), Some(None));
        assert!(keys.bytes() > 0);
        assert_eq!(keys.get(t0 + KEPT, "a"), None);
        assert!(keys.is_empty() && keys.bytes() == 0);
    }
}
