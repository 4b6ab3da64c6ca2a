//! Which server a client goes to. Pure: what is known of the servers goes in, an index comes out.
//!
//! Two ways go by the client's key. They give each key its order of the servers, the same in every
//! process and whether servers are up or not: one that is out loses its own clients to those next in
//! *their* orders, and has them back when it returns. The order is walked
//!
//! - past servers that hold more than `load_factor` times their fair share (consistent hashing with
//!   bounded loads, Mirrokni, Thorup and Zadimoghaddam, 2017), once that is more than a handful;
//! - past a server that starts slowly, for as many of its keys as its share says; which ones is the
//!   key's own matter, so a client that has come back to it stays.
//!
//! Where nobody would be left so, the first of the order that can be used at all is taken: a bound
//! spreads clients, it refuses none.

mod rendezvous;
mod ring;

use rendezvous::Rendezvous;
use ring::Ring;

/// What is known of one server.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub weight: u32,
    /// Open tunnels and requests.
    pub open: usize,
    /// Of its weight, 0 to 1: less than 1 while it starts slowly.
    pub share: f64,
    /// In service, so that its load counts in the average.
    pub in_service: bool,
    /// It may be chosen now.
    pub usable: bool,
}

impl Candidate {
    fn weight(&self) -> f64 {
        f64::from(self.weight) * self.share
    }
}

pub struct Balance {
    way: Way,
    /// Of the servers' names.
    ids: Vec<u64>,
}

enum Way {
    Ring(Ring),
    Rendezvous(Rendezvous),
    Least,
    RoundRobin,
}

/// What one choice is made for.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    pub key: &'a [u8],
    /// 0: no bound.
    pub load_factor: f64,
    /// A random number, for ties.
    pub chance: u64,
}

/// Whose turn it is, for round robin; kept from one choice to the next.
#[derive(Debug, Default)]
pub struct Turns(Vec<f64>);

impl Balance {
    /// Servers by name and weight; indices are those of this list.
    pub fn new(way: weir_conf::proxy::Balance, servers: &[(&str, u32)]) -> Balance {
        use weir_conf::proxy::Balance as Conf;
        let ids: Vec<u64> = servers.iter().map(|(name, _)| hash(name.as_bytes())).collect();
        let way = match way {
            Conf::Hash => Way::Ring(Ring::new(servers)),
            Conf::Rendezvous => Way::Rendezvous(Rendezvous::new(servers)),
            Conf::Least => Way::Least,
            Conf::RoundRobin => Way::RoundRobin,
        };
        Balance { way, ids }
    }

    pub fn choose(&self, turns: &mut Turns, choice: &Choice<'_>, servers: &[Candidate]) -> Option<usize> {
        match &self.way {
            Way::Ring(ring) => self.by_key(ring.walk(choice.key), choice, servers),
            Way::Rendezvous(r) => self.by_key(r.walk(hash(choice.key), &self.ids), choice, servers),
            Way::Least => least(choice.chance, servers),
            Way::RoundRobin => turns.next(servers),
        }
    }

    fn by_key(
        &self,
        order: impl Iterator<Item = usize>,
        choice: &Choice<'_>,
        servers: &[Candidate],
    ) -> Option<usize> {
        let bound = Bound::new(choice.load_factor, servers);
        let key = hash(choice.key);
        let (mut below, mut any) = (None, None);
        for index in order {
            let Some(server) = servers.get(index).filter(|server| server.usable) else { continue };
            any = any.or(Some(index));
            if bound.is_reached(server) {
                continue;
            }
            below = below.or(Some(index));
            // Turned, since the lots of rendezvous are drawn from the same two.
            let draw = unit(mix(key.rotate_left(32) ^ self.ids[index]));
            if server.share >= 1.0 || draw < server.share {
                return Some(index);
            }
        }
        below.or(any)
    }
}

/// What any server may hold. Among so few, uneven is not overloaded; and the second connection of a client
/// whose first is still open (two tabs, long polling that becomes a WebSocket) must go where that one is.
const HANDFUL: f64 = 10.0;

/// How much a server may hold.
struct Bound {
    /// Per unit of weight; `None`: no bound.
    per_weight: Option<f64>,
}

impl Bound {
    fn new(load_factor: f64, servers: &[Candidate]) -> Bound {
        let in_service = servers.iter().filter(|server| server.in_service);
        let (open, weight) = in_service
            .fold((1.0, 0.0), |(open, weight), server| (open + server.open as f64, weight + server.weight()));
        let bounded = load_factor > 0.0 && weight > 0.0;
        Bound { per_weight: bounded.then(|| load_factor * open / weight) }
    }

    fn is_reached(&self, server: &Candidate) -> bool {
        self.per_weight.is_some_and(|each| server.open as f64 >= (each * server.weight()).ceil().max(HANDFUL))
    }
}

/// The fewest connections for its weight; ties at random. One that starts slowly is looked at for as
/// many clients as its share says: it has the fewest for long, and would get everybody.
fn least(chance: u64, servers: &[Candidate]) -> Option<usize> {
    let lowest = |slow_too: bool| {
        let mut found: Option<(f64, u64, usize)> = None;
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.usable) {
            let draw = mix(chance ^ index as u64);
            if !slow_too && server.share < 1.0 && unit(draw) >= server.share {
                continue;
            }
            let load = (server.open + 1) as f64 / server.weight();
            if found.is_none_or(|(least, tie, _)| load < least || (load == least && draw < tie)) {
                found = Some((load, draw, index));
            }
        }
        found.map(|(_, _, index)| index)
    };
    lowest(false).or_else(|| lowest(true))
}

impl Turns {
    /// Smooth weighted round robin, as nginx has it: the turns of a heavy server are spread out.
    fn next(&mut self, servers: &[Candidate]) -> Option<usize> {
        if self.0.len() != servers.len() {
            self.0 = vec![0.0; servers.len()];
        }
        let mut total = 0.0;
        let mut best: Option<usize> = None;
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.usable) {
            total += server.weight();
            self.0[index] += server.weight();
            if best.is_none_or(|best| self.0[index] > self.0[best]) {
                best = Some(index);
            }
        }
        self.0[best?] -= total;
        best
    }
}

/// The same in every process and release: clients must find their server again.
pub fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a, then mixed since its high bits are weak.
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// The finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Above 0, below 1.
fn unit(x: u64) -> f64 {
    ((x >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
#[path = "balance/tests.rs"]
mod tests;
