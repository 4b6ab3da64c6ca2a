//! The access log: one line at the end of each request and each tunnel. No query strings, no
//! headers, no payload.

use crate::admit::refused::{self, Refused};
use crate::front::arrive::From;
use crate::route::edit::Vars;
use crate::route::{self, Route};
use http::request::Parts;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tracing::info;
use weir_core::accept::Transport;
use weir_wire::id::ConnId;

/// A path in the log is cut here.
const MAX_PATH: usize = 256;

/// What a line says of the request; kept small, since each open tunnel holds one.
pub struct Access {
    conn: ConnId,
    client: IpAddr,
    transport: Transport,
    host: Box<str>,
    path: Box<str>,
    /// When its head was read.
    pub started: Instant,
    pub route: Option<Arc<str>>,
    /// Of the sticky key: joins the lines of one key without showing it.
    pub key: Option<u32>,
    /// The route wants no line.
    quiet: bool,
    pub upstream: Option<Arc<str>>,
    pub server: Option<Arc<str>>,
    /// The server is another one than the key says, because of load.
    pub moved: bool,
}

/// How it ended.
pub struct End {
    pub status: u16,
    /// Bytes towards the server and towards the client, where they were ours to count.
    pub bytes: Option<(u64, u64)>,
    pub cause: &'static str,
}

/// How a tunnel ended.
pub struct TunnelEnd {
    /// Towards the server and towards the client.
    pub bytes: (u64, u64),
    pub frames: (u64, u64),
    pub close: Option<Close>,
    pub cause: &'static str,
}

/// The first Close frame; or what a client ended its session of WebTransport with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// "client", "server" or "proxy".
    pub by: &'static str,
    pub code: u32,
}

impl Access {
    pub fn new(head: &Parts, from: &From) -> Access {
        Access {
            conn: from.conn.clone(),
            client: from.client,
            transport: from.transport,
            host: route::host(&head.headers).into(),
            path: printable(head.uri.path()),
            started: Instant::now(),
            route: None,
            key: None,
            quiet: false,
            upstream: None,
            server: None,
            moved: false,
        }
    }

    pub fn found(&mut self, route: &Route) {
        self.route = Some(route.name.clone());
        self.quiet = !route.access_log;
    }

    pub fn vars(&self) -> Vars {
        Vars { client: self.client, host: self.host.clone(), conn: self.conn.clone() }
    }

    /// Where a limit of the conf was the cause, that is said whether the access log is written or not.
    pub fn log(&self, kind: &'static str, End { status, bytes, cause }: End) {
        if refused::has_key(cause) {
            Refused { status, cause, retry_after: None }.log(self.client);
        }
        self.write(kind, status, bytes, cause, None);
    }

    pub fn log_tunnel(&self, end: &TunnelEnd) {
        self.write("tunnel", self.switched(), Some(end.bytes), end.cause, Some(end));
    }

    /// The status that says yes to a handshake.
    pub fn switched(&self) -> u16 {
        if self.transport == Transport::H1 { 101 } else { 200 }
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    fn write(
        &self,
        kind: &'static str,
        status: u16,
        bytes: Option<(u64, u64)>,
        cause: &'static str,
        tunnel: Option<&TunnelEnd>,
    ) {
        if self.quiet {
            return;
        }
        let (bytes_up, bytes_down) = bytes.unzip();
        let (frames_up, frames_down) = tunnel.map(|end| end.frames).unzip();
        let close = tunnel.and_then(|end| end.close);
        info!(
            target: "weir_proxy::access",
            conn = %self.conn,
            client = %self.client,
            kind,
            transport = self.transport.as_str(),
            host = &*self.host,
            path = &*self.path,
            route = self.route.as_deref(),
            key = self.key.map(|key| tracing::field::display(format!("{key:08x}"))),
            upstream = self.upstream.as_deref(),
            server = self.server.as_deref(),
            moved = self.moved.then_some(true),
            status,
            bytes_up,
            bytes_down,
            frames_up,
            frames_down,
            close_by = close.map(|close| close.by),
            close_code = close.map(|close| close.code),
            ms = self.started.elapsed().as_millis() as u64,
            cause,
        );
    }
}

/// Short, and the same in every process, so that lines of one key can be joined.
pub fn key_hash(key: &[u8]) -> u32 {
    let digest = ring::digest::digest(&ring::digest::SHA256, key);
    digest.as_ref().iter().take(4).fold(0, |hash, b| (hash << 8) | u32::from(*b))
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

    #[test]
    fn a_key_has_one_hash_for_good() {
        assert_eq!(key_hash(b"abc"), 0xba78_16bf, "SHA-256 of abc begins with it");
    }
}
