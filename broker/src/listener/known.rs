//! The addresses whose connections have places apart at the listener: those of `broker.peers`, and those from which
//! a node or a broker has proved itself.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use weir_core::client_addr::network;
use weir_core::sync::lock;

/// Addresses that are remembered; over it the one that proved itself the longest time ago is forgotten.
const MAX_PROVED: usize = 1024;
/// Names of peers are looked up so often.
const LOOK_UP: Duration = Duration::from_secs(30);
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(5);

pub struct Known {
    /// As they stand in the conf.
    peers: Vec<String>,
    addresses: Mutex<Addresses>,
}

#[derive(Default)]
struct Addresses {
    of_peers: HashSet<IpAddr>,
    /// And when, in numbers of proofs.
    proved: HashMap<IpAddr, u64>,
    proofs: u64,
}

impl Known {
    /// Peers that stand there by their address are known from the beginning; names by and by.
    pub fn new(peers: &[String]) -> Known {
        let literal = |peer: &String| Some(peer.parse::<SocketAddr>().ok()?.ip().to_canonical());
        let addresses =
            Addresses { of_peers: peers.iter().filter_map(literal).collect(), ..Addresses::default() };
        Known { peers: peers.to_vec(), addresses: Mutex::new(addresses) }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let addresses = lock(&self.addresses);
        addresses.of_peers.contains(&ip.to_canonical()) || addresses.proved.contains_key(&network(ip, 64))
    }

    /// Whoever is there has proved who it is.
    pub fn proved(&self, ip: IpAddr) {
        let mut addresses = lock(&self.addresses);
        addresses.proofs += 1;
        let now = addresses.proofs;
        addresses.proved.insert(network(ip, 64), now);
        if addresses.proved.len() > MAX_PROVED
            && let Some((oldest, _)) = addresses.proved.iter().min_by_key(|(_, when)| **when)
        {
            let oldest = *oldest;
            addresses.proved.remove(&oldest);
        }
    }

    async fn look_up(&self) {
        let mut found = HashSet::new();
        for peer in &self.peers {
            // One that is not found now may be so the next time; what it proves counts either way.
            if let Ok(Ok(addresses)) = timeout(LOOK_UP_DEADLINE, tokio::net::lookup_host(peer)).await {
                found.extend(addresses.map(|addr| addr.ip().to_canonical()));
            }
        }
        if !found.is_empty() {
            lock(&self.addresses).of_peers = found;
        }
    }
}

/// Without end, where there are names to be looked up.
pub async fn look_up(known: Arc<Known>) {
    if known.peers.iter().all(|peer| peer.parse::<SocketAddr>().is_ok()) {
        return;
    }
    loop {
        known.look_up().await;
        sleep(LOOK_UP).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn peers_of_the_conf_are_known_by_address_and_by_name() {
        let known =
            Known::new(&["10.0.0.5:8200".into(), "[2001:db8::1]:8200".into(), "localhost:8200".into()]);
        assert!(known.contains(ip("::ffff:10.0.0.5")) && known.contains(ip("2001:db8::1")));
        assert!(!known.contains(ip("2001:db8::2")) && !known.contains(ip("127.0.0.1")));
        known.look_up().await;
        assert!(known.contains(ip("127.0.0.1")) || known.contains(ip("::1")));
        assert!(known.contains(ip("10.0.0.5")));
    }

    #[test]
    fn who_has_proved_himself_is_remembered_and_the_oldest_forgotten() {
        let known = Known::new(&[]);
        let at = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..=MAX_PROVED as u32 {
            known.proved(at(n));
            known.proved(at(1));
        }
        assert!(!known.contains(at(0)) && known.contains(at(1)) && known.contains(at(MAX_PROVED as u32)));
        assert_eq!(lock(&known.addresses).proved.len(), MAX_PROVED);
    }
}
