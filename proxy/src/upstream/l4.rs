//! Pingora's way to a server, for plain requests: its own sockets and its pool where a connection may serve anybody;
//! otherwise a connection of ours, which serves one request, or one client (`upstream/bound.rs`).

use super::address::Address;
use super::attempt::{Attempt, blame};
use super::bound::{self, Bound, Followed};
use super::server::Server;
use super::stream::ServerStream;
use super::watched::{Idle, Told, Watched};
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
use std::time::Duration;

/// Where this attempt's request goes.
pub struct Way<'a> {
    pub connect: Duration,
    /// A connection that was kept before will not do.
    pub fresh: bool,
    /// The client's own connections, and their group.
    pub own: Option<(&'a Bound, u64)>,
    /// Whoever wants to know of trailers.
    pub told: &'a Arc<Told>,
}

/// True: the connection must end with the request.
pub fn peer(attempt: &Attempt, way: &Way<'_>) -> Result<(Box<HttpPeer>, bool)> {
    let server = attempt.server();
    let mut peer = match (&server.dial.address, server.dial.addr()) {
        (Address::Tcp(first, _), addr) => HttpPeer::new(addr.unwrap_or(*first), false, String::new()),
        (Address::Unix(path), _) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())?,
    };
    let keep = attempt.keeps_connections();
    let ours = way.told.wanted || server.dial.tls.is_some();
    if ours && way.own.is_none() && attempt.header().is_none() {
        peer.group_key = bound::new_group();
        peer.options.total_connection_timeout = Some(way.connect);
        let home = (server.dial.idle.clone(), keep);
        let watching = Watching { server: server.clone(), told: way.told.clone(), home, fresh: way.fresh };
        peer.options.custom_l4 = Some(Arc::new(watching));
        return Ok((Box::new(peer), keep.is_zero()));
    }
    let tied = server.dial.tls.is_some() || (attempt.header().is_some() && way.own.is_none());
    let single = tied || (way.own.is_none() && (way.fresh || keep.is_zero()));
    let options = &mut peer.options;
    options.connection_timeout = Some(way.connect);
    options.idle_timeout = Some(keep);
    if let Some((_, group)) = way.own {
        peer.group_key = group;
        // The client's connection has a time of its own, and this one closes with it.
        options.idle_timeout = None;
    }
    if single {
        peer.group_key = bound::new_group();
        options.idle_timeout = Some(Duration::ZERO);
    }
    let two_ways = matches!(server.dial.address, Address::Tcp(_, Some(_)));
    if tied || two_ways || way.own.is_some() {
        options.total_connection_timeout = Some(way.connect);
        let followed = way.own.map(|(own, _)| own.follow());
        options.tracer = followed.as_ref().map(Followed::tracer);
        let header = attempt.header().map(<[u8]>::to_vec);
        options.custom_l4 = Some(Arc::new(Ours { server: server.clone(), header, followed }));
    }
    Ok((Box::new(peer), single))
}

/// A failed connect that is no server's fault: this process or machine ran out of descriptors or ports. Pingora wraps
/// what it says of that in other errors.
pub fn is_our_lack(error: &Error) -> bool {
    let says = error.root_cause().downcast_ref::<io::Error>();
    let wraps = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<Box<Error>>());
    matches!(error.etype(), ErrorType::SocketError | ErrorType::BindError)
        || says.is_some_and(|error| blame(error).is_none())
        || wraps.is_some_and(|error| is_our_lack(error))
}

/// Of which the answer is followed; kept by us.
struct Watching {
    server: Arc<Server>,
    told: Arc<Told>,
    home: (Arc<Idle>, Duration),
    fresh: bool,
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching").field("server", &self.server.shared.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Connect for Watching {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        let open = self.server.dial.open(None);
        match Watched::new(self.told.clone(), self.home.clone(), self.fresh, open).await {
            Ok(watched) => Ok(VirtualSocketStream::new(Box::new(watched)).into()),
            Err(error) => Err(failed(error)),
        }
    }
}

/// As Pingora calls it.
fn failed(error: io::Error) -> Box<Error> {
    let kind = match blame(&error) {
        None => ErrorType::SocketError,
        Some("refused") => ErrorType::ConnectRefused,
        Some("tls") => ErrorType::TLSHandshakeFailure,
        Some(_) => ErrorType::ConnectError,
    };
    Error::because(kind, "cannot connect", error)
}

struct Ours {
    server: Arc<Server>,
    header: Option<Vec<u8>>,
    followed: Option<Followed>,
}

impl fmt::Debug for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ours").field("server", &self.server.shared.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Connect for Ours {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        let opened = self.server.dial.open(self.header.as_deref()).await;
        if let (Ok(stream), Some(followed)) = (&opened, &self.followed) {
            followed.made(stream);
        }
        match opened {
            Ok(ServerStream::Tcp(tcp)) => Ok(tcp.into()),
            Ok(ServerStream::Unix(unix)) => Ok(unix.into()),
            Ok(tls) => Ok(VirtualSocketStream::new(Box::new(tls)).into()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl VirtualSocket for ServerStream {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(()) // set when it was opened
    }
}
