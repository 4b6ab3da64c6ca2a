//! A proxy on a port of its own, and servers behind it.
#![allow(dead_code)] // each test binary uses its part

#[path = "front.rs"]
mod primitives;

pub use primitives::{HANGS, head, listener, rest};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use weir_conf::{Sources, load};
use weir_core::drain::Drain;
use weir_proxy::{Inherited, Proxy};

pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

pub struct Front {
    pub addr: SocketAddr,
    pub drain: Drain,
    registry: Registry,
    _ended: JoinHandle<std::io::Result<()>>,
}

/// A proxy with this conf below `[proxy]`, in which APP stands for the servers of an upstream.
pub fn front(servers: &[SocketAddr], conf: &str) -> Front {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let conf = conf.replace("APP", &format!("{servers:?}"));
    let text = format!(
        "roles = [\"proxy\"]\n[proxy]\nlisten = \"127.0.0.1:0\"\nthreads = 1\nhandshake_rate = \"0/s\"\n\
         max_connections_per_ip = 0\n{conf}"
    );
    let conf = load(&Sources::new().text("test", text)).unwrap_or_else(|errors| panic!("{errors}")).config;
    let mut registry = Registry::default();
    let proxy = Proxy::bind(&conf.proxy, None, &mut registry, Inherited::new()).unwrap();
    let addr = proxy.local_addrs()[0];
    let drain = Drain::new();
    let ended = tokio::spawn(proxy.run(drain.clone()));
    Front { addr, drain, registry, _ended: ended }
}

impl Front {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// A request whose connection ends with its answer.
    pub async fn ask(&self, line: &str, fields: &str) -> String {
        self.raw(&format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")).await
    }

    /// Sends it and reads until the proxy closes.
    pub async fn raw(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        rest(&mut client).await
    }

    /// The head of the answer to a handshake, and the connection.
    pub async fn upgrade(&self, path: &str, fields: &str) -> (String, TcpStream) {
        let mut client = self.connect().await;
        client.write_all(handshake(path, fields).as_bytes()).await.unwrap();
        (head(&mut client).await, client)
    }

    /// All metrics as they are scraped.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

pub fn handshake(path: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

/// Aborted, it is gone with all its connections.
pub fn server_on(listener: TcpListener) -> JoinHandle<()> {
    let name = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            open.spawn(serve(tcp, name));
        }
    })
}

/// Tells its port in `X-Server`. It switches, and then tells the head that it got; other requests get it as
/// the body. `/refuse` is refused.
pub async fn server() -> SocketAddr {
    let (listener, addr) = listener().await;
    server_on(listener);
    addr
}

async fn serve(mut tcp: TcpStream, name: u16) {
    let mut first = [0];
    while let Ok(1) = tcp.read(&mut first).await {
        let seen = format!("{}{}", char::from(first[0]), head(&mut tcp).await);
        let answer = if seen.contains("/refuse ") {
            format!(
                "HTTP/1.1 403 Forbidden\r\nX-Server: {name}\r\nX-Powered-By: x\r\nContent-Length: 0\r\n\r\n"
            )
        } else if seen.contains("Upgrade: websocket") {
            format!("{SWITCH}X-Server: {name}\r\nX-Powered-By: x\r\n\r\n{seen}")
        } else {
            let length = seen.len();
            format!(
                "HTTP/1.1 200 OK\r\nX-Server: {name}\r\nX-Powered-By: x\r\nContent-Length: {length}\r\n\r\n{seen}"
            )
        };
        if tcp.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The value of a header in the text of an answer.
pub fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    let pairs = head.lines().filter_map(|line| line.split_once(": "));
    pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

pub fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}
