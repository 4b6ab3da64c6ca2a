//! The access log: one line at the end of each request and each tunnel. No query strings, no
//! headers, no payload.

use crate::route;
use http::request::Parts;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tracing::info;
use weir_wire::id::ConnId;

/// A path in the log is cut here.
const MAX_PATH: usize = 256;

/// What a line says of the request; kept small, since each open tunnel holds one.
pub struct Access {
    conn: ConnId,
    client: IpAddr,
    host: Box<str>,
    path: Box<str>,
    started: Instant,
    pub upstream: Option<Arc<str>>,
    pub server: Option<Arc<str>>,
}

/// How it ended.
pub struct End {
    pub status: u16,
    /// Bytes towards the server and towards the client, where they were ours to count.
    pub bytes: Option<(u64, u64)>,
    pub cause: &'static str,
}

impl Access {
    pub fn new(head: &Parts, conn: ConnId, client: IpAddr) -> Access {
        Access {
            conn,
            client,
            host: route::host(&head.headers).into(),
            path: printable(head.uri.path()),
            started: Instant::now(),
            upstream: None,
            server: None,
        }
    }

    pub fn log(&self, kind: &'static str, end: End) {
        let (up, down) = end.bytes.unzip();
        info!(
            target: "weir_proxy::access",
            conn = %self.conn,
            client = %self.client,
            kind,
            host = &*self.host,
            path = &*self.path,
            upstream = self.upstream.as_deref(),
            server = self.server.as_deref(),
            status = end.status,
            bytes_up = up,
            bytes_down = down,
            ms = self.started.elapsed().as_millis() as u64,
            cause = end.cause,
        );
    }
}

/// No text of a client's can forge a line or recolour a terminal.
fn printable(path: &str) -> Box<str> {
    let mut out = String::with_capacity(path.len().min(MAX_PATH));
    for c in path.chars().take(MAX_PATH) {
        // Writing to a string cannot fail.
        let _ = match c {
            ' ' => write!(out, "{}", c.escape_unicode()),
            c if c.is_ascii_graphic() => out.write_char(c),
            c => write!(out, "{}", c.escape_default()),
        };
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_printable_word() {
        assert_eq!(&*printable("/a\n\u{1b}[31m b"), "/a\\n\\u{1b}[31m\\u{20}b");
        assert_eq!(printable(&"x".repeat(5000)).len(), MAX_PATH);
    }
}
