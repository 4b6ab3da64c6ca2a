//! QUIC: the UDP side of a TLS listener. Admits connections before any cryptography, finishes their
//! handshakes in time, and hands each one on to whoever speaks HTTP/3 on it.
//!
//! An [`Endpoint`] is bound, then served; meanwhile it can be configured anew (for connections to come),
//! closed to new connections, and handed to a successor without losing the open ones (`quic/socket.rs`
//! has how). What it takes from the proxy is a [`Host`].

mod arrival;
mod config;
mod feed;
#[cfg(test)]
mod handover_tests;
mod id;
mod identity;
#[cfg(test)]
mod memory_tests;
mod metrics;
#[cfg(test)]
mod moving_tests;
mod policy;
mod seats;
mod set;
mod socket;
#[cfg(test)]
pub mod tests;
mod tokens;

pub use arrival::{Arrival, Confirmed};
pub use identity::{Identity, Succession};
pub use metrics::Metrics;
pub use seats::Follower;
pub use set::{Endpoints, Inheritance, Wanted};

use crate::admit::Refused;
use crate::admit::counts::{KeyPlace, Place};
use arc_swap::ArcSwap;
use arrival::Door;
use socket::Socket;
use socket2::{Domain, Protocol, SockRef, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokens::Used;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use weir_core::net::Family;

/// What the kernel holds while we are busy; it gives `net.core.rmem_max` and `wmem_max` at most. One
/// socket serves all connections, and at its default 200 KiB are a hundred packets.
const BUFFER: usize = 8 << 20;
/// After a hand-over: clients who were sent a Retry just before come back to us.
const LATECOMERS: Duration = Duration::from_secs(3);
/// H3_NO_ERROR.
const NO_ERROR: quinn::VarInt = quinn::VarInt::from_u32(0x100);

/// The proxy, as its QUIC endpoints see it.
pub trait Host: Send + Sync + 'static {
    /// A place among all connections, if the lists have nothing against this address.
    fn connection(&self, ip: IpAddr) -> Result<Place, Refused>;

    /// A place among the connections of this address; `None` if they are not limited. Asked again when a
    /// client has moved.
    fn address(&self, ip: IpAddr) -> Result<Option<KeyPlace>, Refused>;

    /// One TLS handshake of an address that was shown to be the client's.
    fn handshake(&self, ip: IpAddr) -> Result<(), Refused>;

    /// Whether that would be refused now.
    fn owes(&self, ip: IpAddr) -> bool;

    /// Speaks HTTP/3; returns when the connection is over. Its places are held until then.
    fn serve(self: Arc<Self>, arrival: Arrival) -> impl Future<Output = ()> + Send;
}

/// TLS for QUIC. Asked for with each connection, so that certificates can change in between.
pub type Crypto = Arc<dyn Fn() -> Arc<dyn quinn::crypto::ServerConfig> + Send + Sync>;

/// What an endpoint has from a conf; a reload brings another.
#[derive(Clone)]
pub struct Settings<'a> {
    pub conf: &'a weir_conf::proxy::Quic,
    pub crypto: Crypto,
    /// Whether a connection is handed on before its handshake is over. Never where clients are asked for
    /// certificates: who they are is known at its end only.
    pub early: bool,
}

/// What a successor gets of one endpoint.
#[derive(Debug)]
pub struct Handed {
    pub udp: UdpSocket,
    /// Where it sends the packets of the one before.
    pub feed: UnixDatagram,
}

/// One UDP socket, and the connections on it.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    local: SocketAddr,
    /// A second handle, for a successor.
    udp: UdpSocket,
    identity: Arc<Identity>,
    metrics: Metrics,
    used: Arc<Used>,
    settings: ArcSwap<Door>,
    /// Whether new connections are let in.
    open: watch::Sender<bool>,
    running: OnceLock<Running>,
    /// Of a predecessor; taken when it is served.
    feed: std::sync::Mutex<Option<UnixDatagram>>,
}

struct Running {
    endpoint: quinn::Endpoint,
    socket: Arc<Socket>,
}

impl Endpoint {
    /// Binds `at`, or goes on with what a predecessor had there.
    pub fn bind(
        (at, family): (SocketAddr, Family),
        inherited: Option<Handed>,
        settings: &Settings<'_>,
        identity: Arc<Identity>,
        metrics: Metrics,
    ) -> io::Result<Endpoint> {
        let (udp, feed) = match inherited {
            Some(Handed { udp, feed }) => (udp, Some(feed)),
            None => (bind_udp(at, family)?, None),
        };
        udp.set_nonblocking(true)?;
        let used = Arc::new(Used::default());
        let door = Door::new(settings, &identity, &used)?;
        Ok(Endpoint(Arc::new(Inner {
            local: udp.local_addr()?,
            udp,
            identity,
            metrics,
            used,
            settings: ArcSwap::from_pointee(door),
            open: watch::Sender::new(true),
            running: OnceLock::new(),
            feed: std::sync::Mutex::new(feed),
        })))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// It has the packets of both families.
    pub fn has_both(&self) -> bool {
        Family::of(&self.0.udp, self.0.local) == Some(Family::Both)
    }

    /// Limits, windows and certificates of connections that are still to come. On an error nothing has
    /// changed.
    pub fn configure(&self, settings: &Settings<'_>) -> io::Result<()> {
        let door = Door::new(settings, &self.0.identity, &self.0.used)?;
        let config = (*door.config()).clone();
        self.0.settings.store(Arc::new(door));
        if let Some(running) = self.0.running.get() {
            // For what comes before a connection is accepted: Retry, and who is refused.
            running.endpoint.set_server_config(Some(config));
        }
        Ok(())
    }

    /// Serves until it is closed to new connections and the open ones are over. Once.
    pub async fn serve<H: Host>(&self, host: Arc<H>) -> io::Result<()> {
        let Inner { metrics, settings, .. } = &*self.0;
        let mut open = self.0.open.subscribe();
        let Running { endpoint, socket } = self.run()?;
        let hall = arrival::Hall::new(host, metrics.clone());
        let mut watched = JoinSet::new();
        watched.spawn(hall.watch());
        // After a hand-over some still come that are ours.
        let mut until = None;
        loop {
            let is_open = *open.borrow_and_update();
            if is_open {
                until = None;
            } else if until.is_none() {
                let grace = if socket.is_fed() { LATECOMERS } else { Duration::ZERO };
                until = Some(Instant::now() + grace);
            }
            let late = until.is_some_and(|until| Instant::now() >= until);
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                _ = open.changed() => continue,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() && !late => continue,
                () = endpoint.wait_idle(), if late => return Ok(()),
            };
            match incoming {
                Some(incoming) if late => {
                    metrics.incoming("closing");
                    incoming.refuse();
                }
                Some(incoming) => hall.enter(incoming, &settings.load()),
                // Told to stop: what is left ends by itself.
                None => break,
            }
        }
        endpoint.wait_idle().await;
        Ok(())
    }

    /// No new connections; those that are open stay.
    pub fn close(&self) {
        self.0.open.send_replace(false);
    }

    /// New connections again. `false`: it has ended meanwhile, and must be bound anew.
    pub fn reopen(&self) -> bool {
        self.0.open.send_replace(true);
        !self.has_ended()
    }

    /// It was closed, and the last connection is over.
    pub fn has_ended(&self) -> bool {
        self.0.running.get().is_some() && self.0.open.receiver_count() == 0
    }

    /// Ends all connections.
    pub fn stop(&self) {
        self.close();
        if let Some(running) = self.0.running.get() {
            running.endpoint.close(NO_ERROR, b"");
        }
    }

    /// What a successor is to get. From now on it may read the socket; [`Endpoint::handed_over`] says how
    /// it went.
    pub fn hand_over(&self) -> io::Result<Handed> {
        let running = self.0.running.get().ok_or_else(|| io::Error::other("it does not serve yet"))?;
        let udp = self.0.udp.try_clone()?;
        Ok(Handed { udp, feed: running.socket.share()? })
    }

    /// The successor serves, and so nothing is read from the UDP socket any more; or it does not, and
    /// everything is as it was.
    pub fn handed_over(&self, serves: bool) {
        if let Some(running) = self.0.running.get() {
            running.socket.shared(serves);
        }
    }

    /// In the context of the runtime on which connections are to live.
    fn run(&self) -> io::Result<&Running> {
        let Inner { identity, metrics, settings, .. } = &*self.0;
        let feed = weir_core::sync::lock(&self.0.feed).take();
        let udp = self.0.udp.try_clone()?;
        let socket = Arc::new(Socket::new(udp, feed, identity, metrics.clone())?);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            config::endpoint(identity),
            Some((*settings.load().config()).clone()),
            socket.clone(),
            Arc::new(crate::batched::Runtime),
        )?;
        if self.0.running.set(Running { endpoint, socket }).is_err() {
            return Err(io::Error::other("it is served already"));
        }
        self.0.running.get().ok_or_else(|| io::Error::other("unreachable: it was just set"))
    }
}

fn bind_udp(at: SocketAddr, family: Family) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if at.is_ipv6() {
        socket.set_only_v6(family == Family::V6)?;
    }
    socket.bind(&at.into())?;
    let buffers = SockRef::from(&socket);
    let _as_large_as_may_be = buffers.set_recv_buffer_size(BUFFER);
    let _as_large_as_may_be = buffers.set_send_buffer_size(BUFFER);
    Ok(socket.into())
}
