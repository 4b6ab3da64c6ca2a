//! Who is connected, and from where: a client may go on from another address, and its place among the
//! connections of an address goes along.
//!
//! quinn has no event for it, so addresses are looked at once a second. A place moves only when an address
//! stood for two looks: quinn goes to a new one with the first packet from there, and back if that was not
//! the client (somebody on the way can send its packets from anywhere).

use super::Host;
use super::metrics::Metrics;
use crate::admit::Refused;
use crate::admit::counts::{Held, KeyPlace};
use quinn::{Connection, VarInt};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use weir_core::sync::lock;

const LOOK: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };
/// Connections looked at before other tasks get a turn.
const SLICE: usize = 256;

/// H3_EXCESSIVE_LOAD.
pub const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);

pub struct Seats {
    taken: Mutex<HashMap<usize, Taken>>,
    metrics: Metrics,
}

struct Taken {
    connection: Connection,
    place: Option<KeyPlace>,
    /// Of its streams that count by themselves.
    streams: Vec<Weak<Held>>,
    track: Track,
}

/// One connection's, given back when it is dropped.
pub struct Seat {
    seats: Arc<Seats>,
    id: usize,
}

/// Takes places of streams along with their connection's.
#[derive(Clone)]
pub struct Follower {
    seats: Arc<Seats>,
    id: usize,
    peer: IpAddr,
}

impl Follower {
    /// Where the client counts now.
    pub fn address(&self) -> IpAddr {
        lock(&self.seats.taken).get(&self.id).map_or(self.peer, |taken| taken.track.counted)
    }

    /// This place, of [`Follower::address`], goes along from now on.
    pub fn follow(&self, place: &KeyPlace) {
        if let Some(Taken { streams, .. }) = lock(&self.seats.taken).get_mut(&self.id) {
            if streams.len() == streams.capacity() {
                streams.retain(|stream| stream.strong_count() > 0);
            }
            streams.push(place.held());
        }
    }
}

/// Where a client was at the last look. Pure.
struct Track {
    seen: SocketAddr,
    /// Whose count has its place.
    counted: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Stayed,
    Moved,
    /// It stays at another IP.
    Settled(IpAddr),
}

impl Track {
    fn new(at: SocketAddr) -> Track {
        Track { seen: at, counted: at.ip() }
    }

    fn look(&mut self, at: SocketAddr) -> Step {
        if at != self.seen {
            self.seen = at;
            return Step::Moved;
        }
        match at.ip() == self.counted {
            true => Step::Stayed,
            false => Step::Settled(at.ip()),
        }
    }
}

impl Seats {
    pub fn new(metrics: Metrics) -> Arc<Seats> {
        Arc::new(Seats { taken: Mutex::default(), metrics })
    }

    /// For as long as it lives the connection is held open.
    pub fn take(self: &Arc<Seats>, connection: Connection, place: Option<KeyPlace>) -> Seat {
        let (id, track) = (connection.stable_id(), Track::new(connection.remote_address()));
        self.metrics.connections.inc();
        lock(&self.taken).insert(id, Taken { connection, place, streams: Vec::new(), track });
        Seat { seats: self.clone(), id }
    }

    pub fn follower(self: &Arc<Seats>, connection: &Connection) -> Follower {
        let (id, peer) = (connection.stable_id(), connection.remote_address().ip());
        Follower { seats: self.clone(), id, peer }
    }

    /// A place for a connection that had none yet. If it is over by now, so is its place.
    pub fn assign(&self, connection: &Connection, place: Option<KeyPlace>) {
        if let Some(taken) = lock(&self.taken).get_mut(&connection.stable_id()) {
            taken.place = place;
        }
    }

    /// Follows them, without end.
    pub async fn watch<H: Host>(self: Arc<Seats>, host: Arc<H>) {
        let mut clock = interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let ids: Vec<usize> = lock(&self.taken).keys().copied().collect();
            for slice in ids.chunks(SLICE) {
                slice.iter().for_each(|id| self.look(*id, &*host));
                tokio::task::yield_now().await;
            }
        }
    }

    fn look<H: Host>(&self, id: usize, host: &H) {
        let mut all = lock(&self.taken);
        let Some(taken) = all.get_mut(&id) else { return };
        match taken.track.look(taken.connection.remote_address()) {
            Step::Stayed => {}
            Step::Moved => self.metrics.migration("seen"),
            Step::Settled(ip) => {
                taken.track.counted = ip;
                match taken.take_along(ip, host) {
                    Ok(()) => self.metrics.migration("followed"),
                    Err(refused) => {
                        self.metrics.migration("denied");
                        refused.log(ip);
                        let why = b"too many connections from this address, or not allowed";
                        taken.connection.close(EXCESSIVE_LOAD, why);
                    }
                }
            }
        }
    }
}

impl Taken {
    fn take_along<H: Host>(&mut self, ip: IpAddr, host: &H) -> Result<(), Refused> {
        let there = host.address(ip)?;
        // It may be that addresses have no limit any more, or have one now.
        self.place = there;
        self.streams.retain(|stream| stream.strong_count() > 0);
        for stream in self.streams.iter().filter_map(Weak::upgrade) {
            if let Some(there) = host.address(ip)? {
                stream.swap(&there);
            }
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(taken) = lock(&self.seats.taken).remove(&self.id) else { return };
        let metrics = &self.seats.metrics;
        let path = taken.connection.stats().path;
        metrics.packets_sent.inc_by(path.sent_packets);
        metrics.packets_lost.inc_by(path.lost_packets);
        metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_moves_when_an_address_stood_for_two_looks() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (home, port, away) = (at("192.0.2.1:1"), at("192.0.2.1:2"), at("192.0.2.9:3"));
        let mut track = Track::new(home);
        assert_eq!(track.look(home), Step::Stayed);
        // A new port is a move, but the same client to every limit.
        assert_eq!((track.look(port), track.look(port)), (Step::Moved, Step::Stayed));
        // Somebody on the way sent its packet from elsewhere: quinn goes there and back.
        assert_eq!(
            (track.look(away), track.look(port), track.look(port)),
            (Step::Moved, Step::Moved, Step::Stayed)
        );
        assert_eq!((track.look(away), track.look(away)), (Step::Moved, Step::Settled(away.ip())));
        track.counted = away.ip();
        assert_eq!(track.look(away), Step::Stayed);
    }
}
