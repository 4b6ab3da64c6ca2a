//! What one client may send in a tunnel: token buckets over bytes and frames, the largest frame, and
//! which of its pongs are answers to pings of ours.

use super::frames::{Rules, Scanner, Stop, unmasked};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use weir_conf::proxy::{Over, Tunnel};

/// Fills at a rate, up to what one second brings. What was taken is taken: it may owe.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(per_second: f64, now: Instant) -> Bucket {
        Bucket { per_second, tokens: per_second.max(1.0), at: now }
    }

    pub fn tokens(&mut self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second.max(1.0));
        self.at = now;
        self.tokens
    }

    pub fn take(&mut self, count: f64) {
        self.tokens -= count;
    }

    /// When there will be so many.
    pub fn when(&self, tokens: f64) -> Instant {
        // A rate close to nothing would be a wait that no clock can count.
        let wait = ((tokens - self.tokens).max(0.0) / self.per_second).min(86_400.0);
        // A little more: the timer's own steps must not end it a moment too early.
        self.at + Duration::from_secs_f64(wait) + Duration::from_micros(10)
    }
}

/// Less than this is not worth a read of its own.
const MIN_READ: f64 = 512.0;

/// The limits of one client, there only where a route has some.
pub struct Guard {
    max_frame: u64,
    bytes: Option<Bucket>,
    frames: Option<Bucket>,
    /// Messages have a deadline.
    timed: bool,
    over: Over,
    pings: bool,
    /// Of the ping that was sent last.
    pong: Option<[u8; 8]>,
    /// Pongs that the server did not get to see.
    pub swallowed: u64,
}

/// What of this concerns a session of WebTransport: its client sends no frames, and QUIC pings it.
pub fn for_session(conf: &Arc<Tunnel>) -> Arc<Tunnel> {
    let plain = Tunnel {
        max_frame_size: 0,
        message_timeout: Duration::ZERO,
        frames_rate: None,
        ping_interval: Duration::ZERO,
        ..(**conf).clone()
    };
    if plain == **conf { conf.clone() } else { Arc::new(plain) }
}

/// How much may be read now.
pub struct Allowance {
    pub bytes: usize,
    frames: u64,
}

/// What became of bytes that were read: `pass` of them may go on, those up to `keep` wait for more.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    pub pass: usize,
    pub keep: usize,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// What is kept may go on when there is a frame to spend.
    Later,
    TooLarge,
    Nonsense,
    OverRate,
}

impl Guard {
    /// `None`: there is nothing to look after.
    pub fn new(conf: &Tunnel, now: Instant) -> Option<Guard> {
        let bucket = |per_second: f64| (per_second > 0.0).then(|| Bucket::new(per_second, now));
        let guard = Guard {
            max_frame: if conf.max_frame_size == 0 { u64::MAX } else { conf.max_frame_size as u64 },
            bytes: bucket(conf.bytes_rate as f64),
            frames: bucket(conf.frames_rate.map_or(0.0, |rate| rate.per_second)),
            timed: !conf.message_timeout.is_zero(),
            over: conf.over,
            pings: !conf.ping_interval.is_zero(),
            pong: None,
            swallowed: 0,
        };
        let any = guard.limits() || guard.pings;
        any.then_some(guard)
    }

    /// Whether anything hangs on the client's frames being understood.
    fn limits(&self) -> bool {
        self.max_frame != u64::MAX || self.bytes.is_some() || self.frames.is_some() || self.timed
    }

    /// The answer to this ping is ours.
    pub fn expect(&mut self, payload: [u8; 8]) {
        self.pong = Some(payload);
    }

    /// How much may be read, or when to ask again.
    pub fn allow(&mut self, now: impl FnOnce() -> Instant) -> Result<Allowance, Instant> {
        let mut allowance = Allowance { bytes: usize::MAX, frames: u64::MAX };
        if self.bytes.is_none() && self.frames.is_none() {
            return Ok(allowance);
        }
        let now = now();
        if let Some(bucket) = &mut self.bytes {
            let tokens = bucket.tokens(now);
            let least = MIN_READ.min(bucket.per_second.max(1.0));
            match self.over {
                Over::Slow if tokens < least => return Err(bucket.when(least)),
                Over::Slow => allowance.bytes = tokens as usize,
                Over::Close => {}
            }
        }
        if let Some(bucket) = &mut self.frames {
            let tokens = bucket.tokens(now);
            match self.over {
                Over::Slow if tokens < 1.0 => return Err(bucket.when(1.0)),
                _ => allowance.frames = tokens.max(0.0) as u64,
            }
        }
        Ok(allowance)
    }

    /// Judges what stands in `bytes`, of which `fresh` were not there the last time, and takes pongs
    /// of ours out of it.
    pub fn judge(
        &mut self,
        scanner: &mut Scanner,
        bytes: &mut [u8],
        fresh: usize,
        allowance: &Allowance,
    ) -> Judged {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(fresh as f64);
            if self.over == Over::Close && bucket.tokens < 0.0 {
                return Judged { pass: 0, keep: bytes.len(), verdict: Verdict::OverRate };
            }
        }
        let before = scanner.frames();
        let (mut pass, mut end) = (0, bytes.len());
        let verdict = loop {
            let begun = scanner.frames() - before;
            let rules = Rules {
                max_size: self.max_frame,
                frames: allowance.frames.saturating_sub(begun),
                pongs: self.pings && !scanner.is_lost(),
                no_close: false,
            };
            let (n, stop) = scanner.scan(&bytes[pass..end], &rules);
            pass += n;
            match stop {
                Stop::More => break Verdict::Good,
                Stop::TooLarge => break Verdict::TooLarge,
                // What follows a Close frame is of no interest to anybody (RFC 6455 §1.4).
                Stop::Nonsense if self.limits() && scanner.close().is_none() => break Verdict::Nonsense,
                // Nothing hangs on it, so it is left to the two ends. (Close frames are not stopped at.)
                Stop::Nonsense | Stop::Close => scanner.lose(),
                Stop::Frames if self.over == Over::Close => break Verdict::OverRate,
                Stop::Frames => break Verdict::Later,
                Stop::Pong(length) if self.is_ours(&bytes[pass..pass + length]) => {
                    bytes.copy_within(pass + length..end, pass);
                    end -= length;
                    (self.pong, self.swallowed) = (None, self.swallowed + 1);
                }
                Stop::Pong(length) => {
                    scanner.take();
                    pass += length;
                }
            }
        };
        if let Some(bucket) = &mut self.frames {
            bucket.take((scanner.frames() - before) as f64);
        }
        Judged { pass, keep: end, verdict }
    }

    fn is_ours(&self, frame: &[u8]) -> bool {
        self.pong.is_some_and(|expected| unmasked(frame).eq(expected))
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::tests::frame;
    use super::super::frames::{Sender, ping};
    use super::*;
    use weir_conf::units::Rate;

    const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

    fn conf() -> Tunnel {
        weir_conf::Config::default().proxy.tunnel
    }

    fn judge(guard: &mut Guard, scanner: &mut Scanner, bytes: &mut [u8], now: Instant) -> Judged {
        let allowance = guard.allow(|| now).unwrap();
        guard.judge(scanner, bytes, bytes.len(), &allowance)
    }

    #[test]
    fn a_bucket_gives_a_second_at_once_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100.0, start);
        assert_eq!(bucket.tokens(start), 100.0);
        bucket.take(150.0);
        let when = bucket.when(1.0);
        let wait = when - start;
        assert!(wait >= Duration::from_millis(510) && wait < Duration::from_millis(511), "{wait:?}");
        assert!(bucket.tokens(when) >= 1.0);
        assert_eq!(bucket.tokens(start + Duration::from_secs(60)), 100.0, "and no more than that");
        // Less than one a second is a rate, too.
        let mut slow = Bucket::new(0.5, start);
        assert_eq!(slow.tokens(start), 1.0);
        slow.take(1.0);
        assert!(slow.when(1.0) - start >= Duration::from_secs(2));
        assert!(Bucket::new(1e-300, start).when(5.0) - start < Duration::from_secs(90_000));
    }

    #[test]
    fn nothing_asked_for_is_no_guard() {
        assert!(Guard::new(&conf(), Instant::now()).is_none());
    }

    #[test]
    fn our_pong_is_taken_out_and_others_pass() {
        let now = Instant::now();
        let mut guard = Guard::new(&Tunnel { ping_interval: Duration::from_secs(1), ..conf() }, now).unwrap();
        let ours = *b"\0\x01\x02\x03wxyz";
        assert_eq!(ping(ours)[2..], ours);
        guard.expect(ours);
        let text = frame(0x81, b"before", MASK);
        let foreign = frame(0x8a, b"\0\x01\x02\x03wxyzz", MASK);
        let pong = frame(0x8a, &ours, MASK);
        let all = [&text[..], &foreign, &pong, &text, &pong].concat();
        // Whole, and cut anywhere, with what is kept brought again.
        for cut in 0..all.len() {
            let mut guard =
                Guard::new(&Tunnel { ping_interval: Duration::from_secs(1), ..conf() }, now).unwrap();
            guard.expect(ours);
            let mut scanner = Scanner::new(Sender::Client);
            let mut passed = Vec::new();
            let mut kept = Vec::new();
            for piece in [&all[..cut], &all[cut..]] {
                let mut bytes = [&kept[..], piece].concat();
                let judged = judge(&mut guard, &mut scanner, &mut bytes, now);
                assert_eq!(judged.verdict, Verdict::Good);
                passed.extend_from_slice(&bytes[..judged.pass]);
                kept = bytes[judged.pass..judged.keep].to_vec();
                assert!(kept.len() <= 131);
            }
            // The second one answers nothing any more.
            assert_eq!(passed, [&text[..], &foreign, &text, &pong].concat(), "cut at {cut}");
            assert_eq!((scanner.frames(), guard.swallowed), (4, 1), "cut at {cut}");
        }
    }

    #[test]
    fn nonsense_is_a_mistake_only_where_limits_hang_on_it() {
        let now = Instant::now();
        let mut bytes = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        let mut pings = Guard::new(&Tunnel { ping_interval: Duration::from_secs(1), ..conf() }, now).unwrap();
        let mut scanner = Scanner::new(Sender::Client);
        let judged = judge(&mut pings, &mut scanner, &mut bytes, now);
        assert_eq!((judged.pass, judged.verdict, scanner.is_lost()), (bytes.len(), Verdict::Good, true));
        let mut limits = Guard::new(&Tunnel { max_frame_size: 9, ..conf() }, now).unwrap();
        let judged = judge(&mut limits, &mut Scanner::new(Sender::Client), &mut bytes, now);
        assert_eq!((judged.pass, judged.verdict), (0, Verdict::Nonsense));
    }

    #[test]
    fn frames_beyond_the_rate_wait_or_end_it() {
        let now = Instant::now();
        let one = frame(0x82, b"x", MASK);
        let five = one.repeat(5);
        let rate = Some(Rate { per_second: 3.0 });
        let mut slow = Guard::new(&Tunnel { frames_rate: rate, ..conf() }, now).unwrap();
        let mut scanner = Scanner::new(Sender::Client);
        let judged = judge(&mut slow, &mut scanner, &mut five.clone(), now);
        assert_eq!(judged, Judged { pass: 3 * one.len(), keep: five.len(), verdict: Verdict::Later });
        let Err(when) = slow.allow(|| now) else { panic!("three are all there are") };
        assert!(when - now > Duration::from_millis(333) && when - now < Duration::from_millis(334));
        let allowance = slow.allow(|| when).unwrap();
        let judged = slow.judge(&mut scanner, &mut five[3 * one.len()..].to_vec(), 0, &allowance);
        assert_eq!((judged.pass, judged.verdict), (one.len(), Verdict::Later));
        let mut strict = Guard::new(&Tunnel { frames_rate: rate, over: Over::Close, ..conf() }, now).unwrap();
        let judged = judge(&mut strict, &mut Scanner::new(Sender::Client), &mut five.clone(), now);
        assert_eq!((judged.pass, judged.verdict), (3 * one.len(), Verdict::OverRate));
    }

    #[test]
    fn bytes_beyond_the_rate_are_not_read_or_end_it() {
        let now = Instant::now();
        let mut bytes = frame(0x82, &[0; 990], MASK);
        let mut slow = Guard::new(&Tunnel { bytes_rate: 1000, ..conf() }, now).unwrap();
        assert_eq!(slow.allow(|| now).unwrap().bytes, 1000);
        assert_eq!(
            judge(&mut slow, &mut Scanner::new(Sender::Client), &mut bytes, now).verdict,
            Verdict::Good
        );
        let Err(when) = slow.allow(|| now) else { panic!("the second is used up") };
        assert!(when > now && when - now < Duration::from_millis(600), "{:?}", when - now);
        let mut strict = Guard::new(&Tunnel { bytes_rate: 900, over: Over::Close, ..conf() }, now).unwrap();
        let judged = judge(&mut strict, &mut Scanner::new(Sender::Client), &mut bytes, now);
        assert_eq!((judged.pass, judged.verdict), (0, Verdict::OverRate));
    }
}
