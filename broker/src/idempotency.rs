//! What was published under which idempotency key of one channel, for five minutes. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_wire::envelope::Published;

/// How long a repeat is recognised.
pub const KEPT: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub struct Keys {
    results: HashMap<Arc<str>, Published>,
    order: VecDeque<(Instant, Arc<str>)>,
    bytes: usize,
}

impl Keys {
    /// The result of the first publication with this key.
    pub fn get(&mut self, now: Instant, key: &str) -> Option<Published> {
        self.expire(now);
        self.results.get(key).copied()
    }

    /// Keeps the result of a key that [`get`](Self::get) did not know.
    pub fn insert(&mut self, now: Instant, key: String, published: Published) {
        let key: Arc<str> = key.into();
        if self.results.insert(key.clone(), published).is_none() {
            self.bytes += size(&key);
            self.order.push_back((now, key));
        }
    }

    pub fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| *at + KEPT <= now) {
            self.drop_front();
        }
    }

    pub fn drop_front(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.bytes -= size(&key);
            self.results.remove(&key);
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn oldest(&self) -> Option<Instant> {
        self.order.front().map(|(at, _)| *at)
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
        let (t0, mut keys) = (Instant::now(), Keys::default());
        assert_eq!(keys.get(t0, "a"), None);
        keys.insert(t0, "a".into(), None);
        assert_eq!(keys.get(t0 + KEPT - Duration::from_millis(1), "a"), Some(None));
        assert!(keys.bytes() > 0);
        assert_eq!(keys.get(t0 + KEPT, "a"), None);
        assert!(keys.is_empty() && keys.bytes() == 0);
    }
}
