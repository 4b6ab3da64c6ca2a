//! The broker and its cluster.

use super::Rules;
use super::listeners::is_loopback;
use super::proxy::is_host_port;
use crate::Config;
use crate::broker::{Broker, Fsync, UncleanAfter};
use std::net::SocketAddr;

const SECRET: &str = "\"file:/path\", \"env:NAME\", or tls_cert, tls_key and tls_ca";
const ADDRESS: &str = "\"HOST:PORT\", such as \"10.0.0.5:8200\", \"broker-1.internal:8200\"";

impl Rules<'_> {
    pub(super) fn broker(&mut self) {
        let broker = &self.config.broker;
        self.proof(broker);
        let tls = [("tls_cert", &broker.tls_cert), ("tls_key", &broker.tls_key), ("tls_ca", &broker.tls_ca)];
        self.tls_files("broker", tls);
        if !broker.name.is_empty() && !is_name(&broker.name) {
            let text = format!(
                "{:?} is not a broker's name; accepted: letters, digits, - _ . and :, 128 at most",
                broker.name
            );
            self.mistake(&["broker.name"], text);
        }
        self.peers(broker);
        self.address(broker);
        self.beginning(broker);
        self.disk(broker);
        if !broker.is_cluster() {
            self.alone(broker);
        }
    }

    /// Whoever is on another machine must prove who it is.
    fn proof(&mut self, broker: &Broker) {
        let is_set = |path: &String| !path.is_empty();
        // Part of the files is a mistake of its own.
        if !broker.secret.is_empty()
            || [&broker.tls_cert, &broker.tls_key, &broker.tls_ca].into_iter().any(is_set)
        {
            return;
        }
        if !is_loopback(broker.listen) {
            let text = format!(
                "broker.listen {} is not loopback: a secret or TLS is needed; accepted: {SECRET}, or broker.listen on 127.0.0.1",
                broker.listen
            );
            self.mistake(&["broker.secret", "broker.listen"], text);
        } else if let Some(peer) = far(broker) {
            let text =
                format!("the peer {peer} is not loopback: a secret or TLS is needed; accepted: {SECRET}");
            self.mistake(&["broker.secret", "broker.peers"], text);
        }
    }

    /// The files of one side of a link: all or none.
    pub(super) fn tls_files(&mut self, section: &str, files: [(&str, &String); 3]) {
        let keys = files.map(|(key, _)| format!("{section}.{key}"));
        let given = files.iter().position(|(_, path)| !path.is_empty());
        let Some((given, missing)) = given.zip(files.iter().position(|(_, path)| path.is_empty())) else {
            return;
        };
        let text = format!(
            "is missing, but {} is set; accepted: all of {}, {} and {} (PEM files), or none",
            files[given].0, files[0].0, files[1].0, files[2].0
        );
        self.mistake(&[&keys[missing], &keys[given]], text);
    }

    fn peers(&mut self, broker: &Broker) {
        if broker.peers.is_empty() {
            return;
        }
        let peers: Vec<&str> = broker.peers.iter().map(String::as_str).collect();
        self.servers("broker.peers", &peers, false);
        for (i, peer) in peers.iter().enumerate().filter(|(_, peer)| is_wildcard(peer)) {
            let text = format!("{peer:?} is no address to connect to; accepted: {ADDRESS}");
            self.mistake(&[&format!("broker.peers[{i}]")], text);
        }
        if broker.seeds().is_empty() {
            let text = "has only this broker itself; accepted: the other brokers too, or [] with bootstrap";
            self.mistake(&["broker.peers"], text);
        }
    }

    /// What the others are told to reach this broker at.
    fn address(&mut self, broker: &Broker) {
        let Broker { address, listen, .. } = broker;
        if !address.is_empty() && !is_host_port(address) {
            let text = format!("{address:?} is not an address; accepted: {ADDRESS}");
            return self.mistake(&["broker.address"], text);
        }
        if is_wildcard(address) {
            let text = format!("{address:?} is no address to connect to; accepted: {ADDRESS}");
            return self.mistake(&["broker.address"], text);
        }
        if broker.peers.is_empty() && !broker.bootstrap {
            return;
        }
        if address.is_empty() && listen.ip().is_unspecified() {
            let text = format!(
                "broker.listen {listen} is all addresses of this machine: the other brokers need one; accepted: {ADDRESS}"
            );
            return self.mistake(&["broker.address", "broker.listen"], text);
        }
        if address.is_empty() && listen.port() == 0 {
            let text =
                "is another port after each start, so no peers can list it; better: a port of your own";
            self.warn(&["broker.listen"], text);
        }
        let own = if address.is_empty() { listen.to_string() } else { address.clone() };
        if let Some(peer) = far(broker)
            && own.parse().is_ok_and(is_loopback)
        {
            let text = format!(
                "{own} is loopback, where {peer} cannot reach this broker; accepted: {ADDRESS}, here or as broker.listen"
            );
            self.mistake(&["broker.address", "broker.listen", "broker.peers"], text);
        }
    }

    /// Who begins the cluster.
    fn beginning(&mut self, broker: &Broker) {
        let (none, durable) = (broker.peers.is_empty(), !broker.data_dir.is_empty());
        if none && broker.bootstrap && !durable {
            let text = "has nobody to ask after a restart, and would begin a second cluster beside the first; better: peers, or data_dir";
            self.warn(&["broker.bootstrap", "broker.peers", "broker.data_dir"], text);
        }
    }

    fn disk(&mut self, broker: &Broker) {
        let d = Config::default().broker;
        let durable = !broker.data_dir.is_empty();
        if !durable && broker.fsync != d.fsync {
            self.warn(&["broker.fsync", "broker.data_dir"], "has no effect without data_dir");
        }
        if broker.fsync_interval != d.fsync_interval && broker.fsync != Fsync::Interval {
            let text = "has no effect; better: fsync = \"interval\" too";
            self.warn(&["broker.fsync_interval", "broker.fsync"], text);
        }
        if broker.is_cluster() && !durable && broker.unclean_after == UncleanAfter::Never {
            let text = "what brokers have in memory does not come back with them: channels whose copies are all gone refuse until an operator gives them up; better: \"auto\", or data_dir";
            self.warn(&["broker.unclean_after", "broker.data_dir"], text);
        }
    }

    /// Keys of a cluster, where there is none.
    fn alone(&mut self, broker: &Broker) {
        let d = Config::default().broker;
        let idle = [
            ("broker.address", broker.address != d.address),
            ("broker.copies", broker.copies != d.copies),
            ("broker.lease", broker.lease != d.lease),
            ("broker.unclean_after", broker.unclean_after != d.unclean_after),
            ("broker.forget_after", broker.forget_after != d.forget_after),
            ("broker.repairs", broker.repairs != d.repairs),
            ("broker.moves", broker.moves != d.moves),
        ];
        for (key, _) in idle.into_iter().filter(|(_, said)| *said) {
            let text = "has no effect on a broker alone; better: peers too, or bootstrap, or data_dir";
            self.warn(&[key, "broker.peers", "broker.bootstrap", "broker.data_dir"], text);
        }
    }
}

/// A peer that certainly is on another machine.
fn far(broker: &Broker) -> Option<&String> {
    broker.peers.iter().find(|peer| {
        peer.parse().is_ok_and(|addr: SocketAddr| !is_loopback(addr) && !addr.ip().is_unspecified())
    })
}

fn is_wildcard(text: &str) -> bool {
    text.parse().is_ok_and(|addr: SocketAddr| addr.ip().is_unspecified())
}

/// Shown in metrics and logs, and typed by operators.
fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    text.len() <= 128 && text.bytes().all(fits)
}
