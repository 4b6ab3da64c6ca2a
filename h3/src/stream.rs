//! What a stream begins with: the type of a unidirectional one (RFC 9114, 6.2), the session of one of
//! WebTransport.

use crate::varint;
use bytes::{Buf, BufMut, Bytes};

const CONTROL: u64 = 0x00;
const PUSH: u64 = 0x01;
const QPACK_ENCODER: u64 = 0x02;
const QPACK_DECODER: u64 = 0x03;
const WEBTRANSPORT_UNI: u64 = 0x54;
const WEBTRANSPORT_BIDI: u64 = 0x41;

/// What a unidirectional stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uni {
    Control,
    Push,
    QpackEncoder,
    QpackDecoder,
    /// Of the session with this id.
    WebTransport(u64),
    Unknown(u64),
}

/// What a bidirectional stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bidi {
    /// Frames of HTTP/3; nothing was taken.
    Request,
    /// Of the session with this id.
    WebTransport(u64),
}

/// Takes the beginning off; `None` takes nothing: at most 16 bytes are needed.
pub fn uni(input: &mut Bytes) -> Option<Uni> {
    let mut ahead = input.as_ref();
    let kind = match varint::read(&mut ahead)? {
        CONTROL => Uni::Control,
        PUSH => Uni::Push,
        QPACK_ENCODER => Uni::QpackEncoder,
        QPACK_DECODER => Uni::QpackDecoder,
        WEBTRANSPORT_UNI => Uni::WebTransport(varint::read(&mut ahead)?),
        other => Uni::Unknown(other),
    };
    input.advance(input.len() - ahead.len());
    Some(kind)
}

/// As [`uni()`].
pub fn bidi(input: &mut Bytes) -> Option<Bidi> {
    let mut ahead = input.as_ref();
    if varint::read(&mut ahead)? != WEBTRANSPORT_BIDI {
        return Some(Bidi::Request);
    }
    let session = varint::read(&mut ahead)?;
    input.advance(input.len() - ahead.len());
    Some(Bidi::WebTransport(session))
}

impl Uni {
    pub fn write(self, output: &mut impl BufMut) {
        let (kind, session) = match self {
            Uni::Control => (CONTROL, None),
            Uni::Push => (PUSH, None),
            Uni::QpackEncoder => (QPACK_ENCODER, None),
            Uni::QpackDecoder => (QPACK_DECODER, None),
            Uni::WebTransport(session) => (WEBTRANSPORT_UNI, Some(session)),
            Uni::Unknown(kind) => (kind, None),
        };
        varint::write(kind, output);
        if let Some(session) = session {
            varint::write(session, output);
        }
    }
}

/// The beginning of a bidirectional stream of WebTransport.
pub fn write_bidi(session: u64, output: &mut impl BufMut) {
    varint::write(WEBTRANSPORT_BIDI, output);
    varint::write(session, output);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_in_any_length() {
        for kind in [Uni::Control, Uni::QpackDecoder, Uni::WebTransport(400), Uni::Unknown(0x21)] {
            let mut bytes = Vec::new();
            kind.write(&mut bytes);
            for end in 0..bytes.len() {
                let mut cut = Bytes::copy_from_slice(&bytes[..end]);
                assert_eq!(uni(&mut cut), None);
                assert_eq!(cut.len(), end);
            }
            bytes.push(7);
            let mut input = Bytes::from(bytes);
            assert_eq!(uni(&mut input), Some(kind));
            assert_eq!(input, [7].as_slice());
        }
        let mut bytes = Vec::new();
        write_bidi(4, &mut bytes);
        assert_eq!(bytes, [0x40, 0x41, 4]);
        assert_eq!(bidi(&mut Bytes::from(bytes)), Some(Bidi::WebTransport(4)));
        let mut frame = Bytes::from_static(&[1, 0]);
        assert_eq!(bidi(&mut frame), Some(Bidi::Request));
        assert_eq!(frame.len(), 2);
    }
}
