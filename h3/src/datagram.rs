//! HTTP Datagrams in QUIC datagrams (RFC 9297, 2.1): a quarter of a stream's id, then the payload.

use crate::{Code, Error, varint};
use bytes::{Bytes, BytesMut};

/// The stream's id, and the payload.
pub fn read(mut datagram: Bytes) -> Result<(u64, Bytes), Error> {
    const BROKEN: Error = Error::connection(Code::H3_DATAGRAM_ERROR, "datagram of no stream");
    let quarter = varint::read(&mut datagram).ok_or(BROKEN)?;
    // Ids have 62 bits.
    if quarter >= 1 << 60 {
        return Err(BROKEN);
    }
    Ok((quarter * 4, datagram))
}

pub fn write(stream: u64, payload: &[u8]) -> Bytes {
    let quarter = stream / 4;
    let mut datagram = BytesMut::with_capacity(varint::len(quarter) + payload.len());
    varint::write(quarter, &mut datagram);
    datagram.extend_from_slice(payload);
    datagram.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_back() {
        for stream in [0, 4, 400, 1 << 40, varint::MAX & !3] {
            assert_eq!(read(write(stream, b"hi")), Ok((stream, Bytes::from_static(b"hi"))));
        }
        for wrong in [&[][..], &[0x40], &[0xd0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(read(Bytes::from_static(wrong)).unwrap_err().code, Code::H3_DATAGRAM_ERROR);
        }
    }
}
