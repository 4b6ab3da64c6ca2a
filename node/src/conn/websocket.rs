//! Input of a WebSocket: tungstenite's parser, and the closes that bad frames earn.

use super::assembly::Assembly;
use super::io::Feed;
use super::now;
use super::read::Parsed;
use crate::outbox::Outbox;
use bytes::Bytes;
use std::io::ErrorKind;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};
use weir_wire::close::Close;

/// Of tungstenite's own input buffer: holds at most the part of a frame that is there already.
const PARSE_BUFFER: usize = 512;
/// Pings and pongs of one client within [`CONTROL_WINDOW`]; over it 3013.
const CONTROL_FRAMES: u32 = 100;
const CONTROL_WINDOW: Duration = Duration::from_secs(1);

pub(super) struct Frames {
    ws: WebSocketContext,
    assembly: Assembly,
    control_frames: (u32, Option<Instant>),
    /// Of a message.
    limit: usize,
}

impl Frames {
    pub fn new(limit: usize) -> Frames {
        let config = WebSocketConfig::default()
            .read_buffer_size(PARSE_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(PARSE_BUFFER)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        let ws = WebSocketContext::new(Role::Server, Some(config));
        Frames { ws, assembly: Assembly::default(), control_frames: (0, None), limit }
    }

    /// The next message. Pongs and the answer to a close go into the outbox.
    pub fn next(&mut self, input: &mut &[u8], outbox: &Outbox) -> Parsed {
        let mut feed = Feed { input, outbox: Some(outbox) };
        let read = self.ws.read(&mut feed);
        let used = input.len() - feed.input.len();
        self.assembly.read(&input[..used]);
        let parsed = match read {
            Ok(message) => self.on_message(message, &mut feed),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                // Endless fragments that add up to nothing, or to hardly anything.
                let endless = self.assembly.bytes() > 8 * self.limit + (64 << 10);
                if endless { Parsed::Bad(Close::POLICY) } else { Parsed::All }
            }
            Err(error) => Parsed::Bad(close_for(&error)),
        };
        *input = &input[used..];
        parsed
    }

    fn on_message(&mut self, message: Message, feed: &mut Feed<'_>) -> Parsed {
        match message {
            Message::Text(text) => Parsed::Text { lines: Bytes::from(text), messages: 1 },
            Message::Binary(bytes) => Parsed::Binary { bytes, messages: 1 },
            Message::Ping(_) | Message::Pong(_) if !self.count_control_frame() => Parsed::Flood,
            Message::Ping(_) | Message::Frame(_) => Parsed::Nothing,
            Message::Pong(_) => Parsed::Pong,
            Message::Close(frame) => {
                // Puts the answer into the outbox; says that the connection is closed, as it is.
                let _ = self.ws.flush(feed);
                Parsed::Closed(frame.map(|f| f.code.into()))
            }
        }
    }

    /// Whether something has begun and not ended.
    pub fn is_amid(&self) -> bool {
        self.assembly.is_amid()
    }

    /// After our close only the client's is of interest. `None`: it has not come yet.
    pub fn forget(&mut self, input: &[u8]) -> Option<Farewell> {
        let mut feed = Feed { input, outbox: None };
        loop {
            match self.ws.read(&mut feed) {
                Ok(Message::Close(_)) => return Some(Farewell::Heard),
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => return Some(Farewell::Nonsense),
            }
        }
    }

    /// False: too many of them.
    fn count_control_frame(&mut self) -> bool {
        let (count, since) = &mut self.control_frames;
        let at = now().at;
        if since.is_none_or(|since| at - since > CONTROL_WINDOW) {
            (*count, *since) = (0, Some(at));
        }
        *count += 1;
        *count <= CONTROL_FRAMES
    }
}

/// What came after our close.
pub(super) enum Farewell {
    Heard,
    /// Nothing that comes now can be understood.
    Nonsense,
}

/// RFC 6455, sections 7.4.1 and 8.1: what each breach of the framing is answered with.
fn close_for(error: &Error) -> Close {
    match error {
        Error::Capacity(_) => Close::TOO_BIG,
        Error::Utf8(_) => Close::INVALID_DATA,
        _ => Close::PROTOCOL_ERROR,
    }
}
