//! Tier 3: the embedded broker, in place of Redis. The only crate that knows rumqttd.
//!
//! Nodes see it as a [`Bus`]: [`bus::local`] when the broker is in the same process,
//! [`bus::remote`] when it is in another one. Both pass one conformance suite.
//!
//! Several of them are a cluster: `cluster` joins the engine with `meta` (who owns which shard),
//! `replica` (a shard's log on several brokers), `mesh` (the links) and `disk`.
//!
//! The way of a publication: [`bus`] → `engine` (the shard gives it its offset and keeps it) →
//! `router` (rumqttd) → `engine::receive` → an `outlet` for each node with interest.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bus;
#[cfg(test)]
#[path = "../tests/certs/mod.rs"]
mod certs;
mod cluster;
mod disk;
mod engine;
pub mod error;
mod link;
mod listener;
mod mesh;
mod meta;
mod metrics;
mod outlet;
mod proof;
mod replica;
mod router;
mod socket;
mod state;
mod tls;

use cluster::Joined;
use engine::{Engine, Share};
use listener::Listener;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tls::Tls;
use tokio::task::AbortHandle;
use weir_core::drain::Drain;
use weir_wire::id::NodeId;

pub use bus::local::LocalBus;
pub use bus::remote::RemoteBus;
pub use bus::{Bus, BusError, Event, Inbox};
pub use error::BindError;

pub use cluster::Control;

/// A bound broker. Calls and deliveries work from `bind` on, or, in a cluster, from when it has
/// joined; `run` serves other processes.
pub struct Broker {
    engine: Arc<Engine>,
    listener: Listener,
    cluster: Option<Joined>,
    /// Of links, to nodes and to other brokers.
    links: Drain,
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
    /// Takes the listen address and the data directory, and starts the router; a broker of a cluster
    /// goes and looks for it. Of `channels` it takes what share of its memory they may have. Needs a tokio runtime.
    pub async fn bind(
        conf: &weir_conf::broker::Broker,
        channels: &weir_conf::channel::Channels,
        registry: &mut Registry,
    ) -> Result<Broker, BindError> {
        let tls = Tls::of_broker(conf)?;
        let listener = Listener::bind(conf, tls.clone())?;
        let shares = shares(channels);
        let (metrics, links) = (metrics::Metrics::register(registry), Drain::new());
        let (engine, receiver, cluster) = match conf.is_cluster() {
            true => {
                let addr = listener.local_addr();
                let started =
                    cluster::start(conf, shares, addr, tls, registry, metrics, links.clone()).await?;
                (started.engine, started.receiver, Some(started.cluster))
            }
            false => {
                let (engine, receiver) = alone(conf.clone(), shares, metrics).await?;
                (engine, receiver, None)
            }
        };
        let drain = Drain::new();
        let receive = tokio::spawn(engine.clone().receive(receiver, drain.clone()));
        let tick = tokio::spawn(engine.clone().tick(drain));
        let tasks = Tasks([receive.abort_handle(), tick.abort_handle()]);
        Ok(Broker { engine, listener, cluster, links, _tasks: tasks })
    }

    /// Where nodes and brokers of other processes connect; the port is a real one if conf said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// For operators; `None`: it is in no cluster.
    pub fn control(&self) -> Option<Control> {
        self.cluster.as_ref().map(Joined::control)
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

    /// Serves other processes until `drain` has begun; then hands over what it holds, if it is in a
    /// cluster, unless the drain is stopped. Ends by itself where it cannot be part of its cluster.
    pub async fn run(self, drain: Drain) {
        let Broker { engine, listener, cluster, links, _tasks } = self;
        let mesh = cluster.as_ref().map(|cluster| cluster.mesh.clone());
        let serving = tokio::spawn(listener.run(engine, mesh, links.clone()));
        let Some(cluster) = cluster else {
            drain.begun().await;
            return finish(&links, serving).await;
        };
        tokio::select! {
            () = drain.begun() => {
                tokio::select! {
                    () = cluster.hand_over() => {}
                    () = drain.stopped() => {}
                }
            }
            _said_in_the_log = cluster.failed() => {}
        }
        // No lease, no acknowledgements: whoever is still linked learns where to go on.
        finish(&links, serving).await;
        cluster.stop().await;
    }
}

async fn finish(links: &Drain, serving: tokio::task::JoinHandle<()>) {
    links.begin();
    if let Err(error) = serving.await {
        tracing::error!(%error, "the broker's listener failed");
    }
}

/// Of namespaces that may not take all there is.
fn shares(channels: &weir_conf::channel::Channels) -> Vec<Share> {
    let named = channels.namespace.iter().map(|(name, options)| (Some(name.clone()), options.broker_share));
    let all = named.chain([(None, channels.without_namespace.broker_share)]);
    all.filter(|(_, percent)| *percent < 100).collect()
}

async fn alone(
    conf: weir_conf::broker::Broker,
    shares: Vec<Share>,
    metrics: metrics::Metrics,
) -> Result<(Arc<Engine>, router::Receiver), BindError> {
    let engine = tokio::task::spawn_blocking(move || Engine::new(conf, &shares, metrics)).await;
    let engine = engine.map_err(|error| BindError::Router(error.to_string()))?;
    engine.map_err(|error| BindError::Router(error.to_string()))
}
