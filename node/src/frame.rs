//! Finished WebSocket frames of a server (RFC 6455, section 5.2): unmasked, unfragmented, hence
//! the same bytes for every client, made once and shared.

use bytes::{BufMut, Bytes, BytesMut};
use weir_wire::close::Close;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

/// The protocol's own ping: an empty JSON object in a text frame.
pub const JSON_PING: Bytes = Bytes::from_static(b"\x81\x02{}");
/// A ping control frame, without payload.
pub const WS_PING: Bytes = Bytes::from_static(b"\x89\x00");

pub fn text(payload: &[u8]) -> Bytes {
    frame(TEXT, payload)
}

pub fn close(close: &Close) -> Bytes {
    let mut payload = Vec::with_capacity(2 + close.reason.len());
    payload.extend_from_slice(&close.code.to_be_bytes());
    payload.extend_from_slice(close.reason.as_bytes());
    payload.truncate(125);
    frame(CLOSE, &payload)
}

fn frame(opcode: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + payload.len());
    out.put_u8(opcode);
    match payload.len() {
        len @ 0..=125 => out.put_u8(len as u8),
        len @ 126..=0xffff => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        len => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
    out.put_slice(payload);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, header) in [
            (0usize, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (0xffff, vec![0x81, 126, 0xff, 0xff]),
            (0x1_0000, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let f = text(&vec![b'x'; len]);
            assert_eq!(&f[..header.len()], &header[..], "{len}");
            assert_eq!(f.len(), header.len() + len);
        }
    }

    #[test]
    fn a_close_carries_code_and_reason() {
        assert_eq!(&close(&Close::SLOW)[..], b"\x88\x06\x0b\xc0slow");
    }
}
