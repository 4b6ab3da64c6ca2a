//! How many connections: of this node, and of one address.

use dashmap::DashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use weir_core::accept::Permit;
use weir_core::client_addr::network;
use weir_core::unproven::{Room, Unproven};

pub struct Limits {
    /// 0: no limit, for both.
    max: usize,
    max_per_ip: usize,
    /// Those that have not said `connect`: when all places are taken these go.
    unconnected: Unproven,
    total: Arc<AtomicUsize>,
    per_ip: Arc<DashMap<IpAddr, usize>>,
}

/// Who has not said `connect` is left alone for so long: many may come at once, and be slow together.
const FAIR: Duration = Duration::from_secs(1);

/// Held until the client has said `connect`; it is ready when the connection has to go.
pub type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Node,
    Address,
}

struct Place {
    total: Arc<AtomicUsize>,
    of_ip: Option<(Arc<DashMap<IpAddr, usize>>, IpAddr)>,
}

impl Limits {
    pub fn new(max: usize, max_per_ip: usize) -> Limits {
        let unconnected = Unproven::new(Room::unlimited(FAIR), Room::unlimited(FAIR));
        Limits { max, max_per_ip, unconnected, total: Default::default(), per_ip: Default::default() }
    }

    /// A place, held until it is dropped, and one among those that have not said `connect`. Where there is none, the
    /// first one of these goes, and is gone in a moment.
    pub fn enter(&self, ip: IpAddr) -> Result<(Permit, Waiting), Full> {
        let before = self.total.fetch_add(1, Ordering::Relaxed);
        let mut place = Place { total: self.total.clone(), of_ip: None };
        let (waiting, _) = self.unconnected.enter(ip, false).map_err(|_| Full::Node)?;
        if self.max > 0 && before >= self.max && !self.unconnected.make_room(&waiting) {
            return Err(Full::Node);
        }
        if self.max_per_ip > 0 {
            let key = network(ip, 64);
            let mut count = self.per_ip.entry(key).or_insert(0);
            if *count >= self.max_per_ip {
                return Err(Full::Address);
            }
            *count += 1;
            drop(count);
            place.of_ip = Some((self.per_ip.clone(), key));
        }
        Ok((Box::new(place), Box::pin(waiting.until_taken())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        if let Some((per_ip, key)) = &self.of_ip {
            if let Some(mut count) = per_ip.get_mut(key) {
                *count -= 1;
            }
            // The table holds only who is connected.
            per_ip.remove_if(key, |_, count| *count == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_the_table_is_empty_again() {
        let limits = Limits::new(3, 2);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let a = limits.enter(ip("2001:db8::1")).unwrap();
        let b = limits.enter(ip("2001:db8::ffff:1")).unwrap();
        assert_eq!(limits.enter(ip("2001:db8::2")).err(), Some(Full::Address), "same /64");
        let c = limits.enter(ip("::ffff:10.0.0.1")).unwrap();
        assert_eq!(limits.enter(ip("10.0.0.9")).err(), Some(Full::Node));
        drop(b);
        assert!(limits.enter(ip("10.0.0.1")).is_ok(), "one place of the mapped address is left");
        drop((a, c));
        assert_eq!((limits.total.load(Ordering::Relaxed), limits.per_ip.len()), (0, 0));
    }
}
