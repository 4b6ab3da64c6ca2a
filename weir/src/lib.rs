//! Weir in one process: which tiers there are, and how they are joined, is decided here and
//! nowhere else.
//!
//! Start: bind everything (or take a predecessor's sockets, `handover.rs`), then serve broker, node,
//! proxy. Stop: the proxy and the node drain together (they may hold the same sockets), then the
//! broker, then the admin listener. What operators order meanwhile is in `operate.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod cli;
mod descriptors;
mod handover;
mod judge;
mod operate;
pub mod signal;
mod trim;

use handover::{Handed, Ready, Taken, Tier};
use operate::{Operator, Tiers};
use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_broker::{Broker, Bus, BusError, Inbox, RemoteBus};
use weir_conf::{Config, Sources};
use weir_core::admin::{Admin, Check};
use weir_core::drain::Drain;
use weir_core::metrics;
use weir_node::{Health, Node};
use weir_proxy::{Inherited, LocalNode, Proxy, QuicInheritance};

/// A listener or a tier that could not be made ready; the text names the conf key and the address.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("admin.listen = \"{addr}\": {source}")]
    Admin { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Proxy(#[from] weir_proxy::BindError),
    #[error(transparent)]
    Node(#[from] weir_node::BindError),
    #[error(transparent)]
    Broker(#[from] weir_broker::BindError),
    #[error("the node of this process cannot attach to its broker: {0}")]
    Attach(BusError),
}

/// The tiers of this process: bound, not yet serving.
pub struct Weir {
    admin: Option<Admin>,
    proxy: Option<Proxy>,
    node: Option<(Node, Arc<dyn Bus>, Inbox)>,
    broker: Option<Broker>,
    registry: Registry,
    drains: Drains,
    conf: Config,
    /// The predecessor that drains once this process serves.
    predecessor: Option<Ready>,
}

/// Where this process begins: the sockets of a predecessor, or none.
#[derive(Default)]
pub struct Inheritance {
    handed: Vec<Handed>,
    quic: Option<QuicInheritance>,
    predecessor: Option<Ready>,
}

impl Inheritance {
    /// Waits for the predecessor that is told (by SIGQUIT) to hand over; blocks.
    pub fn await_predecessor(conf: &Config) -> Result<Inheritance, String> {
        let path = handover::socket(&conf.admin, handover::Side::Successor)?;
        let (Taken { listeners: handed, quic }, ready) = handover::receive(&path)?;
        Ok(Inheritance { handed, quic, predecessor: Some(ready) })
    }

    fn one(&mut self, tier: Tier, addr: SocketAddr) -> Option<std::net::TcpListener> {
        let at = self.handed.iter().position(|h| h.tier == tier && h.addr == addr)?;
        Some(self.handed.swap_remove(at).listener)
    }

    fn of_proxy(&mut self) -> Inherited {
        let (ours, rest) = std::mem::take(&mut self.handed).into_iter().partition(|h| h.tier == Tier::Proxy);
        self.handed = rest;
        let ours: Vec<Handed> = ours;
        let listeners = ours.into_iter().map(|h| (h.addr, h.listener)).collect();
        Inherited { listeners, quic: self.quic.take() }
    }
}

/// One for each step of stopping.
#[derive(Clone, Default)]
struct Drains {
    /// Proxy and node: they may share sockets, so neither can wait for the other.
    front: Drain,
    broker: Drain,
    admin: Drain,
}

impl Weir {
    /// Binds every listener of every role, or says which one could not be.
    pub async fn bind(conf: &Config, mut inheritance: Inheritance) -> Result<Weir, BindError> {
        let mut registry = metrics::registry();
        let drains = Drains::default();
        let admin = match conf.admin.enabled {
            true => Some(
                Admin::bind(&conf.admin, inheritance.one(Tier::Admin, conf.admin.listen))
                    .map_err(|source| BindError::Admin { addr: conf.admin.listen, source })?,
            ),
            false => None,
        };
        let broker = match conf.roles.broker {
            true => Some(Broker::bind(&conf.broker, &conf.channel, &mut registry).await?),
            false => None,
        };
        let node = match conf.roles.node {
            true => {
                let socket = inheritance.one(Tier::Node, conf.node.listen);
                Some(bind_node(conf, broker.as_ref(), &mut registry, &drains.broker, socket)?)
            }
            false => None,
        };
        let proxy = match conf.roles.proxy {
            true => {
                let local = node
                    .as_ref()
                    .map(|(node, ..)| LocalNode { acceptor: node.acceptor(), addr: node.local_addr() });
                Some(Proxy::bind(&conf.proxy, local, &mut registry, inheritance.of_proxy())?)
            }
            false => None,
        };
        let (conf, predecessor) = (conf.clone(), inheritance.predecessor);
        Ok(Weir { admin, proxy, node, broker, registry, drains, conf, predecessor })
    }

    /// Where clients connect, if the proxy is here; first without TLS.
    pub fn proxy_addrs(&self) -> Vec<SocketAddr> {
        self.proxy.as_ref().map(Proxy::local_addrs).unwrap_or_default()
    }

    pub fn node_addr(&self) -> Option<SocketAddr> {
        self.node.as_ref().map(|(node, ..)| node.local_addr())
    }

    pub fn broker_addr(&self) -> Option<SocketAddr> {
        self.broker.as_ref().map(Broker::local_addr)
    }

    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|admin| admin.local_addr().ok())
    }

    /// What operators order ends here; `sources` are read again by a reload.
    pub fn operator(&self, sources: Sources, drain: &Drain) -> Arc<Operator> {
        let (conf, mut sockets) = (&self.conf, Vec::new());
        if let Some((node, ..)) = &self.node {
            sockets.extend(operate::second_handle(Tier::Node, conf.node.listen, node.socket()));
        }
        if let Some(admin) = &self.admin {
            sockets.extend(operate::second_handle(Tier::Admin, conf.admin.listen, admin.socket()));
        }
        let tiers = Tiers {
            proxy: self.proxy.as_ref().map(Proxy::control),
            node: self.node.as_ref().map(|(node, ..)| node.health()),
            broker: self.broker.as_ref().and_then(Broker::control),
            sockets,
        };
        Arc::new(Operator::new(sources, conf.clone(), tiers, drain.clone()))
    }

    /// Serves until `drain` has begun and each tier has finished; `drain.stop()` cuts that short.
    /// False if a tier ended by itself.
    pub async fn run(self, operator: Arc<Operator>, drain: Drain) -> bool {
        let drains = self.drains;
        let cluster = self.broker.as_ref().and_then(Broker::control);
        let checks = checks(self.node.as_ref().map(|(node, ..)| node.health()), cluster);
        let admin = self
            .admin
            .map(|a| tokio::spawn(a.run(self.registry, checks, operator.clone(), drains.admin.clone())));
        let ended = CancellationToken::new();
        let broker = self.broker.map(|b| tier(&ended, b.run(drains.broker.clone())));
        let mut front: Vec<JoinHandle<()>> = Vec::new();
        if let Some((node, bus, inbox)) = self.node {
            front.push(tier(&ended, node.run(bus, inbox, drains.front.clone())));
        }
        if let Some(proxy) = self.proxy {
            front.push(tier(&ended, run_proxy(proxy, drains.front.clone())));
        }
        let trimming = tokio::spawn(trim::run());
        tracing::info!("serving");
        if let Some(predecessor) = self.predecessor {
            predecessor.say();
        }
        let healthy = tokio::select! {
            () = drain.begun() => true,
            () = ended.cancelled() => false,
        };
        trimming.abort();
        if !healthy {
            tracing::error!("a tier ended by itself; stopping the others");
        }
        drains.stop_all_when_stopped(&drain);
        operator.close_sockets();
        if operator.has_handed_over() {
            // Its port is the successor's now: scrapers and operators are to find that one.
            drains.admin.stop();
        }
        // It goes on serving, but says that this process is about to go.
        drains.admin.begin();
        drains.front.begin_at(drain.pace());
        finish(front).await;
        drains.broker.begin();
        finish(broker).await;
        drains.admin.stop();
        finish(admin).await;
        tracing::info!("stopped");
        healthy
    }
}

impl Drains {
    /// A second signal reaches every tier at once.
    fn stop_all_when_stopped(&self, told: &Drain) {
        let (all, told) = (self.clone(), told.clone());
        tokio::spawn(async move {
            told.stopped().await;
            for drain in [&all.front, &all.broker, &all.admin] {
                drain.stop();
            }
        });
    }
}

fn bind_node(
    conf: &Config,
    broker: Option<&Broker>,
    registry: &mut Registry,
    drain: &Drain,
    inherited: Option<std::net::TcpListener>,
) -> Result<(Node, Arc<dyn Bus>, Inbox), BindError> {
    let node = Node::bind(&conf.node, &conf.channel, registry, inherited)?;
    let (bus, inbox) = match broker {
        Some(broker) => {
            broker.attach(node.id(), &conf.node.name, conf.node.inbox_size).map_err(BindError::Attach)?
        }
        None => RemoteBus::start(&conf.node, node.id(), &conf.node.name, registry, drain.clone())?,
    };
    Ok((node, bus, inbox))
}

fn checks(node: Option<Arc<Health>>, cluster: Option<weir_broker::Control>) -> Vec<(&'static str, Check)> {
    let mut checks: Vec<(&'static str, Check)> = Vec::new();
    if let Some(node) = node {
        let bus = node.clone();
        let accepts = move || node.is_ready().then_some(()).ok_or_else(|| "not accepting clients".into());
        checks.push(("node", Box::new(accepts)));
        let up = move || bus.bus_is_up().then_some(()).ok_or_else(|| "down".into());
        checks.push(("broker link", Box::new(up)));
    }
    if let Some(cluster) = cluster {
        let joined = move || {
            cluster.is_ready().then_some(()).ok_or_else(|| "no lease: not joined yet, or cut off".into())
        };
        checks.push(("broker cluster", Box::new(joined)));
    }
    checks
}

/// Runs a tier; `ended` is cancelled when it ends, by a panic too.
fn tier(ended: &CancellationToken, run: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let guard = ended.clone().drop_guard();
    tokio::spawn(async move {
        run.await;
        drop(guard);
    })
}

async fn run_proxy(proxy: Proxy, drain: Drain) {
    if let Err(error) = proxy.run(drain).await {
        tracing::error!(%error, "the proxy failed");
    }
}

async fn finish(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a tier failed while stopping");
        }
    }
}
