//! Which of two links between the same two brokers stays. Both ends decide alike, in whatever
//! order they see the two. Pure.

use weir_wire::id::BrokerId;

/// What is known of a link when it has been proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub dialled_by: BrokerId,
    pub listens: BrokerId,
    /// The run of the other side's process.
    pub run: u64,
}

impl Ends {
    fn by_lower(&self) -> bool {
        self.dialled_by < self.listens
    }

    /// Whether this one, which came later, takes the place of `old`.
    ///
    /// The one that the lower id dialled wins over the one that the higher id dialled at the same
    /// time. Whoever dials again has lost the link that it had dialled before.
    pub fn replaces(&self, old: &Ends) -> bool {
        self.run != old.run || self.by_lower() || !old.by_lower()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: BrokerId = BrokerId(1);
    const HIGH: BrokerId = BrokerId(2);

    fn ends(by: BrokerId, run: u64) -> Ends {
        Ends { dialled_by: by, listens: if by == LOW { HIGH } else { LOW }, run }
    }

    #[test]
    fn both_ends_keep_the_same_link_in_any_order() {
        let (low, high) = (ends(LOW, 9), ends(HIGH, 9));
        let kept = |order: [Ends; 2]| if order[1].replaces(&order[0]) { order[1] } else { order[0] };
        assert_eq!((kept([low, high]), kept([high, low])), (low, low));
    }

    #[test]
    fn a_new_run_and_a_new_dial_by_the_same_side_take_over() {
        for by in [LOW, HIGH] {
            assert!(ends(by, 9).replaces(&ends(by, 9)), "it has lost the other one");
            for old in [LOW, HIGH] {
                assert!(ends(by, 10).replaces(&ends(old, 9)), "the other one's process is gone");
            }
        }
    }
}
