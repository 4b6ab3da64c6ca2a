//! The ketama ring: which server a key belongs to, and which are next. Pure.
//!
//! Its points are those of nginx's `hash … consistent` and of memcached clients: a server that
//! goes takes only its own keys along, and they come back with it.

use pingora_ketama::{Bucket, Continuum};
use std::collections::HashMap;
use std::net::SocketAddr;

pub struct Ring {
    continuum: Continuum,
    index: HashMap<SocketAddr, usize>,
}

impl Ring {
    pub fn new(servers: impl Iterator<Item = SocketAddr>) -> Ring {
        let servers: Vec<_> = servers.collect();
        let buckets: Vec<_> = servers.iter().map(|addr| Bucket::new(*addr, 1)).collect();
        let index = servers.into_iter().enumerate().map(|(i, addr)| (addr, i)).collect();
        Ring { continuum: Continuum::new(&buckets), index }
    }

    /// The servers in this key's order, each once.
    pub fn walk(&self, key: &[u8]) -> Walk {
        Walk { point: self.continuum.node_idx(key), seen: Vec::new() }
    }
}

/// A place on the ring, apart from it so that a request can keep it over its retries.
pub struct Walk {
    point: usize,
    seen: Vec<usize>,
}

impl Walk {
    /// It was named already.
    pub fn skip(&mut self, server: usize) {
        self.seen.push(server);
    }

    pub fn next(&mut self, ring: &Ring) -> Option<usize> {
        while self.seen.len() < ring.index.len() {
            let addr = ring.continuum.get_addr(&mut self.point)?;
            let server = *ring.index.get(addr)?;
            if !self.seen.contains(&server) {
                self.seen.push(server);
                return Some(server);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n as u8], 8000))
    }

    fn homes(servers: &[usize]) -> Vec<usize> {
        let ring = Ring::new(servers.iter().map(|n| server(*n)));
        (0..2000).map(|k| servers[ring.walk(format!("user-{k}").as_bytes()).next(&ring).unwrap()]).collect()
    }

    #[test]
    fn known_keys_belong_to_known_servers() {
        // Pinned: a ring that changes between releases moves every client of a mixed fleet.
        assert_eq!(homes(&[1, 2, 3, 4])[..12], PINNED);
    }
    const PINNED: [usize; 12] = [2, 3, 4, 3, 1, 4, 3, 4, 1, 4, 1, 3];

    #[test]
    fn a_server_that_goes_moves_only_its_own_keys() {
        let (all, without) = (homes(&[1, 2, 3, 4]), homes(&[1, 2, 4]));
        for (before, after) in all.iter().zip(&without) {
            assert!(before == after || *before == 3);
        }
        let share = all.iter().filter(|s| **s == 3).count();
        assert!((300..700).contains(&share), "{share} of 2000 keys on one server of four");
    }

    #[test]
    fn a_walk_names_each_server_once() {
        let ring = Ring::new((1..=5).map(server));
        let mut walk = ring.walk(b"key");
        let mut order: Vec<_> = std::iter::from_fn(|| walk.next(&ring)).collect();
        assert_eq!(order.len(), 5);
        order.sort();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert!(Ring::new(std::iter::empty()).walk(b"key").next(&ring).is_some());
    }
}
