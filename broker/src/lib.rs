//! Tier 3: the embedded broker, in place of Redis. The only crate that knows rumqttd.
//!
//! Nodes see it as a [`Bus`]: [`bus::local`] when the broker is in the same process,
//! [`bus::remote`] when it is in another one. Both pass one conformance suite.
//!
//! The way of a publication: [`bus`] → `engine` (the shard gives it its offset and keeps it) →
//! `router` (rumqttd) → `engine::receive` → an `outlet` for each node with interest.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bus;
mod channel_log;
mod engine;
pub mod error;
mod idempotency;
mod link;
mod listener;
mod metrics;
mod outlet;
mod presence;
mod proof;
mod router;
mod shard;

use engine::Engine;
use listener::Listener;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::task::AbortHandle;
use weir_core::drain::Drain;
use weir_wire::id::NodeId;

pub use bus::local::LocalBus;
pub use bus::remote::RemoteBus;
pub use bus::{Bus, BusError, Event, Inbox};
pub use error::BindError;

/// A bound broker. Calls and deliveries work from `bind` on; `run` serves other processes.
pub struct Broker {
    engine: Arc<Engine>,
    listener: Listener,
    _tasks: Tasks,
}

/// The engine's own tasks; they end with the broker.
struct Tasks([AbortHandle; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Broker {
    /// Takes the listen address and starts the router. Needs a tokio runtime.
    pub async fn bind(
        conf: &weir_conf::broker::Broker,
        registry: &mut Registry,
    ) -> Result<Broker, BindError> {
        let listener = Listener::bind(conf)?;
        let (conf, metrics) = (conf.clone(), metrics::Metrics::register(registry));
        let engine = tokio::task::spawn_blocking(move || Engine::new(conf, metrics)).await;
        let (engine, receiver) = match engine {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return Err(BindError::Router(error.to_string())),
            Err(error) => return Err(BindError::Router(error.to_string())),
        };
        let drain = Drain::new();
        let receive = tokio::spawn(engine.clone().receive(receiver, drain.clone()));
        let tick = tokio::spawn(engine.clone().tick(drain));
        let tasks = Tasks([receive.abort_handle(), tick.abort_handle()]);
        Ok(Broker { engine, listener, _tasks: tasks })
    }

    /// Where nodes of other processes connect; the port is a real one if conf said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Attaches the node of this process. Fails with [`BusError::Limit`] over `broker.max_nodes`.
    /// Dropping the inbox detaches it.
    pub fn attach(
        &self,
        node: NodeId,
        name: &str,
        inbox_size: usize,
    ) -> Result<(Arc<dyn Bus>, Inbox), BusError> {
        LocalBus::attach(&self.engine, node, name, inbox_size)
    }

    /// Serves other processes until `drain` has begun.
    pub async fn run(self, drain: Drain) {
        self.listener.run(self.engine.clone(), drain).await;
    }
}
