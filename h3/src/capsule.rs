//! Capsules (RFC 9297, 3) on the CONNECT stream of a WebTransport session.

use crate::{Error, varint};
use bytes::{Buf, Bytes};

const DATAGRAM: u64 = 0x00;
const CLOSE: u64 = 0x2843;
const DRAIN: u64 = 0x78ae;
const MAX_DATA: u64 = 0x190b_4d3d;

/// A reason is cut to this.
pub const MAX_REASON: usize = 1024;

/// The longest payload that is kept: the code and the reason of a close. Larger datagrams are skipped.
const MAX_KEPT: u64 = 4 + MAX_REASON as u64;

#[derive(Debug, PartialEq, Eq)]
pub enum Capsule {
    /// A datagram that came by the stream, whole.
    Datagram(Vec<u8>),
    /// The session ends.
    Close { code: u32, reason: String },
    /// The session should end soon.
    Drain,
    /// So many bytes may be sent in the session, from its beginning.
    MaxData(u64),
}

/// Reads them in whatever pieces they come.
#[derive(Default)]
pub struct Reader {
    kept: Vec<u8>,
    /// The capsule under way, and what is still to come of it.
    under_way: Option<(u64, u64)>,
}

impl Reader {
    /// Takes from `input`; `None`: everything was taken, and more is needed.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Capsule>, Error> {
        loop {
            let Some((kind, left)) = self.under_way else {
                if !self.begin(input)? {
                    return Ok(None);
                }
                continue;
            };
            let length = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let piece = input.split_to(length);
            let is_known = matches!(kind, DATAGRAM | CLOSE | DRAIN | MAX_DATA);
            if is_known {
                self.kept.extend_from_slice(&piece);
            }
            let left = left - length as u64;
            if left > 0 {
                self.under_way = Some((kind, left));
                return Ok(None);
            }
            self.under_way = None;
            if is_known {
                return read(kind, std::mem::take(&mut self.kept)).map(Some);
            }
        }
    }

    /// Reads type and length.
    fn begin(&mut self, input: &mut Bytes) -> Result<bool, Error> {
        while input.has_remaining() {
            self.kept.push(input.get_u8());
            let mut ahead = self.kept.as_slice();
            let Some((mut kind, length)) = varint::read(&mut ahead).zip(varint::read(&mut ahead)) else {
                continue;
            };
            self.kept = Vec::new();
            if length > MAX_KEPT {
                match kind {
                    CLOSE => return Err(Error::malformed("reason of a close too long")),
                    DRAIN | MAX_DATA => return Err(Error::malformed("capsule too long")),
                    DATAGRAM => kind = varint::MAX,
                    _ => {}
                }
            }
            self.under_way = Some((kind, length));
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether the stream may end here.
    pub fn end(&self) -> Result<(), Error> {
        if self.under_way.is_none() && self.kept.is_empty() {
            Ok(())
        } else {
            Err(Error::malformed("stream ended within a capsule"))
        }
    }
}

fn read(kind: u64, payload: Vec<u8>) -> Result<Capsule, Error> {
    let mut rest = payload.as_slice();
    match kind {
        DATAGRAM => Ok(Capsule::Datagram(payload)),
        DRAIN => Ok(Capsule::Drain),
        MAX_DATA => varint::read(&mut rest)
            .filter(|_| rest.is_empty())
            .map(Capsule::MaxData)
            .ok_or(Error::malformed("capsule of a wrong length")),
        _ => {
            let code = rest.try_get_u32().map_err(|_| Error::malformed("close without a code"))?;
            let reason = std::str::from_utf8(rest).map_err(|_| Error::malformed("reason is no UTF-8"))?;
            Ok(Capsule::Close { code, reason: reason.to_owned() })
        }
    }
}

/// Ends a session. A long reason is cut, at a character.
pub fn close(code: u32, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    let mut output = Vec::with_capacity(12 + reason.len());
    varint::write(CLOSE, &mut output);
    varint::write(4 + reason.len() as u64, &mut output);
    output.extend_from_slice(&code.to_be_bytes());
    output.extend_from_slice(reason.as_bytes());
    output
}

/// Allows the peer so many bytes.
pub fn max_data(bytes: u64) -> Vec<u8> {
    let mut output = Vec::with_capacity(16);
    varint::write(MAX_DATA, &mut output);
    varint::write(varint::len(bytes) as u64, &mut output);
    varint::write(bytes, &mut output);
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    fn all(reader: &mut Reader, bytes: &[u8], piece: usize) -> Result<Vec<Capsule>, Error> {
        let mut found = Vec::new();
        for chunk in bytes.chunks(piece) {
            let mut input = Bytes::copy_from_slice(chunk);
            while let Some(capsule) = reader.next(&mut input)? {
                found.push(capsule);
            }
        }
        Ok(found)
    }

    #[test]
    fn in_pieces_of_any_size() {
        let large_datagram = [vec![0x00, 0x44, 0x10], vec![9; 0x410]].concat();
        let bytes = [
            vec![0x21, 3, 1, 2, 3],
            max_data(70_000),
            vec![0x00, 2, b'h', b'i'],
            large_datagram,
            vec![0x80, 0, 0x78, 0xae, 0],
            close(3501, "bad request"),
        ]
        .concat();
        for piece in 1..bytes.len() {
            let mut reader = Reader::default();
            assert_eq!(
                all(&mut reader, &bytes, piece).unwrap(),
                [
                    Capsule::MaxData(70_000),
                    Capsule::Datagram(b"hi".to_vec()),
                    Capsule::Drain,
                    Capsule::Close { code: 3501, reason: "bad request".to_owned() }
                ]
            );
            assert_eq!(reader.end(), Ok(()));
        }
        for end in 0..bytes.len() {
            let mut reader = Reader::default();
            all(&mut reader, &bytes[..end], 1000).unwrap();
            let _whole_or_not = reader.end();
        }
    }

    #[test]
    fn closes_have_a_code_and_a_reason_of_a_size() {
        let long = "\u{e9}".repeat(800);
        let Ok(found) = all(&mut Reader::default(), &close(7, &long), 5000) else { panic!("refused") };
        assert_eq!(found, [Capsule::Close { code: 7, reason: "\u{e9}".repeat(512) }]);
        for wrong in [
            [0x68, 0x43, 3, 0, 0, 0].as_slice(),
            &[0x68, 0x43, 5, 0, 0, 0, 0, 0xff],
            &[0x68, 0x43, 0x44, 0x05],
            &[0x99, 0x0b, 0x4d, 0x3d, 2, 0, 0],
        ] {
            let error = all(&mut Reader::default(), wrong, 100).unwrap_err();
            assert_eq!(error.code, Code::H3_MESSAGE_ERROR, "{wrong:x?}");
        }
    }
}
