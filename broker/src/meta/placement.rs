//! Which brokers should hold a shard: rendezvous hashing with bounded load. Pure.
//!
//! Each shard ranks the brokers by a hash of its number and their names, and goes to the first
//! that has room. By name, not by incarnation: a broker that is back after a restart is wanted
//! where it was. "Room" is a little over an equal share; that bound keeps the load even and makes
//! few shards move that would not have to (measured in the tests).

use weir_wire::id::BrokerId;

/// Over an equal share, in percent.
const SLACK: usize = 5;

/// Who should hold each shard; the first one should own it.
pub type Placement = Vec<Vec<BrokerId>>;

/// `brokers` may come in any order; the answer does not depend on it. With fewer brokers than
/// copies, each holds every shard.
pub fn place(shards: u16, copies: u8, brokers: &[(BrokerId, &str)]) -> Placement {
    let count = brokers.len();
    let copies = usize::from(copies).min(count);
    if count == 0 {
        return vec![Vec::new(); shards.into()];
    }
    let mut brokers = brokers.to_vec();
    brokers.sort_by_key(|(id, name)| (*name, *id));
    let seeds: Vec<u64> = brokers.iter().map(|(_, name)| hash(name.as_bytes())).collect();
    let mut rows: Vec<Row> = (0..shards).map(|shard| Row::new(shard, &seeds)).collect();
    // First all owners, then all second copies: a late shard's owner is not crowded out by copies.
    for copy in 0..copies {
        let mut load = vec![0; count];
        for row in &mut rows {
            row.take(copy, &mut load, room(shards.into(), count));
        }
    }
    rows.into_iter().map(|row| row.chosen.iter().map(|n| brokers[*n].0).collect()).collect()
}

/// The most that one broker gets of each kind: owners, second copies, and so on.
fn room(shards: usize, brokers: usize) -> usize {
    (shards * (100 + SLACK)).div_ceil(brokers * 100)
}

struct Row {
    ranked: Vec<usize>,
    chosen: Vec<usize>,
}

impl Row {
    fn new(shard: u16, seeds: &[u64]) -> Row {
        let mut ranked: Vec<usize> = (0..seeds.len()).collect();
        ranked.sort_by_key(|n| std::cmp::Reverse(mix(seeds[*n] ^ mix(u64::from(shard) + 1))));
        Row { ranked, chosen: Vec::new() }
    }

    fn take(&mut self, copy: usize, load: &mut [usize], room: usize) {
        debug_assert_eq!(self.chosen.len(), copy);
        let free = |n: &&usize| !self.chosen.contains(*n);
        let first = self.ranked.iter().filter(free).find(|n| load[**n] < room);
        // All that have room are chosen already: the bound gives way, not the number of copies.
        if let Some(n) = first.or_else(|| self.ranked.iter().find(free)).copied() {
            load[n] += 1;
            self.chosen.push(n);
        }
    }
}

/// FNV-1a, then mixed: the same on every machine and in every release.
fn hash(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)))
}

/// The finalizer of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn brokers(names: &[String]) -> Vec<(BrokerId, &str)> {
        names.iter().enumerate().map(|(n, name)| (BrokerId(n as u64 + 1), name.as_str())).collect()
    }

    fn names(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n}")).collect()
    }

    fn loads(placement: &Placement, copies: usize) -> (usize, usize, usize) {
        let (mut owned, mut held) = (BTreeMap::new(), BTreeMap::new());
        for holders in placement {
            *owned.entry(holders[0]).or_insert(0) += 1;
            assert_eq!(holders.len(), copies);
            for id in holders {
                *held.entry(*id).or_insert(0) += 1;
            }
        }
        let all = owned.values();
        (*all.clone().max().unwrap(), *all.min().unwrap(), *held.values().max().unwrap())
    }

    #[test]
    fn shares_are_even_within_the_bound() {
        for prefix in ["broker-", "b", "10.0.0.", "weir-broker-eu-"] {
            for count in 3..=7 {
                let names = names(prefix, count);
                let (most, least, held) = loads(&place(256, 2, &brokers(&names)), 2);
                let equal = 256.0 / count as f64;
                println!("{prefix}{count}: owned {least}..{most} of {equal:.1}, held at most {held}");
                assert!(most <= room(256, count), "{prefix}{count}: {most}");
                assert!(least as f64 >= 0.75 * equal, "{prefix}{count}: {least} of {equal}");
                assert!(held as f64 <= 2.0 * 1.1 * equal, "{prefix}{count}: {held} held");
            }
        }
    }

    #[test]
    fn few_shards_move_when_a_broker_comes_or_goes() {
        for prefix in ["broker-", "b", "10.0.0."] {
            for count in 3..=6 {
                let many = names(prefix, count + 1);
                let (before, after) =
                    (place(256, 2, &brokers(&many[..count])), place(256, 2, &brokers(&many)));
                let owners = before.iter().zip(&after).filter(|(a, b)| a[0] != b[0]).count();
                let new: usize = before
                    .iter()
                    .zip(&after)
                    .map(|(a, b)| b.iter().filter(|id| !a.contains(id)).count())
                    .sum();
                let needed = 256.0 / (count + 1) as f64;
                println!("{prefix}{count}+1: {owners} owners move ({needed:.0} must), {new} new copies");
                assert!((owners as f64) < 1.6 * needed, "{prefix}{count}: {owners} of {needed}");
                assert!((new as f64) < 2.0 * 1.6 * needed, "{prefix}{count}: {new} copies");
            }
        }
    }

    #[test]
    fn it_depends_on_names_and_on_nothing_else() {
        let names = names("b", 4);
        let mut shuffled = brokers(&names);
        shuffled.reverse();
        assert_eq!(place(64, 2, &brokers(&names)), place(64, 2, &shuffled));
        let again: Vec<_> = brokers(&names).iter().map(|(id, n)| (BrokerId(id.0 + 100), *n)).collect();
        let moved: Placement = place(64, 2, &brokers(&names))
            .into_iter()
            .map(|holders| holders.into_iter().map(|id| BrokerId(id.0 + 100)).collect())
            .collect();
        assert_eq!(place(64, 2, &again), moved);
        assert_eq!(place(2, 3, &brokers(&names[..1])), vec![vec![BrokerId(1)]; 2]);
        assert_eq!(place(2, 3, &[]), vec![Vec::new(); 2]);
    }
}
