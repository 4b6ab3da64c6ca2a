//! Where a subscriber is in a channel, and what the next offset means for it.

use super::Place;
use super::fault::Fault;
use std::collections::BTreeSet;

#[derive(Debug)]
pub struct Cursor {
    pub place: Place,
    /// Passed by: they may still come, out of order.
    missing: BTreeSet<u64>,
    /// Where it began: below, nothing was delivered in this epoch.
    from: u64,
}

impl Cursor {
    pub fn at(place: Place) -> Cursor {
        Cursor { from: place.offset, place, missing: BTreeSet::new() }
    }

    /// It was told that it goes on where it was; `at` is where the server takes that to be, or the top.
    pub fn recovered(&mut self, at: &Place) -> Option<Fault> {
        (at.epoch != self.place.epoch).then_some(Fault::FalseRecovery)
    }

    pub fn delivered(&mut self, offset: u64) -> Option<Fault> {
        let last = self.place.offset;
        if offset > last {
            self.place.offset = offset;
            self.missing.extend(last + 1..offset);
            return (offset > last + 1).then_some(Fault::Gap);
        }
        if self.missing.remove(&offset) || offset <= self.from {
            return Some(Fault::OutOfOrder);
        }
        Some(Fault::Duplicate)
    }
}
