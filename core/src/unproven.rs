//! Places of connections that have not shown yet who they are. A newcomer finds one: where there is no room, another
//! one of its address goes, or of all, the one with the least to show for itself: it has sent nothing; then, it has
//! sent something; then, it is being served; of equals the one that came first. So whoever just connects and waits
//! holds up nobody, and whoever says at once who he is seldom goes.
//!
//! Where thousands may come at once and be slow together, everybody has some time, unless he is one of a crowd: of the
//! address with the most places one goes at once for a newcomer whose own address has far fewer.
//!
//! Peers that are known have places apart, which strangers cannot take. `Table` is pure; [`Unproven`] is the
//! table with its lock and its signals.

use crate::client_addr::network;
use crate::descriptors::within_reserve;
use crate::sync::lock;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// What a connection has shown so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    /// Not a byte came for a while.
    Nothing,
    /// It is new, or something came: it is asked who it is, or it is between two requests.
    Something,
    /// What it asked for is being done.
    Served,
}

/// So long a connection is new. Were it silent from its beginning, it would go before those that drip.
const NEW: Duration = Duration::from_millis(250);

/// An address with so many more than a newcomer's own is a crowd.
const CROWD: usize = 8;

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub total: usize,
    /// Of one address; IPv6: of one /64.
    pub per_address: usize,
    /// Nobody goes before he has had so long, but one of a crowd.
    pub time: Duration,
}

/// There is no room, and nobody has had his time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Address,
    Total,
}

impl Room {
    /// For as many as come: how many that are is limited elsewhere, by [`Unproven::make_room`].
    pub const fn unlimited(time: Duration) -> Room {
        Room { total: usize::MAX, per_address: usize::MAX, time }
    }

    /// The usual one, or less where descriptors are few.
    pub fn within_reserve(usual: Room) -> Room {
        let (total, per_address) = (within_reserve(usual.total), within_reserve(usual.per_address));
        Room { total, per_address, ..usual }
    }
}

type Id = u64;

/// One of strangers, one of peers that are known.
struct Table {
    room: Room,
    next: Id,
    /// The first one is the first to go.
    order: BTreeSet<(Shown, Id)>,
    held: HashMap<Id, Held>,
    by_address: HashMap<IpAddr, BTreeSet<(Shown, Id)>>,
    /// Addresses by how many they have.
    crowds: BTreeSet<(usize, IpAddr)>,
}

struct Held {
    address: IpAddr,
    shown: Shown,
    since: Instant,
    signal: CancellationToken,
}

impl Table {
    fn new(room: Room) -> Table {
        Table {
            room,
            next: 0,
            order: BTreeSet::new(),
            held: HashMap::new(),
            by_address: HashMap::new(),
            crowds: BTreeSet::new(),
        }
    }

    /// A place, and who has to go for it.
    fn enter(
        &mut self,
        address: IpAddr,
        now: Instant,
    ) -> Result<(Id, CancellationToken, Option<Held>), Full> {
        let address = network(address, 64);
        let own = self.by_address.get(&address).filter(|own| own.len() >= self.room.per_address);
        let gone = match own {
            Some(own) => Some(self.first(own, now).ok_or(Full::Address)?),
            None if self.held.len() >= self.room.total => {
                Some(self.goes_for(address, 1, now).ok_or(Full::Total)?)
            }
            None => None,
        };
        let gone = gone.and_then(|id| self.leave(id));
        let (id, signal) = (self.next, CancellationToken::new());
        self.next += 1;
        self.put(id, Held { address, shown: Shown::Something, since: now, signal: signal.clone() });
        Ok((id, signal, gone))
    }

    /// Who goes for a newcomer of this address, which comes to so many `more` by it.
    fn goes_for(&self, address: IpAddr, more: usize, now: Instant) -> Option<Id> {
        let own = self.by_address.get(&address).map_or(0, BTreeSet::len) + more;
        let (most, crowd) = self.crowds.last()?;
        if !self.room.time.is_zero() && *most > own + CROWD {
            return self.by_address.get(crowd)?.first().map(|(_, id)| *id);
        }
        self.first(&self.order, now)
    }

    /// Who goes first, if he has had his time.
    fn first(&self, order: &BTreeSet<(Shown, Id)>, now: Instant) -> Option<Id> {
        let (_, id) = order.first()?;
        let since = self.held.get(id)?.since;
        (now.saturating_duration_since(since) >= self.room.time).then_some(*id)
    }

    fn shows(&mut self, id: Id, shown: Shown) {
        if self.held.get(&id).is_some_and(|held| held.shown != shown)
            && let Some(held) = self.leave(id)
        {
            self.put(id, Held { shown, ..held });
        }
    }

    fn put(&mut self, id: Id, held: Held) {
        self.order.insert((held.shown, id));
        let own = self.by_address.entry(held.address).or_default();
        self.crowds.remove(&(own.len(), held.address));
        own.insert((held.shown, id));
        self.crowds.insert((own.len(), held.address));
        self.held.insert(id, held);
    }

    fn leave(&mut self, id: Id) -> Option<Held> {
        let held = self.held.remove(&id)?;
        self.order.remove(&(held.shown, id));
        if let Some(own) = self.by_address.get_mut(&held.address) {
            self.crowds.remove(&(own.len(), held.address));
            own.remove(&(held.shown, id));
            match own.len() {
                0 => drop(self.by_address.remove(&held.address)),
                left => drop(self.crowds.insert((left, held.address))),
            }
        }
        Some(held)
    }
}

/// The places of one listener.
#[derive(Clone)]
pub struct Unproven(Arc<[Mutex<Table>; 2]>);

const STRANGERS: usize = 0;
const KNOWN: usize = 1;

impl Unproven {
    pub fn new(strangers: Room, known: Room) -> Unproven {
        Unproven(Arc::new([strangers, known].map(|room| Mutex::new(Table::new(room)))))
    }

    /// A place. `true`: another connection has to go for it.
    pub fn enter(&self, address: IpAddr, is_known: bool) -> Result<(Place, bool), Full> {
        let table = if is_known { KNOWN } else { STRANGERS };
        let (id, signal, gone) = lock(&self.0[table]).enter(address, Instant::now())?;
        if let Some(gone) = &gone {
            gone.signal.cancel();
        }
        Ok((Place { places: self.clone(), table, id, signal }, gone.is_some()))
    }

    /// Somebody goes, for something else than a place here that `place` needs. False: there is nobody else, or he has
    /// not had his time.
    pub fn make_room(&self, place: &Place) -> bool {
        let mut table = lock(&self.0[place.table]);
        let Some(address) = table.held.get(&place.id).map(|own| own.address) else { return false };
        let first = table.goes_for(address, 0, Instant::now()).filter(|id| *id != place.id);
        let Some(gone) = first.and_then(|id| table.leave(id)) else { return false };
        gone.signal.cancel();
        true
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.iter().map(|table| lock(table).held.len()).sum()
    }
}

/// Why a connection without a byte has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It left, or broke.
    Left,
    /// It said nothing for too long.
    Silent,
    /// Somebody else has its place.
    Taken,
}

impl Gone {
    /// The value of a metric's label.
    pub fn cause(self) -> &'static str {
        match self {
            Gone::Left => "closed",
            Gone::Silent => "silent",
            Gone::Taken => "displaced",
        }
    }
}

/// Given back when it is dropped, or when somebody else needs it.
pub struct Place {
    places: Unproven,
    table: usize,
    id: Id,
    signal: CancellationToken,
}

impl Place {
    pub fn shows(&self, shown: Shown) {
        lock(&self.places.0[self.table]).shows(self.id, shown);
    }

    /// Until somebody else has this place.
    pub async fn taken(&self) {
        self.signal.cancelled().await;
    }

    /// The same; the place is held by it.
    pub async fn until_taken(self) {
        self.taken().await;
    }

    /// The same, for who gives the place back meanwhile; it is cancelled when somebody else has the place.
    pub fn signal(&self) -> CancellationToken {
        self.signal.clone()
    }

    /// Waits for the first byte, for so long; it stays where it is.
    pub async fn first_byte(&self, stream: &TcpStream, limit: Duration) -> Result<(), Gone> {
        let (mut byte, start) = ([0], tokio::time::Instant::now());
        let mut first = std::pin::pin!(stream.peek(&mut byte));
        let came = tokio::select! {
            came = timeout(NEW.min(limit), first.as_mut()) => came,
            () = self.taken() => return Err(Gone::Taken),
        };
        let came = match came {
            Ok(came) => Ok(came),
            Err(_) => {
                self.shows(Shown::Nothing);
                tokio::select! {
                    came = timeout_at(start + limit, first.as_mut()) => came,
                    () = self.taken() => return Err(Gone::Taken),
                }
            }
        };
        match came {
            Ok(Ok(1..)) => {
                self.shows(Shown::Something);
                Ok(())
            }
            Ok(_) => Err(Gone::Left),
            Err(_) => Err(Gone::Silent),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.0[self.table]).leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    fn is_taken(place: &Place) -> bool {
        place.signal.is_cancelled()
    }

    const ROOM: Room = Room { total: 6, per_address: 3, time: Duration::ZERO };

    fn enter(places: &Unproven, last: u8) -> Place {
        places.enter(ip(last), false).unwrap().0
    }

    #[test]
    fn the_oldest_silent_one_goes_first_and_of_an_address_its_own() {
        let places = Unproven::new(ROOM, ROOM);
        let silent = |last| {
            let place = enter(&places, last);
            place.shows(Shown::Nothing);
            place
        };
        let other = silent(9);
        let own: Vec<Place> = (0..3).map(|_| silent(1)).collect();
        own[0].shows(Shown::Something);
        let fourth = enter(&places, 1);
        assert_eq!(own.iter().map(is_taken).collect::<Vec<_>>(), [false, true, false], "silent ones first");
        assert!(!is_taken(&other), "its share is its own");
        // The table is full: of all, the one that is silent and came first.
        let (_fifth, _sixth) = (enter(&places, 2), enter(&places, 3));
        assert!(!is_taken(&other));
        let _seventh = enter(&places, 4);
        assert!(is_taken(&other) && !is_taken(&fourth));
    }

    #[test]
    fn what_is_served_goes_last_and_a_newcomer_always_comes_in() {
        let places = Unproven::new(Room { total: 2, per_address: 2, ..ROOM }, ROOM);
        let (served, spoke) = (enter(&places, 1), enter(&places, 2));
        served.shows(Shown::Served);
        let third = enter(&places, 3);
        assert!(is_taken(&spoke) && !is_taken(&served));
        third.shows(Shown::Served);
        spoke.shows(Shown::Served);
        let (fourth, another_went) = places.enter(ip(4), false).unwrap();
        assert!(another_went && is_taken(&served) && !is_taken(&third), "of equals the one that came first");
        served.shows(Shown::Nothing);
        drop((served, spoke));
        assert_eq!(places.len(), 2, "who has gone gives nothing back");
        drop((third, fourth));
        assert_eq!(places.len(), 0);
    }

    #[test]
    fn nobody_goes_before_his_time() {
        let mut table = Table::new(Room { total: 3, per_address: 2, time: Duration::from_secs(1) });
        let t0 = Instant::now();
        table.enter(ip(1), t0).unwrap();
        table.enter(ip(2), t0 + Duration::from_millis(900)).unwrap();
        let soon = t0 + Duration::from_millis(999);
        table.enter(ip(3), soon).unwrap();
        assert_eq!(table.enter(ip(4), soon).err(), Some(Full::Total));
        let later = t0 + Duration::from_secs(1);
        assert!(table.enter(ip(4), later).unwrap().2.is_some_and(|gone| gone.address == ip(1)));
        assert_eq!(table.enter(ip(5), later).err(), Some(Full::Total));
    }

    #[test]
    fn one_of_a_crowd_goes_at_once() {
        let mut table = Table::new(Room { total: 12, per_address: 10, time: Duration::from_secs(1) });
        let t0 = Instant::now();
        table.enter(ip(2), t0).unwrap();
        let (first_of_ten, ..) = table.enter(ip(1), t0).unwrap();
        for _ in 0..9 {
            table.enter(ip(1), t0).unwrap();
        }
        assert_eq!(table.enter(ip(1), t0).err(), Some(Full::Address));
        table.enter(ip(3), t0).unwrap();
        assert!(table.enter(ip(4), t0).unwrap().2.is_some_and(|gone| gone.address == ip(1)));
        assert!(!table.held.contains_key(&first_of_ten), "its first one");
        // Nine are no crowd beside a newcomer.
        assert_eq!(table.enter(ip(5), t0).err(), Some(Full::Total));
    }

    #[test]
    fn room_is_made_for_something_else_too() {
        let places = Unproven::new(ROOM, ROOM);
        let (spoke, silent, own) = (enter(&places, 1), enter(&places, 2), enter(&places, 3));
        silent.shows(Shown::Nothing);
        assert!(places.make_room(&own) && is_taken(&silent) && !is_taken(&spoke));
        own.shows(Shown::Served);
        assert!(places.make_room(&own) && is_taken(&spoke));
        assert!(!places.make_room(&own) && !is_taken(&own));
    }

    #[test]
    fn known_peers_have_places_that_strangers_do_not_take() {
        let places = Unproven::new(ROOM, ROOM);
        let (known, _) = places.enter(ip(1), true).unwrap();
        let strangers: Vec<Place> = (0..200).map(|n| enter(&places, n)).collect();
        assert!(!is_taken(&known));
        assert_eq!(places.len(), 7);
        assert_eq!(strangers.iter().filter(|place| !is_taken(place)).count(), 6);
    }

    #[test]
    fn an_ipv6_network_has_one_share_and_tables_are_empty_again() {
        let places = Unproven::new(Room { total: 100, per_address: 2, ..ROOM }, ROOM);
        let at = |text: &str| places.enter(text.parse().unwrap(), false).unwrap().0;
        let first = at("2001:db8::1");
        let rest = [at("2001:db8::2"), at("2001:db8::ffff:3"), at("2001:db8:0:1::1"), at("::ffff:127.0.0.1")];
        assert!(is_taken(&first) && !rest.iter().any(is_taken));
        drop((first, rest));
        let table = lock(&places.0[STRANGERS]);
        assert_eq!((table.held.len(), table.order.len()), (0, 0));
        assert_eq!((table.by_address.len(), table.crowds.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_has_a_deadline_and_stays() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let places = Unproven::new(ROOM, ROOM);
        let connect = async || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (client, listener.accept().await.unwrap().0)
        };
        let limit = Duration::from_secs(2);
        let (_client, silent) = connect().await;
        let place = enter(&places, 1);
        assert_eq!(place.first_byte(&silent, limit).await, Err(Gone::Silent));
        let shown = || lock(&places.0[STRANGERS]).order.first().map(|(shown, _)| *shown);
        assert_eq!(shown(), Some(Shown::Nothing));
        let (client, server) = connect().await;
        client.writable().await.unwrap();
        client.try_write(b"x").unwrap();
        server.readable().await.unwrap();
        place.first_byte(&server, limit).await.unwrap();
        assert_eq!(shown(), Some(Shown::Something));
        let mut byte = [0];
        assert_eq!(server.peek(&mut byte).await.unwrap(), 1);
        place.signal.cancel();
        let (client, silent) = connect().await;
        assert_eq!(place.first_byte(&silent, limit).await, Err(Gone::Taken));
        let place = enter(&places, 2);
        drop(client);
        silent.readable().await.unwrap();
        assert_eq!(place.first_byte(&silent, limit).await, Err(Gone::Left));
    }
}
