//! Whether a server that does not answer hangs, or was only asked for something slow. Pure.
//!
//! A client chooses what it asks for, and some things take long. So silence over one request says nothing of the
//! server while it answers others: any head that comes from it, whatever it says, clears all that were sent before.
//! Where nothing comes at all, a request of our own is sent (`upstream/probe.rs`) once somebody has waited for half
//! of his patience. Silence that outlasts it counts against the server when that one is not answered either, or when
//! clients of several addresses wait in vain: a client alone can bring about neither.

use crate::admit::key::Key;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use weir_core::breaker::By;

/// Requests that are watched at once; those beyond would say the same as these.
const MAX: usize = 1024;
/// What could be settled by nothing for so many times its patience (we cannot send a request of our own, and one
/// address alone waits) is dropped.
const UNSETTLED: u32 = 4;

#[derive(Debug, Default)]
pub struct Silence {
    /// In the order in which they were sent. All were sent after the last head that came.
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    /// When the first request of our own was sent to which, and to those after it, nothing came.
    asked: Option<Instant>,
    /// Somebody looks, until nobody waits any more; next at this time.
    watched: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The client's address; never what a client chooses.
    pub who: Option<Key>,
    pub by: By,
    pub sent: Instant,
    /// Silence of this length is suspicious.
    pub patience: Duration,
    /// What it counts as.
    pub cause: &'static str,
}

impl Waiting {
    /// When a request of our own is sent because of it: early for a trial, which others wait for.
    fn suspicious(&self) -> Instant {
        self.sent + self.patience / if self.by == By::Probe { 10 } else { 2 }
    }

    fn is_late(&self, now: Instant) -> bool {
        now >= self.sent + self.patience
    }
}

/// What is to be done, by whoever looks.
#[derive(Debug, Default, PartialEq)]
pub struct Look {
    /// A request of our own is wanted.
    pub ask: bool,
    /// These count against the server.
    pub failed: Vec<(By, &'static str)>,
    /// These say nothing, and never will.
    pub dropped: Vec<By>,
    /// When to look again; `None`: nobody waits, and nobody looks any more.
    pub next: Option<Instant>,
}

/// Who is to look at a request that has begun to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nobody does: somebody has to begin.
    Begin,
    /// Whoever looks does so too late for this one.
    Sooner,
    Fine,
}

impl Silence {
    /// A request was sent whole. `None`: enough others wait.
    pub fn begin(&mut self, waiting: Waiting) -> Option<(u64, Watch)> {
        if self.waiting.len() >= MAX {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.waiting.insert(id, waiting);
        let due = waiting.suspicious();
        let watch = match self.watched {
            None => Watch::Begin,
            Some(next) if due < next => Watch::Sooner,
            Some(_) => return Some((id, Watch::Fine)),
        };
        self.watched = Some(due);
        Some((id, watch))
    }

    /// The server has said something: it lives. Those that waited are cleared; returned are who they were.
    pub fn word(&mut self) -> Vec<By> {
        self.asked = None;
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.by).collect()
    }

    /// A request has ended otherwise than by an answer. `None`: it was cleared or counted before, or it had waited for
    /// long enough to go on being a witness.
    pub fn end(&mut self, id: u64, now: Instant) -> Option<By> {
        if self.waiting.get(&id)?.is_late(now) {
            return None;
        }
        self.waiting.remove(&id).map(|waiting| waiting.by)
    }

    /// Its own time is over: it is late, whatever its patience.
    pub fn expire(&mut self, id: u64, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.patience = waiting.patience.min(now.saturating_duration_since(waiting.sent));
        }
    }

    /// One of our own was sent, or (`None`) it could not be.
    pub fn asked(&mut self, at: Option<Instant>) {
        self.asked = match at {
            Some(at) => self.asked.or(Some(at)),
            None => None,
        };
    }

    /// What silence says by now; for who looks after those that wait.
    pub fn look(&mut self, now: Instant) -> Look {
        let mut look = self.judge(now);
        look.next = self.waiting.values().map(|waiting| self.due(waiting, now)).min();
        look.ask = self.waiting.values().any(|waiting| now >= waiting.suspicious());
        self.watched = look.next;
        if self.waiting.is_empty() {
            self.asked = None;
        }
        look
    }

    /// The same, for anybody else.
    pub fn judge(&mut self, now: Instant) -> Look {
        let mut look = Look::default();
        let late = self.waiting.values().filter(|waiting| waiting.is_late(now));
        let several = late.map(|waiting| waiting.who).collect::<BTreeSet<_>>().len() > 1;
        // Less than the half that was meant: timers are late at times.
        let unanswered = |w: &Waiting| self.asked.is_some_and(|at| now >= at + w.patience / 4);
        let hangs = self.waiting.values().any(|waiting| waiting.is_late(now) && unanswered(waiting));
        self.waiting.retain(|_, waiting| {
            let late = waiting.is_late(now);
            // Where a server hangs, those that wait beside the late ones say the same already.
            if hangs && now >= waiting.sent + waiting.patience / 2 || late && several {
                look.failed.push((waiting.by, waiting.cause));
                return false;
            }
            if !late {
                return true;
            }
            let keep = now < waiting.sent + waiting.patience * UNSETTLED;
            if !keep {
                look.dropped.push(waiting.by);
            }
            keep
        });
        look
    }

    /// When something is to be done about this one.
    fn due(&self, waiting: &Waiting, now: Instant) -> Instant {
        if now < waiting.suspicious() {
            return waiting.suspicious();
        }
        if !waiting.is_late(now) {
            return waiting.sent + waiting.patience;
        }
        let quarter = waiting.patience / 4;
        self.asked.map_or(now + quarter, |at| at + quarter).max(now + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::key::of_ip;

    const PATIENCE: Duration = Duration::from_secs(4);

    fn waiting(ip: &str, sent: Instant, by: By) -> Waiting {
        let who = Some(of_ip(ip.parse().unwrap(), 64));
        Waiting { who, by, sent, patience: PATIENCE, cause: "handshake_timeout" }
    }

    /// What counts of requests sent at these seconds, when heads come, and requests of our own are sent, at those.
    fn counted(sent: &[(&str, u64)], words: &[u64], asked: Option<u64>) -> usize {
        let t0 = Instant::now();
        let at = |s: u64| t0 + Duration::from_secs(s);
        let (mut silence, mut count) = (Silence::default(), 0);
        for second in 0..60 {
            for (ip, _) in sent.iter().filter(|(_, at)| *at == second) {
                silence.begin(waiting(ip, at(second), By::Anyone)).unwrap();
            }
            if words.contains(&second) {
                silence.word();
            }
            if asked == Some(second) {
                silence.asked(Some(at(second)));
            }
            count += silence.look(at(second)).failed.len();
        }
        count
    }

    #[test]
    fn silence_counts_where_nothing_comes_to_several_or_to_us() {
        let one: Vec<_> = (0..20).map(|n| ("10.0.0.1", n)).collect();
        let mut two = one.clone();
        two.push(("10.0.0.2", 3));
        for (what, sent, words, asked, expected) in [
            ("one address, nothing asked", &one, &[][..], None, 0),
            ("one address, and ours is answered", &one, &[3, 6, 9, 12, 15, 18, 21, 24][..], None, 0),
            ("one address, and ours is not answered", &one, &[][..], Some(2), 20),
            ("two addresses wait", &two, &[][..], None, 5),
            ("two addresses, but somebody is answered", &two, &[4, 8, 12, 16, 20, 24], None, 0),
        ] {
            assert_eq!(counted(sent, words, asked), expected, "{what}");
        }
        // A customer's whole network is one client.
        let v6 = [("2001:db8::1", 0), ("2001:db8::2", 0), ("::ffff:10.0.0.1", 0), ("10.0.0.1", 0)];
        assert_eq!(counted(&v6[..2], &[], None), 0);
        assert_eq!(counted(&v6[2..], &[], None), 0);
        assert_eq!(counted(&v6[1..], &[], None), 3);
    }

    #[test]
    fn what_was_sent_after_the_last_head_waits_for_the_next() {
        // It answers until second 10, and then never again.
        let sent: Vec<_> = (0..20).map(|n| ("10.0.0.1", n)).collect();
        let words: Vec<_> = (0..=10).collect();
        assert_eq!(counted(&sent, &words, Some(13)), 9);
    }

    #[test]
    fn clients_that_leave_are_no_witnesses_unless_they_waited_their_time() {
        let t0 = Instant::now();
        let mut silence = Silence::default();
        let (early, _) = silence.begin(waiting("10.0.0.1", t0, By::Probe)).unwrap();
        let (late, _) = silence.begin(waiting("10.0.0.2", t0, By::Anyone)).unwrap();
        assert_eq!(silence.end(early, t0 + PATIENCE / 2), Some(By::Probe));
        assert_eq!(silence.end(late, t0 + PATIENCE), None);
        silence.asked(Some(t0 + PATIENCE / 2));
        let look = silence.look(t0 + PATIENCE);
        assert_eq!(look.failed, [(By::Anyone, "handshake_timeout")]);
        assert_eq!((look.next, look.ask), (None, false));
    }

    #[test]
    fn where_a_server_hangs_those_that_wait_beside_the_first_count_with_it() {
        let t0 = Instant::now();
        let mut silence = Silence::default();
        for eighths in 0..8 {
            silence.begin(waiting("10.0.0.1", t0 + PATIENCE / 8 * eighths, By::Anyone)).unwrap();
        }
        silence.asked(Some(t0 + PATIENCE / 2));
        assert_eq!(silence.look(t0 + PATIENCE - Duration::from_millis(1)).failed.len(), 0, "nobody is late");
        assert_eq!(silence.look(t0 + PATIENCE).failed.len(), 5);
        // Of one address, and nothing asked: nobody is late with whom they could count.
        let mut silence = Silence::default();
        for eighths in 0..8 {
            silence.begin(waiting("10.0.0.1", t0 + PATIENCE / 8 * eighths, By::Anyone)).unwrap();
        }
        assert_eq!(silence.look(t0 + PATIENCE).failed.len(), 0);
    }

    #[test]
    fn whoever_looks_is_told_when_and_ends_when_nobody_waits() {
        let t0 = Instant::now();
        let mut silence = Silence::default();
        let begun =
            |silence: &mut Silence, sent| silence.begin(waiting("10.0.0.1", sent, By::Anyone)).unwrap();
        let (first, watch) = begun(&mut silence, t0);
        assert_eq!(watch, Watch::Begin);
        assert_eq!(begun(&mut silence, t0 + PATIENCE / 8).1, Watch::Fine);
        let hasty = Waiting { patience: PATIENCE / 4, ..waiting("10.0.0.1", t0, By::Anyone) };
        assert_eq!(silence.begin(hasty).unwrap().1, Watch::Sooner);
        assert_eq!(silence.end(first, t0), Some(By::Anyone));
        let look = silence.look(t0 + PATIENCE / 8);
        assert!(look.ask && look.next == Some(t0 + PATIENCE / 4), "{look:?}");
        assert_eq!(silence.word(), [By::Anyone, By::Anyone]);
        assert_eq!(silence.look(t0 + PATIENCE / 4), Look::default());
        assert_eq!(begun(&mut silence, t0 + PATIENCE).1, Watch::Begin);
        // Others wait for what a trial shows.
        let trial = silence.begin(waiting("10.0.0.1", t0 + PATIENCE, By::Probe)).unwrap();
        assert_eq!(trial.1, Watch::Sooner);
        assert!(silence.look(t0 + PATIENCE + PATIENCE / 10).ask);
    }

    #[test]
    fn no_flood_makes_it_grow_and_what_nothing_settles_goes() {
        let t0 = Instant::now();
        let mut silence = Silence::default();
        let begun = (0..5_000).filter_map(|_| silence.begin(waiting("10.0.0.1", t0, By::Anyone))).count();
        assert_eq!(begun, MAX);
        let look = silence.look(t0 + PATIENCE * UNSETTLED);
        assert_eq!((look.dropped.len(), look.failed.len(), look.next), (MAX, 0, None));
    }
}
