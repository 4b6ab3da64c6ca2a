//! One exchange on a connection of HTTP/1: the request's body out of its framing, and the answer in one that this
//! client understands. With the exchange's end the connection is given back.

use crate::client::Client;
use crate::front::chunks::Chunks;
use crate::front::head::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use pingora_core::protocols::http::date;
use pingora_http::ResponseHeader;
use std::io;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

/// Read of a body at once.
const AT_ONCE: usize = 16 << 10;
/// Data up to this size is sent in one piece with what stands around it.
const SHORT: usize = 4096;

/// The cause of a failed read: the client's framing, and not its socket.
#[derive(Debug, thiserror::Error)]
#[error("malformed chunks: {0}")]
pub struct Malformed(&'static str);

/// What the request says of its answer, and of the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// The answer has no body whatever its length says (HEAD).
    pub head_alone: bool,
    /// HTTP/1.0: no chunks, nothing interim, and the connection ends.
    pub old: bool,
    /// The connection ends with the answer.
    pub close: bool,
    /// `TE: trailers`
    pub trailers: bool,
}

/// A connection after its exchange.
pub enum After {
    /// For the next request.
    Next(Client),
    /// All is said; what the client still sends is of no interest.
    Close(Client),
    /// The answer broke off, and the connection with it.
    Cut,
}

pub struct Http1 {
    client: Option<Client>,
    body: Incoming,
    wishes: Wishes,
    /// Not written yet.
    out: BytesMut,
    framing: Framing,
    whole: bool,
    back: Option<oneshot::Sender<After>>,
}

enum Incoming {
    Length(u64),
    Chunks(Box<Chunks>),
    Ended,
}

enum Framing {
    /// There is no body, or no head yet.
    None,
    Length(u64),
    Chunks,
    /// Up to the connection's end.
    Close,
}

impl Http1 {
    /// With the connection's way back.
    pub fn new(client: Client, body: Body, wishes: Wishes) -> (Http1, oneshot::Receiver<After>) {
        let (back, given_back) = oneshot::channel();
        let body = match body {
            Body::None => Incoming::Ended,
            Body::Length(n) => Incoming::Length(n),
            Body::Chunked => Incoming::Chunks(Box::new(Chunks::new())),
        };
        let exchange = Http1 {
            client: Some(client),
            body,
            wishes,
            out: BytesMut::new(),
            framing: Framing::None,
            whole: false,
            back: Some(back),
        };
        (exchange, given_back)
    }

    fn client(&mut self) -> io::Result<&mut Client> {
        self.client.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The next piece of the request's body; `None`: it has ended.
    pub async fn data(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match self.piece() {
                Err(error) => return Some(Err(error)),
                Ok(Some(data)) => return Some(Ok(data)),
                Ok(None) if self.is_read() => return None,
                Ok(None) => {}
            }
            let read = match self.client() {
                Ok(client) => client.fill_with(AT_ONCE).await,
                Err(error) => return Some(Err(error)),
            };
            match read {
                Ok(0) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// From what is read already.
    fn piece(&mut self) -> io::Result<Option<Bytes>> {
        let Some(client) = &mut self.client else { return Err(io::ErrorKind::NotConnected.into()) };
        let data = match &mut self.body {
            Incoming::Ended => None,
            Incoming::Length(left) => {
                // No more than there are.
                let n = (*left).min(client.ahead.len() as u64) as usize;
                *left -= n as u64;
                (n > 0).then(|| client.ahead.split_to(n).freeze())
            }
            Incoming::Chunks(chunks) => chunks
                .next(&mut client.ahead)
                .map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, Malformed(bad.why)))?,
        };
        let ended = match &self.body {
            Incoming::Length(left) => *left == 0,
            Incoming::Chunks(chunks) => chunks.ended(),
            Incoming::Ended => true,
        };
        if ended {
            self.body = Incoming::Ended;
        }
        Ok(data)
    }

    pub fn is_read(&self) -> bool {
        matches!(self.body, Incoming::Ended)
    }

    /// Waits until the client has left.
    pub async fn gone(&mut self) {
        if let Ok(client) = self.client() {
            client.gone().await;
        }
    }

    /// Puts a head in front of what is to be written. `end`: no body follows it; `closes`: no other exchange.
    pub fn head(&mut self, mut head: ResponseHeader, end: bool, closes: bool) {
        if head.status.is_informational() {
            if !self.wishes.old {
                self.put_head(&head);
            }
            return;
        }
        let length = length(&head.headers);
        let bodiless = self.wishes.head_alone
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut set = |name, value: &'static str| {
            let _fits = head.insert_header(name, HeaderValue::from_static(value));
        };
        self.framing = match length {
            _ if bodiless => Framing::None,
            Some(length) => Framing::Length(length),
            None if end => {
                set(CONTENT_LENGTH, "0");
                Framing::None
            }
            None if self.wishes.old => Framing::Close,
            None => {
                set(TRANSFER_ENCODING, "chunked");
                Framing::Chunks
            }
        };
        // A body that is still to come may never come: its client sees what it wanted to know.
        self.wishes.close |= closes || self.wishes.old || !self.is_read();
        if self.wishes.close {
            set(CONNECTION, "close");
        }
        if !matches!(self.framing, Framing::Chunks) || !self.wishes.trailers {
            head.remove_header(&TRAILER);
        }
        if !head.headers.contains_key(DATE) {
            let _fits = head.insert_header(DATE, date::get_cached_date());
        }
        self.put_head(&head);
    }

    fn put_head(&mut self, head: &ResponseHeader) {
        let reason = head.get_reason_phrase().unwrap_or_default();
        self.out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).as_bytes());
        head.header_to_h1_wire(&mut self.out);
        self.out.extend_from_slice(b"\r\n");
    }

    /// A piece of the answer's body.
    pub async fn send(&mut self, mut data: Bytes) -> io::Result<()> {
        let tail: &[u8] = match &mut self.framing {
            Framing::None => return Ok(()),
            Framing::Close => b"",
            Framing::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                b""
            }
            Framing::Chunks => b"\r\n",
        };
        if data.is_empty() {
            return Ok(());
        }
        if !tail.is_empty() {
            self.out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        if data.len() > SHORT {
            let before = self.out.split().freeze();
            let client = self.client()?;
            return client.stream().write_all_buf(&mut before.chain(data).chain(tail)).await;
        }
        self.out.extend_from_slice(&data);
        self.out.extend_from_slice(tail);
        if self.out.len() > AT_ONCE { self.write().await } else { Ok(()) }
    }

    /// The answer's end.
    pub fn end(&mut self, trailers: Option<&HeaderMap>) -> io::Result<()> {
        match self.framing {
            Framing::Length(1..) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Framing::Chunks => {
                self.out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().filter(|_| self.wishes.trailers).flatten() {
                    self.out.extend_from_slice(name.as_str().as_bytes());
                    self.out.extend_from_slice(b": ");
                    self.out.extend_from_slice(value.as_bytes());
                    self.out.extend_from_slice(b"\r\n");
                }
                self.out.extend_from_slice(b"\r\n");
            }
            Framing::Length(0) | Framing::None | Framing::Close => {}
        }
        self.framing = Framing::None;
        self.whole = true;
        Ok(())
    }

    async fn write(&mut self) -> io::Result<()> {
        let Some(client) = &mut self.client else { return Err(io::ErrorKind::NotConnected.into()) };
        client.stream().write_all_buf(&mut self.out).await
    }

    /// Sends what was put out.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.write().await?;
        self.client()?.stream().flush().await
    }
}

/// Of the one length that is left by [`crate::forward::one_length`].
fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Drop for Http1 {
    fn drop(&mut self) {
        let (Some(client), Some(back)) = (self.client.take(), self.back.take()) else { return };
        let after = match (self.whole && self.out.is_empty(), self.wishes.close || !self.is_read()) {
            (true, false) => After::Next(client),
            (true, true) => After::Close(client),
            (false, _) => After::Cut,
        };
        let _nobody_waits = back.send(after);
    }
}
