//! The ketama ring: which server a key belongs to, and which are next. Pure.
//!
//! Its points are those of nginx's `hash … consistent` and of memcached clients: a server that
//! goes takes only its own keys along, and they come back with it.

use std::net::SocketAddr;

/// Points of a server of weight 1.
const POINTS: u32 = 160;

pub struct Ring {
    /// Hash and server, by hash.
    points: Vec<(u32, u32)>,
    servers: usize,
}

impl Ring {
    pub fn new(servers: &[(&str, u32)]) -> Ring {
        let mut points = Vec::new();
        for (index, (name, weight)) in servers.iter().enumerate() {
            let mut base = crc32fast::Hasher::new();
            base.update(&identity(name));
            let mut last: u32 = 0;
            for _ in 0..POINTS * weight {
                let mut point = base.clone();
                point.update(&last.to_le_bytes());
                last = point.finalize();
                points.push((last, index as u32));
            }
        }
        points.sort_unstable();
        points.dedup_by_key(|(hash, _)| *hash);
        Ring { points, servers: servers.len() }
    }

    /// The servers in this key's order, each once.
    pub fn walk(&self, key: &[u8]) -> Walk<'_> {
        let hash = crc32fast::hash(key);
        let at = self.points.partition_point(|(point, _)| *point < hash);
        Walk { ring: self, at, left: self.servers, seen: Vec::new() }
    }
}

/// nginx: host, a zero, port; the path of a unix socket, a zero.
fn identity(name: &str) -> Vec<u8> {
    match name.parse::<SocketAddr>() {
        Ok(addr) => format!("{}\0{}", addr.ip(), addr.port()).into_bytes(),
        Err(_) => format!("{}\0", name.strip_prefix("unix:").unwrap_or(name)).into_bytes(),
    }
}

pub struct Walk<'a> {
    ring: &'a Ring,
    at: usize,
    left: usize,
    seen: Vec<u32>,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        // Each server has points of its own, save for one all of whose points hash like others'.
        for _ in 0..self.ring.points.len() {
            let (_, server) = self.ring.points[self.at % self.ring.points.len()];
            self.at += 1;
            if !self.seen.contains(&server) {
                self.seen.push(server);
                self.left -= 1;
                return Some(server as usize);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(servers: &[usize]) -> Ring {
        let names: Vec<String> = servers.iter().map(|n| format!("10.0.0.{n}:8000")).collect();
        Ring::new(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>())
    }

    fn homes(servers: &[usize]) -> Vec<usize> {
        let ring = ring(servers);
        (0..2000).map(|k| servers[ring.walk(format!("user-{k}").as_bytes()).next().unwrap()]).collect()
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
        let ring = ring(&[1, 2, 3, 4, 5]);
        let mut order: Vec<_> = ring.walk(b"key").collect();
        order.sort();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert_eq!(Ring::new(&[]).walk(b"key").next(), None);
    }

    #[test]
    fn a_socket_is_its_path_as_nginx_has_it() {
        assert_eq!(identity("unix:/run/a.sock"), b"/run/a.sock\0");
        assert_eq!(identity("[::1]:80"), b"::1\x0080");
    }
}
