//! The reading half: bytes to messages, messages to commands, and the closes that bad ones earn.

use super::core::{Core, Phase};
use super::now;
use super::stream::{LengthCutter, LineCutter};
use super::websocket::{Farewell, Frames};
use crate::outbox::Outbox;
use crate::protocol::Commands;
use crate::protocol::json::{Lines, connect_request};
use crate::protocol::protobuf::Messages;
use crate::session::Kind;
use bytes::Bytes;
use std::io::ErrorKind;
use weir_wire::close::Close;

/// From bytes to messages.
#[expect(clippy::large_enum_variant, reason = "nearly all are WebSockets: no second allocation for them")]
pub(super) enum Parser {
    WebSocket(Frames),
    Lines(LineCutter),
    Lengths(LengthCutter),
}

/// What a parser found next in its input.
#[derive(Debug, PartialEq)]
pub(super) enum Parsed {
    /// UTF-8; counts as so many messages.
    Text {
        lines: Bytes,
        messages: u64,
    },
    Binary {
        bytes: Bytes,
        messages: u64,
    },
    /// Something that is dealt with already.
    Nothing,
    Pong,
    /// More control frames than anybody needs.
    Flood,
    /// The client said close, with this code if any.
    Closed(Option<u16>),
    /// Nothing more: the input is used up.
    All,
    /// The input makes no sense from here on.
    Bad(Close),
}

impl Parser {
    fn next(&mut self, input: &mut &[u8], outbox: &Outbox) -> Parsed {
        match self {
            Parser::WebSocket(frames) => frames.next(input, outbox),
            Parser::Lines(cutter) => cutter.next(input),
            Parser::Lengths(cutter) => cutter.next(input),
        }
    }
}

impl Parser {
    /// Whether something has begun and not ended.
    fn is_amid(&self) -> bool {
        match self {
            Parser::WebSocket(frames) => frames.is_amid(),
            Parser::Lines(cutter) => cutter.is_amid(),
            Parser::Lengths(cutter) => cutter.is_amid(),
        }
    }
}

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
            // A stream that ends is a client that leaves; a WebSocket says so before.
            Phase::Open if input.is_empty() && self.is_stream() => self.closed_by_peer(None),
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
    fn feed(&mut self, mut input: &[u8]) {
        loop {
            let parsed = self.parser.next(&mut input, &self.client.outbox);
            if matches!(parsed, Parsed::Text { .. } | Parsed::Binary { .. }) {
                self.amid_since = None;
            }
            match parsed {
                Parsed::Text { lines, messages } => self.on_text(lines, messages),
                Parsed::Binary { bytes, messages } => self.on_binary(bytes, messages),
                Parsed::Nothing => {}
                Parsed::Pong => self.session.on_control_pong(),
                Parsed::Flood => self.session.close(Close::TOO_MANY_REQUESTS),
                Parsed::Closed(code) => self.closed_by_peer(code),
                Parsed::All => {
                    self.unparsed = false;
                    let since = self.amid_since.take();
                    self.amid_since = self.parser.is_amid().then(|| since.unwrap_or_else(|| now().at));
                    return;
                }
                Parsed::Bad(close) => {
                    self.unparsed = false;
                    return self.fail(close);
                }
            }
            self.work();
            if !matches!(self.phase, Phase::Open) {
                self.unparsed = false;
                return;
            }
            if self.session.is_busy() {
                self.unparsed = true;
                self.spill = Bytes::copy_from_slice(input);
                return;
            }
        }
    }

    fn on_text(&mut self, lines: Bytes, messages: u64) {
        self.stats.messages(messages);
        match self.session.kind() {
            _ if self.client.format.is_protobuf() => self.session.close(Close::INAPPROPRIATE_PROTOCOL),
            Kind::Bidi => self.session.on_frame(Commands::Json(Lines::new(lines))),
            Kind::Uni if self.session.is_open() => self.session.on_idle_words(now()),
            Kind::Uni => self.session.on_connect_request(now(), connect_request(&lines)),
        }
    }

    fn on_binary(&mut self, bytes: Bytes, messages: u64) {
        self.stats.messages(messages);
        match self.client.format.is_protobuf() {
            true => self.session.on_frame(Commands::Protobuf(Messages::new(bytes))),
            false => self.session.close(Close::INAPPROPRIATE_PROTOCOL),
        }
    }

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
        // On a stream that is its end.
        let Parser::WebSocket(frames) = &mut self.parser else { return };
        let farewell = frames.forget(input);
        if let (Some(farewell), Phase::Closing { heard, parse, .. }) = (farewell, &mut self.phase) {
            match farewell {
                Farewell::Heard => *heard = true,
                Farewell::Nonsense => *parse = false,
            }
        }
    }
}
