//! A proxy, its servers and its clients, for tests over sockets.
#![allow(dead_code, clippy::unwrap_used)]

use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weir_conf::proxy::{Proxy as Conf, Route, Upstream};
use weir_core::drain::Drain;
use weir_proxy::{Inherited, LocalNode, Proxy};

pub const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    X-Forwarded-For: 6.6.6.6\r\nX-Request-Id: forged\r\n\r\n";
pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Nothing here takes so long unless it hangs.
pub const HANGS: Duration = Duration::from_secs(20);

pub struct Front {
    pub addr: SocketAddr,
    pub drain: Drain,
    pub ended: JoinHandle<std::io::Result<()>>,
    registry: Registry,
}

pub fn front(servers: &[SocketAddr], change: impl FnOnce(&mut Conf)) -> Front {
    front_with(servers, None, change)
}

pub fn front_with(servers: &[SocketAddr], node: Option<LocalNode>, change: impl FnOnce(&mut Conf)) -> Front {
    let mut conf = weir_conf::Config::default().proxy;
    conf.listen = vec!["127.0.0.1:0".parse().unwrap()];
    conf.threads = 1;
    conf.handshake_rate = None;
    conf.max_connections_per_ip = 0;
    conf.upstream.clear();
    let to = if servers.is_empty() { "node" } else { "app" };
    if !servers.is_empty() {
        conf.upstream.insert("app".into(), Upstream::of(servers.iter().map(ToString::to_string)));
    }
    conf.route = vec![Route { host: vec!["a".into()], ..Route::to(to) }];
    change(&mut conf);
    let mut registry = Registry::default();
    let proxy = Proxy::bind(&conf, node, &mut registry, Inherited::new()).unwrap();
    let addr = proxy.local_addrs()[0];
    let drain = Drain::new();
    let ended = tokio::spawn(proxy.run(drain.clone()));
    Front { addr, drain, ended, registry }
}

impl Front {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// A tunnel.
    pub async fn open(&self) -> TcpStream {
        let mut client = self.connect().await;
        client.write_all(UPGRADE.as_bytes()).await.unwrap();
        assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
        client
    }

    /// Sends it and reads until the proxy closes.
    pub async fn ask(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        rest(&mut client).await
    }
}

pub async fn rest(from: &mut TcpStream) -> String {
    let mut text = String::new();
    timeout(HANGS, from.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

/// A head, and not a byte after it.
pub async fn head(from: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(timeout(HANGS, from.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(text).unwrap()
}

pub async fn exactly(from: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(HANGS, from.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

pub async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Where nobody listens.
pub async fn nowhere() -> SocketAddr {
    listener().await.1
}

/// Switches and echoes; answers anything else with the request's head (and body) as the body.
pub async fn server() -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                loop {
                    let mut seen = head(&mut tcp).await;
                    if seen.contains("Upgrade: websocket") {
                        tcp.write_all(SWITCH.as_bytes()).await.unwrap();
                        let (mut read, mut write) = tcp.split();
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                        return;
                    }
                    if seen.contains("Content-Length: 5\r\n") {
                        seen.push_str(&String::from_utf8(exactly(&mut tcp, 5).await).unwrap());
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}", seen.len());
                    tcp.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    addr
}

/// Gives each connection this answer, and reports what it got besides the head until its end.
pub async fn answers(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let (listener, addr) = listener().await;
    let after_head = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        head(&mut tcp).await;
        tcp.write_all(answer.as_bytes()).await.unwrap();
        rest(&mut tcp).await
    });
    (addr, after_head)
}
