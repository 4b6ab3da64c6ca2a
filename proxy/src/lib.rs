//! Tier 1: the front. Reads a request's head, admits it, routes it, and then either tunnels a
//! WebSocket, hands it to the node of the same process, or lets Pingora proxy plain HTTP.
//!
//! The only crate that knows Pingora. It leaves WebSocket frames to whoever is behind it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;

pub use error::BindError;

use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use weir_core::accept::Acceptor;
use weir_core::drain::Drain;

/// The node tier of this process, as the proxy sees it.
pub struct LocalNode {
    /// Takes WebSockets, on the client's own socket.
    pub acceptor: Arc<dyn Acceptor>,
    /// Takes every other request (event streams, emulation, the HTTP API), over TCP.
    pub addr: SocketAddr,
}

/// A proxy whose listeners are bound and that does not serve yet.
pub struct Proxy {
    addrs: Vec<SocketAddr>,
}

impl Proxy {
    /// Binds every listener and resolves every upstream, or says which one could not be.
    pub fn bind(
        conf: &weir_conf::proxy::Proxy,
        node: Option<LocalNode>,
        registry: &mut Registry,
    ) -> Result<Proxy, BindError> {
        let _ = (conf, node, registry);
        Ok(Proxy { addrs: Vec::new() })
    }

    /// Where it listens: real ports, also where the conf says 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.addrs.clone()
    }

    /// Serves until the drain has begun and everything under way is finished, at most
    /// `drain_timeout` long.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        drain.begun().await;
        Ok(())
    }
}
