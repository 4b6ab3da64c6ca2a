//! Descriptors: a process has so many, and each socket is one. What strangers can open is counted against them
//! with a reserve, which stays for accepting, the operator's listener, brokers, files, and idle sockets to servers.
//! The count is one for the process, since its descriptors are.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One descriptor that somebody from outside has caused; given back when it is dropped.
#[derive(Debug)]
pub struct Descriptor(());

/// So many there are, by the system's limit (RLIMIT_NOFILE). To be called once, at start.
pub fn set_limit(limit: usize) {
    LIMIT.store(limit, Relaxed);
}

/// Until it is set there is none.
pub fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// `None`: what is left is reserved.
pub fn take() -> Option<Descriptor> {
    let taken = Descriptor(()); // dropping it gives it back
    (OPEN.fetch_add(1, Relaxed) < budget(limit())).then_some(taken)
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Relaxed);
    }
}

/// What strangers may have of so many.
pub fn budget(limit: usize) -> usize {
    limit.saturating_sub(reserve(limit))
}

/// How many a process must have for strangers to have so many.
pub fn needed(wanted: usize) -> usize {
    let small = wanted.saturating_add(RESERVE.0).saturating_mul(8).div_ceil(7);
    small.min(wanted.saturating_add(RESERVE.1))
}

/// At least, for runtimes and listeners; and at most.
const RESERVE: (usize, usize) = (32, 1600);

fn reserve(limit: usize) -> usize {
    RESERVE.0.saturating_add(limit / 8).min(RESERVE.1)
}

/// The usual number of something that has its place in the reserve, less where descriptors are few.
pub fn within_reserve(usual: usize) -> usize {
    usual.min(limit() / 64).max(4)
}

/// Numbers that together are within `budget`: each is lowered to the same part of what is wanted, so that
/// shares stay shares. Says that part, too.
pub fn fit<const N: usize>(wanted: [usize; N], budget: usize) -> ([usize; N], f64) {
    let all = wanted.iter().fold(0_usize, |all, one| all.saturating_add(*one));
    if all <= budget {
        return (wanted, 1.0);
    }
    let part = budget as f64 / all as f64;
    (wanted.map(|one| lowered(one, part)), part)
}

/// One at least, of anything.
pub fn lowered(number: usize, part: f64) -> usize {
    match number {
        _ if part >= 1.0 => number,
        0 => 0,
        _ => ((number as f64 * part) as usize).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_stays_whatever_the_limit() {
        for limit in [0, 10, 100, 200, 1_024, 2_000, 20_000, 1 << 20, usize::MAX] {
            let budget = budget(limit);
            assert!(budget <= limit && (limit < 64 || limit - budget >= 32), "{limit}: {budget}");
            // What is said to be needed is, and little more than that.
            if limit < usize::MAX {
                let needed = needed(budget);
                assert!(super::budget(needed) >= budget && needed <= limit.max(64) + 1, "{limit}: {needed}");
            }
        }
        assert_eq!((budget(20_000), budget(2_000), budget(200)), (18_400, 1_718, 143));
    }

    #[test]
    fn what_does_not_fit_is_lowered_alike() {
        assert_eq!(fit([9_000, 9_000], 18_400), ([9_000, 9_000], 1.0));
        let (few, part) = fit([9_000, 9_000], 1_718);
        assert_eq!((few, lowered(1_000, part)), ([859, 859], 95));
        assert_eq!(fit([6_000, 3_000], 900).0, [600, 300]);
        assert_eq!(fit([usize::MAX, 5], 10).0, [10, 1], "one at least, also of little");
        assert_eq!(fit([0, 20], 10).0, [0, 10], "nothing is asked for");
    }

    #[test]
    fn one_is_given_back_when_it_is_dropped() {
        // Without a limit, as in all tests of one process.
        let held = take().unwrap();
        assert!(OPEN.load(Relaxed) > 0);
        drop(held);
    }
}
