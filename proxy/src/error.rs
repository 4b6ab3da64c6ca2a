//! Why the proxy could not start. What goes wrong with one client is an answer to that client
//! (see `answer.rs`) and a line in the access log, not an error of the crate.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is taken, or not ours to take.
    #[error("{section}.listen: cannot listen on {addr}: {source}")]
    Listen { section: &'static str, addr: SocketAddr, source: io::Error },

    /// Its TCP port is ours; HTTP/3 needs the UDP port of the same number.
    #[error("proxy.tls.listen: cannot listen on {addr} (UDP, for HTTP/3): {source}")]
    Udp { addr: SocketAddr, source: io::Error },

    /// An upstream without servers could never answer.
    #[error("proxy.upstream.{upstream}.servers: is empty; at least one host:port is needed")]
    NoServers { upstream: String },

    /// Authorities that cannot be read, or a name that TLS cannot ask for.
    #[error("proxy.upstream.{upstream}.tls: {source}")]
    Tls { upstream: String, source: io::Error },

    /// Its sockets are another matter: see `Listen`.
    #[error("proxy.quic: {0}")]
    Quic(io::Error),

    /// A certificate, its key, or the authorities of clients.
    #[error("proxy.tls.{key}: cannot use the file {file:?}: {why}")]
    TlsFile { key: String, file: String, why: String },

    /// Nothing that a file could be blamed for.
    #[error("proxy.tls: {0}")]
    TlsSetup(String),

    /// Nobody could be asked for certificates.
    #[error("proxy.acme.{key}: {reason}")]
    Acme { key: &'static str, reason: String },

    /// A route leads nowhere.
    #[error(
        "proxy.route[{index}].to: there is no upstream \"{to}\"; known are {known}{}",
        if to == "node" { "; the node tier does not run in this process" } else { "" }
    )]
    Route { index: usize, to: String, known: String },

    /// A key that cannot verify anything.
    #[error("proxy.token.{token}.{key}: {reason}")]
    Token { token: String, key: &'static str, reason: String },
}
