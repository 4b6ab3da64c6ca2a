//! What silence and age mean for a tunnel. Pure: it is shown the tunnel's counts from time to time, so
//! that no message has to look at a clock.

use std::time::Duration;
use tokio::time::Instant;
use weir_conf::proxy::Tunnel;

/// A tunnel of which one side has closed ends when the other was silent for so long.
const HALF_CLOSED: Duration = Duration::from_secs(30);
/// And sooner, if what the one who has left had sent waits for the other, who does not take it.
const LEFT: Duration = Duration::from_secs(5);
/// While something waits, a look at whether the peers are still there.
pub const STUCK_LOOK: Duration = Duration::from_secs(1);
/// Looks per period: silence is noticed within a quarter of the period past its end.
const LOOKS: u32 = 4;

/// The counts of a tunnel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Bytes in both directions.
    pub moved: u64,
    /// What came from the client, whether or not it was passed on.
    pub heard: u64,
    /// Bytes that the server and the client have taken; `None`: nothing waits for them.
    pub server_takes: Option<u64>,
    pub client_takes: Option<u64>,
    /// The number of the client's message that is under way, and neither held up by us nor by the server.
    pub message: Option<u64>,
    pub half_closed: bool,
    /// What it had sent waits for the other side, and it has closed or is reset meanwhile.
    pub client_left: bool,
    pub server_left: bool,
}

/// Why a tunnel is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Idle,
    HalfClosed,
    NoPong,
    /// A message took too long to end.
    Message,
    Age,
    Expired,
    ClientStalled,
    ServerStalled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All is well; look again then.
    Again(Instant),
    /// There is nothing to be watched now.
    Rest,
    /// The client is to be pinged; look again then.
    Ping(Instant),
    End(Why),
}

pub struct Watch {
    moved: Mark,
    heard: Mark,
    message: Mark,
    server_takes: Mark,
    client_takes: Mark,
    half_closed: bool,
    /// A ping is out, since when, and what had been heard before it.
    pinged: Option<(Instant, u64)>,
    ends: Option<Instant>,
    expires: Option<Instant>,
}

/// A count, and since when it has not changed.
#[derive(Clone, Copy)]
struct Mark {
    count: u64,
    since: Instant,
}

impl Mark {
    fn still(&mut self, count: u64, now: Instant) -> Duration {
        if count != self.count {
            *self = Mark { count, since: now };
        }
        now.saturating_duration_since(self.since)
    }
}

impl Watch {
    /// `chance` from 0 to 1 decides how much earlier than `max_age` it ends.
    pub fn new(conf: &Tunnel, opened: Instant, chance: f64, seen: Seen, now: Instant) -> Watch {
        let mark = |count| Mark { count, since: now };
        let jitter = f64::from(conf.max_age_jitter.min(100)) / 100.0 * chance;
        Watch {
            moved: mark(seen.moved),
            heard: mark(seen.heard),
            message: mark(seen.message.unwrap_or_default()),
            server_takes: mark(seen.server_takes.unwrap_or_default()),
            client_takes: mark(seen.client_takes.unwrap_or_default()),
            half_closed: seen.half_closed,
            pinged: None,
            expires: None,
            ends: (!conf.max_age.is_zero()).then(|| opened + conf.max_age.mul_f64(1.0 - jitter)),
        }
    }

    /// It ends then at the latest: its token does.
    pub fn until(mut self, expires: Option<Instant>) -> Watch {
        self.expires = expires;
        self
    }

    /// Whether a tunnel has something to be watched from its beginning.
    pub fn is_wanted(conf: &Tunnel) -> bool {
        let times = [conf.idle_timeout, conf.ping_interval, conf.max_age, conf.message_timeout];
        times.iter().any(|time| !time.is_zero())
    }

    /// A ping was sent.
    pub fn pinged(&mut self, heard: u64, now: Instant) {
        self.pinged = Some((now, heard));
    }

    pub fn look(&mut self, conf: &Tunnel, seen: Seen, now: Instant) -> Look {
        let mut next = Next { at: None, now };
        for (ends, why) in [(self.expires, Why::Expired), (self.ends, Why::Age)] {
            let Some(ends) = ends else { continue };
            if now >= ends {
                return Look::End(why);
            }
            next.no_later_than(ends);
        }
        for (takes, mark, left, why) in [
            (seen.server_takes, &mut self.server_takes, seen.client_left, Why::ServerStalled),
            (seen.client_takes, &mut self.client_takes, seen.server_left, Why::ClientStalled),
        ] {
            // Nothing waits for it: what comes next begins anew.
            let Some(count) = takes else {
                mark.since = now;
                continue;
            };
            let still = mark.still(count, now);
            match still {
                _ if still >= conf.write_timeout => return Look::End(why),
                _ if left && still >= LEFT => return Look::End(Why::HalfClosed),
                _ => next.within(conf.write_timeout.min(LOOKS * STUCK_LOOK)),
            }
        }
        if self.is_endless(conf, seen.message, &mut next) {
            return Look::End(Why::Message);
        }
        if let Some(why) = self.silence(conf, seen, &mut next) {
            return Look::End(why);
        }
        match self.pings(conf, seen, &mut next) {
            Some(Pings::Due) => Look::Ping(next.at.unwrap_or(now + conf.ping_timeout)),
            Some(Pings::Unanswered) => Look::End(Why::NoPong),
            None => next.at.map_or(Look::Rest, Look::Again),
        }
    }

    fn is_endless(&mut self, conf: &Tunnel, message: Option<u64>, next: &mut Next) -> bool {
        if conf.message_timeout.is_zero() {
            return false;
        }
        next.within(conf.message_timeout);
        match message {
            Some(number) => self.message.still(number, next.now) >= conf.message_timeout,
            None => {
                self.message.since = next.now;
                false
            }
        }
    }

    fn silence(&mut self, conf: &Tunnel, seen: Seen, next: &mut Next) -> Option<Why> {
        if seen.half_closed && !self.half_closed {
            (self.half_closed, self.moved.since) = (true, next.now);
        }
        let silent = self.moved.still(seen.moved, next.now);
        let (period, why) = match (self.half_closed, conf.idle_timeout.is_zero()) {
            (true, true) => (HALF_CLOSED, Why::HalfClosed),
            (true, false) => (HALF_CLOSED.min(conf.idle_timeout), Why::HalfClosed),
            (false, true) => return None,
            (false, false) => (conf.idle_timeout, Why::Idle),
        };
        next.within(period);
        (silent >= period).then_some(why)
    }

    fn pings(&mut self, conf: &Tunnel, seen: Seen, next: &mut Next) -> Option<Pings> {
        // A side that has closed does not answer; what is waiting for the client comes first.
        if conf.ping_interval.is_zero() || seen.half_closed {
            return None;
        }
        let silent = self.heard.still(seen.heard, next.now);
        if let Some((at, heard)) = self.pinged {
            if seen.heard != heard {
                self.pinged = None;
            } else if next.now >= at + conf.ping_timeout {
                return Some(Pings::Unanswered);
            } else {
                next.no_later_than(at + conf.ping_timeout);
                return None;
            }
        }
        next.within(conf.ping_interval);
        if silent < conf.ping_interval || seen.client_takes.is_some() {
            return None;
        }
        next.no_later_than(next.now + conf.ping_timeout);
        Some(Pings::Due)
    }
}

enum Pings {
    Due,
    Unanswered,
}

/// When to look again: the soonest that any rule asks for.
struct Next {
    at: Option<Instant>,
    now: Instant,
}

impl Next {
    fn no_later_than(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |other| other.min(at)));
    }

    fn within(&mut self, period: Duration) {
        self.no_later_than(self.now + period / LOOKS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn conf() -> Tunnel {
        Tunnel { write_timeout: 8 * S, ..weir_conf::Config::default().proxy.tunnel }
    }

    /// Looks whenever it asks to, with what `seen` says of the time passed, up to the end.
    fn run(conf: &Tunnel, chance: f64, seen: impl Fn(Duration) -> Seen) -> (Look, Duration, Vec<Duration>) {
        let start = Instant::now();
        let mut watch = Watch::new(conf, start, chance, seen(Duration::ZERO), start);
        let (mut now, mut pings) = (start, Vec::new());
        loop {
            let passed = now - start;
            let seen = seen(passed);
            match watch.look(conf, seen, now) {
                Look::Again(at) if passed < 1000 * S => {
                    assert!(at > now);
                    now = at;
                }
                Look::Ping(at) => {
                    pings.push(passed);
                    watch.pinged(seen.heard, now);
                    now = at;
                }
                end => return (end, passed, pings),
            }
        }
    }

    #[test]
    fn silence_is_noticed_within_a_quarter_of_its_period() {
        let idle = Tunnel { idle_timeout: 8 * S, ..conf() };
        // Something moves up to the eleventh second.
        let moves =
            |passed: Duration| Seen { moved: passed.min(11 * S).as_millis() as u64, ..Seen::default() };
        let (end, at, _) = run(&idle, 0.0, moves);
        assert_eq!(end, Look::End(Why::Idle));
        assert!(at >= 19 * S && at <= 21 * S, "{at:?}");
        // A client that was heard, and nothing passed on: idle all the same.
        let pongs = |passed: Duration| Seen { heard: passed.as_secs(), ..Seen::default() };
        assert_eq!(run(&idle, 0.0, pongs).1, 8 * S);
    }

    #[test]
    fn a_half_closed_tunnel_is_watched_even_if_nothing_else_is() {
        let half = |passed: Duration| Seen { half_closed: passed >= 4 * S, ..Seen::default() };
        assert_eq!(run(&conf(), 0.0, half).0, Look::Rest, "nothing to watch yet");
        let half = |_| Seen { half_closed: true, ..Seen::default() };
        let (end, at, _) = run(&conf(), 0.0, half);
        assert_eq!((end, at), (Look::End(Why::HalfClosed), HALF_CLOSED));
        let short = Tunnel { idle_timeout: 4 * S, ..conf() };
        assert_eq!(run(&short, 0.0, half).1, 4 * S);
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let pings = Tunnel { ping_interval: 20 * S, ping_timeout: 5 * S, ..conf() };
        let (end, at, pinged) = run(&pings, 0.0, |_| Seen::default());
        assert_eq!((end, at, pinged), (Look::End(Why::NoPong), 25 * S, vec![20 * S]));
        // One that answers is pinged again, one that speaks is not pinged.
        let answers = |passed: Duration| Seen { heard: passed.as_secs() / 22, ..Seen::default() };
        let (_, at, pinged) = run(&pings, 0.0, answers);
        assert!(at >= 1000 * S && pinged.len() > 10, "{at:?} {pinged:?}");
        let speaks = |passed: Duration| Seen { heard: passed.as_secs() / 5, ..Seen::default() };
        assert!(run(&pings, 0.0, speaks).2.is_empty());
        // What waits for it comes first.
        let behind = |passed: Duration| Seen { client_takes: Some(passed.as_secs()), ..Seen::default() };
        assert!(run(&pings, 0.0, behind).2.is_empty());
    }

    #[test]
    fn a_message_that_does_not_end_ends_it_and_many_messages_do_not() {
        let timed = Tunnel { message_timeout: 20 * S, ..conf() };
        let endless = |passed: Duration| Seen {
            moved: passed.as_secs(),
            message: (passed >= 40 * S).then_some(7),
            ..Seen::default()
        };
        assert_eq!(run(&timed, 0.0, endless), (Look::End(Why::Message), 60 * S, vec![]));
        let many = |passed: Duration| Seen { message: Some(passed.as_secs() / 15), ..Seen::default() };
        assert!(run(&timed, 0.0, many).1 >= 1000 * S);
        let held_up = |passed: Duration| Seen {
            message: (!(passed.as_secs() / 15).is_multiple_of(2)).then_some(7),
            ..Seen::default()
        };
        assert!(run(&timed, 0.0, held_up).1 >= 1000 * S);
        assert_eq!(run(&conf(), 0.0, |_| Seen { message: Some(1), ..Seen::default() }).0, Look::Rest);
    }

    #[test]
    fn age_ends_it_within_its_jitter() {
        let old = Tunnel { max_age: 100 * S, max_age_jitter: 20, ..conf() };
        for (chance, age) in [(0.0, 100 * S), (0.5, 90 * S), (1.0, 80 * S)] {
            let (end, at, _) = run(&old, chance, |_| Seen::default());
            assert_eq!((end, at), (Look::End(Why::Age), age));
        }
    }

    #[test]
    fn a_side_that_takes_nothing_is_stalled_and_one_that_takes_little_is_not() {
        let client = |_| Seen { client_takes: Some(7), ..Seen::default() };
        assert_eq!(run(&conf(), 0.0, client), (Look::End(Why::ClientStalled), 8 * S, vec![]));
        let server = |_| Seen { server_takes: Some(7), ..Seen::default() };
        assert_eq!(run(&conf(), 0.0, server).0, Look::End(Why::ServerStalled));
        let slow = |passed: Duration| Seen { client_takes: Some(passed.as_secs() / 6), ..Seen::default() };
        assert!(run(&conf(), 0.0, slow).1 >= 1000 * S);
        assert_eq!(run(&conf(), 0.0, |_| Seen::default()).0, Look::Rest);
    }

    #[test]
    fn what_one_who_has_left_had_sent_is_not_waited_for_as_long() {
        let patient = Tunnel { write_timeout: 60 * S, ..conf() };
        let left = |passed: Duration| Seen {
            server_takes: Some(passed.min(10 * S).as_secs()),
            client_left: passed >= 8 * S,
            ..Seen::default()
        };
        let (end, at, _) = run(&patient, 0.0, left);
        assert_eq!((end, at), (Look::End(Why::HalfClosed), 15 * S), "while it is taken, all is well");
        let reset = |_| Seen { client_takes: Some(1), server_left: true, ..Seen::default() };
        assert_eq!(run(&patient, 0.0, reset), (Look::End(Why::HalfClosed), LEFT, vec![]));
    }
}
