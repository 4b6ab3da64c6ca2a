//! How clients reach the system: each transport opens a [`Socket`] for JSON messages. HTTP/2 and HTTP/3 share a
//! connection among `--streams-per-connection` clients, in the order in which they come.

use super::BenchArgs;
use super::socket::{Bytestream, Lines, Socket};
use super::{h2, h3, tls};
use clap::ValueEnum;
use http::Uri;
use rustls::pki_types::ServerName;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// WebSocket over HTTP/1.1
    H1,
    /// WebSocket over HTTP/2 (RFC 8441)
    H2,
    /// WebSocket over HTTP/3 (RFC 9220)
    H3,
    /// WebTransport over HTTP/3
    Webtransport,
}

impl Transport {
    fn alpn(self) -> &'static [u8] {
        match self {
            Transport::H1 => b"http/1.1",
            Transport::H2 => b"h2",
            Transport::H3 | Transport::Webtransport => b"h3",
        }
    }

    /// A browser shares a connection of HTTP/2 among its tabs; most have one.
    pub fn streams_per_connection(self) -> usize {
        match self {
            Transport::H2 => 100,
            Transport::H1 | Transport::H3 | Transport::Webtransport => 1,
        }
    }
}

/// A URL, taken apart.
pub struct Target {
    pub uri: Uri,
    pub host: String,
    pub port: u16,
    secure: bool,
}

impl Target {
    pub fn new(url: &str, transport: Transport) -> Result<Target, String> {
        let uri: Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
        let secure = match (uri.scheme_str(), transport) {
            (Some("ws"), Transport::H1) => false,
            (Some("wss"), _) | (Some("https"), Transport::Webtransport) => true,
            (_, Transport::H1) => return Err(format!("{url}: ws:// or wss:// is spoken")),
            (_, Transport::Webtransport) => {
                return Err(format!("{url}: WebTransport wants https:// or wss://"));
            }
            _ => return Err(format!("{url}: HTTP/2 and HTTP/3 want wss://")),
        };
        let host = uri.host().ok_or_else(|| format!("{url}: no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Target { uri, host, port, secure })
    }

    pub async fn addr(&self) -> Result<SocketAddr, String> {
        resolve(&self.host, self.port).await
    }

    /// Whether it asks the node for publications as datagrams.
    fn datagrams(&self) -> bool {
        self.uri.query().is_some_and(|query| query.split('&').any(|part| part == "cf_datagrams=true"))
    }

    /// As HTTP/2 and /3 have it: the scheme is that of HTTP.
    pub fn https(&self) -> Result<Uri, String> {
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
        format!("https://{authority}{path}").parse().map_err(|e| format!("{}: {e}", self.uri))
    }
}

/// What every `per`-th client opens for those that follow.
type Pool<C> = RefCell<HashMap<(usize, usize), Rc<OnceCell<Rc<C>>>>>;

/// Opens the connections of one thread.
pub struct Dialer {
    transport: Transport,
    targets: Vec<Target>,
    tls: Arc<rustls::ClientConfig>,
    per: usize,
    /// Clients so far, by URL.
    opened: RefCell<HashMap<usize, usize>>,
    h2: Pool<h2::Connection>,
    h3: Pool<h3::Connection>,
}

impl Dialer {
    pub fn new(args: &BenchArgs) -> Result<Dialer, String> {
        let transport = args.transport;
        let targets: Vec<_> =
            args.urls.iter().map(|url| Target::new(url, transport)).collect::<Result<_, _>>()?;
        let per = args.streams_per_connection.unwrap_or(transport.streams_per_connection());
        if per > 1 && targets.iter().any(Target::datagrams) {
            return Err("datagrams are told apart by connections: --streams-per-connection 1".into());
        }
        let tls = tls::client(args.insecure, args.ca.as_deref(), transport.alpn())?;
        Ok(Dialer {
            transport,
            targets,
            tls: Arc::new(tls),
            per,
            opened: RefCell::default(),
            h2: RefCell::default(),
            h3: RefCell::default(),
        })
    }

    /// Opens a socket to the URL of this number; `source` is the address that a new connection comes from.
    pub async fn open(&self, url: usize, source: Option<Ipv4Addr>) -> Result<Socket, String> {
        let target = &self.targets[url];
        match self.transport {
            Transport::H1 => self.open_h1(target, source).await,
            Transport::H2 => {
                let cell = slot(&self.h2, self.place(url));
                let open = || async {
                    let stream = self.tls(target, self.tcp(target, source).await?).await?;
                    Ok::<_, String>(Rc::new(h2::Connection::open(stream, self.per).await?))
                };
                let stream = cell.get_or_try_init(open).await?.websocket(target).await?;
                Ok(websocket(Box::new(stream)).await)
            }
            Transport::H3 => {
                let conn = self.h3(url, source).await?;
                let stream = conn.connect(target, "websocket").await?;
                Ok(websocket(Box::new(stream)).await)
            }
            Transport::Webtransport => {
                let conn = self.h3(url, source).await?;
                let session = conn.connect(target, weir_h3::webtransport::PROTOCOL).await?;
                Ok(Socket::Lines(Box::new(Lines::open(session, target.datagrams()).await?)))
            }
        }
    }

    async fn h3(&self, url: usize, source: Option<Ipv4Addr>) -> Result<Rc<h3::Connection>, String> {
        let cell = slot(&self.h3, self.place(url));
        let open = || async {
            Ok::<_, String>(Rc::new(
                h3::Connection::open(&self.targets[url], source, self.tls.clone()).await?,
            ))
        };
        cell.get_or_try_init(open).await.cloned()
    }

    /// The connection of the next client of this URL.
    fn place(&self, url: usize) -> (usize, usize) {
        let mut opened = self.opened.borrow_mut();
        let n = opened.entry(url).or_default();
        *n += 1;
        (url, (*n - 1) / self.per)
    }

    async fn open_h1(&self, target: &Target, source: Option<Ipv4Addr>) -> Result<Socket, String> {
        let uri = target.uri.to_string();
        let request = uri.as_str().into_client_request().map_err(|e| format!("{uri}: {e}"))?;
        let stream = self.tcp(target, source).await?;
        let stream: Box<dyn Bytestream> = match target.secure {
            true => Box::new(self.tls(target, stream).await?),
            false => Box::new(stream),
        };
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config()))
            .await
            .map_err(|e| super::socket::cause_of(&e))?;
        Ok(Socket::WebSocket(Box::new(socket)))
    }

    async fn tcp(&self, target: &Target, source: Option<Ipv4Addr>) -> Result<TcpStream, String> {
        open(target.addr().await?, source).await.map_err(|e| format!("connect: {}", e.kind()))
    }

    async fn tls(&self, target: &Target, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(target.host.clone()).map_err(|e| format!("{}: {e}", target.host))?;
        let connecting = TlsConnector::from(self.tls.clone()).connect(name, stream);
        let stream = connecting.await.map_err(|e| format!("TLS: {e}"))?;
        let chosen = stream.get_ref().1.alpn_protocol();
        // Servers without ALPN speak HTTP/1.1.
        if chosen != Some(self.transport.alpn()) && (chosen.is_some() || self.transport != Transport::H1) {
            return Err("TLS: the server does not speak this version of HTTP".into());
        }
        Ok(stream)
    }

    /// Tells servers that the connections end; TCP tells by itself.
    pub async fn close(&self) {
        let connections: Vec<_> = self.h3.borrow().values().filter_map(|c| c.get().cloned()).collect();
        for connection in &connections {
            connection.close();
        }
        for connection in connections {
            connection.idle().await;
        }
    }
}

fn slot<C>(pool: &Pool<C>, place: (usize, usize)) -> Rc<OnceCell<Rc<C>>> {
    pool.borrow_mut().entry(place).or_default().clone()
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(4096)
}

async fn websocket(stream: Box<dyn Bytestream>) -> Socket {
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config())).await;
    Socket::WebSocket(Box::new(socket))
}

pub async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|e| format!("{host}: {e}"))?;
    found.next().ok_or_else(|| format!("{host}: no address"))
}

pub async fn open(addr: SocketAddr, source: Option<Ipv4Addr>) -> std::io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let (Some(source), IpAddr::V4(ip)) = (source, addr.ip())
        && ip.is_loopback()
    {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let stream = socket.connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A loopback address of its own for each client: 127.16.0.1 and up.
pub fn source_of(index: usize) -> Ipv4Addr {
    let host = 0x7f10_0001_u32 + (index % 0x0e_0000) as u32;
    Ipv4Addr::from_bits(host)
}
