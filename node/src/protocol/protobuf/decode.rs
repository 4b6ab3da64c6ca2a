//! From bytes to commands: what is no sequence of messages behind their lengths, or no message, is malformed.

use super::messages as proto;
use crate::protocol::json::one_line;
use crate::protocol::request::request;
use crate::protocol::{Command, Connect, Malformed, Subscribe};
use bytes::Bytes;
use prost::Message;
use std::ops::Range;

/// Of a length: five bytes hold 32 bits and more.
const LENGTH_BYTES: usize = 5;

/// Where the message lies whose length `bytes` begin with; more of it may be to come. `None`: its length is not all
/// there.
pub fn message_at(bytes: &[u8]) -> Result<Option<Range<usize>>, Malformed> {
    let mut length = 0usize;
    for (i, byte) in bytes.iter().take(LENGTH_BYTES).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some(i + 1..i + 1 + length));
        }
    }
    if bytes.len() < LENGTH_BYTES { Ok(None) } else { Err(Malformed) }
}

/// The messages of one frame. An empty frame is one malformed message.
#[derive(Debug)]
pub struct Messages {
    bytes: Bytes,
    begun: bool,
}

impl Messages {
    pub fn new(bytes: Bytes) -> Messages {
        Messages { bytes, begun: false }
    }

    fn take(&mut self) -> Result<Command, Malformed> {
        let at = message_at(&self.bytes)?.filter(|at| at.end <= self.bytes.len()).ok_or(Malformed)?;
        let message = self.bytes.split_to(at.end).slice(at.start..);
        proto::Command::decode(message).map(Into::into).map_err(|_| Malformed)
    }
}

impl Iterator for Messages {
    type Item = Result<Command, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() && self.begun {
            return None;
        }
        self.begun = true;
        Some(self.take())
    }
}

impl From<proto::Command> for Command {
    fn from(raw: proto::Command) -> Command {
        let id = raw.id;
        Command { id, request: request!(raw, publish => payload(publish.data)) }
    }
}

/// A copy: it outlives the frame that it came in. JSON goes on as it would from a JSON client.
fn payload(data: Bytes) -> Bytes {
    one_line(&data).unwrap_or_else(|| Bytes::copy_from_slice(&data))
}

impl From<proto::ConnectRequest> for Connect {
    fn from(raw: proto::ConnectRequest) -> Connect {
        let subs = raw.subs.into_iter().map(|(channel, s)| (channel, s.into())).collect();
        Connect { token: raw.token, name: raw.name, version: raw.version, subs }
    }
}

impl From<proto::SubscribeRequest> for Subscribe {
    fn from(raw: proto::SubscribeRequest) -> Subscribe {
        Subscribe {
            channel: raw.channel,
            token: raw.token,
            recover: raw.recover,
            epoch: raw.epoch,
            offset: raw.offset,
            positioned: raw.positioned,
            recoverable: raw.recoverable,
            join_leave: raw.join_leave,
            flag: raw.flag,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Request;

    fn all(bytes: &[u8]) -> Vec<Result<Command, Malformed>> {
        Messages::new(Bytes::copy_from_slice(bytes)).take(8).collect()
    }

    #[test]
    fn a_frame_is_messages_behind_their_lengths() {
        // By hand: id 1, connect {token "t"}; id 2, subscribe {channel "c", flag 2}; a pong.
        let frame = b"\x07\x08\x01\x22\x03\x0a\x01t\x09\x08\x02\x2a\x05\x0a\x01c\x70\x02\x00";
        let commands = all(frame);
        assert_eq!(commands.len(), 3);
        assert!(
            matches!(&commands[0], Ok(Command { id: 1, request: Request::Connect(c) }) if c.token == "t")
        );
        let Ok(Command { id: 2, request: Request::Subscribe(s) }) = &commands[1] else {
            panic!("{commands:?}")
        };
        assert!(s.channel == "c" && s.rejects_unrecovered());
        assert_eq!(commands[2], Ok(Command { id: 0, request: Request::Pong }));
        // A field that is newer than this node (100, a string) is skipped; an id alone is no command.
        assert_eq!(all(b"\x06\x08\x07\xa2\x06\x01x"), [Ok(Command { id: 7, request: Request::Unknown })]);
        // data of a publish: JSON on one line, anything else as it is.
        for (data, want) in [(b"{\n}".as_slice(), b"{}".as_slice()), (b"\xffboom\n", b"\xffboom\n")] {
            let publish = proto::PublishRequest { channel: "c".into(), data: Bytes::from_static(data) };
            let command = proto::Command { id: 3, publish: Some(publish), ..Default::default() };
            let want = Request::Publish { channel: "c".into(), data: Bytes::from_static(want) };
            let got = all(&command.encode_length_delimited_to_vec());
            assert_eq!(got, [Ok(Command { id: 3, request: want })]);
        }
    }

    #[test]
    fn what_is_no_message_is_malformed() {
        for bad in [
            b"".as_slice(),
            b"\x02\x08",                 // shorter than it says
            b"\x80",                     // half a length
            b"\xff\xff\xff\xff\xff\x01", // a length that no message has
            b"\x01\x08",                 // a field without a value
            b"\x03\x0a\x01x",            // id is no string
            b"\x05\x2a\x03\x0a\x01\xff", // a channel that is not UTF-8
            b"\x03\x22\x05\x0a",         // an inner message that is longer than its outer one
        ] {
            assert_eq!(all(bad).first(), Some(&Err(Malformed)), "{bad:?}");
        }
    }

    #[test]
    fn ends_of_messages() {
        assert_eq!(message_at(b""), Ok(None));
        assert_eq!(message_at(b"\x00"), Ok(Some(1..1)));
        assert_eq!(message_at(b"\x05x"), Ok(Some(1..6)));
        assert_eq!(message_at(b"\x80\x80"), Ok(None));
        assert_eq!(message_at(b"\x80\x01"), Ok(Some(2..130)));
        assert_eq!(message_at(b"\xff\xff\xff\xff\x0f"), Ok(Some(5..5 + u32::MAX as usize)));
        assert_eq!(message_at(b"\x80\x80\x80\x80\x80\x00"), Err(Malformed));
    }
}
