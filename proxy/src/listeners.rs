//! The sockets that the proxy listens on, by the address in the conf. A reload opens what is new and
//! closes what is gone; all others stay as they are, queued connections and all, also where TLS begins or
//! ends there.

use crate::error::BindError;
use crate::tls::Kind;
use crate::tls::config::Speaks;
use crate::tunnel::presence::watch_peer;
use arc_swap::ArcSwap;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::net::{Family, bind, listen, share};

/// Closing a listener takes as long as it takes to serve who is in its queue, and no longer than this.
const CLOSING: Duration = Duration::from_secs(1);

/// A listener to be served until the token is cancelled.
pub struct Opened {
    pub listener: TcpListener,
    /// As it is now: a reload may change it for connections to come.
    pub kind: Arc<ArcSwap<Kind>>,
    pub closed: CancellationToken,
    /// Dropped after the socket.
    pub served: Sender<()>,
}

/// An address of the conf, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: SocketAddr,
    pub kind: Kind,
}

/// A listener that is open.
pub struct Serving {
    /// As the conf has it, and the real one, which differs where the conf says port 0.
    pub addr: SocketAddr,
    pub local: SocketAddr,
    pub kind: Arc<ArcSwap<Kind>>,
}

pub struct Listeners {
    open: BTreeMap<Slot, Listener>,
    serve: mpsc::UnboundedSender<Opened>,
}

/// An address; and since port 0 may be there several times, which of those.
pub type Slot = (SocketAddr, usize);

struct Listener {
    /// A second handle of the socket: for its address, and to be handed to a successor.
    socket: TcpListener,
    kind: Arc<ArcSwap<Kind>>,
    closed: CancellationToken,
    served: Receiver<()>,
}

/// Bound, and not yet part of the set.
pub struct Prepared {
    new: Vec<(Slot, Kind, TcpListener)>,
    kept: Vec<(Slot, Kind)>,
    gone: Vec<Slot>,
}

impl Listeners {
    /// What is opened is sent to `serve`; the number of listeners is bounded by the conf.
    pub fn new(serve: mpsc::UnboundedSender<Opened>) -> Listeners {
        Listeners { open: BTreeMap::new(), serve }
    }

    /// Binds what this conf adds, or says what could not be and changes nothing. `inherited` are
    /// sockets of a predecessor.
    pub fn prepare(
        &self,
        conf: &weir_conf::proxy::Proxy,
        inherited: &mut Vec<(SocketAddr, TcpListener)>,
    ) -> Result<Prepared, BindError> {
        let (mut new, mut kept) = (Vec::new(), Vec::new());
        let slots = slots(conf);
        for (slot, kind) in &slots {
            let addr = slot.0;
            let family = Family::at(addr, slots.iter().map(|((addr, _), _)| *addr));
            let fits = |socket: &TcpListener| Family::of(socket, addr).is_none_or(|has| has == family);
            if self.open.get(slot).is_some_and(|open| fits(&open.socket)) {
                kept.push((*slot, *kind));
                continue;
            }
            let section = if *kind == Kind::Plain { "proxy" } else { "proxy.tls" };
            let fail = |source| BindError::Listen { section, addr, source };
            let handed = inherited.iter().position(|(known, socket)| *known == addr && fits(socket));
            let socket = match handed.map(|at| inherited.remove(at).1) {
                Some(socket) => listen(addr, Some(socket)),
                None => self.make_room(addr, inherited).and_then(|beside| bind(addr, family, beside)),
            };
            new.push((*slot, *kind, socket.map_err(fail)?));
        }
        let stays = |slot: &Slot| kept.iter().any(|(kept, _)| kept == slot);
        let gone = self.open.keys().filter(|slot| !stays(slot)).copied().collect();
        Ok(Prepared { new, kept, gone })
    }

    /// Says whether a socket of ours, or of the predecessor, has this port; then one at `addr` may come beside it.
    /// (Two that both stay and collide are a mistake of the conf.)
    fn make_room(&self, addr: SocketAddr, inherited: &[(SocketAddr, TcpListener)]) -> std::io::Result<bool> {
        let own = self.open.iter().map(|(slot, listener)| (slot.0, &listener.socket));
        let all = own.chain(inherited.iter().map(|(addr, socket)| (*addr, socket)));
        let mut beside = false;
        for (_, socket) in all.filter(|(known, _)| known.port() == addr.port() && addr.port() != 0) {
            share(socket)?;
            beside = true;
        }
        Ok(beside)
    }

    /// Where there is to be HTTP/3, once `prepared` is applied: by the address in the conf, the real one, and
    /// what it speaks.
    pub fn quic(&self, prepared: &Prepared) -> Vec<(Slot, SocketAddr, Speaks)> {
        let kept = prepared.kept.iter().filter_map(|(slot, kind)| {
            let listener = self.open.get(slot)?;
            Some((*slot, *kind, listener.socket.local_addr().ok()?))
        });
        let new = prepared
            .new
            .iter()
            .filter_map(|(slot, kind, listener)| Some((*slot, *kind, listener.local_addr().ok()?)));
        let speaks = |(slot, kind, local)| match kind {
            Kind::Tls(speaks) if speaks.http3 => Some((slot, local, speaks)),
            _ => None,
        };
        kept.chain(new).filter_map(speaks).collect()
    }

    /// Opens and closes; what is closed refuses connections from then on, and what has become of another
    /// kind is so for those that come. Says how many were opened and closed. Blocks while who is in the queue
    /// of a closed one is served.
    pub fn apply(&mut self, prepared: Prepared) -> Result<(usize, usize), BindError> {
        let changed = (prepared.new.len(), prepared.gone.len());
        for (slot, kind) in prepared.kept {
            if let Some(listener) = self.open.get(&slot)
                && **listener.kind.load() != kind
            {
                listener.kind.store(Arc::new(kind));
            }
        }
        // First, since one of the same address may come in its place.
        let gone: Vec<Listener> = prepared.gone.iter().filter_map(|slot| self.open.remove(slot)).collect();
        for (slot, kind, listener) in prepared.new {
            let section = if kind == Kind::Plain { "proxy" } else { "proxy.tls" };
            let fail = |source| BindError::Listen { section, addr: slot.0, source };
            let socket = listener.try_clone().map_err(fail)?;
            let (kind, closed) = (Arc::new(ArcSwap::from_pointee(kind)), CancellationToken::new());
            // Its receiver lives as long as the proxy; after that nothing is to be served.
            let (until_served, served) = channel();
            let opened =
                Opened { listener, kind: kind.clone(), closed: closed.clone(), served: until_served };
            let _ended = self.serve.send(opened);
            self.open.insert(slot, Listener { socket, kind, closed, served });
        }
        close(gone);
        // Room was made; a stranger is not to find any.
        for listener in self.open.values() {
            let _unsupported_matters_not = SockRef::from(&listener.socket).set_reuse_port(false);
        }
        Ok(changed)
    }

    /// What new connections have from their beginning; those that are open keep what they have.
    pub fn set_options(&self, conf: &weir_conf::proxy::Proxy) {
        for listener in self.open.values() {
            let _unsupported_matters_not = SockRef::from(&listener.socket).set_tcp_nodelay(true);
            let _unsupported_matters_not = watch_peer(&listener.socket, conf);
        }
    }

    /// What is open, those without TLS first, each in the order of the conf's addresses.
    pub fn serving(&self) -> Vec<Serving> {
        let serving = |(slot, listener): (&Slot, &Listener)| {
            let local = listener.socket.local_addr().ok()?;
            Some(Serving { addr: slot.0, local, kind: listener.kind.clone() })
        };
        let mut all: Vec<Serving> = self.open.iter().filter_map(serving).collect();
        all.sort_by_key(|serving| **serving.kind.load() != Kind::Plain);
        all
    }

    pub fn tls_addrs(&self) -> Vec<SocketAddr> {
        let tls = |serving: &Serving| matches!(**serving.kind.load(), Kind::Tls(_));
        self.serving().iter().filter(|serving| tls(serving)).map(|serving| serving.local).collect()
    }

    /// Of the TLS listener that is first in the conf.
    pub fn tls_port(&self, conf: &weir_conf::proxy::Proxy) -> Option<u16> {
        let first = conf.tls.listen.first()?.addr;
        let tls = |serving: &&Serving| serving.addr == first && **serving.kind.load() != Kind::Plain;
        self.serving().iter().find(tls).map(|serving| serving.local.port())
    }

    /// The sockets by their address in the conf.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketAddr, &TcpListener)> {
        self.open.iter().map(|(slot, listener)| (slot.0, &listener.socket))
    }

    /// Nothing new is accepted any more; what a successor shares stays open there.
    pub fn close_all(&mut self) {
        for (_, listener) in std::mem::take(&mut self.open) {
            listener.closed.cancel();
        }
    }
}

fn slots(conf: &weir_conf::proxy::Proxy) -> Vec<(Slot, Kind)> {
    let plain = conf.listen.iter().map(|addr| Endpoint { addr: *addr, kind: Kind::Plain });
    let tls = conf.tls.listen.iter().map(|l| Endpoint { addr: l.addr, kind: Kind::Tls(l.into()) });
    let mut slots: Vec<(Slot, Kind)> = Vec::new();
    for Endpoint { addr, kind } in plain.chain(tls) {
        // Any other port is one socket, whatever it is for; of port 0 each has its own. Even: without TLS.
        let slot = match addr.port() {
            0 => {
                let with_tls = usize::from(kind != Kind::Plain);
                let before = slots.iter().filter(|((known, n), _)| *known == addr && n % 2 == with_tls);
                before.count() * 2 + with_tls
            }
            _ => 0,
        };
        slots.push(((addr, slot), kind));
    }
    slots
}

/// Returns when the sockets are closed.
fn close(listeners: Vec<Listener>) {
    let until = Instant::now() + CLOSING;
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|Listener { closed, served, .. }| {
            closed.cancel();
            served
        })
        .collect();
    for served in serving {
        let _closed_or_late = served.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_conf::proxy::tls::{ClientCerts, Listen};

    fn conf(plain: &[SocketAddr], tls: &[SocketAddr]) -> weir_conf::proxy::Proxy {
        let mut conf = crate::testing::conf();
        conf.listen = plain.to_vec();
        conf.tls.listen = tls.iter().copied().map(Listen::at).collect();
        conf
    }

    /// Makes it so; with the real ports of what is open, and how many were opened and closed.
    fn reload(
        listeners: &mut Listeners,
        conf: &weir_conf::proxy::Proxy,
    ) -> (Vec<(u16, Kind)>, (usize, usize)) {
        let prepared = listeners.prepare(conf, &mut Vec::new()).unwrap();
        let changed = listeners.apply(prepared).unwrap();
        (listeners.serving().iter().map(|s| (s.local.port(), **s.kind.load())).collect(), changed)
    }

    #[test]
    fn a_reload_changes_kinds_and_no_sockets() {
        let (serve, mut opened) = mpsc::unbounded_channel();
        let mut listeners = Listeners::new(serve);
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        // Port 0 three times is three sockets, each of which stays what it is.
        let (first, changed) = reload(&mut listeners, &conf(&[any], &[any, any]));
        let [plain, tls, other] = first[..] else { panic!("{first:?}") };
        assert_eq!((plain.1, changed), (Kind::Plain, (3, 0)));
        assert!(matches!((tls.1, other.1), (Kind::Tls(_), Kind::Tls(_))), "{first:?}");
        assert_eq!(listeners.tls_addrs().len(), 2);
        assert_eq!(listeners.tls_port(&conf(&[any], &[any, any])), Some(tls.0));
        let mut served: Vec<Opened> = std::iter::from_fn(|| opened.try_recv().ok()).collect();
        assert_eq!(served.len(), 3);
        // Those that nobody serves are not waited for.
        served.retain(|s| s.listener.local_addr().unwrap().port() == tls.0);
        let mut next = conf(&[], &[any]);
        next.tls.listen[0].client_certs = ClientCerts::Required;
        let (after, changed) = reload(&mut listeners, &next);
        assert_eq!((after.len(), after[0].0, changed), (1, tls.0, (0, 2)));
        // Whoever accepts there sees what it is now.
        let Kind::Tls(speaks) = **served[0].kind.load() else { panic!("no TLS any more") };
        assert_eq!(speaks.client_certs, ClientCerts::Required);
    }

    #[test]
    fn tls_begins_and_ends_on_one_socket() {
        let (serve, mut opened) = mpsc::unbounded_channel();
        let mut listeners = Listeners::new(serve);
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        reload(&mut listeners, &conf(&[free], &[]));
        let served = opened.try_recv().unwrap();
        for (conf, tls) in [(conf(&[], &[free]), true), (conf(&[free], &[]), false)] {
            let (_, changed) = reload(&mut listeners, &conf);
            assert_eq!((changed, **served.kind.load() != Kind::Plain), ((0, 0), tls));
            assert_eq!(listeners.tls_port(&conf), tls.then_some(free.port()));
        }
        assert!(opened.try_recv().is_err());
    }

    #[test]
    fn each_family_gets_its_socket_and_one_alone_has_both() {
        let (serve, mut opened) = mpsc::unbounded_channel();
        let mut listeners = Listeners::new(serve);
        let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let (v4, v6): (SocketAddr, SocketAddr) =
            (format!("0.0.0.0:{port}").parse().unwrap(), format!("[::]:{port}").parse().unwrap());
        let reaches = |host: &str| std::net::TcpStream::connect((host, port)).is_ok();
        // Nobody serves here: what is closed is not waited for.
        let mut step = |plain: &[SocketAddr], tls: &[SocketAddr], expected: (usize, usize)| {
            let (_, changed) = reload(&mut listeners, &conf(plain, tls));
            while opened.try_recv().is_ok() {}
            assert_eq!(changed, expected, "{plain:?} {tls:?}");
            (reaches("127.0.0.1"), reaches("::1"))
        };
        assert_eq!(step(&[v4, v6], &[], (2, 0)), (true, true));
        assert_eq!(step(&[v6], &[], (1, 2)), (true, true));
        assert_eq!(step(&[v6, v4], &[], (2, 1)), (true, true));
        assert_eq!(step(&[v4], &[v6], (0, 0)), (true, true));
        assert_eq!(step(&[v4], &[], (0, 1)), (true, false));
        assert_eq!(step(&[v6], &[], (1, 1)), (true, true));
        assert_eq!(step(&[], &[v4, v6], (2, 1)), (true, true));
        let mut handed: Vec<_> =
            listeners.sockets().map(|(addr, socket)| (addr, socket.try_clone().unwrap())).collect();
        let (serve, _opened) = mpsc::unbounded_channel();
        let mut successor = Listeners::new(serve);
        let prepared = successor.prepare(&conf(&[v6], &[]), &mut handed).unwrap();
        successor.apply(prepared).unwrap();
        drop((listeners, handed));
        assert!(reaches("127.0.0.1") && reaches("::1"), "by the successor");
    }

    #[test]
    fn sockets_of_a_predecessor_are_taken_in_their_order() {
        let (serve, _opened) = mpsc::unbounded_channel();
        let mut listeners = Listeners::new(serve);
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut handed: Vec<_> = (0..3).map(|_| (any, TcpListener::bind(any).unwrap())).collect();
        let ports: Vec<u16> = handed.iter().map(|(_, socket)| socket.local_addr().unwrap().port()).collect();
        let prepared = listeners.prepare(&conf(&[any], &[any]), &mut handed).unwrap();
        listeners.apply(prepared).unwrap();
        let real: Vec<u16> = listeners.serving().iter().map(|s| s.local.port()).collect();
        assert_eq!((real, handed.len()), (ports[..2].to_vec(), 1));
    }
}
