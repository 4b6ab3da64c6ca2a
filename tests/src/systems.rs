//! Whole systems: which processes there are, and where they listen.

use crate::client::Open;
use crate::conf::{self, API_KEY};
use crate::http::Api;
use crate::net::Link;
use crate::ports::Port;
use crate::process::{Process, Spec};
use std::net::SocketAddr;

/// All tiers in one process.
pub struct Embedded {
    pub process: Process,
    proxy: Port,
    node: Port,
    _broker: Port,
}

impl Embedded {
    pub async fn start() -> Embedded {
        Embedded::start_with(&[]).await
    }

    /// With these keys set.
    pub async fn start_with(set: &[(&str, &str)]) -> Embedded {
        // The suites' clients all have one address; the limit itself has a suite of its own.
        let spec = Spec::text("weir", conf::all_tiers()).set("proxy.handshake_rate", "0/s");
        Embedded::start_spec(set.iter().fold(spec, |spec, (key, value)| spec.set(key, value))).await
    }

    pub async fn start_spec(spec: Spec) -> Embedded {
        let (proxy, node, broker) = (Port::free(), Port::free(), Port::free());
        let listeners = [("proxy.listen", &proxy), ("node.listen", &node), ("broker.listen", &broker)];
        let process = spec.start(&listeners).await;
        Embedded { process, proxy, node, _broker: broker }
    }

    pub fn proxy(&self) -> SocketAddr {
        self.proxy.addr()
    }

    pub fn node(&self) -> SocketAddr {
        self.node.addr()
    }

    /// A client's way in.
    pub fn client(&self) -> Open {
        Open::to(self.proxy())
    }

    pub fn api(&self) -> Api {
        Api { addr: self.node(), key: API_KEY.to_owned() }
    }
}

/// A broker and two nodes that let anyone in; the second node reaches the broker by a link that can be cut.
pub struct Nodes {
    pub nodes: [Process; 2],
    pub link: Link,
    ports: [Port; 2],
    _broker: (Process, Port),
}

impl Nodes {
    pub async fn start() -> Nodes {
        Nodes::start_with(&[]).await
    }

    /// With these keys set for both nodes.
    pub async fn start_with(set: &[(&str, &str)]) -> Nodes {
        let (broker_port, ports) = (Port::free(), [Port::free(), Port::free()]);
        let broker = Spec::text("broker", conf::broker()).start(&[("broker.listen", &broker_port)]).await;
        let link = Link::to(broker_port.addr()).await;
        let node = |name, broker| {
            let spec = Spec::text(name, conf::node(broker));
            set.iter().fold(spec, |spec, (key, value)| spec.set(key, value))
        };
        let nodes = [
            node("node-a", broker_port.addr()).start(&[("node.listen", &ports[0])]).await,
            node("node-b", link.addr()).start(&[("node.listen", &ports[1])]).await,
        ];
        Nodes { nodes, link, ports, _broker: (broker, broker_port) }
    }

    pub fn broker(&self) -> &Process {
        &self._broker.0
    }

    pub fn addr(&self, node: usize) -> SocketAddr {
        self.ports[node].addr()
    }

    pub fn client(&self, node: usize) -> Open {
        Open::to(self.addr(node))
    }

    pub fn api(&self, node: usize) -> Api {
        Api { addr: self.addr(node), key: API_KEY.to_owned() }
    }
}

/// The four confs that ship, as four processes.
pub struct Shipped {
    pub proxy: Process,
    pub nodes: [Process; 2],
    broker: Option<Process>,
    proxy_port: Port,
    node_ports: [Port; 2],
    broker_port: Port,
}

/// Secrets of the shipped node.toml.
const SHIPPED_SECRET: &str = "change-me";

impl Shipped {
    pub async fn start() -> Shipped {
        let (proxy_port, node_ports, broker_port) =
            (Port::free(), [Port::free(), Port::free()], Port::free());
        let broker = start_broker(&broker_port).await;
        let nodes = [
            start_node("node-a", &node_ports[0], &broker_port).await,
            start_node("node-b", &node_ports[1], &broker_port).await,
        ];
        let servers = format!("[\"{}\", \"{}\"]", node_ports[0], node_ports[1]);
        let proxy = Spec::shipped("proxy", "conf/proxy.toml")
            .set("proxy.upstream.node.servers", servers)
            .set("proxy.handshake_rate", "0/s")
            .start(&[("proxy.listen", &proxy_port)])
            .await;
        Shipped { proxy, nodes, broker: Some(broker), proxy_port, node_ports, broker_port }
    }

    pub async fn kill_broker(&mut self) {
        self.broker.take().expect("it runs").kill_9().await;
    }

    pub async fn start_broker(&mut self) {
        self.broker = Some(start_broker(&self.broker_port).await);
    }

    /// A client's way in.
    pub fn client(&self) -> Open {
        Open::to(self.proxy_port.addr())
    }

    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy_port.addr()
    }

    pub fn api(&self, node: usize) -> Api {
        Api { addr: self.node_ports[node].addr(), key: SHIPPED_SECRET.to_owned() }
    }

    /// A token that the nodes accept.
    pub fn token(user: &str) -> String {
        conf::jwt_by(SHIPPED_SECRET, &serde_json::json!({"sub": user, "exp": conf::in_seconds(600)}))
    }
}

async fn start_broker(port: &Port) -> Process {
    Spec::shipped("broker", "conf/broker.toml").start(&[("broker.listen", port)]).await
}

async fn start_node(name: &str, port: &Port, broker: &Port) -> Process {
    let listeners = [("node.listen", port), ("node.brokers", broker)];
    // Each client's way through the tiers is in the log.
    Spec::shipped(name, "conf/node.toml")
        .set("telemetry.filter", "info,weir_node=debug")
        .set("node.name", name)
        .start(&listeners)
        .await
}
