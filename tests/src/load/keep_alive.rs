//! A connection to a node's API that is kept: hundreds of calls a second would use up the ports otherwise.

use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const CONNECT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub enum Failed {
    /// Nothing was sent.
    NotSent(&'static str),
    /// Whether it was taken is not known.
    Unknown(&'static str),
}

pub struct KeepAlive {
    addr: SocketAddr,
    api_key: String,
    /// Longer than the node's own deadline for a call, so that it is the node's word that counts.
    deadline: Duration,
    stream: Option<TcpStream>,
}

impl KeepAlive {
    pub fn to(addr: SocketAddr, api_key: &str, deadline: Duration) -> KeepAlive {
        KeepAlive { addr, api_key: api_key.to_owned(), deadline, stream: None }
    }

    /// The whole answer, `result` or `error`.
    pub async fn call(&mut self, method: &str, request: &Value) -> Result<Value, Failed> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => match timeout(CONNECT, TcpStream::connect(self.addr)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(_)) => return Err(Failed::NotSent("not connected")),
                Err(_) => return Err(Failed::NotSent("no connection in time")),
            },
        };
        let _slower_without = stream.set_nodelay(true);
        let body = request.to_string();
        let head = format!(
            "POST /api/{method} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.addr,
            self.api_key,
            body.len()
        );
        let exchange = async {
            stream.write_all((head + &body).as_bytes()).await?;
            read_answer(&mut stream).await
        };
        match timeout(self.deadline, exchange).await {
            Ok(Ok((200, body))) => {
                self.stream = Some(stream);
                serde_json::from_slice(&body).map_err(|_| Failed::Unknown("no JSON"))
            }
            Ok(Ok(_)) => Err(Failed::Unknown("status")),
            Ok(Err(_)) => Err(Failed::Unknown("connection lost")),
            Err(_) => Err(Failed::Unknown("no answer in time")),
        }
    }
}

/// Status and body; the length must be told.
async fn read_answer(stream: &mut TcpStream) -> std::io::Result<(u16, Vec<u8>)> {
    let bad = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status"))?;
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.ok_or_else(|| bad("no length"))?;
    let mut body = bytes.split_off(end);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((status, body))
}
