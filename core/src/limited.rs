//! Log lines that strangers can cause, so many of each kind; what is left out is counted, and the count is
//! written when the window ends. Each kind has a window of its own, so a flood of one hides no other.
//!
//! ```
//! # let (client, cause) = ("192.0.2.1", "connections_per_ip");
//! weir_core::limited!(warn, cause, %client, "a client was refused");
//! ```
//!
//! A kind is a text of the program or two (where, and why), never one that somebody else chooses: the table is as
//! large as the program has kinds.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines of one kind in one window: enough to see who it is, and 1 line a second of a flood.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// What kind of line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(&'static str, &'static str);

impl From<&'static str> for Kind {
    fn from(text: &'static str) -> Kind {
        Kind(text, "")
    }
}

impl From<(&'static str, &'static str)> for Kind {
    fn from((place, why): (&'static str, &'static str)) -> Kind {
        Kind(place, why)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            "" => f.write_str(self.0),
            why => write!(f, "{}: {why}", self.0),
        }
    }
}

/// A line by `tracing`'s macro of this level (`warn`, `info`, `error`), unless its kind has had its share.
#[macro_export]
macro_rules! limited {
    ($level:ident, $kind:expr, $($line:tt)+) => {
        if $crate::limited::may_log($kind) {
            ::tracing::$level!($($line)+);
        }
    };
}

/// Whether a line of this kind may be written now. The first that may not has the count of them written when
/// the window is over.
pub fn may_log(kind: impl Into<Kind>) -> bool {
    static KINDS: Mutex<Kinds> = Mutex::new(Kinds(BTreeMap::new()));
    let (kind, now) = (kind.into(), Instant::now());
    let verdict = lock(&KINDS).judge(kind, now);
    match verdict {
        Verdict::Write(before) => say(kind, before),
        Verdict::LeaveOut => return false,
        Verdict::FirstLeftOut(until) => {
            // Without a runtime the next line of this kind says it.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    tokio::time::sleep_until(until.into()).await;
                    let left_out = lock(&KINDS).close(kind, Instant::now());
                    say(kind, left_out);
                });
            }
            return false;
        }
    }
    true
}

fn say(kind: Kind, left_out: u64) {
    if left_out > 0 {
        tracing::warn!(%kind, left_out, "{left_out} more log lines of this kind were left out");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// And so many of an earlier window were left out, and nobody has said so.
    Write(u64),
    LeaveOut,
    /// This window ends then.
    FirstLeftOut(Instant),
}

struct Kinds(BTreeMap<Kind, Window>);

struct Window {
    ends: Instant,
    written: u32,
    left_out: u64,
}

impl Kinds {
    fn judge(&mut self, kind: Kind, now: Instant) -> Verdict {
        let fresh = Window { ends: now + WINDOW, written: 0, left_out: 0 };
        let window = self.0.entry(kind).or_insert(fresh);
        let mut before = 0;
        if now >= window.ends {
            before = window.left_out;
            *window = Window { ends: now + WINDOW, written: 0, left_out: 0 };
        }
        if window.written < LINES {
            window.written += 1;
            return Verdict::Write(before);
        }
        window.left_out += 1;
        match window.left_out {
            1 => Verdict::FirstLeftOut(window.ends),
            _ => Verdict::LeaveOut,
        }
    }

    /// How many a window that is over has left out; nothing if a later line has said it.
    fn close(&mut self, kind: Kind, now: Instant) -> u64 {
        match self.0.get_mut(&kind) {
            Some(window) if now >= window.ends => std::mem::take(&mut window.left_out),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: Kind = Kind("listener", "flood");
    const OTHER: Kind = Kind("listener", "other");
    const NONE: Kind = Kind("none", "");

    #[test]
    fn a_flood_of_one_kind_is_counted_and_hides_no_other() {
        let (mut kinds, t0) = (Kinds(BTreeMap::new()), Instant::now());
        for _ in 0..LINES {
            assert_eq!(kinds.judge(FLOOD, t0), Verdict::Write(0));
        }
        assert_eq!(kinds.judge(FLOOD, t0), Verdict::FirstLeftOut(t0 + WINDOW));
        for _ in 0..99 {
            assert_eq!(kinds.judge(FLOOD, t0), Verdict::LeaveOut);
        }
        assert_eq!(kinds.judge(OTHER, t0), Verdict::Write(0));
        assert_eq!(kinds.close(FLOOD, t0), 0, "its window is not over");
        let later = t0 + WINDOW;
        assert_eq!(kinds.close(FLOOD, later), 100);
        assert_eq!((kinds.close(FLOOD, later), kinds.judge(FLOOD, later)), (0, Verdict::Write(0)));
    }

    #[test]
    fn where_nobody_closes_a_window_the_next_line_says_what_was_left_out() {
        let (mut kinds, t0) = (Kinds(BTreeMap::new()), Instant::now());
        for _ in 0..LINES + 5 {
            kinds.judge(FLOOD, t0);
        }
        assert_eq!(kinds.judge(FLOOD, t0 + WINDOW), Verdict::Write(5));
        assert_eq!(kinds.close(FLOOD, t0 + WINDOW), 0, "it was said");
        assert_eq!(kinds.close(NONE, t0), 0);
    }
}
