//! Reads requests off a connection: strictly, so that nothing ambiguous passes for one.

use super::{Note, find};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub struct Wire {
    pub tcp: TcpStream,
    pub bytes: Vec<u8>,
}

impl Wire {
    pub async fn fill(&mut self) -> bool {
        matches!(self.tcp.read_buf(&mut self.bytes).await, Ok(1..))
    }

    /// So many bytes, taken off.
    async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < n {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.bytes.drain(..n).collect())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.bytes, b"\r\n") {
                let line = self.take(end + 2).await?;
                return String::from_utf8(line[..end].to_vec()).ok();
            }
            if !self.fill().await {
                return None;
            }
        }
    }
}

pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

#[derive(Clone, Copy)]
pub enum Framing {
    Length(usize),
    Chunked,
}

/// `None`: this head could be read in more than one way.
pub fn framing(head: &[u8]) -> Option<Framing> {
    let text = latin1(head);
    let mut lines = text.strip_suffix("\r\n")?.split("\r\n");
    let first = lines.next()?;
    let target = first.strip_suffix(" HTTP/1.1").or_else(|| first.strip_suffix(" HTTP/1.0"))?;
    let (_, target) = target.split_once(' ')?;
    if target.contains(|c: char| c <= ' ' || c == '\x7f') {
        return None;
    }
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) || value.contains(['\r', '\n', '\0']) {
            return None;
        }
        match name.to_ascii_lowercase().replace('_', "-").as_str() {
            "content-length" => lengths.push(value.trim().to_owned()),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            _ => {}
        }
    }
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Some(Framing::Length(0)),
        ([n], []) if n.bytes().all(|b| b.is_ascii_digit()) => Some(Framing::Length(n.parse().ok()?)),
        ([], [coding]) if coding == "chunked" => Some(Framing::Chunked),
        _ => None,
    }
}

/// Whether it came whole.
pub async fn body(wire: &mut Wire, framing: Framing, note: &Note<'_>) -> bool {
    let whole = match framing {
        Framing::Length(n) => wire.take(n).await.map(|b| note.request(|r| r.body = b)),
        Framing::Chunked => chunks(wire, note).await,
    };
    note.request(|r| r.whole = whole.is_some());
    if whole.is_none() {
        note.request(|r| r.body.append(&mut wire.bytes));
    }
    whole.is_some()
}

async fn chunks(wire: &mut Wire, note: &Note<'_>) -> Option<()> {
    loop {
        let line = wire.line().await?;
        let size = usize::from_str_radix(&line, 16).ok()?;
        if size == 0 {
            while !wire.line().await?.is_empty() {}
            return Some(());
        }
        let chunk = wire.take(size).await?;
        note.request(|r| r.body.extend(chunk));
        if wire.take(2).await? != b"\r\n" {
            return None;
        }
    }
}
