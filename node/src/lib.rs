//! Tier 2: holds the client connections.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;

pub use error::BindError;

use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use weir_broker::{Bus, Inbox};
use weir_core::accept::{Acceptor, Request};
use weir_core::drain::Drain;
use weir_wire::id::NodeId;

pub struct Node {
    listener: std::net::TcpListener,
    address: SocketAddr,
    id: NodeId,
}

/// What `/ready` asks; cheap to call.
pub struct Health;

impl Health {
    /// Accepting clients, not draining, and the broker reachable.
    pub fn is_ready(&self) -> bool {
        false
    }
    pub fn bus_is_up(&self) -> bool {
        false
    }
    pub fn connections(&self) -> usize {
        0
    }
}

impl Node {
    pub fn bind(
        conf: &weir_conf::node::Node,
        channels: &weir_conf::channel::Channels,
        registry: &mut Registry,
    ) -> Result<Node, BindError> {
        let _ = (channels, registry);
        let address = conf.listen;
        let listen = |source| BindError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Node { listener, address, id: NodeId(rand::random()) })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn health(&self) -> Arc<Health> {
        Arc::new(Health)
    }

    pub fn acceptor(&self) -> Arc<dyn Acceptor> {
        struct Closed;
        impl Acceptor for Closed {
            fn accept(&self, request: Request) {
                drop(request);
            }
        }
        Arc::new(Closed)
    }

    pub async fn run(self, bus: Arc<dyn Bus>, inbox: Inbox, drain: Drain) {
        let _ = (bus, inbox, self.listener);
        drain.begun().await;
    }
}
