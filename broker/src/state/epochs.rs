//! Epochs of streams that were never published to: each is made of the shard's seed and the channel's name, so that
//! nothing is kept of such a stream, and whoever comes back to it finds the epoch that he was given. The first
//! publication keeps it.
//!
//! Once a stream that had publications is forgotten, its name must never answer to an epoch of before. So the name's
//! *generation* rises, which is the third thing that an epoch is made of. A generation is kept for a bucket of names,
//! not for each of them: forgetting a stream costs nothing, and gives other epochs to those names of its bucket that
//! were never published to. Their clients are told once that they could not be recovered, where nothing was missed;
//! the other way round, that somebody is told he missed nothing where he did, there is no way:
//!
//! - For one name, other numbers give other epochs: each step of [`derive`] can be undone.
//! - For one seed, other generations give other numbers ([`number`]: a product with an odd one can be undone).
//! - A name's generation never falls, and rises whenever a stream of it is forgotten that had publications.
//!
//! So within one seed no epoch of a forgotten stream is ever derived again. Another seed begins by chance with 64
//! bits, as the epochs of streams did before.

use weir_wire::id::Epoch;

/// 256 shards have two million of them; they take 8 MiB when each was used.
const BUCKETS: usize = 8192;

#[derive(Debug, Default)]
pub struct Epochs {
    /// `None`: streams have the epochs that their first entries bring.
    seed: Option<u64>,
    /// Empty as long as none has risen.
    generations: Vec<u32>,
}

impl Epochs {
    pub fn restore(seed: u64, generations: &[(u16, u32)]) -> Epochs {
        let mut epochs = Epochs { seed: Some(seed), generations: Vec::new() };
        for (bucket, generation) in generations {
            if let Some(at) = epochs.rising().get_mut(usize::from(*bucket)) {
                *at = *generation;
            }
        }
        epochs
    }

    /// The first one counts.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed.get_or_insert(seed);
    }

    /// All names get other epochs, if they have any.
    pub fn renew(&mut self, seed: u64) {
        self.seed = self.seed.map(|_| seed);
    }

    pub fn is_seeded(&self) -> bool {
        self.seed.is_some()
    }

    /// Of a stream that has no publications and never had any.
    pub fn of(&self, name: &str) -> Option<Epoch> {
        let generation = self.generations.get(bucket(name)).copied().unwrap_or(0);
        Some(derive(number(self.seed?, generation), name))
    }

    /// A stream of this name that had publications is over.
    pub fn forget(&mut self, name: &str) {
        if self.seed.is_some()
            && let Some(generation) = self.rising().get_mut(bucket(name))
        {
            // Not even one forgotten each microsecond of a hundred years comes round.
            *generation = generation.wrapping_add(1);
        }
    }

    /// For a snapshot.
    pub fn record(&self) -> Option<(u64, Vec<(u16, u32)>)> {
        let risen = (0..).zip(&self.generations).filter(|(_, generation)| **generation != 0);
        Some((self.seed?, risen.map(|(bucket, generation)| (bucket, *generation)).collect()))
    }

    fn rising(&mut self) -> &mut [u32] {
        if self.generations.is_empty() {
            self.generations = vec![0; BUCKETS];
        }
        &mut self.generations
    }
}

/// A number for each name, the same at every holder; another one gives another epoch of the same name.
pub fn derive(number: u64, name: &str) -> Epoch {
    Epoch(mix(name.bytes().fold(number ^ 0xcbf2_9ce4_8422_2325, fnv)))
}

fn number(seed: u64, generation: u32) -> u64 {
    seed.wrapping_add(u64::from(generation).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Without the seed: names that share a bucket do so for ever, so that no generation is lost.
fn bucket(name: &str) -> usize {
    // Not the start that shards are told apart by: names of one shard would share buckets.
    mix(name.bytes().fold(0x2545_f491_4f6c_dd1d, fnv)) as usize % BUCKETS
}

fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_forgotten_name_never_gets_an_epoch_again_and_others_rarely_another_one() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.of("a"), None);
        epochs.forget("a");
        epochs.set_seed(7);
        epochs.set_seed(8);
        let names: Vec<String> = (0..10_000).map(|n| format!("n{n}")).collect();
        let all = |epochs: &Epochs| names.iter().map(|n| epochs.of(n).unwrap()).collect::<Vec<_>>();
        let before = all(&epochs);
        assert_eq!(before.iter().collect::<HashSet<_>>().len(), names.len());
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(epochs.of("a")));
            epochs.forget("a");
        }
        let changed = all(&epochs).iter().zip(&before).filter(|(now, before)| now != before).count();
        assert!(changed < 10, "{changed} of 10,000 share a bucket with it");
        let (seed, generations) = epochs.record().unwrap();
        assert_eq!((seed, generations.len()), (7, 1));
        assert_eq!(Epochs::restore(seed, &generations).of("a"), epochs.of("a"));
        epochs.renew(9);
        assert!(seen.insert(epochs.of("a")));
        assert!(all(&epochs).iter().zip(&before).all(|(now, before)| now != before));
    }
}
