//! Pingora's way to a server, for plain requests: its own sockets and its pool where a connection may
//! serve anybody; otherwise a connection of ours, which serves one request.

use super::address::Address;
use super::attempt::Attempt;
use super::server::Server;
use super::stream::ServerStream;
use async_trait::async_trait;
use pingora_core::connectors::l4::Connect;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// No two connections of ours are of one group, and none of theirs are of this one.
static GROUP: AtomicU64 = AtomicU64::new(1);

/// Where this attempt's request goes. True: the connection must end with it.
pub fn peer(attempt: &Attempt, connect: Duration) -> Result<(Box<HttpPeer>, bool)> {
    let server = attempt.server();
    let mut peer = match (&server.dial.address, server.dial.addr()) {
        (Address::Tcp(first, _), addr) => HttpPeer::new(addr.unwrap_or(*first), false, String::new()),
        (Address::Unix(path), _) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())?,
    };
    peer.options.connection_timeout = Some(connect);
    let single = server.dial.tls.is_some() || attempt.header().is_some();
    if single {
        peer.options.total_connection_timeout = Some(connect);
        peer.group_key = GROUP.fetch_add(1, Relaxed);
        let header = attempt.header().map(<[u8]>::to_vec);
        peer.options.custom_l4 = Some(Arc::new(Ours { server: server.clone(), header }));
    }
    Ok((Box::new(peer), single))
}

struct Ours {
    server: Arc<Server>,
    header: Option<Vec<u8>>,
}

impl fmt::Debug for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ours").field("server", &self.server.shared.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Connect for Ours {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        match self.server.dial.open(self.header.as_deref()).await {
            Ok(ServerStream::Tcp(tcp)) => Ok(tcp.into()),
            Ok(ServerStream::Unix(unix)) => Ok(unix.into()),
            Ok(tls) => Ok(VirtualSocketStream::new(Box::new(tls)).into()),
            Err(error) => {
                let kind = match error.kind() {
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ErrorType::ConnectRefused,
                    io::ErrorKind::InvalidData => ErrorType::TLSHandshakeFailure,
                    _ => ErrorType::ConnectError,
                };
                Err(Error::because(kind, "cannot connect", error))
            }
        }
    }
}

impl VirtualSocket for ServerStream {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(()) // set when it was opened
    }
}
