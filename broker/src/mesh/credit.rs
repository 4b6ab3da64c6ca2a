//! How many bytes of deliveries may be on their way to one broker: queued, on the wire, or there
//! and not taken yet. What finds no room is refused, and then everything until the layer above
//! has begun anew with a resync. Pure.

/// The sending side.
#[derive(Debug)]
pub struct Window {
    size: u64,
    sent: u64,
    taken: u64,
    /// Nothing goes out: something was refused, or nothing was ever begun.
    behind: bool,
    /// Whoever has to resync knows.
    told: bool,
}

/// What [`Window::send`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    Sent,
    /// The first that found no room.
    Fell,
    Behind,
}

impl Window {
    pub fn new(size: usize) -> Window {
        // A new link begins with a resync: nobody knows what was missed before it.
        Window { size: size as u64, sent: 0, taken: 0, behind: true, told: false }
    }

    pub fn send(&mut self, len: usize) -> Credit {
        if self.behind {
            return Credit::Behind;
        }
        let waiting = self.waiting();
        if waiting > 0 && waiting + len as u64 > self.size {
            self.behind = true;
            self.told = false;
            return Credit::Fell;
        }
        self.sent += len as u64;
        Credit::Sent
    }

    pub fn waiting(&self) -> u64 {
        self.sent - self.taken
    }

    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// The other side has taken `total` since the link began. False: more than it ever got.
    pub fn taken(&mut self, total: u64) -> bool {
        self.taken = self.taken.max(total);
        self.taken <= self.sent
    }

    /// True once when it is time to resync: something was refused, and there is room again.
    pub fn wants_resync(&mut self) -> bool {
        let wants = self.behind && !self.told && self.waiting() * 2 <= self.size;
        self.told |= wants;
        wants
    }

    /// Deliveries go out again; a resync follows.
    pub fn resume(&mut self) {
        self.behind = false;
    }
}

/// The receiving side: what was taken, and what of it the sender knows.
#[derive(Debug, Default)]
pub struct Taken {
    total: u64,
    told: u64,
}

impl Taken {
    /// The new total, if it is time to tell.
    pub fn add(&mut self, len: usize, window: usize) -> Option<u64> {
        self.total += len as u64;
        if self.total - self.told >= window as u64 / 8 { self.untold() } else { None }
    }

    pub fn untold(&mut self) -> Option<u64> {
        let news = self.total > self.told;
        self.told = self.total;
        news.then_some(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_stops_all_until_there_is_room_and_a_resync() {
        let mut w = Window::new(100);
        assert_eq!(w.send(1), Credit::Behind, "a new link");
        assert!(w.wants_resync() && !w.wants_resync(), "told once");
        w.resume();
        assert_eq!((w.send(500), w.send(1)), (Credit::Sent, Credit::Fell), "one always fits");
        assert_eq!(w.send(0), Credit::Behind);
        assert!(!w.wants_resync(), "no room yet");
        assert!(w.taken(440) && !w.wants_resync() && w.taken(450) && w.wants_resync());
        assert!(w.taken(10) && w.waiting() == 50, "an older total changes nothing");
        w.resume();
        assert_eq!((w.send(50), w.send(1)), (Credit::Sent, Credit::Fell));
        assert!(!w.taken(501 + 50), "more than was sent");
    }

    #[test]
    fn what_was_taken_is_told_in_few_messages() {
        let mut taken = Taken::default();
        let told: Vec<_> = (0..100).filter_map(|_| taken.add(2, 80)).collect();
        assert_eq!(told, (1..=20).map(|i| i * 10).collect::<Vec<_>>());
        assert_eq!((taken.add(3, 80), taken.untold(), taken.untold()), (None, Some(203), None));
    }
}
