//! What a body in chunks carries, and where it ends (RFC 9112, 7.1). Pure.
//!
//! As strict as the head: what two readers could take differently is refused, be it a bare line feed in an
//! extension, a space beside a size, or no size at all.

use super::head::{Bad, bad};
use bytes::{Buf, Bytes, BytesMut};

/// Extensions and trailers of one body: nobody has a use for them, and each byte of a body could bring some.
const EXTRA: usize = 16 * 1024;
/// Digits of a size: more than any body needs, and never more than an u64 holds.
const DIGITS: u8 = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many digits of the size were there.
    Size(u8),
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line behind the last chunk.
    Line,
    Name,
    Value,
    ValueLf,
    EndLf,
    End,
}

#[derive(Clone, Debug)]
pub struct Chunks {
    state: State,
    /// Of the chunk under way, still to come.
    left: u64,
    extra: usize,
    /// The lines behind the last chunk, where somebody wants them.
    trailer: Option<Vec<u8>>,
}

impl Chunks {
    pub fn new() -> Chunks {
        Chunks { state: State::Size(0), left: 0, extra: 0, trailer: None }
    }

    /// What stands behind the last chunk is kept.
    pub fn with_trailer() -> Chunks {
        Chunks { trailer: Some(Vec::new()), ..Chunks::new() }
    }

    /// Fields, each with its line end.
    pub fn trailer(&self) -> &[u8] {
        self.trailer.as_deref().unwrap_or_default()
    }

    pub fn ended(&self) -> bool {
        self.state == State::End
    }

    /// The next piece of what the chunks carry. `None`: more bytes are needed, or it has ended; what stands behind
    /// its end stays.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Bytes>, Bad> {
        while !bytes.is_empty() && self.state != State::End {
            if self.state == State::Data {
                // No more than there are.
                let n = self.left.min(bytes.len() as u64) as usize;
                self.left -= n as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Some(bytes.split_to(n).freeze()));
            }
            let (before, byte) = (self.state, bytes[0]);
            self.state = self.step(byte)?;
            if let Some(trailer) = &mut self.trailer
                && matches!(before, State::Line | State::Name | State::Value | State::ValueLf)
                && self.state != State::EndLf
            {
                trailer.push(byte);
            }
            bytes.advance(1);
        }
        Ok(None)
    }

    fn step(&mut self, byte: u8) -> Result<State, Bad> {
        Ok(match (self.state, byte) {
            (State::Size(n @ 1..), b'\r') if n > 0 => State::SizeLf,
            (State::Size(1..), b';') => State::Extension,
            (State::Size(n), _) if n < DIGITS && byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                State::Size(n + 1)
            }
            (State::Size(_), _) => return Err(bad("chunk size")),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, _) if is_text(byte) => self.extra(State::Extension)?,
            (State::Extension, _) => return Err(bad("chunk extension")),
            (State::SizeLf, b'\n') if self.left == 0 => State::Line,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0),
            (State::SizeLf | State::DataCr | State::DataLf | State::Data, _) => {
                return Err(bad("chunk's end"));
            }
            (State::Line, b'\r') => State::EndLf,
            (State::Name, b':') => State::Value,
            (State::Line | State::Name, _) if is_token(byte) => self.extra(State::Name)?,
            (State::Value, b'\r') => State::ValueLf,
            (State::Value, _) if is_text(byte) => self.extra(State::Value)?,
            (State::ValueLf, b'\n') => State::Line,
            (State::EndLf, b'\n') => State::End,
            _ => return Err(bad("trailer")),
        })
    }

    fn extra(&mut self, next: State) -> Result<State, Bad> {
        self.extra += 1;
        if self.extra > EXTRA { Err(bad("chunk extensions and trailers too large")) } else { Ok(next) }
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is carried, and how many bytes the body is, in pieces of so many.
    fn cut(bytes: &[u8], size: usize) -> Result<(Vec<u8>, usize), Bad> {
        let (mut chunks, mut data, mut ahead, mut left) = (Chunks::new(), Vec::new(), BytesMut::new(), 0);
        for piece in bytes.chunks(size) {
            ahead.extend_from_slice(piece);
            while let Some(part) = chunks.next(&mut ahead)? {
                data.extend_from_slice(&part);
            }
            left = ahead.len();
        }
        Ok((data, bytes.len() - left))
    }

    /// How many bytes the body is, however they are cut.
    fn read(bytes: &[u8]) -> Result<usize, Bad> {
        let whole = cut(bytes, bytes.len());
        for size in [1, 2, 3, 7] {
            assert_eq!(cut(bytes, size), whole, "in pieces of {size}: {}", bytes.escape_ascii());
        }
        whole.map(|(_, length)| length)
    }

    #[test]
    fn the_chunks_come_off() {
        let body = b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\nGET";
        assert_eq!(cut(body, body.len()), Ok((b"hello!".to_vec(), body.len() - 3)));
        let (mut chunks, mut ahead) =
            (Chunks::with_trailer(), BytesMut::from(&b"0\r\nX: y\r\nZ:\r\n\r\n"[..]));
        assert_eq!((chunks.next(&mut ahead), chunks.ended()), (Ok(None), true));
        assert_eq!(chunks.trailer(), b"X: y\r\nZ:\r\n");
    }

    #[test]
    fn a_body_ends_where_its_last_chunk_says() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "005\r\nhello\r\n0000\r\n\r\n",
            "a\r\n0123456789\r\n1F\r\n0123456789012345678901234567890\r\n0\r\n\r\n",
            "5;name=\"va;lue\";b\r\n\r\n0\r\n\r\n0\r\n\r\n",
            "5\r\nhello\r\n0;last\r\nExpires: never\r\nX-Y:\r\n\r\n",
        ] {
            for after in ["", "\r\n", "GET / HTTP/1.1\r\n", "0\r\n\r\n"] {
                assert_eq!(read(format!("{body}{after}").as_bytes()), Ok(body.len()), "{body:?} {after:?}");
            }
            for cut in 0..body.len() {
                let (mut chunks, mut ahead) = (Chunks::new(), BytesMut::from(&body.as_bytes()[..cut]));
                while chunks.next(&mut ahead).unwrap().is_some() {}
                assert!(ahead.is_empty() && !chunks.ended(), "{:?}", &body[..cut]);
            }
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for body in [
            "\r\n",
            "\n",
            ";a\r\n",
            "5\nhello\r\n",
            "5\r\r\n",
            "5 \r\n",
            " 5\r\n",
            "5 ;a\r\n",
            "0x5\r\n",
            "+5\r\n",
            "5,\r\n",
            "1000000000000000\r\n",
            "5;a\nb\r\n",
            "5;a\rb\r\n",
            "5;a\0\r\n",
            "0;\n\r\n",
            "5\r\nhello\n0\r\n",
            "5\r\nhello0\r\n",
            "5\r\nhelloX\r\n",
            "0\r\n\n",
            "0\r\n\rX",
            "0\r\n folded\r\n",
            "0\r\nX y: z\r\n",
            "0\r\nno colon\r\n",
            "0\r\n: no name\r\n",
            "0\r\nX: y\nZ: a\r\n\r\n",
            "0\r\nX: y\rZ: a\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
        ] {
            assert!(read(body.as_bytes()).is_err(), "{body:?}");
        }
    }

    #[test]
    fn what_is_of_no_use_is_bounded_over_all_chunks() {
        let with = |n: usize| format!("1;{}\r\nx\r\n", "e".repeat(n)).repeat(16) + "0\r\n\r\n";
        assert!(read(with(EXTRA / 16).as_bytes()).is_ok());
        assert!(read(with(EXTRA / 16 + 1).as_bytes()).is_err());
        let trailer = format!("0\r\nX: {}\r\n\r\n", "y".repeat(EXTRA));
        assert!(read(trailer.as_bytes()).is_err());
        let large = "fffffffffffffff\r\n";
        assert_eq!(read(large.as_bytes()), Ok(large.len()));
    }
}
