//! Finished bytes of a server's messages, in the form that a client's connection has: the same for every client of
//! that form, so made once and shared.
//!
//! On a WebSocket each is a frame (RFC 6455, section 5.2), unmasked and unfragmented. On a stream of WebTransport
//! JSON ends with a newline; Protobuf has its length in front, here and there. To a proxy that passes on such a stream
//! both are in frames ([`weir_wire::hop::WEBTRANSPORT`]).

use crate::protocol::{Format, Push, Reply, json, protobuf};
use bytes::{BufMut, Bytes, BytesMut};
use weir_wire::close::Close;

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// A ping control frame, without payload.
pub const WS_PING: Bytes = Bytes::from_static(b"\x89\x00");

pub fn reply(reply: &Reply, format: Format) -> Bytes {
    let message = if format.is_protobuf() { protobuf::reply(reply) } else { json::reply(reply) };
    finish(message, format)
}

pub fn push(push: &Push, format: Format) -> Bytes {
    let message = if format.is_protobuf() { protobuf::push(push) } else { json::push(push, format) };
    finish(message, format)
}

/// Several pushes, written at once: in one frame where a frame may hold several messages.
pub fn pushes(pushes: &[Push], format: Format) -> Bytes {
    let message = |push| match format.is_protobuf() {
        true => protobuf::push(push),
        false => json::push(push, format),
    };
    match format {
        // A listening client expects one message in each.
        Format::JsonUni => pushes.iter().map(|p| push(p, format)).collect::<Vec<_>>().concat().into(),
        Format::Json | Format::JsonLines | Format::FramedLines => {
            finish(pushes.iter().map(message).collect::<Vec<_>>().join(&b'\n'), format)
        }
        Format::Protobuf | Format::ProtobufStream | Format::FramedProtobuf => {
            finish(pushes.iter().map(message).collect::<Vec<_>>().concat(), format)
        }
    }
}

/// The protocol's own ping: an empty message.
pub fn ping(format: Format) -> Bytes {
    Bytes::from_static(match format {
        Format::Json | Format::JsonUni => b"\x81\x02{}",
        Format::JsonLines => b"{}\n",
        Format::FramedLines => b"\x82\x03{}\n",
        Format::Protobuf | Format::FramedProtobuf => b"\x82\x01\x00",
        Format::ProtobufStream => b"\x00",
    })
}

fn finish(mut message: Vec<u8>, format: Format) -> Bytes {
    match format {
        Format::Json | Format::JsonUni => frame(TEXT, &message),
        Format::JsonLines => {
            message.push(b'\n');
            message.into()
        }
        Format::FramedLines => {
            message.push(b'\n');
            frame(BINARY, &message)
        }
        Format::Protobuf | Format::FramedProtobuf => frame(BINARY, &message),
        Format::ProtobufStream => message.into(),
    }
}

/// The message alone, out of what [`push`] made for a stream: a datagram has bounds of its own.
pub fn datagram(finished: &Bytes, format: Format) -> Bytes {
    match format {
        Format::ProtobufStream => {
            let length = finished.iter().position(|b| b & 0x80 == 0).map_or(0, |last| last + 1);
            finished.slice(length..)
        }
        _ => finished.slice(..finished.len().saturating_sub(1)),
    }
}

/// What goes out behind all else. `heard`: the client has left by itself, and its stream needs no last message.
pub fn last(close: &Close, format: Format, heard: bool) -> Option<Bytes> {
    if !format.is_stream() {
        return (!heard).then(|| self::close(close));
    }
    let message = (!heard).then(|| disconnect(close, format));
    let end = format.is_framed().then(|| self::close(close));
    match (message, end) {
        (Some(message), Some(end)) => Some([message, end].concat().into()),
        (message, end) => message.or(end),
    }
}

/// A WebSocket's close frame.
fn close(close: &Close) -> Bytes {
    let mut payload = Vec::with_capacity(2 + close.reason.len());
    payload.extend_from_slice(&close.code.to_be_bytes());
    payload.extend_from_slice(close.reason.as_bytes());
    payload.truncate(125);
    frame(CLOSE, &payload)
}

/// The last message on a stream. SDKs on WebTransport take code and reason from here: they do not look at those of the
/// session's end. By the ranges that they know, 1009 would bring them back; to a WebSocket's they do not return.
fn disconnect(close: &Close, format: Format) -> Bytes {
    let code = if *close == Close::TOO_BIG { Close::BAD_REQUEST.code } else { close.code };
    let reconnect = close.reconnects();
    push(&Push::Disconnect { code, reason: close.reason.to_string(), reconnect }, format)
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
            let f = frame(TEXT, &vec![b'x'; len]);
            assert_eq!(&f[..header.len()], &header[..], "{len}");
            assert_eq!(f.len(), header.len() + len);
        }
    }

    #[test]
    fn what_ends_a_stream_says_why() {
        let last = |close| String::from_utf8(disconnect(close, Format::JsonLines).to_vec()).unwrap();
        assert_eq!(
            last(&Close::SLOW),
            "{\"push\":{\"disconnect\":{\"code\":3008,\"reason\":\"slow\",\"reconnect\":true}}}\n"
        );
        assert_eq!(
            last(&Close::TOO_BIG),
            "{\"push\":{\"disconnect\":{\"code\":3501,\"reason\":\"message too big\"}}}\n"
        );
    }

    #[test]
    fn in_frames_a_stream_ends_with_a_close() {
        let push = b"{\"push\":{\"disconnect\":{\"code\":3008,\"reason\":\"slow\",\"reconnect\":true}}}\n";
        let end = b"\x88\x06\x0b\xc0slow";
        let last = |format, heard| last(&Close::SLOW, format, heard).map(|bytes| bytes.to_vec());
        let framed = [&[0x82, push.len() as u8][..], push, end].concat();
        assert_eq!(last(Format::FramedLines, false), Some(framed));
        assert_eq!(last(Format::FramedLines, true), Some(end.to_vec()));
        assert_eq!(last(Format::JsonLines, false), Some(push.to_vec()));
        assert_eq!(last(Format::JsonLines, true), None);
        assert_eq!(last(Format::Json, false), Some(end.to_vec()));
        assert_eq!(last(Format::Json, true), None);
        let protobuf = last(Format::FramedProtobuf, false).unwrap();
        assert!(protobuf[0] == 0x82 && protobuf.ends_with(end), "{protobuf:?}");
    }

    #[test]
    fn a_close_carries_code_and_reason() {
        assert_eq!(&close(&Close::SLOW)[..], b"\x88\x06\x0b\xc0slow");
    }
}
