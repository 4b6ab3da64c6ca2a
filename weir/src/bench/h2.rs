//! WebSockets over HTTP/2: a connection, and its streams as tunnels (RFC 8441).

use super::dial::Target;
use bytes::{Buf, Bytes};
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Version};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const SETTINGS_TIMEOUT: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

pub struct Connection(SendRequest<Bytes>);

impl Connection {
    /// For so many streams.
    pub async fn open(stream: TlsStream<TcpStream>, streams: usize) -> Result<Connection, String> {
        let (send, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|e| e.to_string())?;
        // Its end is told to every stream.
        tokio::spawn(connection);
        let offered = async {
            // The crate tells of the setting, but not of when settings came.
            while !send.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(SETTINGS_TIMEOUT, offered)
            .await
            .map_err(|_| "the server does not offer WebSockets over HTTP/2")?;
        let most = send.current_max_send_streams();
        if most < streams {
            return Err(format!("the server takes {most} streams per connection, not {streams}"));
        }
        Ok(Connection(send))
    }

    pub async fn websocket(&self, target: &Target) -> Result<Tunnel, String> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .version(Version::HTTP_2)
            .uri(target.https()?)
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(())
            .map_err(|e| e.to_string())?;
        let mut sender = self.0.clone().ready().await.map_err(|e| e.to_string())?;
        let (response, send) = sender.send_request(request, false).map_err(|e| e.to_string())?;
        let response = response.await.map_err(|e| e.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("HTTP {}", response.status().as_u16()));
        }
        Ok(Tunnel { send, recv: response.into_body(), ahead: Bytes::new() })
    }
}

/// A stream after the answer: bytes both ways.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    ahead: Bytes,
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.ahead = data,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..length]);
        self.ahead.advance(length);
        self.recv.flow_control().release_capacity(length).map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(buf.len());
        while self.send.capacity() == 0 && !buf.is_empty() {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = buf.len().min(self.send.capacity());
        let data = Bytes::copy_from_slice(&buf[..length]);
        self.send.send_data(data, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
