//! Who is in: open connections in total, by address, by route, by key. A place is given back when
//! it is dropped, whatever conf is in force by then.

use super::key::Key;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use weir_core::descriptors::Descriptor;
use weir_core::sync::lock;

/// One of the process's open connections, or of its requests under way. The figure that is shown is the one that
/// limits.
pub struct Place(Gauge, Option<Descriptor>);

impl Place {
    /// `max` 0: no limit.
    pub fn among(total: &Gauge, max: usize) -> Option<Place> {
        let max = if max == 0 { i64::MAX } else { i64::try_from(max).unwrap_or(i64::MAX) };
        let place = Place(total.clone(), None);
        let before = total.inc();
        (before < max).then_some(place) // dropping it gives it back
    }

    /// Held as long as the place is.
    pub fn with(mut self, socket: Descriptor) -> Place {
        self.1 = Some(socket);
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How many each client has open; as many entries as there are clients.
#[derive(Default)]
pub struct Counts(DashMap<Key, usize>);

/// One of a client's. Boxed: most kinds are off, and every tunnel has room for all of them.
pub struct KeyPlace(Arc<Held>);

/// What a place holds, for whoever moves it when its client goes elsewhere.
pub struct Held {
    counts: Arc<Counts>,
    key: Mutex<Key>,
}

impl Counts {
    /// `Ok(None)`: not limited (`max` 0), and so not counted.
    pub fn place(self: &Arc<Self>, key: Key, max: usize) -> Result<Option<KeyPlace>, ()> {
        if max == 0 {
            return Ok(None);
        }
        let mut open = self.0.entry(key).or_insert(0);
        if *open >= max {
            return Err(());
        }
        *open += 1;
        Ok(Some(KeyPlace(Arc::new(Held { counts: self.clone(), key: Mutex::new(key) }))))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl KeyPlace {
    /// It does not hold the place.
    pub fn held(&self) -> Weak<Held> {
        Arc::downgrade(&self.0)
    }
}

impl Held {
    /// Each gets the other's place. Of other counts: nothing happens.
    pub fn swap(&self, other: &KeyPlace) {
        if Arc::ptr_eq(&self.counts, &other.0.counts) {
            // Not both at once: two that swap with each other would wait for ever.
            let theirs = *lock(&other.0.key);
            let ours = std::mem::replace(&mut *lock(&self.key), theirs);
            *lock(&other.0.key) = ours;
        }
    }
}

/// With the last handle, since one may be about to move it.
impl Drop for Held {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.counts.0.entry(*lock(&self.key)) {
            match open.get().saturating_sub(1) {
                0 => drop(open.remove()),
                left => *open.get_mut() = left,
            }
        }
    }
}

/// A number of things under way.
#[derive(Clone, Default)]
pub struct Tally(Arc<AtomicUsize>);

/// One of them.
pub struct Tallied(Arc<AtomicUsize>);

impl Tally {
    /// `Ok(None)`: not limited (`max` 0), and so not counted.
    pub fn place(&self, max: usize) -> Result<Option<Tallied>, ()> {
        if max == 0 {
            return Ok(None);
        }
        let place = Tallied(self.0.clone());
        let before = self.0.fetch_add(1, Relaxed);
        if before < max { Ok(Some(place)) } else { Err(()) } // dropping it gives it back
    }

    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Tallied {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
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

    #[test]
    fn a_share_is_one_at_least_and_leaves_something_from_two_places_on() {
        for (places, of, expected) in
            [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (10, 0.5, 5), (10, 1.0, 10), (4, 0.0, 1)]
        {
            assert_eq!(share(places, of), expected, "{places} × {of}");
        }
    }
}
