//! What carries an exchange: a connection of HTTP/1, or a stream of HTTP/2 or /3.

use super::http1::Http1;
use crate::forward;
use crate::front::stream::RequestStream;
use crate::front::upgrade::tokens;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use http::{HeaderMap, Response};
use pingora_http::ResponseHeader;
use std::io;

pub enum Carrier {
    Http1(Http1),
    Stream(RequestStream),
    /// It was given up.
    Gone,
}

impl Carrier {
    /// The next piece of the request's body; `None`: its end.
    pub async fn data(&mut self) -> Option<io::Result<Bytes>> {
        match self {
            Carrier::Http1(exchange) => exchange.data().await,
            Carrier::Stream(stream) => stream.data().await,
            Carrier::Gone => Some(gone()),
        }
    }

    /// All of the request's body was read.
    pub fn is_read(&self) -> bool {
        match self {
            Carrier::Http1(exchange) => exchange.is_read(),
            Carrier::Stream(stream) => stream.is_read(),
            Carrier::Gone => true,
        }
    }

    /// Waits until the client has left.
    pub async fn gone(&mut self) {
        match self {
            Carrier::Http1(exchange) => exchange.gone().await,
            Carrier::Stream(stream) => stream.gone().await,
            Carrier::Gone => {}
        }
    }

    /// A head as the server sent it, interim ones too: what is of its connection stops here.
    pub async fn send_head(&mut self, mut head: ResponseHeader, end: bool) -> io::Result<()> {
        // That of servers is gone before: it is an answer of ours that ends the connection.
        let closes = tokens(&head.headers, CONNECTION).any(|token| token == "close");
        for name in forward::of_the_hop(&head.headers) {
            head.remove_header(&name);
        }
        if let Some(length) = forward::one_length(head.status, &head.headers) {
            let _fits = head.insert_header(CONTENT_LENGTH, HeaderValue::from(length));
        } else {
            head.remove_header(&CONTENT_LENGTH);
        }
        match self {
            Carrier::Http1(exchange) => {
                exchange.head(head, end, closes);
                Ok(())
            }
            Carrier::Stream(stream) => {
                let mut response = Response::new(());
                (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers.clone());
                stream.send_head(response, end && !head.status.is_informational()).await
            }
            Carrier::Gone => gone(),
        }
    }

    /// Of the answer's body.
    pub async fn send_data(&mut self, data: Bytes) -> io::Result<()> {
        match self {
            Carrier::Http1(exchange) => exchange.send(data).await,
            Carrier::Stream(stream) => stream.send_data(data, false).await,
            Carrier::Gone => gone(),
        }
    }

    /// The answer's end, with what the server said behind its body.
    pub async fn end(&mut self, trailers: Option<HeaderMap>) -> io::Result<()> {
        match (self, trailers) {
            (Carrier::Http1(exchange), trailers) => exchange.end(trailers.as_ref()),
            (Carrier::Stream(stream), Some(trailers)) => stream.send_trailers(trailers).await,
            (Carrier::Stream(stream), None) => stream.send_data(Bytes::new(), true).await,
            (Carrier::Gone, _) => gone(),
        }
    }

    /// Sends what waits to be sent along with more.
    pub async fn flush(&mut self) -> io::Result<()> {
        match self {
            Carrier::Http1(exchange) => exchange.flush().await,
            // These send as they go.
            Carrier::Stream(_) | Carrier::Gone => Ok(()),
        }
    }

    /// Gives the answer up, in a way that nobody takes for its end. What was sent of it arrives.
    pub fn cut(&mut self) {
        // A connection of HTTP/1 ends with its exchange.
        if let Carrier::Stream(_) = self
            && let Carrier::Stream(stream) = std::mem::replace(self, Carrier::Gone)
        {
            stream.cut();
        }
    }
}

fn gone<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotConnected.into())
}
