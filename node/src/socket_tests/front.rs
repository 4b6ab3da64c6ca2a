//! A front of this process, in short: what the proxy is to the node.

use super::*;
use bytes::Bytes;
use http::HeaderMap;
use std::sync::Mutex;
use weir_core::accept::{Exchange, ExchangeFuture, NoDatagram, Request, Session, Stream, Transport};
use weir_core::sync::lock;
use weir_wire::id::ConnId;

/// Hands over one end of what it holds.
struct Front {
    stream: Mutex<Option<Box<dyn Stream>>>,
    answer: tokio::sync::oneshot::Sender<Result<HeaderMap, http::Response<Bytes>>>,
}

impl Exchange for Front {
    fn accept(self: Box<Self>, headers: HeaderMap) -> ExchangeFuture<Box<dyn Stream>> {
        let _ = self.answer.send(Ok(headers));
        let stream = lock(&self.stream).take().unwrap();
        Box::pin(async { Ok(stream) })
    }

    fn refuse(self: Box<Self>, response: http::Response<Bytes>) -> ExchangeFuture<()> {
        let _ = self.answer.send(Err(response));
        Box::pin(async { Ok(()) })
    }
}

pub struct Tcp(pub TcpStream);

/// With nothing of a socket about it.
pub struct Pipe(pub tokio::io::DuplexStream);

/// The stream of a session.
pub struct OfSession(pub tokio::io::DuplexStream, pub Arc<Fake>);

/// A session of WebTransport that writes down what is asked of it.
pub struct Fake {
    pub datagrams: Mutex<Vec<Bytes>>,
    /// What becomes of datagrams.
    pub answer: Mutex<Result<(), NoDatagram>>,
    pub closed: tokio::sync::watch::Sender<Option<(u32, String)>>,
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        Arc::new(Fake {
            datagrams: Mutex::default(),
            answer: Mutex::new(Ok(())),
            closed: tokio::sync::watch::Sender::default(),
        })
    }
}

impl Session for Fake {
    fn send_datagram(&self, datagram: Bytes) -> Result<(), NoDatagram> {
        (*lock(&self.answer))?;
        lock(&self.datagrams).push(datagram);
        Ok(())
    }

    fn close(&self, code: u32, reason: &str) {
        self.closed.send_replace(Some((code, reason.to_owned())));
    }
}

macro_rules! bytes_of {
    ($name:ident, $self:ident => $into:expr, $session:expr) => {
        impl tokio::io::AsyncRead for $name {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
            }
        }
        impl tokio::io::AsyncWrite for $name {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
            }
            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.0).poll_flush(cx)
            }
            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
            }
        }
        impl Stream for $name {
            fn into_tcp($self: Box<Self>) -> Result<(TcpStream, Bytes), Box<dyn Stream>> {
                $into
            }
            fn session(&self) -> Option<Arc<dyn Session>> {
                $session(self)
            }
        }
    };
}

bytes_of!(Tcp, self => Ok((self.0, Bytes::new())), |_| None);
bytes_of!(Pipe, self => Err(self), |_| None);
bytes_of!(OfSession, self => Err(self), |of: &OfSession| Some(of.1.clone() as Arc<dyn Session>));

pub fn head(path: &str) -> http::request::Parts {
    let request = http::Request::get(path)
        .header("host", "x")
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    request.body(()).unwrap().into_parts().0
}

pub(super) async fn bring(
    server: &Server,
    transport: Transport,
    head: http::request::Parts,
    stream: Box<dyn Stream>,
) -> (Result<HeaderMap, http::Response<Bytes>>, Arc<()>) {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let permit = Arc::new(());
    server.acceptor.accept(Request {
        transport,
        head,
        client: "9.9.9.9".parse().unwrap(),
        conn: ConnId::from_random(1),
        exchange: Box::new(Front { stream: Mutex::new(Some(stream)), answer }),
        permit: Box::new(permit.clone()),
    });
    (tokio::time::timeout(PATIENCE, answered).await.expect("an answer").unwrap(), permit)
}
