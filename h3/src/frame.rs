//! Frames of HTTP/3 (RFC 9114, 7): a reader for whatever pieces of a stream arrive, and the writers.

use crate::{Code, Error, Settings, qpack, varint};
use bytes::{Buf, Bytes};

pub const DATA: u64 = 0x0;
pub const HEADERS: u64 = 0x1;
const CANCEL_PUSH: u64 = 0x3;
const SETTINGS: u64 = 0x4;
const PUSH_PROMISE: u64 = 0x5;
const GOAWAY: u64 = 0x7;
const MAX_PUSH_ID: u64 = 0xd;
/// PRIORITY, PING, WINDOW_UPDATE and CONTINUATION: HTTP/2's, never to be seen here.
const OF_HTTP2: [u64; 4] = [0x2, 0x6, 0x8, 0x9];
/// Begins a stream of WebTransport; at any other place it is an error.
const WT_STREAM: u64 = 0x41;

/// Settings are a few pairs of integers.
const MAX_CONTROL_FRAME: u64 = 4096;
/// Frames without a use that may come in a row: empty, or of an unknown type. They cost us work, and the peer
/// next to nothing.
const MAX_IDLE_FRAMES: u32 = 1000;

#[derive(Debug, PartialEq)]
pub enum Frame {
    /// A piece of a DATA frame's payload, not empty.
    Data(Bytes),
    /// An encoded field section.
    Headers(Vec<u8>),
    Settings(Box<Settings>),
    GoAway(u64),
    CancelPush(u64),
    MaxPushId(u64),
}

/// Which frames are right.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// On a request stream: HEADERS, DATA, and HEADERS again for trailers.
    Head,
    Body,
    End,
    /// A request stream after CONNECT: nothing but DATA.
    Tunnel,
    /// The control stream: SETTINGS, then others.
    Settings,
    Control,
}

/// Reads one stream.
///
/// ```text
///   Header ──(type and length)──► Payload ──(DATA: piece by piece, others: when complete)──► Header
///                            └──► Skip ─────────────────────────────────────────────────────► Header
/// ```
pub struct Reader {
    place: Place,
    state: State,
    /// Of a frame's payload, still to come.
    left: u64,
    /// What is there of a header, or of a payload that has to be complete.
    kept: Vec<u8>,
    max_section: u32,
    idle: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Header,
    Data,
    Payload(Whole),
    Skip,
}

/// Frames that are handed out as a whole.
#[derive(Clone, Copy, PartialEq)]
enum Whole {
    Headers,
    Settings,
    GoAway,
    CancelPush,
    MaxPushId,
}

impl Reader {
    /// For a request stream. Encoded field sections over `max_section` bytes are refused.
    pub fn request(max_section: u32) -> Reader {
        Reader::new(Place::Head, max_section)
    }

    /// For the peer's control stream, behind its type.
    pub fn control() -> Reader {
        Reader::new(Place::Settings, 0)
    }

    fn new(place: Place, max_section: u32) -> Reader {
        Reader { place, state: State::Header, left: 0, kept: Vec::new(), max_section, idle: 0 }
    }

    /// The head was that of a CONNECT, or of the answer to one: from now on there is only data.
    pub fn tunnel(&mut self) {
        self.place = Place::Tunnel;
    }

    /// The head was that of an interim response: another one follows.
    pub fn interim(&mut self) {
        self.place = Place::Head;
    }

    /// Takes from `input` up to the end of what it gives. A piece of data has at most `max` bytes, which must
    /// not be 0. `None`: everything was taken, and more is needed.
    pub fn next(&mut self, input: &mut Bytes, max: usize) -> Result<Option<Frame>, Error> {
        loop {
            match self.state {
                State::Header => {
                    let Some((kind, length)) = self.header(input) else { return Ok(None) };
                    self.begin(kind, length)?;
                }
                State::Data if self.left == 0 => self.state = State::Header,
                State::Data => {
                    let length = input.len().min(max).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                    if length == 0 {
                        return Ok(None);
                    }
                    self.left -= length as u64;
                    self.idle = 0;
                    return Ok(Some(Frame::Data(input.split_to(length))));
                }
                State::Skip => {
                    let length = input.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                    input.advance(length);
                    self.left -= length as u64;
                    if self.left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
                State::Payload(whole) => {
                    let length = input.len().min(self.left as usize);
                    self.kept.extend_from_slice(&input.split_to(length));
                    self.left -= length as u64;
                    if self.left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    return whole.read(std::mem::take(&mut self.kept)).map(Some);
                }
            }
        }
    }

    /// Counts useless frames from the beginning. For streams of nothing but such frames, called now and then, so
    /// that there is a limit to their rate.
    pub fn rested(&mut self) {
        self.idle = 0;
    }

    /// The stream has ended: was that at the end of a frame, of a message?
    pub fn end(&self) -> Result<(), Error> {
        if self.state != State::Header && self.left > 0 || !self.kept.is_empty() {
            return Err(Error::connection(Code::H3_FRAME_ERROR, "stream ended within a frame"));
        }
        match self.place {
            Place::Head => Err(Error::stream(Code::H3_REQUEST_INCOMPLETE, "stream ended before a head")),
            _ => Ok(()),
        }
    }

    fn header(&mut self, input: &mut Bytes) -> Option<(u64, u64)> {
        if self.kept.is_empty() {
            let mut ahead = input.as_ref();
            if let Some(found) = header(&mut ahead) {
                let length = input.len() - ahead.len();
                input.advance(length);
                return Some(found);
            }
        }
        // In pieces: seldom, and 16 bytes at most.
        while input.has_remaining() {
            self.kept.push(input.get_u8());
            if let Some(found) = header(&mut self.kept.as_slice()) {
                self.kept = Vec::new();
                return Some(found);
            }
        }
        None
    }

    fn begin(&mut self, kind: u64, length: u64) -> Result<(), Error> {
        if length == 0 || !matches!(kind, DATA | HEADERS) {
            self.idle += 1;
            if self.idle > MAX_IDLE_FRAMES {
                return Err(Error::connection(Code::H3_EXCESSIVE_LOAD, "too many empty or unknown frames"));
            }
        }
        self.left = length;
        self.state = match (kind, self.place) {
            (DATA, Place::Body | Place::Tunnel) => State::Data,
            (HEADERS, Place::Head | Place::Body) => {
                if length > u64::from(self.max_section) {
                    return Err(qpack::TOO_LARGE);
                }
                self.place = if self.place == Place::Head { Place::Body } else { Place::End };
                State::Payload(Whole::Headers)
            }
            (SETTINGS, Place::Settings) => {
                self.place = Place::Control;
                State::Payload(Whole::Settings)
            }
            (_, Place::Settings) => {
                return Err(Error::connection(Code::H3_MISSING_SETTINGS, "control stream without settings"));
            }
            (GOAWAY, Place::Control) => State::Payload(Whole::GoAway),
            (CANCEL_PUSH, Place::Control) => State::Payload(Whole::CancelPush),
            (MAX_PUSH_ID, Place::Control) => State::Payload(Whole::MaxPushId),
            (WT_STREAM, _) => {
                return Err(Error::connection(Code::H3_FRAME_ERROR, "WT_STREAM within a stream"));
            }
            (DATA | HEADERS | CANCEL_PUSH | SETTINGS | PUSH_PROMISE | GOAWAY | MAX_PUSH_ID, _) => {
                return Err(Error::connection(Code::H3_FRAME_UNEXPECTED, "frame at the wrong place"));
            }
            (kind, _) if OF_HTTP2.contains(&kind) => {
                return Err(Error::connection(Code::H3_FRAME_UNEXPECTED, "frame of HTTP/2"));
            }
            _ => State::Skip,
        };
        if matches!(self.state, State::Payload(whole) if whole != Whole::Headers)
            && length > MAX_CONTROL_FRAME
        {
            return Err(Error::connection(Code::H3_EXCESSIVE_LOAD, "frame too large"));
        }
        Ok(())
    }
}

fn header(input: &mut &[u8]) -> Option<(u64, u64)> {
    Some((varint::read(input)?, varint::read(input)?))
}

impl Whole {
    fn read(self, payload: Vec<u8>) -> Result<Frame, Error> {
        let id = || {
            let mut rest = payload.as_slice();
            varint::read(&mut rest)
                .filter(|_| rest.is_empty())
                .ok_or(Error::connection(Code::H3_FRAME_ERROR, "frame of a wrong length"))
        };
        Ok(match self {
            Whole::GoAway => Frame::GoAway(id()?),
            Whole::CancelPush => Frame::CancelPush(id()?),
            Whole::MaxPushId => Frame::MaxPushId(id()?),
            Whole::Settings => Frame::Settings(Box::new(Settings::read(&payload)?)),
            Whole::Headers => Frame::Headers(payload),
        })
    }
}

/// The bytes before a payload of so many bytes in a DATA frame.
pub fn data_header(length: usize, output: &mut Vec<u8>) {
    varint::write(DATA, output);
    varint::write(length as u64, output);
}

/// A HEADERS frame around an encoded field section.
pub fn headers(section: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(section.len() + 9);
    write(HEADERS, section, &mut output);
    output
}

pub fn settings(settings: &Settings, output: &mut Vec<u8>) {
    write(SETTINGS, &settings.payload(), output);
}

pub fn goaway(id: u64) -> Vec<u8> {
    let mut payload = Vec::with_capacity(8);
    varint::write(id, &mut payload);
    let mut output = Vec::with_capacity(10);
    write(GOAWAY, &payload, &mut output);
    output
}

fn write(kind: u64, payload: &[u8], output: &mut Vec<u8>) {
    varint::write(kind, output);
    varint::write(payload.len() as u64, output);
    output.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        write(kind, payload, &mut output);
        output
    }

    fn all(reader: &mut Reader, bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Error> {
        let mut found: Vec<Frame> = Vec::new();
        for chunk in bytes.chunks(piece) {
            let mut input = Bytes::copy_from_slice(chunk);
            while let Some(frame) = reader.next(&mut input, usize::MAX)? {
                match (found.last_mut(), frame) {
                    (Some(Frame::Data(before)), Frame::Data(next)) => {
                        *before = [&before[..], &next].concat().into()
                    }
                    (_, frame) => found.push(frame),
                }
            }
            assert!(input.is_empty());
        }
        Ok(found)
    }

    #[test]
    fn a_message_in_pieces_of_any_size() {
        let message = [
            frame(0x21, b"grease"),
            frame(HEADERS, b"head"),
            frame(DATA, b""),
            frame(DATA, &[7; 300]),
            frame(0x40 * 0x1f + 0x21, &[0; 100]),
            frame(DATA, b"x"),
            frame(HEADERS, b"trailers"),
            frame(0x21, b""),
        ]
        .concat();
        for piece in 1..message.len() {
            let mut reader = Reader::request(100);
            let found = all(&mut reader, &message, piece).unwrap();
            let body = [vec![7; 300], b"x".to_vec()].concat();
            let expected = [
                Frame::Headers(b"head".to_vec()),
                Frame::Data(body.into()),
                Frame::Headers(b"trailers".to_vec()),
            ];
            assert_eq!(found, expected, "in pieces of {piece}");
            assert_eq!(reader.end(), Ok(()));
        }
        // Ended anywhere: within a frame, before the head, or good; nothing else.
        for end in 0..message.len() {
            let mut reader = Reader::request(100);
            all(&mut reader, &message[..end], 1000).unwrap();
            if let Err(error) = reader.end() {
                assert!(
                    matches!(error.code, Code::H3_FRAME_ERROR | Code::H3_REQUEST_INCOMPLETE),
                    "{end}: {error}"
                );
            }
        }
    }

    #[test]
    fn data_comes_in_pieces_of_the_size_asked_for() {
        let mut reader = Reader::request(100);
        let mut input = Bytes::from([frame(HEADERS, b"h"), frame(DATA, b"abcdef")].concat());
        assert_eq!(reader.next(&mut input, 4).unwrap(), Some(Frame::Headers(b"h".to_vec())));
        assert_eq!(reader.next(&mut input, 4).unwrap(), Some(Frame::Data(Bytes::from_static(b"abcd"))));
        assert_eq!(reader.next(&mut input, 4).unwrap(), Some(Frame::Data(Bytes::from_static(b"ef"))));
        assert_eq!(reader.next(&mut input, 4).unwrap(), None);
    }

    #[test]
    fn frames_at_a_wrong_place() {
        let wrong = |mut reader: Reader, frames: &[(u64, &[u8])]| {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
            all(&mut reader, &bytes, 7).unwrap_err().code
        };
        let request = || Reader::request(100);
        assert_eq!(wrong(request(), &[(DATA, b"x")]), Code::H3_FRAME_UNEXPECTED);
        assert_eq!(
            wrong(request(), &[(HEADERS, b"h"), (HEADERS, b"t"), (DATA, b"x")]),
            Code::H3_FRAME_UNEXPECTED
        );
        assert_eq!(wrong(request(), &[(HEADERS, b"h"), (WT_STREAM, b"x")]), Code::H3_FRAME_ERROR);
        assert_eq!(wrong(request(), &[(HEADERS, &[0; 101])]), Code::H3_EXCESSIVE_LOAD);
        for kind in [CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID, 0x2, 0x6, 0x8, 0x9] {
            assert_eq!(
                wrong(request(), &[(HEADERS, b"h"), (kind, b"\0")]),
                Code::H3_FRAME_UNEXPECTED,
                "{kind}"
            );
        }
        let control = Reader::control;
        assert_eq!(wrong(control(), &[(GOAWAY, b"\0")]), Code::H3_MISSING_SETTINGS);
        assert_eq!(wrong(control(), &[(SETTINGS, b""), (SETTINGS, b"")]), Code::H3_FRAME_UNEXPECTED);
        assert_eq!(wrong(control(), &[(SETTINGS, b""), (HEADERS, b"")]), Code::H3_FRAME_UNEXPECTED);
        assert_eq!(wrong(control(), &[(SETTINGS, b""), (GOAWAY, b"\0\0")]), Code::H3_FRAME_ERROR);
        assert_eq!(wrong(control(), &[(SETTINGS, b""), (GOAWAY, b"")]), Code::H3_FRAME_ERROR);
        assert_eq!(wrong(control(), &[(SETTINGS, &[0x21; 5000])]), Code::H3_EXCESSIVE_LOAD);
        let mut tunnel = Reader::request(100);
        all(&mut tunnel, &frame(HEADERS, b"h"), 100).unwrap();
        tunnel.tunnel();
        assert_eq!(wrong(tunnel, &[(DATA, b"x"), (HEADERS, b"t")]), Code::H3_FRAME_UNEXPECTED);
    }

    #[test]
    fn a_flood_of_nothing_ends() {
        let flood = frame(DATA, b"").repeat(MAX_IDLE_FRAMES as usize + 1);
        let mut reader = Reader::request(100);
        all(&mut reader, &frame(HEADERS, b"h"), 100).unwrap();
        assert_eq!(all(&mut reader, &flood, 1000).unwrap_err().code, Code::H3_EXCESSIVE_LOAD);
        let mut reader = Reader::control();
        all(&mut reader, &frame(SETTINGS, b""), 100).unwrap();
        for _ in 0..10 {
            all(&mut reader, &frame(0xf0700, b"1").repeat(500), 1000).unwrap();
            reader.rested();
        }
    }

    #[test]
    fn noise_is_survived() {
        for seed in 0..20_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Small numbers, so that types and lengths mean something.
                    if state & 0x300 == 0 { state as u8 } else { state as u8 & 0x0f }
                })
                .collect();
            for mut reader in [Reader::request(1000), Reader::control()] {
                let whole = all(&mut reader, &bytes, 64).map(|frames| format!("{frames:?}"));
                let mut again =
                    if reader.max_section == 0 { Reader::control() } else { Reader::request(1000) };
                let pieces = all(&mut again, &bytes, 3).map(|frames| format!("{frames:?}"));
                assert_eq!(whole, pieces, "seed {seed}");
            }
        }
    }
}
