//! Tier 3: the embedded broker, in place of Redis. The only crate that knows rumqttd.
//!
//! Nodes see it as a [`Bus`]: [`bus::local`] when the broker is in the same process,
//! [`bus::remote`] when it is in another one. Both pass one conformance suite.
//!
//! ```ignore
//! // Broker role here: bind first, attach the local node, serve later.
//! let broker = Broker::bind(&conf.broker, &mut registry).await?;
//! let (bus, inbox) = broker.attach(node_id, "name", conf.node.inbox_size, &mut registry)?;
//! tokio::spawn(broker.run(drain.clone()));
//!
//! // Broker elsewhere:
//! let (bus, inbox) = RemoteBus::start(&conf.node, node_id, "name", &mut registry, drain.clone());
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bus;
mod channel_log;
pub mod error;
mod idempotency;
mod presence;
mod shard;

use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use weir_core::drain::Drain;
use weir_wire::id::NodeId;

pub use bus::remote::RemoteBus;
pub use bus::{Bus, BusError, Event, Inbox};
pub use error::BindError;

/// A bound broker. Calls and deliveries work from `bind` on; `run` serves other processes.
pub struct Broker {}

impl Broker {
    /// Takes the listen address and starts the router. Needs a tokio runtime.
    pub async fn bind(
        _conf: &weir_conf::broker::Broker,
        _registry: &mut Registry,
    ) -> Result<Broker, BindError> {
        todo!()
    }

    /// Where nodes of other processes connect; the port is a real one if conf said 0.
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }

    /// Attaches the node of this process. Fails with [`BusError::Limit`] over `broker.max_nodes`.
    /// Dropping the inbox detaches it.
    pub fn attach(
        &self,
        _node: NodeId,
        _name: &str,
        _inbox_size: usize,
        _registry: &mut Registry,
    ) -> Result<(Arc<dyn Bus>, Inbox), BusError> {
        todo!()
    }

    /// Serves until `drain` has begun and the local node is detached, or until it is stopped.
    pub async fn run(self, _drain: Drain) {
        todo!()
    }
}
