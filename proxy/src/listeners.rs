//! The sockets that the proxy listens on, by the address in the conf. A reload opens what is new and
//! closes what is gone; all others stay as they are, queued connections and all.

use crate::error::BindError;
use crate::tunnel::presence::watch_peer;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::net::listen;

/// A listener to be served until the token is cancelled.
pub struct Opened {
    pub listener: TcpListener,
    pub closed: CancellationToken,
}

pub struct Listeners {
    open: BTreeMap<SocketAddr, Listener>,
    serve: mpsc::UnboundedSender<Opened>,
}

struct Listener {
    /// A second handle of the socket: for its address, and to be handed to a successor.
    socket: TcpListener,
    closed: CancellationToken,
}

/// Bound, and not yet part of the set.
pub struct Prepared {
    new: Vec<(SocketAddr, TcpListener)>,
    gone: Vec<SocketAddr>,
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
        addrs: &[SocketAddr],
        inherited: &mut BTreeMap<SocketAddr, TcpListener>,
    ) -> Result<Prepared, BindError> {
        let mut new = Vec::new();
        for addr in addrs.iter().filter(|addr| !self.open.contains_key(addr)) {
            let fail = |source| BindError::Listen { addr: *addr, source };
            let listener = listen(*addr, inherited.remove(addr)).map_err(fail)?;
            new.push((*addr, listener));
        }
        let gone = self.open.keys().filter(|addr| !addrs.contains(addr)).copied().collect();
        Ok(Prepared { new, gone })
    }

    /// Opens and closes. Says how many were opened and closed.
    pub fn apply(&mut self, prepared: Prepared) -> Result<(usize, usize), BindError> {
        let changed = (prepared.new.len(), prepared.gone.len());
        for (addr, listener) in prepared.new {
            let socket = listener.try_clone().map_err(|source| BindError::Listen { addr, source })?;
            let closed = CancellationToken::new();
            // Its receiver lives as long as the proxy; after that nothing is to be served.
            let _ended = self.serve.send(Opened { listener, closed: closed.clone() });
            self.open.insert(addr, Listener { socket, closed });
        }
        for addr in prepared.gone {
            if let Some(listener) = self.open.remove(&addr) {
                listener.closed.cancel();
            }
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

    /// Real addresses, also where the conf says port 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.open.values().filter_map(|l| l.socket.local_addr().ok()).collect()
    }

    /// The sockets by their address in the conf.
    pub fn sockets(&self) -> impl Iterator<Item = (SocketAddr, &TcpListener)> {
        self.open.iter().map(|(addr, listener)| (*addr, &listener.socket))
    }

    /// Nothing new is accepted any more; what a successor shares stays open there.
    pub fn close_all(&mut self) {
        for (_, listener) in std::mem::take(&mut self.open) {
            listener.closed.cancel();
        }
    }
}
