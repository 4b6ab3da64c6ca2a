//! What a promise that was broken is called, and how many of each there were.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Told in full, of each kind.
const EXAMPLES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Acknowledged, and not in the final history.
    Lost,
    /// Acknowledged in an epoch that is no more.
    LostWithEpoch,
    /// A subscriber got the same offset again.
    Duplicate,
    /// A subscriber got an offset below one that it had, for the first time.
    OutOfOrder,
    /// A subscriber was passed by, and not told.
    Gap,
    /// Two publications at one offset of one epoch.
    Split,
    /// One publication at two offsets of one epoch.
    Twice,
    /// … in two epochs.
    TwiceAcrossEpochs,
    /// Repeats of one publication were given different places.
    Moved,
    /// Of one publisher, the later one was acknowledged at the lower offset.
    AckOrder,
    /// Delivered or kept, and never published.
    Phantom,
    /// Delivered or kept, and refused for certain.
    Refused,
    /// A subscriber was told that it recovered, in another epoch than it had.
    FalseRecovery,
    /// An epoch's top went back.
    TopWentBack,
    /// History has a hole.
    Hole,
    /// A message for somebody who was not subscribed.
    Stray,
    /// At the end, a subscriber is not at the top of history.
    Behind,
    /// Subscribed, and not in presence.
    Absent,
    /// In presence, and not there; or there twice.
    Ghost,
}

impl Fault {
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// What follows when every copy of a channel is gone and its subscribers are told: no broken promise where
    /// only memory held it.
    fn goes_with_an_epoch(self) -> bool {
        matches!(self, Fault::LostWithEpoch | Fault::TwiceAcrossEpochs)
    }
}

#[derive(Debug, Default)]
pub struct Faults {
    found: BTreeMap<Fault, (u64, Vec<String>)>,
}

impl Faults {
    pub fn add(&mut self, fault: Fault, text: impl FnOnce() -> String) {
        let (count, examples) = self.found.entry(fault).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(text());
        }
    }

    pub fn count(&self, fault: Fault) -> u64 {
        self.found.get(&fault).map_or(0, |(count, _)| *count)
    }

    pub fn kinds(&self) -> Vec<Fault> {
        self.found.keys().copied().collect()
    }

    /// No promise was broken. `may_end`: epochs may end.
    pub fn none(&self, may_end: bool) -> bool {
        self.found.keys().all(|fault| may_end && fault.goes_with_an_epoch())
    }

    pub fn counts(&self) -> Value {
        self.found
            .iter()
            .map(|(fault, (count, _))| (fault.name(), json!(count)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    pub fn examples(&self) -> Vec<String> {
        let of = |(fault, (_, texts)): (&Fault, &(u64, Vec<String>))| {
            texts.iter().map(|text| format!("{}: {text}", fault.name())).collect::<Vec<_>>()
        };
        self.found.iter().flat_map(of).collect()
    }
}
