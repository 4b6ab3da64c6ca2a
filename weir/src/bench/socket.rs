//! A client's way to exchange JSON messages: WebSocket messages, or lines on a stream of WebTransport.

use super::h3::Tunnel;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, SinkExt, StreamExt};
use quinn::{RecvStream, SendStream};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use weir_h3::capsule::{self, Capsule};
use weir_h3::{datagram, stream};

/// How long a session may outlive its stream.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_LINE: usize = 16 * 1024 * 1024;

/// What WebSocket frames go over.
pub trait Bytestream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Bytestream for T {}

pub enum Socket {
    WebSocket(Box<WebSocketStream<Box<dyn Bytestream>>>),
    Lines(Box<Lines>),
}

impl Socket {
    /// One message, or several with line breaks between them.
    pub async fn send(&mut self, text: String) -> Result<(), String> {
        match self {
            Socket::WebSocket(socket) => socket.send(Message::text(text)).await.map_err(|e| cause_of(&e)),
            Socket::Lines(lines) => lines.send(text).await,
        }
    }

    /// The next messages, with line breaks between them; or why there are none any more.
    pub async fn next(&mut self) -> Result<Utf8Bytes, String> {
        match self {
            Socket::WebSocket(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text),
                    Some(Ok(Message::Close(frame))) => return Err(close_cause(frame.as_ref())),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(cause_of(&error)),
                    None => return Err("end of stream".into()),
                }
            },
            Socket::Lines(lines) => lines.next().await,
        }
    }

    /// Says goodbye, if that can be done at once.
    pub fn leave(&mut self) {
        match self {
            Socket::WebSocket(socket) => {
                let _we_leave = WebSocketStream::close(socket, None).now_or_never();
            }
            Socket::Lines(lines) => {
                let _closed_already = lines.send.finish();
            }
        }
    }
}

/// The stream of a session.
pub struct Lines {
    send: SendStream,
    recv: RecvStream,
    session: Tunnel,
    /// The beginning of a line.
    begun: BytesMut,
    /// Publications may come as datagrams: all of the connection's, which is this session's alone then.
    datagrams: bool,
}

impl Lines {
    pub async fn open(session: Tunnel, datagrams: bool) -> Result<Lines, String> {
        let (mut send, recv) = session.quic.open_bi().await.map_err(|e| e.to_string())?;
        let mut start = Vec::new();
        stream::write_bidi(session.send.id().into(), &mut start);
        send.write_all(&start).await.map_err(|e| e.to_string())?;
        Ok(Lines { send, recv, session, begun: BytesMut::new(), datagrams })
    }

    async fn send(&mut self, mut text: String) -> Result<(), String> {
        text.push('\n');
        self.send.write_all(text.as_bytes()).await.map_err(|e| e.to_string())
    }

    async fn next(&mut self) -> Result<Utf8Bytes, String> {
        while self.begun.len() < MAX_LINE {
            if let Some(end) = self.begun.iter().rposition(|b| *b == b'\n') {
                let lines = self.begun.split_to(end + 1).freeze();
                return Utf8Bytes::try_from(lines).map_err(|_| "no UTF-8".into());
            }
            let read = tokio::select! {
                read = self.recv.read_chunk(64 * 1024, true) => read,
                Ok(datagram) = self.session.quic.read_datagram(), if self.datagrams => {
                    let (_, message) = datagram::read(datagram).map_err(|e| e.to_string())?;
                    return Utf8Bytes::try_from(message).map_err(|_| "no UTF-8".into());
                }
            };
            match read {
                Ok(Some(chunk)) => self.begun.extend_from_slice(&chunk.bytes),
                Ok(None) => return Err(self.session_end().await.unwrap_or("end of stream".into())),
                Err(error) => return Err(self.session_end().await.unwrap_or(error.to_string())),
            }
        }
        Err("line too long".into())
    }

    /// What the session was closed with.
    async fn session_end(&mut self) -> Option<String> {
        let closed = async {
            let mut capsules = capsule::Reader::default();
            let mut scratch = [0; 2048];
            loop {
                let n = self.session.read(&mut scratch).await.ok().filter(|n| *n > 0)?;
                let mut input = Bytes::copy_from_slice(&scratch[..n]);
                while let Some(capsule) = capsules.next(&mut input).ok()? {
                    if let Capsule::Close { code, reason } = capsule {
                        return Some(format!("{code} {reason}"));
                    }
                }
            }
        };
        tokio::time::timeout(CLOSE_TIMEOUT, closed).await.ok().flatten()
    }
}

fn close_cause(frame: Option<&CloseFrame>) -> String {
    frame.map_or("closed without a code".into(), |f| format!("{} {}", u16::from(f.code), f.reason))
}

pub fn cause_of(error: &Error) -> String {
    match error {
        Error::Http(response) => format!("HTTP {}", response.status().as_u16()),
        // Of kind "other": what HTTP/2 or HTTP/3 says.
        Error::Io(error) if error.kind() == std::io::ErrorKind::Other => error.to_string(),
        Error::Io(error) => format!("{}", error.kind()),
        other => other.to_string(),
    }
}
