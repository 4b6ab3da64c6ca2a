//! What every part of a running node has at hand.

use crate::backlog::Backlog;
use crate::client::Client;
use crate::hub::Hub;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::session::Settings;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tokio::runtime::Handle;
use weir_core::accept::Transport;
use weir_core::sync::lock;
use weir_wire::id::NodeId;

pub struct Shared {
    pub conf: weir_conf::node::Node,
    pub settings: Arc<Settings>,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub backlog: Backlog,
    pub rates: Arc<Rates>,
    pub id: NodeId,
    pub name: String,
    pub started: Instant,
    /// The runtime that `run` was called on: connections live there.
    pub runtime: OnceLock<Handle>,
    pub draining: AtomicBool,
    /// All connections, the oldest first.
    live: Mutex<BTreeMap<u64, Arc<Client>>>,
    next: AtomicU64,
}

/// A connection's place among the living.
pub struct Entry {
    shared: Arc<Shared>,
    key: u64,
    transport: Transport,
}

impl Shared {
    pub fn new(
        conf: weir_conf::node::Node,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        id: NodeId,
        name: String,
    ) -> Shared {
        Shared {
            hub: Arc::new(Hub::new(
                conf.max_connections_per_user,
                conf.bus_timeout,
                conf.join_leave_window,
                metrics.clone(),
            )),
            rates: Arc::new(Rates::new(&conf.rate, conf.channels_per_client, crate::conn::now().at)),
            backlog: Backlog::new(conf.replies_memory),
            limits: Limits::new(conf.max_connections, conf.max_connections_per_ip),
            conf,
            settings,
            metrics,
            id,
            name,
            started: Instant::now(),
            runtime: OnceLock::new(),
            draining: AtomicBool::new(false),
            live: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    pub fn enter(self: &Arc<Self>, client: &Arc<Client>, transport: Transport) -> Entry {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.live).insert(key, client.clone());
        self.metrics.connections(transport).inc();
        Entry { shared: self.clone(), key, transport }
    }

    pub fn live(&self) -> usize {
        lock(&self.live).len()
    }

    /// The oldest connections after `after`, in order of age.
    pub fn oldest(&self, after: Option<u64>, n: usize) -> Vec<(u64, Arc<Client>)> {
        let from = after.map_or(0, |key| key + 1);
        lock(&self.live).range(from..).take(n).map(|(key, client)| (*key, client.clone())).collect()
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.shared.live).remove(&self.key);
        self.shared.metrics.connections(self.transport).dec();
    }
}
