//! What one conf makes of the proxy: routes, upstreams, limits. A reload builds the next one and
//! swaps it in whole; each request uses one from its head to its end, so no request sees two confs.
//!
//! What must outlive a conf is handed from one to the next: counts of open connections, servers'
//! health, pools.

use crate::LocalNode;
use crate::acme::Acme;
use crate::admit::counts::KeyPlace;
use crate::admit::{Admit, Refused, UnderWay};
use crate::error::BindError;
use crate::guarded::Guarded;
use crate::metrics::Metrics;
use crate::route::{Action, Route, Routes, Target};
use crate::tls::Tls;
use crate::upstream::Upstream;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use weir_conf::proxy::Action as Does;
use weir_core::client_addr::Trusted;

pub struct Snapshot {
    pub conf: weir_conf::proxy::Proxy,
    pub trusted: Trusted,
    pub guarded: Guarded,
    /// Outlives confs; what this one says of it is put in force by whoever has loaded it.
    pub tls: Arc<Tls>,
    /// As `tls` is.
    pub acme: Arc<Acme>,
    pub admit: Admit,
    pub routes: Routes,
    pub upstreams: BTreeMap<String, Arc<Upstream>>,
}

impl Snapshot {
    /// A place among the connections of this address; trusted proxies speak for many, and have no limit.
    pub fn address(&self, ip: IpAddr) -> Result<Option<KeyPlace>, Refused> {
        match self.trusted.contains(ip) {
            true => Ok(None),
            false => self.admit.address(ip),
        }
    }

    /// A request of this client that goes to a server, where it does; the same.
    pub fn under_way(&self, goes: bool, client: IpAddr) -> Result<Option<UnderWay>, Refused> {
        let own = (!self.trusted.contains(client)).then_some(client);
        goes.then(|| self.admit.request(own)).transpose()
    }

    /// One TLS handshake of this address; the same.
    pub fn tls_handshake(&self, ip: IpAddr) -> Result<(), Refused> {
        match self.trusted.contains(ip) {
            true => Ok(()),
            false => self.admit.tls_handshake(ip),
        }
    }

    /// `before` is the one that this will replace. May block: names are resolved.
    pub fn build(
        conf: &weir_conf::proxy::Proxy,
        node: Option<&LocalNode>,
        metrics: &Metrics,
        before: Option<&Snapshot>,
    ) -> Result<Snapshot, BindError> {
        let upstreams = upstreams(conf, metrics, before)?;
        let admit = match before {
            Some(before) => before.admit.renew(conf, metrics)?,
            None => Admit::new(conf, metrics)?,
        };
        let tls = match before {
            Some(before) => before.tls.clone(),
            None => Tls::new(&conf.tls, &metrics.tls)?,
        };
        let acme = match before {
            Some(before) => before.acme.clone(),
            None => Arc::new(Acme::new(tls.certs.clone(), metrics.clone())),
        };
        Ok(Snapshot {
            acme,
            tls,
            conf: conf.clone(),
            trusted: Trusted::new(&conf.trusted),
            guarded: Guarded::new(conf),
            routes: routes(conf, node, metrics, &upstreams, &admit)?,
            admit,
            upstreams,
        })
    }
}

fn upstreams(
    conf: &weir_conf::proxy::Proxy,
    metrics: &Metrics,
    before: Option<&Snapshot>,
) -> Result<BTreeMap<String, Arc<Upstream>>, BindError> {
    let build = |name: &String| {
        let before = before.and_then(|b| b.upstreams.get(name));
        Upstream::build(name, conf, metrics, before)
    };
    conf.upstream.keys().map(|name| Ok((name.clone(), build(name)?))).collect()
}

fn routes(
    conf: &weir_conf::proxy::Proxy,
    node: Option<&LocalNode>,
    metrics: &Metrics,
    upstreams: &BTreeMap<String, Arc<Upstream>>,
    admit: &Admit,
) -> Result<Routes, BindError> {
    // Where nodes are listed, they are the tier, and the one here is reached like any other.
    let local = node.filter(|_| !upstreams.contains_key("node")).map(|node| Target::Node {
        acceptor: node.acceptor.clone(),
        listener: Arc::new(Upstream::of_node(node.addr, conf, metrics)),
    });
    let mut routes = Vec::with_capacity(conf.route.len());
    for (index, route) in conf.route.iter().enumerate() {
        let make = |action| Route::new(index, route, conf, action, admit.gate(route));
        let to = match &route.action {
            Does::To(to) => to,
            Does::Answer(answer) => {
                routes.push(make(Action::Answer(answer.clone())));
                continue;
            }
            Does::Redirect(redirect) => {
                routes.push(make(Action::Redirect(redirect.clone())));
                continue;
            }
        };
        let target = match (upstreams.get(to), &local) {
            (Some(upstream), _) => Target::Upstream(upstream.clone()),
            (None, Some(local)) if to == "node" => local.clone(),
            _ => {
                let known: Vec<&str> = upstreams.keys().map(String::as_str).collect();
                return Err(BindError::Route { index, to: to.clone(), known: known.join(", ") });
            }
        };
        routes.push(make(Action::Forward(target)));
    }
    Ok(Routes::new(routes))
}
