//! Tier 2: holds the client connections, and all that hangs on them: channels, presence, history,
//! recovery, heartbeats, the slow-consumer policy. The only crate that knows WebSocket frames and
//! client protocols.
//!
//! Read in this order: `session` (one connection, without its socket), `conn` (the task around
//! it), `hub` (who listens to what, and the fan-out), `interest` (what the bus is told).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acceptor;
mod api;
mod auth;
mod backlog;
mod client;
mod conn;
mod control;
mod demo;
mod drain;
mod error;
mod frame;
mod hub;
mod interest;
mod limits;
mod listener;
mod metrics;
mod namespaces;
mod outbox;
mod process;
mod protocol;
mod rates;
mod session;
mod shared;
#[cfg(test)]
mod socket_tests;
#[cfg(test)]
mod testing;

pub use error::BindError;

use auth::Auth;
use interest::Janitor;
use metrics::Metrics;
use namespaces::Namespaces;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rates::Rates;
use session::Settings;
use shared::Shared;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use weir_broker::{Bus, Inbox};
use weir_core::accept::Acceptor;
use weir_core::drain::Drain;
use weir_core::net::listen;
use weir_wire::id::NodeId;

/// Whether tokens can be verified with these keys; the error is the one that cannot be used, and why.
pub fn judge_token(conf: &weir_conf::node::Token) -> Result<(), (&'static str, String)> {
    match Auth::new(conf) {
        Err(BindError::Token { key, reason }) => Err((key, reason)),
        Ok(_) | Err(BindError::Listen { .. }) => Ok(()),
    }
}

/// A node that has its port, and waits for [`Node::run`].
pub struct Node {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Node {
    /// Takes the port (or a predecessor's socket) and reads the keys; nothing is served yet.
    pub fn bind(
        conf: &weir_conf::node::Node,
        channels: &weir_conf::channel::Channels,
        registry: &mut Registry,
        inherited: Option<TcpListener>,
    ) -> Result<Node, BindError> {
        let auth = Auth::new(&conf.token)?;
        let wanted = conf.listen;
        let failed = |source| BindError::Listen { address: wanted, source };
        let listener = listen(wanted, inherited).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let settings = Settings {
            namespaces: Namespaces::new(channels, conf.channel_name_size),
            auth,
            anonymous: conf.anonymous,
            channels_per_client: conf.channels_per_client,
            history_limit: conf.history_limit,
            // Small against the outbox: pings and what is live go between two of them.
            piece_size: conf.outbox_size / 4,
            reply_size: conf.reply_size,
            ping_interval: conf.ping_interval,
            pong_timeout: conf.pong_timeout,
            stale_timeout: conf.stale_timeout,
            expired_grace: conf.expired_grace,
        };
        let name = match conf.name.as_str() {
            "" => format!("{}:{}", weir_core::process::host_name(), address.port()),
            name => name.to_owned(),
        };
        let metrics = Arc::new(Metrics::register(registry));
        let id = NodeId(rand::random());
        let shared = Arc::new(Shared::new(conf.clone(), Arc::new(settings), metrics, id, name));
        registry.register_collector(Box::new(OnScrape(shared.clone())));
        Ok(Node { listener, address, shared })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A second handle of its socket, for a successor.
    pub fn socket(&self) -> std::io::Result<TcpListener> {
        self.listener.try_clone()
    }

    /// Drawn at random: one run of one process.
    pub fn id(&self) -> NodeId {
        self.shared.id
    }

    /// As `info` shows it.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    pub fn health(&self) -> Arc<Health> {
        Arc::new(Health { shared: self.shared.clone() })
    }

    /// For a front in the same process; refuses with 503 until [`Node::run`] is under way.
    pub fn acceptor(&self) -> Arc<dyn Acceptor> {
        Arc::new(acceptor::InProcess { shared: self.shared.clone() })
    }

    /// Serves until the drain has begun and all clients are gone or have had their time.
    /// Connections live on the runtime that this is called on.
    pub async fn run(self, bus: Arc<dyn Bus>, inbox: Inbox, drain: Drain) {
        let busy = drain.busy();
        let shared = self.shared;
        let (janitor, jobs) = Janitor::new();
        shared.hub.start(bus, janitor);
        let _ = shared.runtime.set(Handle::current());
        // Neither ends before the node does; both end with it.
        let tasks = [
            Aborting(tokio::spawn(jobs.run(shared.hub.clone()))),
            Aborting(tokio::spawn(control::run(shared.clone(), inbox))),
            Aborting(tokio::spawn(sweep(shared.rates.clone()))),
        ];
        tracing::info!(address = %self.address, node = %shared.id, name = shared.name, "node listens");
        match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener::run(listener, shared.clone(), drain.clone()).await,
            Err(error) => {
                tracing::error!(%error, "cannot listen; serving only what a front in this process brings");
                drain.begun().await;
            }
        }
        drain::run(&shared, &drain).await;
        drop(tasks);
        drop(busy);
    }
}

/// Users who ask for nothing any more.
async fn sweep(rates: Arc<Rates>) {
    let mut minutes = tokio::time::interval(Duration::from_secs(60));
    loop {
        minutes.tick().await;
        rates.sweep(conn::now().at);
    }
}

/// Ends its task when dropped.
struct Aborting(tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How the node is; cheap to ask.
pub struct Health {
    shared: Arc<Shared>,
}

impl Health {
    /// Serving, not draining, and the broker can be reached.
    pub fn is_ready(&self) -> bool {
        self.shared.runtime.get().is_some() && !self.is_draining() && self.bus_is_up()
    }

    pub fn bus_is_up(&self) -> bool {
        self.shared.hub.bus_is_up()
    }

    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }

    /// Open client connections.
    pub fn connections(&self) -> usize {
        self.shared.live()
    }
}

/// What is counted only when somebody asks.
#[derive(Clone)]
struct OnScrape(Arc<Shared>);

impl std::fmt::Debug for OnScrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnScrape")
    }
}

impl Collector for OnScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let hub = &self.0.hub;
        let values = [
            ("weir_node_outbox_bytes", "Bytes that wait for clients", hub.outbox_bytes() as i64),
            ("weir_node_clients", "Connected clients", hub.clients() as i64),
            ("weir_node_users", "Different users connected here", hub.users() as i64),
            ("weir_node_bus_up", "Whether the broker can be reached", i64::from(hub.bus_is_up())),
        ];
        for (name, help, value) in values {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
