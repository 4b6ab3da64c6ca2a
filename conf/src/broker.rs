//! `[broker]`: tier 3.

use crate::section::{Reader, Value, keys};
use crate::tree::Item;
use crate::units::{Bytes, Secret, duration_text, parse_duration};
use crate::value::words;
use crate::write::quote;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Broker {
    /// For nodes in other processes and for the other brokers of the cluster.
    pub listen: SocketAddr,
    /// Shared with `node.broker_secret` and the other brokers; needed, or TLS, when `listen` is not
    /// loopback. Empty: no proof asked.
    pub secret: Secret,
    /// PEM files for TLS on `listen` and towards other brokers, all or none: this broker's
    /// certificate and key, and the authorities that certificates of the other side come from.
    pub tls_cert: String,
    pub tls_key: String,
    pub tls_ca: String,
    /// Attached nodes, at most.
    pub max_nodes: usize,
    /// Largest publication, data and envelope together.
    pub message_size: usize,
    /// Memory for history of all channels; the oldest publications go first.
    pub history_memory: usize,
    /// Streams kept at once; over it a publish that would make a new one is refused.
    pub max_channels: usize,
    /// A node that is away for longer loses its members.
    pub node_lease: Duration,
    /// How long answers to a survey are awaited.
    pub survey_timeout: Duration,

    /// Of this broker in its cluster, the same after a restart. Empty: host name and port.
    pub name: String,
    /// Brokers through which the cluster is found: their `listen` or `address`.
    pub peers: Vec<String>,
    /// What other brokers reach this one at. Empty: `listen`.
    pub address: String,
    /// A start without state begins a new cluster; exactly one broker of it does.
    pub bootstrap: bool,
    /// How many brokers each channel's log is to be on.
    pub copies: u8,
    /// For how long a broker may act as the owner of channels without hearing from the leader.
    pub lease: Duration,
    /// Logs and the cluster's state; empty: in memory.
    pub data_dir: String,
    pub fsync: Fsync,
    /// With [`Fsync::Interval`].
    pub fsync_interval: Duration,
    pub unclean_after: UncleanAfter,
    /// A broker away for longer is replaced as a voter and as a copy.
    pub forget_after: Duration,
    /// Copies that are built anew at once, in the cluster, for what has too few.
    pub repairs: usize,
    /// … and for balance.
    pub moves: usize,
}

/// When what was written is synced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before it is acknowledged.
    Always,
    /// Every `fsync_interval`.
    Interval,
    /// When the system sees fit.
    Never,
}

/// How long channels whose in-sync brokers are all gone wait for one of them, before another begins
/// them anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanAfter {
    /// 30 s in memory, never with `data_dir`.
    Auto,
    Never,
    After(Duration),
}

/// A broker that keeps nothing on disk has nothing to bring back: waiting longer helps nobody.
const IN_MEMORY: Duration = Duration::from_secs(30);

/// Brokers renew their leases every 200 ms, and the leader confirms that it leads every 130 ms:
/// each may fail twice. With more than a minute no loss of a broker would be noticed for as long.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_millis(600)..=Duration::from_secs(60);

const TICK: Duration = Duration::from_millis(1);

keys!(Broker {
    listen,
    secret,
    tls_cert,
    tls_key,
    tls_ca,
    max_nodes in 1..,
    message_size as Bytes in Bytes(1024)..=Bytes(1 << 28),
    history_memory as Bytes in Bytes(1 << 16)..,
    max_channels in 1..,
    node_lease in Duration::from_millis(100)..,
    survey_timeout in TICK..,
    name,
    peers,
    address,
    bootstrap,
    copies in 1..=7,
    lease in LEASE,
    data_dir,
    fsync,
    fsync_interval in TICK..=Duration::from_secs(60),
    unclean_after,
    forget_after in Duration::from_millis(100)..,
    repairs in 1..=4096,
    moves in 0..=4096,
});

words!(Fsync: "a way to sync" { Always = "always", Interval = "interval", Never = "never" });

impl Broker {
    /// Whether this broker belongs to a cluster, be it one of a single broker. Otherwise it is
    /// alone: there is no group, and nothing outlives the process.
    pub fn is_cluster(&self) -> bool {
        !self.peers.is_empty() || self.bootstrap || !self.data_dir.is_empty()
    }

    /// `peers` without this broker itself, so that all brokers may have the same list.
    pub fn seeds(&self) -> Vec<String> {
        let listen = self.listen.to_string();
        let own = if self.address.is_empty() { &listen } else { &self.address };
        self.peers.iter().filter(|peer| !peer.eq_ignore_ascii_case(own)).cloned().collect()
    }

    /// Whether links on `listen` and to other brokers are TLS.
    pub fn has_tls(&self) -> bool {
        [&self.tls_cert, &self.tls_key, &self.tls_ca].iter().all(|path| !path.is_empty())
    }
}

impl UncleanAfter {
    /// `durable`: what was written outlives the process. `None`: wait on.
    pub fn or(self, durable: bool) -> Option<Duration> {
        match self {
            UncleanAfter::Auto => (!durable).then_some(IN_MEMORY),
            UncleanAfter::Never => None,
            UncleanAfter::After(duration) => Some(duration),
        }
    }
}

impl Value for UncleanAfter {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<UncleanAfter> {
        match item.as_text() {
            Some("auto") => Some(UncleanAfter::Auto),
            Some("never") => Some(UncleanAfter::Never),
            text => match text.and_then(parse_duration) {
                Some(duration) => Some(UncleanAfter::After(duration)),
                None => {
                    let accepted = "\"auto\", \"never\", or a duration such as \"30s\", \"5m\"";
                    reader.refuse(item, path, "a time to wait", accepted)
                }
            },
        }
    }

    fn write(&self) -> String {
        match self {
            UncleanAfter::Auto => quote("auto"),
            UncleanAfter::Never => quote("never"),
            UncleanAfter::After(duration) => quote(&duration_text(*duration)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_to_wait_for_the_last_copy() {
        let ten = Duration::from_secs(10);
        for (said, in_memory, on_disk) in [
            (UncleanAfter::Auto, Some(IN_MEMORY), None),
            (UncleanAfter::Never, None, None),
            (UncleanAfter::After(ten), Some(ten), Some(ten)),
        ] {
            assert_eq!((said.or(false), said.or(true)), (in_memory, on_disk), "{said:?}");
        }
    }

    #[test]
    fn all_brokers_may_have_the_same_peers() {
        let peers = ["10.0.0.5:8200", "B.internal:8200", "10.0.0.7:8200"];
        let mut broker = crate::Config::default().broker;
        broker.peers = peers.map(str::to_owned).to_vec();
        broker.listen = "10.0.0.7:8200".parse().unwrap();
        assert_eq!(broker.seeds(), [peers[0], peers[1]]);
        broker.address = "b.internal:8200".into();
        assert_eq!(broker.seeds(), [peers[0], peers[2]]);
    }

    #[test]
    fn what_makes_a_cluster() {
        let alone = crate::Config::default().broker;
        assert!(!alone.is_cluster());
        for broker in [
            Broker { peers: vec!["10.0.0.6:8200".into()], ..alone.clone() },
            Broker { bootstrap: true, ..alone.clone() },
            Broker { data_dir: "/var/lib/weir".into(), ..alone },
        ] {
            assert!(broker.is_cluster(), "{broker:?}");
        }
    }
}
