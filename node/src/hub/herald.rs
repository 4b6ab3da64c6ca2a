//! Joins and leaves of one channel within a short time: what cancels itself is left out, and the rest is told
//! together. In a channel of `n` each arrival is `n` messages; one client that comes and goes would cost everybody.
//!
//! The first after a quiet time is told at once, so that nobody waits where little happens. After that, a member's
//! events are kept as the first and the last: together they say all that the ones between do. Whoever came and left is
//! left out, as is whoever left and came back as the same. Not where somebody has just asked who is there: he may have
//! seen what is taken back here. Pure; the task that ends a window is the hub's.

use crate::protocol::Push;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_wire::envelope::ClientInfo;

/// Members that may wait; over it the window ends.
const MEMBERS: usize = 4096;
/// An answer about presence may have been given so long before what it says is delivered here.
const ASKED: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Herald {
    window: Duration,
    /// Until then nothing is told at once.
    closes: Option<Instant>,
    /// In the order in which their first event came.
    waiting: Vec<Member>,
    /// Client id to its place in `waiting`.
    places: HashMap<String, usize>,
    /// When somebody asked who is there.
    asked: Option<Instant>,
}

struct Member {
    first: Change,
    last: Option<Change>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub info: ClientInfo,
    pub joined: bool,
}

/// What becomes of an event.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Now(Change),
    /// It waits, as others do.
    Waits,
    /// It waits, and [`Herald::take`] is to be called then.
    WaitsUntil(Instant),
    /// Too many wait: [`Herald::take`] now.
    Full,
}

impl Herald {
    pub fn new(window: Duration) -> Herald {
        Herald { window, ..Herald::default() }
    }

    pub fn on(&mut self, change: Change, now: Instant) -> Verdict {
        if self.window.is_zero() {
            return Verdict::Now(change);
        }
        let closes = match self.closes {
            Some(closes) if now < closes || !self.waiting.is_empty() => closes,
            _ => {
                self.closes = Some(now + self.window);
                return Verdict::Now(change);
            }
        };
        let begins = self.waiting.is_empty();
        match self.places.get(&change.info.client) {
            Some(at) => self.waiting[*at].last = Some(change),
            None => {
                self.places.insert(change.info.client.clone(), self.waiting.len());
                self.waiting.push(Member { first: change, last: None });
            }
        }
        match self.waiting.len() {
            MEMBERS.. => Verdict::Full,
            _ if begins => Verdict::WaitsUntil(closes),
            _ => Verdict::Waits,
        }
    }

    pub fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// What is left to be told; the next window begins.
    pub fn take(&mut self, now: Instant) -> Vec<Change> {
        self.closes = Some(now + self.window);
        self.places = HashMap::new();
        let asked = self.asked.is_some_and(|asked| now < asked + self.window + ASKED);
        let mut told = Vec::new();
        for Member { first, last } in std::mem::take(&mut self.waiting) {
            match last {
                None => told.push(first),
                // Came again as somebody else.
                Some(last) if last.joined && !first.joined && last.info != first.info => {
                    told.extend([first, last]);
                }
                Some(last) if last.joined == first.joined || asked => told.push(last),
                Some(_) => {}
            }
        }
        told
    }
}

impl Change {
    pub fn push(self, channel: Arc<str>) -> Push {
        match self.joined {
            true => Push::Join { channel, info: self.info },
            false => Push::Leave { channel, info: self.info },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(200);

    fn change(word: &str) -> Change {
        let (joined, client) = (word.starts_with('+'), word[1..].split('/').next().unwrap());
        let info = ClientInfo { client: client.into(), user: word.into(), ..ClientInfo::default() };
        // What stands behind the slash is all that tells two of one client apart.
        Change { info: ClientInfo { user: word[1..].into(), ..info }, joined }
    }

    /// Words like `+a` for a join, `-a` for a leave; the first, `+x`, opens the window.
    fn told(words: &[&str], asked: bool) -> Vec<Change> {
        let t0 = Instant::now();
        let mut herald = Herald::new(WINDOW);
        if asked {
            herald.asked(t0);
        }
        assert_eq!(herald.on(change("+x"), t0), Verdict::Now(change("+x")));
        for (n, word) in words.iter().enumerate() {
            let now = t0 + Duration::from_millis(n as u64 + 1);
            let want = if n == 0 { Verdict::WaitsUntil(t0 + WINDOW) } else { Verdict::Waits };
            assert_eq!(herald.on(change(word), now), want);
        }
        herald.take(t0 + WINDOW)
    }

    #[test]
    fn what_cancels_itself_is_left_out_and_the_rest_keeps_its_order() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);
        // Events; what is told; what is told when somebody has asked who is there.
        let cases: &[Case<'_>] = &[
            (&["+a"], &["+a"], &["+a"]),
            (&["+a", "-a"], &[], &["-a"]),
            (&["-x"], &["-x"], &["-x"]),
            (&["-x", "+x"], &[], &["+x"]),
            (&["-x", "+x/other"], &["-x", "+x/other"], &["-x", "+x/other"]),
            (&["+a", "-a", "+a"], &["+a"], &["+a"]),
            (&["-x", "+x", "-x"], &["-x"], &["-x"]),
            (&["+a", "+b", "-a", "-x", "+c"], &["+b", "-x", "+c"], &["-a", "+b", "-x", "+c"]),
        ];
        for (events, quiet, asked) in cases {
            let words = |words: &[&str]| words.iter().map(|word| change(word)).collect::<Vec<_>>();
            assert_eq!(told(events, false), words(quiet), "{events:?}");
            assert_eq!(told(events, true), words(asked), "{events:?}, asked");
        }
    }

    #[test]
    fn where_little_happens_nobody_waits_and_one_that_loops_costs_little() {
        let (t0, mut herald) = (Instant::now(), Herald::new(WINDOW));
        for n in 0..10 {
            let at = t0 + WINDOW * n;
            assert!(matches!(herald.on(change("+a"), at), Verdict::Now(_)), "{n}");
        }
        let (mut herald, mut told, mut due) = (Herald::new(WINDOW), 0, None);
        for n in 0..10_000_u32 {
            let now = t0 + Duration::from_millis(u64::from(n));
            if due.is_some_and(|due| due <= now) {
                told += herald.take(now).len();
                due = None;
            }
            match herald.on(change(if n % 2 == 0 { "+a" } else { "-a" }), now) {
                Verdict::Now(_) => told += 1,
                Verdict::WaitsUntil(at) => due = Some(at),
                other => assert_eq!(other, Verdict::Waits),
            }
        }
        assert!(told <= 60, "{told} of 10,000 within 10 s");
        let many =
            (0..5000).map(|n| herald.on(change(&format!("+{n}")), t0 + WINDOW * 100)).collect::<Vec<_>>();
        assert!(many.contains(&Verdict::Full));
    }

    #[test]
    fn without_a_window_each_goes_at_once() {
        let mut herald = Herald::new(Duration::ZERO);
        for word in ["+a", "-a", "+a"] {
            assert_eq!(herald.on(change(word), Instant::now()), Verdict::Now(change(word)));
        }
    }
}
