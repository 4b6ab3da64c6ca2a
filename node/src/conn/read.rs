//! The reading half: bytes to frames, frames to commands, and the closes that bad ones earn.

use super::core::{Core, Phase};
use super::io::Feed;
use super::now;
use crate::protocol::Commands;
use crate::protocol::json::{Lines, connect_request};
use crate::session::Kind;
use bytes::Bytes;
use std::io::ErrorKind;
use std::time::Duration;
use tokio_tungstenite::tungstenite::{Error, Message};
use weir_wire::close::Close;

/// Pings and pongs of one client within [`CONTROL_WINDOW`]; over it 3013.
const CONTROL_FRAMES: u32 = 100;
const CONTROL_WINDOW: Duration = Duration::from_secs(1);

impl Core {
    /// Goes on with input that had to wait. False: there is none, or it has to wait still.
    pub(super) fn feed_spill(&mut self) -> bool {
        if !self.unparsed || !self.listens() {
            return false;
        }
        let spill = std::mem::take(&mut self.spill);
        self.feed(&spill);
        true
    }

    /// Whether input is wanted now.
    pub(super) fn listens(&self) -> bool {
        match self.phase {
            Phase::Open => !self.session.is_busy(),
            Phase::Closing { heard, .. } => !heard,
            Phase::Done => false,
        }
    }

    /// What was just read; nothing is the end.
    pub(super) fn on_input(&mut self, input: &[u8]) {
        match self.phase {
            Phase::Open if input.is_empty() => self.lost(&ErrorKind::UnexpectedEof.into()),
            Phase::Open => {
                self.stats.read(input.len());
                self.feed(input);
            }
            // Whether or not our last words could be sent: nobody is there to read them.
            _ if input.is_empty() => self.phase = Phase::Done,
            _ => self.forget(input),
        }
    }

    /// Parses input until it is used up or the session has to be waited for.
    fn feed(&mut self, input: &[u8]) {
        let client = self.client.clone();
        let mut feed = Feed { input, outbox: Some(&client.outbox) };
        loop {
            let before = feed.input.len();
            let read = self.ws.read(&mut feed);
            self.assembling += before - feed.input.len();
            match read {
                Ok(message) => self.on_message(message, &mut feed),
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.unparsed = false;
                    // Endless fragments that add up to nothing, or to hardly anything.
                    if self.assembling > 8 * self.shared.conf.message_size + (64 << 10) {
                        self.fail(Close::POLICY);
                    }
                    return;
                }
                Err(error) => {
                    self.unparsed = false;
                    return self.fail(close_for(&error));
                }
            }
            self.work();
            if !matches!(self.phase, Phase::Open) {
                self.unparsed = false;
                return;
            }
            if self.session.is_busy() {
                self.unparsed = true;
                self.spill = Bytes::copy_from_slice(feed.input);
                return;
            }
        }
    }

    fn on_message(&mut self, message: Message, feed: &mut Feed<'_>) {
        match message {
            Message::Text(text) => {
                self.assembling = 0;
                self.stats.message();
                match self.session.kind() {
                    Kind::Bidi => self.session.on_frame(Commands::Json(Lines::new(Bytes::from(text)))),
                    Kind::Uni if self.session.is_open() => {}
                    Kind::Uni => self.session.on_connect_request(now(), connect_request(text.as_bytes())),
                }
            }
            Message::Binary(_) => self.session.close(Close::INAPPROPRIATE_PROTOCOL),
            Message::Ping(_) => self.on_control_frame(),
            Message::Pong(_) => {
                self.session.on_control_pong();
                self.on_control_frame();
            }
            Message::Close(frame) => {
                // Puts the answer into the outbox; says that the connection is closed, as it is.
                let _ = self.ws.flush(feed);
                self.closed_by_peer(frame.map(|f| f.code.into()));
            }
            Message::Frame(_) => {}
        }
    }

    fn on_control_frame(&mut self) {
        self.assembling = 0;
        let (count, since) = &mut self.control_frames;
        let at = now().at;
        if since.is_none_or(|since| at - since > CONTROL_WINDOW) {
            (*count, *since) = (0, Some(at));
        }
        *count += 1;
        if *count > CONTROL_FRAMES {
            self.session.close(Close::TOO_MANY_REQUESTS);
        }
    }

    /// The input makes no sense from here on.
    fn fail(&mut self, close: Close) {
        self.session.close(close.clone());
        self.work();
        self.start_closing(close, false);
        if let Phase::Closing { parse, .. } = &mut self.phase {
            *parse = false;
        }
    }

    /// After our close only the client's is of interest.
    fn forget(&mut self, input: &[u8]) {
        let Phase::Closing { parse: true, .. } = self.phase else { return };
        let mut feed = Feed { input, outbox: None };
        loop {
            match self.ws.read(&mut feed) {
                Ok(Message::Close(_)) => {
                    if let Phase::Closing { heard, .. } = &mut self.phase {
                        *heard = true;
                    }
                    return;
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    if let Phase::Closing { parse, .. } = &mut self.phase {
                        *parse = false;
                    }
                    return;
                }
            }
        }
    }
}

/// RFC 6455, sections 7.4.1 and 8.1: what each breach of the framing is answered with.
fn close_for(error: &Error) -> Close {
    match error {
        Error::Capacity(_) => Close::TOO_BIG,
        Error::Utf8(_) => Close::INVALID_DATA,
        _ => Close::PROTOCOL_ERROR,
    }
}
