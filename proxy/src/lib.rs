//! Tier 1: the front. Reads a request's head, admits it, routes it, and then either tunnels a
//! WebSocket, hands it to the node of the same process, or lets Pingora proxy plain HTTP.
//!
//! The only crate that knows Pingora. It leaves WebSocket frames to whoever is behind it. The way
//! of a connection is in `service.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod admit;
mod answer;
mod client;
mod client_addr;
mod error;
mod forward;
mod front {
    //! From bytes to a request, by HTTP version.
    pub mod head;
    pub mod upgrade;
}
mod local;
mod metrics;
mod plain;
mod route;
mod server;
mod service;
#[cfg(test)]
mod testing;
mod tunnel;
mod upstream;

pub use error::BindError;

use admit::Admit;
use client_addr::Trusted;
use metrics::Metrics;
use plain::Plain;
use prometheus_client::registry::Registry;
use route::{Route, Routes, Target};
use server::{Closing, Front};
use service::Service;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tunnel::greet::Deadlines;
use upstream::Upstream;
use weir_core::accept::Acceptor;
use weir_core::drain::Drain;

/// Told that they are closed, tunnels end within this.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// The node tier of this process, as the proxy sees it.
pub struct LocalNode {
    /// Takes WebSockets, on the client's own socket.
    pub acceptor: Arc<dyn Acceptor>,
    /// Takes every other request (event streams, emulation, the HTTP API), over TCP.
    pub addr: SocketAddr,
}

/// A proxy whose listeners are bound and that does not serve yet.
pub struct Proxy {
    conf: weir_conf::proxy::Proxy,
    listeners: Vec<TcpListener>,
    addrs: Vec<SocketAddr>,
    routes: Routes,
    node: Option<Arc<dyn Acceptor>>,
    metrics: Metrics,
}

impl Proxy {
    /// Binds every listener and resolves every upstream, or says which one could not be.
    pub fn bind(
        conf: &weir_conf::proxy::Proxy,
        node: Option<LocalNode>,
        registry: &mut Registry,
    ) -> Result<Proxy, BindError> {
        let metrics = Metrics::register(registry);
        let routes = routes(conf, node.as_ref(), &metrics)?;
        let (mut listeners, mut addrs) = (Vec::new(), Vec::new());
        for addr in &conf.listen {
            let fail = |source| BindError::Listen { addr: *addr, source };
            let listener = TcpListener::bind(addr).map_err(fail)?;
            listener.set_nonblocking(true).map_err(fail)?;
            addrs.push(listener.local_addr().map_err(fail)?);
            listeners.push(listener);
        }
        // Where nodes are listed, they are the tier, and the one here is reached like any other.
        let node = node.filter(|_| !conf.upstream.contains_key("node")).map(|n| n.acceptor);
        Ok(Proxy { conf: conf.clone(), listeners, addrs, routes, node, metrics })
    }

    /// Where it listens: real ports, also where the conf says 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.addrs.clone()
    }

    /// Serves until the drain has begun and everything under way is finished, at most
    /// `drain_timeout` long.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        let _busy = drain.busy();
        let (own, closing) = (Drain::new(), Arc::<Closing>::default());
        let pingora = server::conf(&self.conf);
        let drain_timeout = self.conf.drain_timeout;
        let stop = CancellationToken::new();
        let threads = pingora.threads;
        let (service, listeners) = self.service(own.clone(), closing.clone());
        let front = Front { service, listeners, drain: own.clone(), threads };
        let mut ended = server::run(front, pingora, stop.clone())?;
        tokio::select! {
            () = drain.begun() => {}
            _ = &mut ended => return Err(io::Error::other("Pingora ended by itself")),
        }
        own.begin();
        tracing::info!(open = own.remaining(), "proxy drains");
        tokio::select! {
            _ = own.complete(drain_timeout) => {}
            () = drain.stopped() => {}
        }
        closing.begin();
        let all = own.complete(CLOSE_GRACE).await;
        tracing::info!(left = own.remaining(), all, "proxy drained");
        stop.cancel();
        // It has nothing to wait for; should its thread hang all the same, the process goes on without.
        let _ended = tokio::time::timeout(CLOSE_GRACE, ended).await;
        Ok(())
    }

    fn service(self, drain: Drain, closing: Arc<Closing>) -> (Arc<Service>, Vec<TcpListener>) {
        let conf = self.conf;
        let routes = Arc::new(self.routes);
        let plain = Plain {
            routes: routes.clone(),
            metrics: self.metrics.clone(),
            connect_timeout: conf.connect_timeout,
        };
        let plain = pingora_proxy::http_proxy(&Arc::new(server::conf(&conf)), plain);
        let service = Service {
            admit: Arc::new(Admit::new(&conf, self.metrics.connections.clone())),
            trusted: Trusted::new(&conf.trusted),
            routes,
            node: self.node,
            plain: Arc::new(plain),
            metrics: self.metrics,
            closing,
            drain,
            head_timeout: conf.head_timeout,
            head_size: conf.head_size,
            keepalive_timeout: conf.keepalive_timeout,
            idle_timeout: conf.idle_timeout,
            deadlines: Deadlines { connect: conf.connect_timeout, handshake: conf.handshake_timeout },
        };
        (Arc::new(service), self.listeners)
    }
}

fn routes(
    conf: &weir_conf::proxy::Proxy,
    node: Option<&LocalNode>,
    metrics: &Metrics,
) -> Result<Routes, BindError> {
    let mut upstreams: BTreeMap<&str, Arc<Upstream>> = BTreeMap::new();
    for (name, upstream) in &conf.upstream {
        upstreams.insert(name, Arc::new(Upstream::resolve(name, &upstream.servers, conf, metrics)?));
    }
    let local = node.map(|n| Arc::new(Upstream::new("node", vec![vec![n.addr]], conf, metrics)));
    let mut routes = Vec::with_capacity(conf.route.len());
    for (index, route) in conf.route.iter().enumerate() {
        let target = match (upstreams.get(route.to.as_str()), &local) {
            (Some(upstream), _) => Target::Upstream(upstream.clone()),
            (None, Some(local)) if route.to == "node" => Target::Node(local.clone()),
            _ => {
                let known: Vec<&str> = upstreams.keys().copied().collect();
                return Err(BindError::Route { index, to: route.to.clone(), known: known.join(", ") });
            }
        };
        routes.push(Route {
            host: route.host.clone(),
            path: route.path.clone(),
            sticky: route.sticky.clone(),
            target,
        });
    }
    Ok(Routes::new(routes))
}
