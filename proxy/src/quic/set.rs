//! The QUIC endpoints of a process, by the address in the conf: opened, configured and closed by reloads, and
//! handed to a successor all at once.

use super::identity::{Identity, Succession};
use super::metrics::Metrics;
use super::{Endpoint, Handed, Settings};
use crate::tls::config::Speaks;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;
use weir_core::net::Family;

/// What a successor gets of a process's QUIC endpoints: sockets by the address in the conf, in its order, and
/// what is to be known of the connections on them.
pub struct Inheritance {
    pub succession: Succession,
    pub sockets: Vec<(SocketAddr, Handed)>,
}

/// An address of the conf, and which of those: port 0 may be there several times.
pub type Slot = (SocketAddr, usize);

/// An endpoint that is to be.
pub struct Wanted<'a> {
    pub slot: Slot,
    /// The real address, that of its TCP listener: one port number.
    pub at: SocketAddr,
    pub speaks: Speaks,
    pub settings: Settings<'a>,
}

pub struct Endpoints {
    identity: Arc<Identity>,
    metrics: Metrics,
    inherited: Vec<(SocketAddr, Handed)>,
    open: BTreeMap<Slot, Endpoint>,
    /// Closed to new connections; some are left.
    closed: BTreeMap<Slot, Endpoint>,
    serve: mpsc::UnboundedSender<Endpoint>,
}

/// Bound, and not yet part of the set.
pub struct Prepared<'a> {
    new: Vec<(Slot, Endpoint)>,
    kept: Vec<Wanted<'a>>,
}

impl Endpoints {
    /// What is opened is sent to `serve`; the number of listeners is bounded by the conf.
    pub fn new(
        conf: &weir_conf::proxy::Quic,
        inheritance: Option<Inheritance>,
        metrics: Metrics,
        serve: mpsc::UnboundedSender<Endpoint>,
    ) -> io::Result<Endpoints> {
        let (before, inherited) = inheritance.map(|i| (i.succession, i.sockets)).unzip();
        let identity = Identity::new(conf, before)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "server_id is no server id"))?;
        Ok(Endpoints {
            identity: Arc::new(identity),
            metrics,
            inherited: inherited.unwrap_or_default(),
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            serve,
        })
    }

    /// Binds what is new, or says which could not be and changes nothing.
    pub fn prepare<'a>(&mut self, wanted: Vec<Wanted<'a>>) -> Result<Prepared<'a>, (SocketAddr, io::Error)> {
        let (mut new, mut kept) = (Vec::new(), Vec::new());
        let all: Vec<(SocketAddr, Speaks)> = wanted.iter().map(|wanted| (wanted.at, wanted.speaks)).collect();
        for wanted in wanted {
            let lingers = self.closed.get(&wanted.slot).is_some_and(|closed| !closed.has_ended());
            if lingers || self.open.contains_key(&wanted.slot) {
                kept.push(wanted);
                continue;
            }
            let Wanted { slot, at, settings, speaks } = wanted;
            // It has ended, but it still has its socket.
            self.closed.remove(&slot);
            if all.iter().any(|(other, its)| *its == speaks && self.covers(*other, at)) {
                continue;
            }
            let handed = self.inherited.iter().position(|(known, _)| *known == slot.0);
            let handed = handed.map(|at| self.inherited.remove(at).1);
            let (identity, metrics) = (self.identity.clone(), self.metrics.clone());
            let family = Family::at(at, all.iter().map(|(addr, _)| *addr).chain(self.open_addrs()));
            let endpoint = Endpoint::bind((at, family), handed, &settings, identity, metrics);
            new.push((slot, endpoint.map_err(|error| (at, error))?));
        }
        let beside = self.beside(&kept, &all);
        kept.extend(beside);
        Ok(Prepared { new, kept })
    }

    /// One at `[::]` that is for IPv6 alone cannot be made wider: what there is for IPv4 on its port stays, as it is.
    fn beside<'a>(&self, kept: &[Wanted<'a>], all: &[(SocketAddr, Speaks)]) -> Vec<Wanted<'a>> {
        let narrow = kept.iter().filter(|wanted| {
            let open = self.open.get(&wanted.slot);
            wanted.at.is_ipv6() && wanted.at.ip().is_unspecified() && open.is_some_and(|e| !e.has_both())
        });
        let of_v4 = |wanted: &Wanted<'a>| {
            let (speaks, settings, port) = (wanted.speaks, wanted.settings.clone(), wanted.at.port());
            let left = self.open.iter().map(|(slot, endpoint)| (*slot, endpoint.local_addr()));
            let left = left.filter(move |(_, at)| at.is_ipv4() && at.port() == port);
            let left = left.filter(|(_, at)| !all.iter().any(|(wanted, _)| wanted == at));
            left.map(move |(slot, at)| Wanted { slot, at, speaks, settings: settings.clone() })
                .collect::<Vec<_>>()
        };
        narrow.flat_map(of_v4).collect()
    }

    /// A socket at `[::]` that has both families and connections on it cannot be made narrower: it goes on serving
    /// what would have a socket of its own.
    fn covers(&self, wide: SocketAddr, at: SocketAddr) -> bool {
        let is_wide = wide.is_ipv6() && wide.ip().is_unspecified();
        let open = self.open.values().any(|e| e.local_addr() == wide && e.has_both());
        let handed = |(_, handed): &(SocketAddr, Handed)| {
            handed.udp.local_addr().is_ok_and(|local| local == wide)
                && Family::of(&handed.udp, wide) == Some(Family::Both)
        };
        let beside = at.is_ipv4() && at.port() == wide.port();
        is_wide && beside && (open || self.inherited.iter().any(handed))
    }

    fn open_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.open.values().chain(self.closed.values()).map(Endpoint::local_addr)
    }

    /// Opens, configures anew, and closes to new connections what is gone.
    pub fn apply(&mut self, prepared: Prepared<'_>) -> io::Result<()> {
        let Prepared { new, kept } = prepared;
        let stays = |slot: &Slot| kept.iter().any(|wanted| wanted.slot == *slot);
        let gone: Vec<Slot> = self.open.keys().filter(|slot| !stays(slot)).copied().collect();
        for slot in gone {
            if let Some(endpoint) = self.open.remove(&slot) {
                endpoint.close();
                self.closed.insert(slot, endpoint);
            }
        }
        for Wanted { slot, settings, .. } in kept {
            if let Some(endpoint) = self.closed.remove(&slot) {
                // It may end just now: then the next reload binds it.
                let _reopened = endpoint.reopen();
                self.open.insert(slot, endpoint);
            }
            if let Some(endpoint) = self.open.get(&slot) {
                endpoint.configure(&settings)?;
            }
        }
        for (slot, endpoint) in new {
            // Its receiver lives as long as the proxy; after that nothing is to be served.
            let _ended = self.serve.send(endpoint.clone());
            self.open.insert(slot, endpoint);
        }
        self.closed.retain(|_, endpoint| !endpoint.has_ended());
        // What the predecessor had and this conf has not: its clients learn it by time-outs.
        self.inherited.clear();
        Ok(())
    }

    /// Where there is QUIC: real addresses.
    #[cfg(test)]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.open.values().map(Endpoint::local_addr).collect()
    }

    /// No new connections.
    pub fn close_all(&self) {
        self.open.values().for_each(Endpoint::close);
    }

    /// Ends all connections.
    pub fn stop_all(&self) {
        self.open.values().chain(self.closed.values()).for_each(Endpoint::stop);
    }

    /// For a successor, which may read the sockets from now on: [`Endpoints::handed_over`] must follow.
    /// `None`: there is no QUIC here.
    pub fn hand_over(&self) -> io::Result<Option<Inheritance>> {
        if self.open.is_empty() {
            return Ok(None);
        }
        let hand = |(slot, endpoint): (&Slot, &Endpoint)| Ok((slot.0, endpoint.hand_over()?));
        let sockets: io::Result<Vec<_>> = self.open.iter().map(hand).collect();
        if sockets.is_err() {
            self.handed_over(false);
        }
        Ok(Some(Inheritance { succession: self.identity.succession(), sockets: sockets? }))
    }

    /// The successor serves, or everything is as it was.
    pub fn handed_over(&self, serves: bool) {
        self.open.values().for_each(|endpoint| endpoint.handed_over(serves));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cert, Echo, Line, SOON, client, conf, connect};
    use super::*;
    use tokio::time::timeout;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn speaks() -> Speaks {
        (&weir_conf::proxy::tls::Listen::at(any())).into()
    }

    #[tokio::test]
    async fn one_socket_for_both_families_stays_when_they_are_listed_apart() {
        let cert = Cert::new(0);
        let conf = conf();
        let port = std::net::UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let at = |host: &str| -> SocketAddr { format!("{host}:{port}").parse().unwrap() };
        let (v4, v6) = (at("0.0.0.0"), at("[::]"));
        let wanted = |addrs: &[SocketAddr]| -> Vec<Wanted<'_>> {
            let one = |addr: &SocketAddr| Wanted {
                slot: (*addr, 0),
                at: *addr,
                speaks: speaks(),
                settings: cert.settings(&conf),
            };
            addrs.iter().map(one).collect()
        };
        let mut process = Process::new(None);
        for (addrs, expected) in [(&[v6][..], &[v6][..]), (&[v4, v6], &[v6])] {
            let prepared = process.endpoints.prepare(wanted(addrs)).unwrap();
            process.endpoints.apply(prepared).unwrap();
            assert_eq!(process.endpoints.local_addrs(), expected, "{addrs:?}");
        }
        drop(process);
        // From the start each has its own.
        let mut process = Process::new(None);
        let prepared = process.endpoints.prepare(wanted(&[v4, v6])).unwrap();
        process.endpoints.apply(prepared).unwrap();
        assert_eq!(process.endpoints.local_addrs(), [v4, v6]);
        for addrs in [&[v6][..], &[v4, v6]] {
            let prepared = process.endpoints.prepare(wanted(addrs)).unwrap();
            process.endpoints.apply(prepared).unwrap();
            assert_eq!(process.endpoints.local_addrs(), [v4, v6], "{addrs:?}");
        }
    }

    struct Process {
        endpoints: Endpoints,
        opened: mpsc::UnboundedReceiver<Endpoint>,
        host: Arc<Echo>,
    }

    impl Process {
        fn new(inheritance: Option<Inheritance>) -> Process {
            let (serve, opened) = mpsc::unbounded_channel();
            let endpoints = Endpoints::new(&conf(), inheritance, Metrics::default(), serve).unwrap();
            Process { endpoints, opened, host: Arc::default() }
        }

        /// So many at port 0; says how many were opened.
        async fn reload(&mut self, cert: &Cert, count: usize) -> usize {
            let conf = conf();
            let wanted =
                |n| Wanted { slot: (any(), n), at: any(), speaks: speaks(), settings: cert.settings(&conf) };
            let prepared = self.endpoints.prepare((0..count).map(wanted).collect()).unwrap();
            self.endpoints.apply(prepared).unwrap();
            let mut opened = 0;
            while let Ok(endpoint) = self.opened.try_recv() {
                let host = self.host.clone();
                tokio::spawn(async move { endpoint.serve(host).await.unwrap() });
                opened += 1;
            }
            tokio::task::yield_now().await;
            opened
        }
    }

    #[tokio::test]
    async fn reloads_open_and_close_and_touch_no_connection() {
        let cert = Cert::new(0);
        let mut process = Process::new(None);
        assert_eq!(process.reload(&cert, 2).await, 2);
        let addrs = process.endpoints.local_addrs();
        let client = client();
        let connection = connect(&client, cert.client(), addrs[1]).await;
        let mut line = Line::open(&connection).await;
        assert_eq!((process.reload(&cert, 1).await, process.endpoints.local_addrs()), (0, vec![addrs[0]]));
        client.connect_with(cert.client(), addrs[1], "localhost").unwrap().await.unwrap_err();
        line.round().await;
        // The one that lingers is opened again, in place of another socket.
        assert_eq!((process.reload(&cert, 2).await, process.endpoints.local_addrs()), (0, addrs.clone()));
        connect(&client, cert.client(), addrs[1]).await;
        process.endpoints.stop_all();
        timeout(SOON, connection.closed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_changes_nothing() {
        let cert = Cert::new(0);
        let taken = std::net::UdpSocket::bind(any()).unwrap();
        let mut process = Process::new(None);
        process.reload(&cert, 1).await;
        let conf = conf();
        let wanted =
            |at, n| Wanted { slot: (any(), n), at, speaks: speaks(), settings: cert.settings(&conf) };
        let all = vec![wanted(any(), 0), wanted(any(), 1), wanted(taken.local_addr().unwrap(), 2)];
        let (addr, error) = process.endpoints.prepare(all).err().unwrap();
        assert_eq!((addr, error.kind()), (taken.local_addr().unwrap(), io::ErrorKind::AddrInUse));
        assert_eq!(process.endpoints.local_addrs().len(), 1);
    }

    #[tokio::test]
    async fn all_go_over_at_once_or_none() {
        let cert = Cert::new(0);
        let mut before = Process::new(None);
        assert!(before.endpoints.hand_over().unwrap().is_none());
        before.reload(&cert, 2).await;
        let addrs = before.endpoints.local_addrs();
        let client = client();
        let mut lines = Vec::new();
        for addr in &addrs {
            lines.push(Line::open(&connect(&client, cert.client(), *addr).await).await);
        }
        drop(before.endpoints.hand_over().unwrap());
        before.endpoints.handed_over(false);
        let mut after = Process::new(before.endpoints.hand_over().unwrap());
        assert_eq!((after.reload(&cert, 2).await, after.endpoints.local_addrs()), (2, addrs.clone()));
        before.endpoints.handed_over(true);
        before.endpoints.close_all();
        for line in &mut lines {
            line.round().await;
        }
        for addr in addrs {
            Line::open(&connect(&client, cert.client(), addr).await).await;
        }
        let served = |process: &Process| process.host.served.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((served(&before), served(&after)), (2, 2));
    }
}
