//! A small HTTP client: one request a connection, every byte under control.

use crate::within;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    pub fn parse(bytes: &[u8]) -> Response {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP head: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
        let headers: Vec<_> =
            lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let mut response = Response {
            status: status.unwrap_or_else(|| panic!("no status: {text:?}")),
            headers,
            body: body.to_owned(),
        };
        if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            response.body = dechunk(body);
        }
        response
    }
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|e| panic!("chunk size {size:?}: {e}"));
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub async fn get(addr: SocketAddr, path: &str) -> Response {
    raw(addr, format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// Sends these bytes and reads the answer to its end.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> Response {
    try_raw(addr, bytes).await.unwrap_or_else(|e| panic!("{addr}: {e}"))
}

pub async fn try_raw(addr: SocketAddr, bytes: &[u8]) -> std::io::Result<Response> {
    let what = format!("answer of {addr}");
    within(&what, async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(bytes).await?;
        let answer = read_answer(&mut stream).await?;
        if answer.is_empty() {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "closed without an answer"));
        }
        Ok(Response::parse(&answer))
    })
    .await
}

/// To the end of the stream, or of the body where the head gives its length.
async fn read_answer(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length.is_some_and(|length| answer.len() >= end + 4 + length)
                || head.starts_with("http/1.1 101")
            {
                return Ok(answer);
            }
        }
        // A reset after the answer is as good as its end.
        match stream.read_buf(&mut answer).await {
            Ok(0) => return Ok(answer),
            Ok(_) => {}
            Err(_) if !answer.is_empty() => return Ok(answer),
            Err(e) => return Err(e),
        }
    }
}

/// The server HTTP API of a node.
#[derive(Clone)]
pub struct Api {
    pub addr: SocketAddr,
    pub key: String,
}

impl Api {
    /// The whole answer, `result` or `error`.
    pub async fn call(&self, method: &str, request: &Value) -> Value {
        let response = self.post(method, &request.to_string()).await;
        assert_eq!(response.status, 200, "api {method}: {response:?}");
        response.json()
    }

    /// The result; an error fails the test.
    pub async fn ok(&self, method: &str, request: Value) -> Value {
        let mut answer = self.call(method, &request).await;
        assert!(answer.get("result").is_some(), "api {method} {request}: {answer}");
        answer["result"].take()
    }

    pub async fn post(&self, method: &str, body: &str) -> Response {
        let Api { addr, key } = self;
        let head = format!(
            "POST /api/{method} HTTP/1.1\r\nHost: {addr}\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        raw(*addr, (head + body).as_bytes()).await
    }

    pub async fn publish(&self, channel: &str, data: Value) -> Value {
        self.ok("publish", serde_json::json!({"channel": channel, "data": data})).await
    }
}
