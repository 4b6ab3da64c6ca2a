//! WebSocket frames as they pass by (RFC 6455, 5.2): where one ends, and what it is. Pure, and a few
//! words of memory for a direction: payload is neither kept nor looked at.
//!
//! A header that is cut by the end of a read is not half seen: the caller keeps those few bytes and
//! brings them again with what follows. So what was passed on always ends at a frame's boundary or
//! within a payload.
//!
//! Bytes that make no sense as frames are not guessed at: from there on this direction is not
//! understood any more, and whatever depends on frames does not happen in it.

/// Who sends in a direction: a client masks its frames, a server does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Server,
}

pub struct Scanner {
    /// Payload of the frame under way that is still to come.
    left: u64,
    frames: u64,
    /// Messages whose last frame has begun.
    messages: u64,
    /// A message has begun, and its last frame has not.
    fragmented: bool,
    /// Of the first Close frame; 0: none was seen.
    close: u16,
    sender: Sender,
    lost: bool,
}

/// What to stop at.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The largest payload of a frame.
    pub max_size: u64,
    /// So many frames may begin.
    pub frames: u64,
    /// Pongs are handed out one by one, whole.
    pub pongs: bool,
    /// A Close frame may not begin.
    pub no_close: bool,
}

impl Rules {
    pub const NONE: Rules = Rules { max_size: u64::MAX, frames: u64::MAX, pongs: false, no_close: false };
    /// All that a peer says before it closes.
    pub const UP_TO_CLOSE: Rules = Rules { no_close: true, ..Rules::NONE };
}

/// Why a scan went no further than it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// More is needed: what is left, if anything, is the beginning of a header (or of a pong).
    More,
    /// A frame begins here, and no further one may.
    Frames,
    /// The frame that begins here is larger than allowed.
    TooLarge,
    /// What begins here is no frame of this sender.
    Nonsense,
    /// A Close frame begins here.
    Close,
    /// A whole pong stands here, of so many bytes. It was not counted: see [`Scanner::take`].
    Pong(usize),
}

const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// RFC 6455, 7.1.5: what a Close frame without a code means.
pub const NO_CODE: u16 = 1005;
/// Of the payload of a control frame.
pub const MAX_CONTROL: usize = 125;

impl Scanner {
    pub fn new(sender: Sender) -> Scanner {
        Scanner { left: 0, frames: 0, messages: 0, fragmented: false, close: 0, sender, lost: false }
    }

    /// Looks at what follows on what it has seen. Says how many bytes it went over, and why no more.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8], rules: &Rules) -> (usize, Stop) {
        if self.lost {
            return (bytes.len(), Stop::More);
        }
        let (mut at, mut begun) = (0, 0);
        loop {
            at += self.pass(bytes.len() - at);
            if at == bytes.len() {
                return (at, Stop::More);
            }
            let head = match head(&bytes[at..], self.sender) {
                Ok(Some(head)) => head,
                Ok(None) => return (at, Stop::More),
                Err(Nonsense) => return (at, Stop::Nonsense),
            };
            if head.payload > rules.max_size {
                return (at, Stop::TooLarge);
            }
            if begun == rules.frames {
                return (at, Stop::Frames);
            }
            if rules.pongs && head.opcode == PONG {
                let whole = head.length + head.payload as usize;
                let stop = if bytes.len() - at < whole { Stop::More } else { Stop::Pong(whole) };
                return (at, stop);
            }
            if rules.no_close && head.opcode == CLOSE {
                return (at, Stop::Close);
            }
            if head.opcode == CLOSE && self.close == 0 {
                self.close = head.close;
            }
            if head.opcode & 0x8 == 0 {
                self.fragmented = !head.is_final;
                self.messages += u64::from(head.is_final);
            }
            self.frames += 1;
            begun += 1;
            self.left = head.payload;
            at += head.length;
        }
    }

    /// Goes over at most `n` bytes of payload; says how many.
    #[inline]
    pub fn pass(&mut self, n: usize) -> usize {
        let passed = self.left.min(n as u64);
        self.left -= passed;
        passed as usize
    }

    /// Counts a frame that was handed out and is passed on.
    pub fn take(&mut self) {
        self.frames += 1;
    }

    /// Gives up on this direction.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Another frame may stand here: none is under way, and none has closed the direction.
    pub fn takes_a_frame(&self) -> bool {
        self.is_at_boundary() && self.close == 0
    }

    pub fn is_at_boundary(&self) -> bool {
        self.left == 0 && !self.lost
    }

    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The number of the message that is under way, be it in the midst of a frame or between two.
    pub fn message(&self) -> Option<u64> {
        (self.fragmented || self.left > 0).then_some(self.messages + u64::from(self.fragmented))
    }

    /// The code of the Close frame that was seen, 1005 if it had none.
    pub fn close(&self) -> Option<u16> {
        (self.close != 0).then_some(self.close)
    }
}

struct Head {
    opcode: u8,
    is_final: bool,
    /// Of the header itself.
    length: usize,
    payload: u64,
    /// A Close frame's code.
    close: u16,
}

#[derive(Debug)]
pub struct Nonsense;

/// `None`: it is cut short.
#[inline]
fn head(bytes: &[u8], sender: Sender) -> Result<Option<Head>, Nonsense> {
    let &[first, second, ..] = bytes else {
        return if bytes.first().is_some_and(|b| is_reserved(b & 0xf)) { Err(Nonsense) } else { Ok(None) };
    };
    let (opcode, short) = (first & 0xf, second & 0x7f);
    let (is_final, is_masked) = (first & 0x80 != 0, second & 0x80 != 0);
    // RSV bits belong to extensions, which are the two ends' own affair.
    if is_reserved(opcode) || is_masked != (sender == Sender::Client) {
        return Err(Nonsense);
    }
    if opcode & 0x8 != 0 && (!is_final || usize::from(short) > MAX_CONTROL) {
        return Err(Nonsense);
    }
    let (payload, mut length) = match short {
        126 => match bytes.get(2..4) {
            Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
            _ => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|b| b.try_into().ok()) {
            Some(eight) => (u64::from_be_bytes(eight), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    if payload >> 63 != 0 {
        return Err(Nonsense);
    }
    if is_masked {
        length += 4;
    }
    let close = if opcode == CLOSE { close_code(bytes, length, payload, is_masked) } else { Some(0) };
    let Some(close) = close.filter(|_| bytes.len() >= length) else { return Ok(None) };
    Ok(Some(Head { opcode, is_final, length, payload, close }))
}

fn is_reserved(opcode: u8) -> bool {
    matches!(opcode, 0x3..=0x7 | 0xb..)
}

/// The first two bytes of its payload; `None`: they are not here yet.
fn close_code(bytes: &[u8], length: usize, payload: u64, is_masked: bool) -> Option<u16> {
    if payload < 2 {
        return Some(NO_CODE);
    }
    let &[mut a, mut b] = bytes.get(length..length + 2)? else { return None };
    if is_masked {
        (a, b) = (a ^ bytes[length - 4], b ^ bytes[length - 3]);
    }
    // A code of 0 would say that there was no frame, and is no code anyway.
    Some(u16::from_be_bytes([a, b]).max(1))
}

/// A frame of a server, by its header.
pub struct Begun {
    pub carries: Carries,
    /// Of the header, and of what follows it.
    pub header: usize,
    pub payload: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Data,
    Close,
    /// Pings and pongs.
    Other,
}

/// What begins here; `Ok(None)`: it is cut short.
pub fn begun(bytes: &[u8]) -> Result<Option<Begun>, Nonsense> {
    let begun = |head: Head| Begun {
        carries: match head.opcode {
            CLOSE => Carries::Close,
            PING | PONG => Carries::Other,
            _ => Carries::Data,
        },
        header: head.length,
        payload: head.payload,
    };
    Ok(head(bytes, Sender::Server)?.map(begun))
}

/// What a masked control frame carries, of which `frame` is the whole.
pub fn unmasked(frame: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mask = frame.get(2..6).unwrap_or_default();
    frame.iter().skip(6).zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask)
}

/// A Close frame of ours; with a mask where we speak as the client.
pub fn close(code: u16, mask: Option<[u8; 4]>) -> Vec<u8> {
    let [a, b] = code.to_be_bytes();
    match mask {
        None => vec![0x80 | CLOSE, 2, a, b],
        Some(m) => vec![0x80 | CLOSE, 0x82, m[0], m[1], m[2], m[3], a ^ m[0], b ^ m[1]],
    }
}

/// A ping of ours to a client.
pub fn ping(payload: [u8; 8]) -> Vec<u8> {
    let mut frame = vec![0x80 | PING, payload.len() as u8];
    frame.extend_from_slice(&payload);
    frame
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// A frame as RFC 6455 has it, written by the book.
    pub fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let bit = if mask.is_some() { 0x80 } else { 0 };
        let mut out = vec![first];
        match payload.len() {
            n @ 0..126 => out.push(bit | n as u8),
            n @ 126..=0xffff => {
                out.push(bit | 126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(bit | 127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(mask.as_ref().map_or(&[], |m| &m[..]));
        let mask = mask.unwrap_or_default();
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        out
    }

    /// Feeds it in pieces, bringing again what was left, as the relay does.
    fn feed(scanner: &mut Scanner, bytes: &[u8], cuts: impl Iterator<Item = usize>) -> Vec<usize> {
        let (mut seen, mut boundaries) = (0, Vec::new());
        for end in cuts.chain([bytes.len()]) {
            if end <= seen {
                continue;
            }
            let (n, stop) = scanner.scan(&bytes[seen..end], &Rules::NONE);
            assert_eq!(stop, Stop::More);
            assert!(end - seen - n < 16, "keeps {} bytes", end - seen - n);
            seen += n;
            if scanner.is_at_boundary() {
                boundaries.push(seen);
            }
        }
        assert_eq!(seen, bytes.len());
        boundaries
    }

    #[test]
    fn frames_are_the_same_at_every_cut() {
        let mask = Some([1, 2, 3, 4]);
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for (first, payload) in [
            (0x01, &b"He"[..]),
            (0x89, b"ping"),
            (0x80, b"llo"),
            (0xc2, &[7; 300]),
            (0x82, b""),
            (0x82, &[9; 70_000]),
            (0x88, &[0x03, 0xe9, b'x']),
        ] {
            bytes.extend(frame(first, payload, mask));
            ends.push(bytes.len());
        }
        // Within the two long payloads one cut is like another.
        for cut in (1..bytes.len()).filter(|cut| ends.iter().any(|end| cut.abs_diff(*end) < 20)) {
            let mut scanner = Scanner::new(Sender::Client);
            let boundaries = feed(&mut scanner, &bytes, [cut].into_iter());
            assert_eq!((scanner.frames(), scanner.close()), (7, Some(1001)), "cut at {cut}");
            assert!(boundaries.iter().all(|b| ends.contains(b)), "cut at {cut}: {boundaries:?}");
        }
        let mut scanner = Scanner::new(Sender::Client);
        let boundaries = feed(&mut scanner, &bytes, 1..bytes.len());
        assert_eq!(boundaries.iter().filter(|b| !ends.contains(b)).count(), 0, "byte by byte");
    }

    /// Against a reader that takes one whole frame after the other from the whole text.
    #[test]
    fn agrees_with_a_plain_reader_on_random_streams() {
        for seed in 0..400 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let sender = if rng.random() { Sender::Client } else { Sender::Server };
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for _ in 0..rng.random_range(1..12) {
                let control = rng.random_bool(0.3);
                let first = match control {
                    true => 0x80 | [CLOSE, PING, PONG][rng.random_range(0..3)],
                    false => rng.random_range(0..3) | (rng.random_range(0..16) << 4),
                };
                let sizes =
                    [rng.random_range(0..126), rng.random_range(126..4000), rng.random_range(65_500..66_000)];
                let size = if control { sizes[0] } else { sizes[rng.random_range(0..3)] };
                let payload: Vec<u8> = (0..size).map(|_| rng.random()).collect();
                bytes.extend(frame(first, &payload, (sender == Sender::Client).then(|| rng.random())));
                ends.push(bytes.len());
            }
            let frames = ends.len() as u64 - 1;
            // Perhaps the last thing is no frame.
            let nonsense = rng.random_bool(0.5);
            if nonsense {
                bytes.extend([0x83, 0x80, 0, 0, 0, 0]);
            }
            let mut scanner = Scanner::new(sender);
            let mut seen = 0;
            let mut end = 0;
            let last = loop {
                end = (end + rng.random_range(1..3000)).min(bytes.len());
                let (n, stop) = scanner.scan(&bytes[seen..end], &Rules::NONE);
                seen += n;
                assert_eq!(scanner.is_at_boundary(), ends.contains(&seen), "seed {seed} at {seen}");
                if stop != Stop::More || end == bytes.len() {
                    break stop;
                }
            };
            assert_eq!(scanner.frames(), frames, "seed {seed}");
            assert_eq!(last, if nonsense { Stop::Nonsense } else { Stop::More }, "seed {seed}");
            assert_eq!(seen, *ends.last().unwrap(), "seed {seed}");
        }
    }

    #[test]
    fn what_is_no_frame_is_said_before_a_byte_of_it_passes() {
        let mut with_mask = frame(0x82, b"x", Some([0; 4]));
        for (sender, bytes) in [
            (Sender::Client, &b"GET / HTTP/1.1\r\n"[..]),
            (Sender::Client, &[0x83]),
            (Sender::Client, &[0x82, 0x01, b'x']),
            (Sender::Server, &with_mask.clone()),
            (Sender::Server, &[0x88, 126, 0, 200]),
            (Sender::Server, &[0x09, 0]),
            (Sender::Server, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let good = frame(0x82, b"good", (sender == Sender::Client).then_some([5; 4]));
            let mut scanner = Scanner::new(sender);
            let all = [&good[..], bytes].concat();
            assert_eq!(scanner.scan(&all, &Rules::NONE), (good.len(), Stop::Nonsense), "{bytes:?}");
            scanner.lose();
            assert!(!scanner.takes_a_frame());
            assert_eq!(scanner.scan(bytes, &Rules::NONE), (bytes.len(), Stop::More));
        }
        with_mask.truncate(1);
        assert_eq!(Scanner::new(Sender::Client).scan(&with_mask, &Rules::NONE), (0, Stop::More));
    }

    #[test]
    fn rules_stop_before_the_frame_that_they_are_about() {
        let mask = Some([9, 8, 7, 6]);
        let (small, large) = (frame(0x82, &[1; 10], mask), frame(0x82, &[1; 11], mask));
        let rules = Rules { max_size: 10, frames: 2, pongs: true, no_close: false };
        let mut scanner = Scanner::new(Sender::Client);
        let all = [&small[..], &large].concat();
        assert_eq!(scanner.scan(&all, &rules), (small.len(), Stop::TooLarge));
        // Its header alone is enough.
        assert_eq!(Scanner::new(Sender::Client).scan(&large[..6], &rules), (0, Stop::TooLarge));
        let three = [&small[..], &small, &small].concat();
        assert_eq!(Scanner::new(Sender::Client).scan(&three, &rules), (2 * small.len(), Stop::Frames));
        let pong = frame(0x8a, b"answer", mask);
        let two = [&small[..], &pong].concat();
        assert_eq!(Scanner::new(Sender::Client).scan(&two, &rules), (small.len(), Stop::Pong(pong.len())));
        let cut = &two[..two.len() - 1];
        assert_eq!(Scanner::new(Sender::Client).scan(cut, &rules), (small.len(), Stop::More));
        assert_eq!(unmasked(&pong).collect::<Vec<_>>(), b"answer");
    }

    #[test]
    fn the_message_under_way_has_a_number() {
        let (mut scanner, mask) = (Scanner::new(Sender::Client), Some([1, 2, 3, 4]));
        let cut = frame(0x82, b"payload", mask);
        for (bytes, message) in [
            (frame(0x81, b"one", mask), None),
            (frame(0x01, b"two", mask), Some(2)),
            (frame(0x89, b"ping", mask), Some(2)),
            (frame(0x00, b"", mask), Some(2)),
            (frame(0x80, b"end", mask), None),
            (frame(0x02, b"three", mask), Some(3)),
            (frame(0x80, b"", mask), None),
            (cut[..cut.len() - 1].to_vec(), Some(4)),
            (cut[cut.len() - 1..].to_vec(), None),
        ] {
            assert_eq!(scanner.scan(&bytes, &Rules::NONE), (bytes.len(), Stop::More));
            assert_eq!(scanner.message(), message, "{bytes:?}");
        }
    }

    #[test]
    fn our_own_frames_are_frames() {
        for (sender, bytes) in [
            (Sender::Server, close(1012, None)),
            (Sender::Client, close(1012, Some([1, 0xff, 3, 4]))),
            (Sender::Client, frame(0x88, &1012_u16.to_be_bytes(), Some([0x80; 4]))),
        ] {
            let mut scanner = Scanner::new(sender);
            assert_eq!(scanner.scan(&bytes, &Rules::NONE), (bytes.len(), Stop::More));
            assert_eq!(scanner.close(), Some(1012));
        }
        let mut scanner = Scanner::new(Sender::Server);
        let bytes = [ping(*b"12345678"), frame(0x88, b"", None)].concat();
        assert_eq!(scanner.scan(&bytes, &Rules::NONE), (bytes.len(), Stop::More));
        assert_eq!((scanner.frames(), scanner.close()), (2, Some(NO_CODE)));
    }
}
