//! What operators do to a running process: reload, drain, hand over, look. The CLI's verbs and the
//! signals end here; HTTP around it is `weir_core::admin`.

mod broker;
mod upstreams;

use crate::handover::{self, Handed, Tier};
use crate::judge::{self, For};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use weir_conf::{Config, Sources};
use weir_core::admin::verbs::{Answer, Failure, Verbs};
use weir_core::drain::{Drain, Pace};
use weir_core::sync::lock;
use weir_proxy::Control;

/// The handle of a running process.
pub struct Operator {
    sources: Sources,
    /// In force. Held over a whole reload: they come one after the other.
    conf: tokio::sync::Mutex<Config>,
    proxy: Option<Control>,
    node: Option<Arc<weir_node::Health>>,
    broker: Option<weir_broker::Control>,
    drain: Drain,
    /// Second handles of sockets that are neither the proxy's nor to stay open in a drain.
    sockets: Mutex<Vec<Handed>>,
    started: Instant,
    handed_over: AtomicBool,
}

/// The tiers of this process, as an operator sees them.
pub struct Tiers {
    pub proxy: Option<Control>,
    pub node: Option<Arc<weir_node::Health>>,
    /// `None`: there is none, or it is in no cluster.
    pub broker: Option<weir_broker::Control>,
    pub sockets: Vec<Handed>,
}

impl Operator {
    pub fn new(sources: Sources, conf: Config, tiers: Tiers, drain: Drain) -> Operator {
        Operator {
            sources,
            conf: tokio::sync::Mutex::new(conf),
            proxy: tiers.proxy,
            node: tiers.node,
            broker: tiers.broker,
            drain,
            sockets: Mutex::new(tiers.sockets),
            started: Instant::now(),
            handed_over: AtomicBool::new(false),
        }
    }

    /// Reads the conf again and puts its `[proxy]` in force; no connection closes. A conf with
    /// mistakes changes nothing.
    pub async fn reload(&self) -> Result<Value, Failure> {
        if self.drain.has_begun() {
            return Err(Failure::refused("this process is draining"));
        }
        let mut conf = self.conf.lock().await;
        let (sources, proxy) = (self.sources.clone(), self.proxy.clone());
        // Files are read and names are resolved, which blocks.
        let work = tokio::task::spawn_blocking(move || {
            let loaded = judge::load(&sources, For::Use).map_err(|mistakes| mistakes.to_string())?;
            let listeners = match &proxy {
                Some(proxy) if loaded.config.roles.proxy => {
                    Some(proxy.reload(&loaded.config.proxy).map_err(|error| error.to_string())?)
                }
                _ => None,
            };
            Ok((loaded, listeners))
        });
        let outcome: Result<_, String> = work.await.unwrap_or_else(|error| Err(error.to_string()));
        let (loaded, listeners) = outcome.map_err(|why| {
            tracing::error!("reload refused, nothing has changed: {why}");
            Failure::refused(why)
        })?;
        for warning in &loaded.warnings {
            tracing::warn!(%warning, "conf");
        }
        let restart = needs_restart(&conf, &loaded.config);
        if self.proxy.is_some() {
            let threads = conf.proxy.threads;
            conf.proxy = loaded.config.proxy;
            conf.proxy.threads = threads;
        }
        let (opened, closed) = listeners.map_or((0, 0), |l| (l.opened, l.closed));
        tracing::info!(opened, closed, needs_restart = restart.join(" "), "reloaded");
        Ok(json!({
            "listeners": { "opened": opened, "closed": closed },
            "needs_restart": restart,
            "warnings": loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))
    }

    /// Begins the drain that a first SIGTERM begins.
    fn drain(&self, order: &Value) -> Result<Value, Failure> {
        let pace = Pace { per_second: rate_of(order)?, timeout: duration_of(order)? };
        if self.drain.has_begun() {
            return Err(Failure::refused("this process is draining already"));
        }
        self.drain.begin_at(pace);
        Ok(self.status())
    }

    fn proxy(&self) -> Result<&Control, Failure> {
        self.proxy.as_ref().ok_or_else(|| Failure::unknown("this process has no proxy role"))
    }

    fn status(&self) -> Value {
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "draining": self.drain.has_begun(),
        });
        if let Some(proxy) = &self.proxy {
            status["proxy"] = json!({ "busy": proxy.busy() });
        }
        if let Some(node) = &self.node {
            status["node"] = json!({ "connections": node.connections(), "bus_up": node.bus_is_up() });
        }
        status
    }

    /// Gives the listeners to the successor that waits at `admin.upgrade_socket`, then begins the
    /// drain. On an error this process goes on as it was.
    pub async fn hand_over(&self) -> Result<(), String> {
        if self.drain.has_begun() {
            return Err("this process is draining".into());
        }
        // Nor can what is handed over change meanwhile.
        let conf = self.conf.lock().await;
        if conf.roles.broker {
            return Err("this process has the broker role, and a broker's log has one owner: restart it, \
                        or run the broker as a process of its own"
                .into());
        }
        let path = handover::socket(&conf.admin, handover::Side::Predecessor)?;
        let handed = self.handed().map_err(|error| format!("the listeners cannot be shared: {error}"))?;
        let quic = self.proxy.as_ref().map(Control::hand_over_quic).transpose();
        let quic = quic.map_err(|error| format!("the QUIC sockets cannot be shared: {error}"))?.flatten();
        tracing::info!(socket = %path.display(), listeners = handed.len(), "handing over to a successor");
        let given = tokio::task::spawn_blocking(move || handover::give(&path, &handed, quic)).await;
        let given = given.unwrap_or_else(|error| Err(error.to_string()));
        if let Some(proxy) = &self.proxy {
            proxy.handed_over_quic(given.is_ok());
        }
        given?;
        tracing::info!("the successor serves; draining");
        self.handed_over.store(true, Relaxed);
        self.drain.begin();
        Ok(())
    }

    pub fn has_handed_over(&self) -> bool {
        self.handed_over.load(Relaxed)
    }

    fn handed(&self) -> std::io::Result<Vec<Handed>> {
        let again = |h: &Handed| Ok(Handed { listener: h.listener.try_clone()?, ..*h });
        let own = lock(&self.sockets);
        let mut all: Vec<Handed> = own.iter().map(again).collect::<std::io::Result<_>>()?;
        if let Some(proxy) = &self.proxy {
            let of_proxy = |(addr, listener)| Handed { tier: Tier::Proxy, addr, listener };
            all.extend(proxy.sockets()?.into_iter().map(of_proxy));
        }
        Ok(all)
    }

    /// A drain has begun: no second handle may keep a port open that nobody accepts on.
    pub fn close_sockets(&self) {
        lock(&self.sockets).clear();
    }
}

impl Verbs for Operator {
    fn call<'a>(&'a self, verb: &'a str, order: Value) -> Answer<'a> {
        Box::pin(async move {
            match verb {
                "reload" => self.reload().await,
                "drain" => self.drain(&order),
                "status" => Ok(self.status()),
                _ if broker::is_verb(verb) => broker::call(self.broker.as_ref(), verb, &order).await,
                "upstreams" => Ok(upstreams::list(self.proxy()?)),
                "upstream" => upstreams::set(self.proxy()?, &order),
                _ => Err(Failure::unknown(
                    "there is no such verb; known: reload, drain, status, upstreams, upstream, broker, broker/shards, \
                     broker/bootstrap, broker/join, broker/leave, broker/drain, broker/move, broker/give_up",
                )),
            }
        })
    }
}

/// What a reload cannot change.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let changed = [
        ("roles", before.roles != after.roles),
        ("[telemetry]", before.telemetry != after.telemetry),
        ("[admin]", before.admin != after.admin),
        ("proxy.threads", before.proxy.threads != after.proxy.threads),
        ("[node]", before.node != after.node),
        ("[channel]", before.channel != after.channel),
        ("[broker]", before.broker != after.broker),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
}

fn rate_of(order: &Value) -> Result<Option<f64>, Failure> {
    let bad = || Failure::bad("rate: accepted: \"200/s\", \"600/min\"");
    let Some(rate) = order.get("rate").filter(|v| !v.is_null()) else { return Ok(None) };
    let rate = rate.as_str().and_then(weir_conf::units::Rate::parse).ok_or_else(bad)?;
    if rate.per_second > 0.0 { Ok(Some(rate.per_second)) } else { Err(bad()) }
}

fn duration_of(order: &Value) -> Result<Option<Duration>, Failure> {
    let Some(timeout) = order.get("timeout").filter(|v| !v.is_null()) else { return Ok(None) };
    let timeout = timeout.as_str().and_then(weir_conf::units::parse_duration);
    timeout.map(Some).ok_or_else(|| Failure::bad("timeout: accepted: \"30s\", \"5m\""))
}

/// Handles for a successor, of the listeners that are not the proxy's.
pub fn second_handle(
    tier: Tier,
    addr: std::net::SocketAddr,
    socket: std::io::Result<TcpListener>,
) -> Option<Handed> {
    socket
        .inspect_err(|error| tracing::warn!(%addr, %error, "this listener cannot be handed to a successor"))
        .ok()
        .map(|listener| Handed { tier, addr, listener })
}
