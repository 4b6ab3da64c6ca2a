//! HTTP/3 as a client: a connection, and streams opened by extended CONNECT, which are tunnels for WebSockets
//! (RFC 9220) and the control streams of WebTransport sessions.

use super::dial::Target;
use bytes::Bytes;
use http::{Method, Request};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, RecvStream, SendStream, VarInt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use weir_h3::frame::{self, Frame};
use weir_h3::stream::{self, Uni};
use weir_h3::{Code, Protocol, Settings, head, webtransport};

const SETTINGS_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_SECTION: u32 = 64 * 1024;
/// The largest DATA frame that is written.
const MAX_FRAME: usize = 16 * 1024;

/// With a socket of its own, as if it were another machine's.
pub struct Connection {
    pub quic: quinn::Connection,
    endpoint: Endpoint,
    settings: Settings,
    _control: SendStream,
}

impl Connection {
    pub async fn open(
        target: &Target,
        source: Option<Ipv4Addr>,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, String> {
        let addr = target.addr().await?;
        let from = match (addr.ip(), source) {
            (IpAddr::V4(ip), Some(source)) if ip.is_loopback() => source.into(),
            (IpAddr::V4(_), _) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            (IpAddr::V6(_), _) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let endpoint =
            Endpoint::client(SocketAddr::new(from, 0)).map_err(|e| format!("UDP: {}", e.kind()))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|e| e.to_string())?;
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connecting =
            endpoint.connect_with(config, addr, &target.host).map_err(|e| format!("QUIC: {e}"))?;
        let quic = connecting.await.map_err(|e| format!("QUIC: {e}"))?;
        let mut output = Vec::new();
        Uni::Control.write(&mut output);
        frame::settings(&Settings::new(u64::from(MAX_SECTION)).with_webtransport(1 << 16), &mut output);
        let mut control = quic.open_uni().await.map_err(|e| e.to_string())?;
        control.write_all(&output).await.map_err(|e| e.to_string())?;
        let (found, settings) = oneshot::channel();
        tokio::spawn(accept(quic.clone(), found));
        let settings = match tokio::time::timeout(SETTINGS_TIMEOUT, settings).await {
            Ok(Ok(settings)) => settings,
            _ => return Err("HTTP/3: no settings from the server".into()),
        };
        Ok(Connection { quic, endpoint, settings, _control: control })
    }

    /// Extended CONNECT for this protocol.
    pub async fn connect(self: std::rc::Rc<Self>, target: &Target, protocol: &str) -> Result<Tunnel, String> {
        if !self.settings.enable_connect_protocol {
            return Err("the server does not offer extended CONNECT over HTTP/3".into());
        }
        let mut head = Request::builder().method(Method::CONNECT).uri(target.https()?);
        if let Some(name) = Protocol::new(protocol) {
            head = head.extension(name);
        }
        let (mut head, ()) = head.body(()).map_err(|e| e.to_string())?.into_parts();
        if protocol == webtransport::PROTOCOL {
            if !self.settings.has_webtransport() {
                return Err("the server does not offer WebTransport".into());
            }
            webtransport::ask_draft02(&mut head.headers);
        } else {
            head.headers.insert("sec-websocket-version", http::HeaderValue::from_static("13"));
        }
        let (mut send, recv) = self.quic.open_bi().await.map_err(|e| e.to_string())?;
        let section = head::encode_request(&head).finish();
        send.write_all(&frame::headers(&section)).await.map_err(|e| e.to_string())?;
        let frames = frame::Reader::request(MAX_SECTION);
        let mut tunnel =
            Tunnel { send, recv, frames, ahead: Bytes::new(), out: Bytes::new(), quic: self.quic.clone() };
        tunnel.answer().await?;
        Ok(tunnel)
    }

    pub fn close(&self) {
        self.quic.close(code(Code::H3_NO_ERROR), b"");
    }

    /// Until the server can know of it.
    pub async fn idle(&self) {
        let _else_it_learns_by_its_idle_time =
            tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

fn code(code: Code) -> VarInt {
    VarInt::from_u64(code.0).unwrap_or(VarInt::MAX)
}

/// Reads the server's own streams, none of which may be closed. Gives its settings when they are there.
async fn accept(quic: quinn::Connection, found: oneshot::Sender<Settings>) {
    let mut found = Some(found);
    while let Ok(mut recv) = quic.accept_uni().await {
        let mut start = Bytes::new();
        let kind = loop {
            if let Some(kind) = stream::uni(&mut start) {
                break kind;
            }
            match recv.read_chunk(64, true).await {
                Ok(Some(chunk)) => start = [start, chunk.bytes].concat().into(),
                _ => break Uni::Unknown(0),
            }
        };
        let found = if kind == Uni::Control { found.take() } else { None };
        tokio::spawn(drain(recv, start, found));
    }
}

async fn drain(mut recv: RecvStream, mut ahead: Bytes, mut found: Option<oneshot::Sender<Settings>>) {
    let mut frames = frame::Reader::control();
    loop {
        while found.is_some() {
            match frames.next(&mut ahead, MAX_FRAME) {
                Ok(Some(Frame::Settings(settings))) => {
                    let _given_up = found.take().map(|f| f.send(*settings));
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        match recv.read_chunk(MAX_FRAME, true).await {
            Ok(Some(chunk)) => ahead = chunk.bytes,
            _ => return,
        }
    }
}

/// A stream after the answer: bytes both ways in DATA frames.
pub struct Tunnel {
    pub send: SendStream,
    recv: RecvStream,
    frames: frame::Reader,
    ahead: Bytes,
    /// The rest of a frame that QUIC did not take yet.
    out: Bytes,
    pub quic: quinn::Connection,
}

impl Tunnel {
    async fn answer(&mut self) -> Result<(), String> {
        loop {
            match self.frames.next(&mut self.ahead, MAX_FRAME) {
                Ok(Some(Frame::Headers(section))) => {
                    let head =
                        head::decode_response(&section, MAX_SECTION as usize).map_err(|e| e.to_string())?;
                    if head.status.is_informational() {
                        self.frames.interim();
                        continue;
                    }
                    if head.status != http::StatusCode::OK {
                        return Err(format!("HTTP {}", head.status.as_u16()));
                    }
                    self.frames.tunnel();
                    return Ok(());
                }
                Ok(Some(_)) => {}
                Ok(None) => match self.recv.read_chunk(MAX_FRAME, true).await {
                    Ok(Some(chunk)) => self.ahead = chunk.bytes,
                    Ok(None) => return Err("stream ended before an answer".into()),
                    Err(error) => return Err(error.to_string()),
                },
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let sent = ready!(Pin::new(&mut self.send).poll_write(cx, &self.out))?;
            let _sent = self.out.split_to(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.frames.next(&mut this.ahead, buf.remaining()) {
                Ok(Some(Frame::Data(data))) => {
                    buf.put_slice(&data);
                    return Poll::Ready(Ok(()));
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    let mut scratch = [0; 4096];
                    match ready!(this.recv.poll_read(cx, &mut scratch))? {
                        0 => return Poll::Ready(Ok(())),
                        n => this.ahead = Bytes::copy_from_slice(&scratch[..n]),
                    }
                }
                Err(error) => return Poll::Ready(Err(io::Error::other(error.to_string()))),
            }
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        let length = buf.len().min(MAX_FRAME);
        if length > 0 {
            let mut output = Vec::with_capacity(length + 8);
            frame::data_header(length, &mut output);
            output.extend_from_slice(&buf[..length]);
            self.out = output.into();
            if let Poll::Ready(Err(error)) = self.poll_out(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        let _already_finished = self.send.finish();
        Poll::Ready(Ok(()))
    }
}
