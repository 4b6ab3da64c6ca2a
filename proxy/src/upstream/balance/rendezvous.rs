//! Rendezvous hashing (highest random weight): each key draws a lot for each server, and goes by the
//! lots. Even without virtual points, and exact in its weights; each key looks at all servers.

use super::{mix, unit};

pub struct Rendezvous {
    weights: Vec<f64>,
}

impl Rendezvous {
    pub fn new(servers: &[(&str, u32)]) -> Rendezvous {
        Rendezvous { weights: servers.iter().map(|(_, weight)| f64::from(*weight)).collect() }
    }

    /// The servers in this key's order.
    pub fn walk(&self, key: u64, ids: &[u64]) -> impl Iterator<Item = usize> + use<> {
        // An exponential lot with the weight as its rate: the smallest is the server's with a chance
        // in proportion to its weight.
        let lot = |(index, weight): (usize, &f64)| (-unit(mix(key ^ ids[index])).ln() / weight, index);
        let mut lots: Vec<(f64, usize)> = self.weights.iter().enumerate().map(lot).collect();
        lots.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        lots.into_iter().map(|(_, index)| index)
    }
}
