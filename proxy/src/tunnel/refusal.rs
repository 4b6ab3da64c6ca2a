//! An ordinary answer to a handshake on its way to the client: passed on as it comes, since an event stream that was
//! asked for as a WebSocket has no end.

use super::answer::{Body, ReadError};
use crate::answer;
use crate::client::ClientStream;
use crate::forward;
use crate::front::asker::{Asker, By};
use crate::front::stream::RequestStream;
use crate::upstream::ServerStream;
use crate::upstream::attempt::Permit;
use bytes::{Bytes, BytesMut};
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Response};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// The rest of a short answer is waited for so long, so that its length can be told; most come in one piece.
const WHOLE: Duration = Duration::from_millis(50);

pub struct Refusal {
    head: Response<()>,
    body: Body,
    server: ServerStream,
    /// It holds its place at the server as long as it lasts.
    _permit: Option<Permit>,
    /// When it ends, whatever is still to come: who asked for a WebSocket has no use for more.
    until: Instant,
}

/// How far its body has come within a moment.
enum Begun {
    Whole(Bytes),
    /// There is more to come.
    Part(Bytes),
    /// It broke off.
    Broken,
}

impl Refusal {
    pub fn new(
        response: Response<Body>,
        server: ServerStream,
        permit: Option<Permit>,
        lasts: Duration,
    ) -> Refusal {
        let (parts, body) = response.into_parts();
        Refusal {
            head: Response::from_parts(parts, ()),
            body,
            server,
            _permit: permit,
            until: Instant::now() + lasts,
        }
    }

    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.head.headers_mut()
    }

    /// To the client; the last that it gets. What came before the server broke off is delivered.
    pub async fn pass_on(mut self, asker: Asker) -> io::Result<()> {
        let begun = match self.begin().await {
            Begun::Whole(body) => {
                let response = std::mem::replace(&mut self.head, Response::new(())).map(|()| body);
                return asker.answer(response, true).await;
            }
            Begun::Broken => return asker.answer(answer::response(502, None), true).await,
            Begun::Part(begun) => begun,
        };
        if let Some(tls) = &asker.tls {
            tls.tell(self.head.headers_mut());
        }
        forward::rewrite_response(self.head.headers_mut());
        match asker.by {
            By::Connection(client) => self.send_to_connection(client.into_parts().0, begun).await,
            By::Stream(stream) => self.send_to_stream(stream, begun).await,
        }
    }

    /// Ends with the connection, in a way that clients of any age understand.
    async fn send_to_connection(mut self, mut client: ClientStream, begun: Bytes) -> io::Result<()> {
        self.head.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let mut out = answer::status_line(self.head.status());
        forward::write_headers(self.head.headers(), &mut out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&begun);
        answer::write(&mut client, &out).await?;
        while let Ok(Some(piece)) = self.next().await {
            answer::write(&mut client, &piece).await?;
        }
        answer::linger(&mut client).await;
        Ok(())
    }

    async fn send_to_stream(mut self, mut client: RequestStream, begun: Bytes) -> io::Result<()> {
        let head = std::mem::replace(&mut self.head, Response::new(()));
        in_time(client.send_head(head, false)).await?;
        let mut next = Ok(Some(begun));
        loop {
            match next {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => in_time(client.send_data(piece, false)).await?,
                Ok(None) => return in_time(client.send_data(Bytes::new(), true)).await,
                Err(_) => {
                    client.reset();
                    return Ok(());
                }
            }
            next = self.next().await;
        }
    }

    async fn begin(&mut self) -> Begun {
        let (mut begun, moment) = (BytesMut::new(), Instant::now() + WHOLE);
        loop {
            match timeout_at(moment, self.body.next(&mut self.server)).await {
                Ok(Ok(Some(piece))) => begun.extend_from_slice(&piece),
                Ok(Ok(None)) => return Begun::Whole(begun.freeze()),
                Ok(Err(_)) if begun.is_empty() => return Begun::Broken,
                // What came is delivered; it breaks off where it did.
                Ok(Err(_)) | Err(_) => return Begun::Part(begun.freeze()),
            }
        }
    }

    /// The next piece; `None`: the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let piece = timeout_at(self.until, self.body.next(&mut self.server)).await;
        piece.unwrap_or(Err(ReadError::TooLarge))
    }
}

async fn in_time(sending: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(answer::WRITE_TIMEOUT, sending).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
