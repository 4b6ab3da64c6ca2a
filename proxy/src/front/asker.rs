//! Whoever asked, and how the answer gets there: a connection of HTTP/1 that serves one request at a time, or a
//! stream of HTTP/2 or /3. From here on nobody asks which.

use super::arrive::{Link, Secured};
use super::stream::RequestStream;
use crate::answer::{self, ToHead};
use crate::client::session::SessionStream;
use crate::client::{Client, ClientStream};
use crate::forward;
use crate::local::Handed;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::{HeaderMap, Response, StatusCode};
use std::io;
use std::sync::Arc;
use tokio::time::timeout;
use weir_core::accept::Stream;

pub struct Asker {
    pub by: By,
    pub tls: Option<Arc<Secured>>,
}

#[derive(Debug)]
pub enum By {
    Connection(Client),
    Stream(RequestStream),
}

impl Asker {
    pub fn new(by: By, link: &Link) -> Asker {
        Asker { by, tls: link.tls.clone() }
    }

    /// Waits until the client has left.
    pub async fn gone(&mut self) {
        match &mut self.by {
            By::Connection(client) => client.gone().await,
            By::Stream(stream) => stream.gone().await,
        }
    }

    /// The whole answer, the last that this asker gets. `patient`: a connection, which ends with it, is read on
    /// for a moment, so that the answer is not lost with what the client still sends.
    pub async fn answer(self, mut response: Response<Bytes>, patient: bool) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            tls.tell(response.headers_mut());
        }
        match self.by {
            By::Connection(client) => {
                let (mut stream, _dies_here) = client.into_parts();
                match patient {
                    true => answer::send_and_close(&mut stream, response).await,
                    false => answer::send(&mut stream, response).await,
                }
            }
            By::Stream(stream) => {
                timeout(answer::WRITE_TIMEOUT, send(stream, response)).await.unwrap_or_else(|_| timed_out())
            }
        }
    }

    /// The same for the node of this process, which also takes sessions of WebTransport.
    pub async fn hand_over(self, mut headers: HeaderMap) -> io::Result<Box<dyn Stream>> {
        match self {
            Asker { by: By::Stream(RequestStream::H3(stream)), tls } if stream.is_session() => {
                if let Some(tls) = &tls {
                    tls.tell(&mut headers);
                }
                let accepting = timeout(answer::WRITE_TIMEOUT, stream.accept_session(headers)).await;
                Ok(Box::new(accepting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?))
            }
            other => {
                let (stream, ahead) = other.switch(headers).await?;
                Ok(Box::new(Handed { stream, ahead }))
            }
        }
    }

    /// The answer to a handshake: from here on the bytes are the WebSocket's, or the session's. With what the client has sent of
    /// them already.
    pub async fn switch(self, mut headers: HeaderMap) -> io::Result<(ClientStream, Bytes)> {
        if let Some(tls) = &self.tls {
            tls.tell(&mut headers);
        }
        match self.by {
            By::Connection(client) => {
                forward::mark_upgrade(&mut headers);
                let mut out = answer::status_line(StatusCode::SWITCHING_PROTOCOLS);
                forward::write_headers(&headers, &mut out);
                out.extend_from_slice(b"\r\n");
                let (mut stream, ahead) = client.into_parts();
                answer::write(&mut stream, &out).await?;
                Ok((stream, ahead))
            }
            By::Stream(RequestStream::H3(stream)) if stream.is_session() => {
                forward::rewrite_response(&mut headers);
                let accepting = timeout(answer::WRITE_TIMEOUT, stream.accept_session(headers)).await;
                let stream = accepting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
                Ok((ClientStream::Session(Box::new(SessionStream::new(stream))), Bytes::new()))
            }
            By::Stream(mut stream) => {
                // RFC 8441, 5: status 200, and nothing of the key.
                forward::rewrite_response(&mut headers);
                headers.remove(SEC_WEBSOCKET_ACCEPT);
                let mut head = Response::new(());
                *head.headers_mut() = headers;
                let sent = timeout(answer::WRITE_TIMEOUT, stream.send_head(head, false)).await;
                sent.unwrap_or_else(|_| timed_out())?;
                Ok((ClientStream::Stream(Box::new(stream)), Bytes::new()))
            }
        }
    }
}

fn timed_out() -> io::Result<()> {
    Err(io::ErrorKind::TimedOut.into())
}

async fn send(mut stream: RequestStream, response: Response<Bytes>) -> io::Result<()> {
    let (mut parts, body) = response.into_parts();
    forward::rewrite_response(&mut parts.headers);
    let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match bodiless {
        true => parts.headers.remove(CONTENT_LENGTH),
        false => parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len())),
    };
    let end = bodiless || body.is_empty() || parts.extensions.get::<ToHead>().is_some();
    let mut head = Response::new(());
    (*head.status_mut(), *head.headers_mut()) = (parts.status, parts.headers);
    stream.send_head(head, end).await?;
    if end { Ok(()) } else { stream.send_data(body, true).await }
}
