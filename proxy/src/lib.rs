//! Tier 1: the front. Reads a request's head, admits it, routes it, and then either tunnels a
//! WebSocket, hands it to the node of the same process, or lets Pingora proxy plain HTTP.
//!
//! The only crate that knows Pingora. It leaves WebSocket frames to whoever is behind it. The way
//! of a connection is in `service.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod acme;
mod admit;
mod answer;
mod batched;
mod client;
mod delegate;
mod error;
mod forward;
mod front {
    //! From bytes to a request, by HTTP version.
    pub mod arrive;
    pub mod asker;
    pub mod chunks;
    pub mod h2;
    pub mod h3;
    pub mod head;
    pub mod host;
    pub mod proxy_protocol;
    pub mod stream;
    pub mod streamed;
    pub mod upgrade;
}
mod guarded;
pub mod judge;
mod listeners;
mod local;
mod metrics;
mod plain;
mod quic;
mod route;
mod server;
mod service;
mod snapshot;
#[cfg(test)]
mod testing;
mod tls;
mod token;
mod tunnel;
mod upstream;

pub use error::BindError;
pub use quic::{Handed as QuicSocket, Inheritance as QuicInheritance, Succession};
pub use tls::self_signed::{MAX_PINNED_DAYS, SelfSigned, self_signed};
pub use upstream::{ServerStatus, State as ServerState, UnknownServer};

use arc_swap::ArcSwap;
use listeners::{Listeners, Opened};
use metrics::Metrics;
use plain::Plain;
use prometheus_client::registry::Registry;
use server::Front;
use service::Service;
use snapshot::Snapshot;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tunnel::register::{Open, Told, Which};
use weir_conf::proxy::tls::ClientCerts;
use weir_core::accept::Acceptor;
use weir_core::drain::Drain;
use weir_core::sync::lock;

/// Told that they are closed, tunnels end within this; a little longer than they take for it.
const CLOSE_GRACE: Duration = Duration::from_millis(2500);
/// How often a drain looks for tunnels that were not there when it began.
const LATECOMERS: Duration = Duration::from_millis(50);

/// The node tier of this process, as the proxy sees it.
pub struct LocalNode {
    /// Takes WebSockets, on the client's own socket.
    pub acceptor: Arc<dyn Acceptor>,
    /// Takes every other request (event streams, emulation, the HTTP API), over TCP.
    pub addr: SocketAddr,
}

/// What a predecessor hands over.
#[derive(Default)]
pub struct Inherited {
    /// By the address in its conf, in its order.
    pub listeners: Vec<(SocketAddr, TcpListener)>,
    pub quic: Option<QuicInheritance>,
}

impl Inherited {
    pub fn new() -> Inherited {
        Inherited::default()
    }
}

/// A proxy whose listeners are bound and that does not serve yet.
pub struct Proxy {
    control: Control,
    opened: mpsc::UnboundedReceiver<Opened>,
    quic_opened: mpsc::UnboundedReceiver<quic::Endpoint>,
}

/// The handle of operations on a proxy, before and while it serves.
#[derive(Clone)]
pub struct Control(Arc<Controlled>);

struct Controlled {
    service: Arc<Service>,
    node: Option<LocalNode>,
    /// Held over a whole reload: they come one after the other.
    listeners: Mutex<Listeners>,
    /// Locked after `listeners`.
    quic: Mutex<quic::Endpoints>,
}

/// What a reload did to the listeners; everything else was swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    pub opened: usize,
    pub closed: usize,
}

impl Proxy {
    /// Binds every listener and resolves every upstream, or says which one could not be. `inherited`
    /// sockets are used in place of new ones.
    pub fn bind(
        conf: &weir_conf::proxy::Proxy,
        node: Option<LocalNode>,
        registry: &mut Registry,
        mut inherited: Inherited,
    ) -> Result<Proxy, BindError> {
        let metrics = Metrics::register(registry);
        let snapshot = Snapshot::build(conf, node.as_ref(), &metrics, None)?;
        let (serve, opened) = mpsc::unbounded_channel();
        let mut listeners = Listeners::new(serve);
        let prepared = listeners.prepare(conf, &mut inherited.listeners)?;
        let certificates = snapshot.tls.load(&conf.tls)?;
        let automatic = snapshot.acme.plan(&conf.acme)?;
        snapshot.tls.enforce(certificates);
        snapshot.acme.apply(automatic);
        let (serve, quic_opened) = mpsc::unbounded_channel();
        let mut quic = quic::Endpoints::new(&conf.quic, inherited.quic, metrics.quic.clone(), serve)
            .map_err(BindError::Quic)?;
        let endpoints = quic.prepare(wanted(&listeners, &prepared, conf, &snapshot.tls)).map_err(no_udp)?;
        listeners.apply(prepared)?;
        quic.apply(endpoints).map_err(BindError::Quic)?;
        listeners.set_options(conf);
        snapshot.tls.set_port(listeners.tls_port(conf));
        let plain = Plain { metrics: metrics.clone(), tainted: Default::default() };
        let plain = pingora_proxy::http_proxy(&Arc::new(server::conf(conf)), plain);
        let service = Service {
            snapshot: ArcSwap::from_pointee(snapshot),
            plain: Arc::new(plain),
            open: Open::new(metrics.clone()),
            metrics,
            drain: Drain::new(),
            swapped: Notify::new(),
        };
        let listeners = Mutex::new(listeners);
        let control = Controlled { service: Arc::new(service), node, listeners, quic: Mutex::new(quic) };
        Ok(Proxy { control: Control(Arc::new(control)), opened, quic_opened })
    }

    /// Where it listens, first without TLS, then with it: real ports, also where the conf says 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.control.listeners().serving().iter().map(|serving| serving.local).collect()
    }

    /// Those with TLS.
    pub fn tls_addrs(&self) -> Vec<SocketAddr> {
        self.control.listeners().tls_addrs()
    }

    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Serves until the drain has begun and everything under way is finished: tunnels are told to go
    /// at the pace of the drain, and what is left at its deadline is closed.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        let _busy = drain.busy();
        let service = self.control.0.service.clone();
        let own = service.drain.clone();
        let pingora = server::conf(&service.snapshot.load().conf);
        let stop = CancellationToken::new();
        let threads = pingora.threads;
        let front = Front {
            service: service.clone(),
            opened: Some(self.opened),
            quic_opened: Some(self.quic_opened),
            threads,
        };
        let mut ended = server::run(front, pingora, stop.clone())?;
        tokio::select! {
            () = drain.begun() => {}
            _ = &mut ended => return Err(io::Error::other("Pingora ended by itself")),
        }
        own.begin();
        self.control.listeners().close_all();
        self.control.quic().close_all();
        tracing::info!(open = own.remaining(), "proxy drains");
        let (conf, pace) = (service.snapshot.load().conf.drain, drain.pace());
        let rate = pace.per_second.unwrap_or(conf.rate.per_second);
        let timeout = pace.timeout.unwrap_or(conf.timeout);
        let deadline = Instant::now() + timeout;
        let paced = async {
            loop {
                service.open.drain(&Which::All, rate, deadline).await;
                // Handshakes under way may still become tunnels.
                tokio::time::sleep(LATECOMERS).await;
            }
        };
        tokio::select! {
            _ = own.complete(timeout) => {}
            () = drain.stopped() => {}
            () = paced => {}
        }
        service.open.tell(&Which::All, if drain.has_stopped() { Told::GoNow } else { Told::Go });
        let all = own.complete(CLOSE_GRACE).await;
        self.control.quic().stop_all();
        tracing::info!(left = own.remaining(), all, "proxy drained");
        stop.cancel();
        // It has nothing to wait for; should its thread hang all the same, the process goes on without.
        let _ended = tokio::time::timeout(CLOSE_GRACE, ended).await;
        Ok(())
    }
}

/// The QUIC endpoints of a conf, each on the port number of its TCP listener.
fn wanted<'a>(
    listeners: &Listeners,
    prepared: &listeners::Prepared,
    conf: &'a weir_conf::proxy::Proxy,
    tls: &Arc<tls::Tls>,
) -> Vec<quic::Wanted<'a>> {
    let endpoint = |(slot, at, speaks): (listeners::Slot, SocketAddr, tls::config::Speaks)| {
        let (tls, asks) = (tls.clone(), speaks.client_certs);
        let early = conf.quic.early_data && asks == ClientCerts::Off;
        let crypto: quic::Crypto = Arc::new(move || tls.quic(asks, early));
        quic::Wanted { slot, at, speaks, settings: quic::Settings { conf: &conf.quic, crypto, early } }
    };
    listeners.quic(prepared).into_iter().map(endpoint).collect()
}

fn no_udp((addr, source): (SocketAddr, io::Error)) -> BindError {
    BindError::Udp { addr, source }
}

impl Control {
    /// Swaps routes, upstreams and limits for those of this conf; no open connection is touched. On
    /// an error nothing has changed. Blocks while names are resolved.
    pub fn reload(&self, conf: &weir_conf::proxy::Proxy) -> Result<Reloaded, BindError> {
        let mut listeners = self.listeners();
        let service = &self.0.service;
        let before = service.snapshot.load_full();
        let next = Snapshot::build(conf, self.0.node.as_ref(), &service.metrics, Some(&before))?;
        let certificates = next.tls.load(&conf.tls)?;
        let automatic = next.acme.plan(&conf.acme)?;
        let prepared = listeners.prepare(conf, &mut Vec::new())?;
        let mut quic = self.quic();
        let endpoints = quic.prepare(wanted(&listeners, &prepared, conf, &next.tls)).map_err(no_udp)?;
        next.tls.enforce(certificates);
        next.acme.apply(automatic);
        service.snapshot.store(Arc::new(next));
        service.swapped.notify_one();
        let (opened, closed) = listeners.apply(prepared)?;
        quic.apply(endpoints).map_err(BindError::Quic)?;
        listeners.set_options(conf);
        service.snapshot.load().tls.set_port(listeners.tls_port(conf));
        Ok(Reloaded { opened, closed })
    }

    /// The servers of each upstream, as they are now.
    pub fn upstreams(&self) -> BTreeMap<String, Vec<ServerStatus>> {
        let snapshot = self.0.service.snapshot.load();
        snapshot.upstreams.iter().map(|(name, upstream)| (name.clone(), upstream.status())).collect()
    }

    /// `None`: there is no such upstream. Else the names of the servers that are meant; the tunnels of one
    /// that is down stay until they are closed by whoever asks for this.
    pub fn set_server(
        &self,
        upstream: &str,
        server: &str,
        state: ServerState,
    ) -> Option<Result<Vec<Arc<str>>, UnknownServer>> {
        let snapshot = self.0.service.snapshot.load();
        Some(snapshot.upstreams.get(upstream)?.set_state(server, state))
    }

    /// Client connections with something under way: tunnels, handshakes, requests.
    pub fn busy(&self) -> usize {
        self.0.service.drain.remaining()
    }

    /// Tells the open tunnels of an upstream, or of one of its servers (by its name in the log), to go,
    /// at the pace of `[proxy.drain]`. Returns when they have, or at its deadline; says how many were told.
    pub async fn drain_tunnels(&self, upstream: &str, server: Option<&str>) -> usize {
        let which = match server {
            None => Which::Upstream(upstream.into()),
            Some(server) => Which::Server(upstream.into(), server.into()),
        };
        let conf = self.0.service.snapshot.load().conf.drain;
        let deadline = Instant::now() + conf.timeout;
        self.0.service.open.drain(&which, conf.rate.per_second, deadline).await
    }

    /// A second handle of each listening socket, by the address in the conf.
    pub fn sockets(&self) -> io::Result<Vec<(SocketAddr, TcpListener)>> {
        self.listeners().sockets().map(|(addr, socket)| Ok((addr, socket.try_clone()?))).collect()
    }

    /// The QUIC endpoints, for a successor: it may read from their sockets at once, and must be followed by
    /// [`Control::handed_over_quic`]. `None`: there are none.
    pub fn hand_over_quic(&self) -> io::Result<Option<QuicInheritance>> {
        self.quic().hand_over()
    }

    /// The successor serves; or it does not, and everything is as it was.
    pub fn handed_over_quic(&self, serves: bool) {
        self.quic().handed_over(serves);
    }

    fn quic(&self) -> MutexGuard<'_, quic::Endpoints> {
        lock(&self.0.quic)
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        // What a panic could leave half done is a listener too few, which the next reload opens.
        lock(&self.0.listeners)
    }
}
