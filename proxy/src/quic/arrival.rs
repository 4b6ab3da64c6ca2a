//! A connection's way in: limits, then the handshake, then HTTP/3.
//!
//! Before a client has shown its address (by a token, or by finishing the handshake) it takes no place
//! among the connections of that address: else anybody could fill up somebody else's. It is only looked
//! whether there is one.

use super::config;
use super::identity::Identity;
use super::metrics::Metrics;
use super::policy::{Policy, Verdict};
use super::seats::{EXCESSIVE_LOAD, Follower, Seat, Seats};
use super::tokens::Used;
use super::{Crypto, Host, NO_ERROR, Settings};
use crate::admit::counts::{KeyPlace, Place};
use crate::admit::{Refused, log_bad};
use arc_swap::ArcSwap;
use quinn::{Connecting, Connection, Incoming, ServerConfig};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// An established connection.
pub struct Arrival {
    pub connection: Connection,
    /// The client's address in the handshake. It may have another one by and by; what is logged and passed on
    /// is this one.
    pub peer: SocketAddr,
    /// Ours, if the system says which.
    pub local: Option<IpAddr>,
    pub confirmed: Confirmed,
    pub follower: Follower,
}

/// Whether the handshake is over. With `early_data` a connection is handed on before: what a client sends
/// until then may be a recording, and we do not know yet that it is at its address.
#[derive(Clone, Default)]
pub struct Confirmed(Option<CancellationToken>);

impl Confirmed {
    pub fn is_done(&self) -> bool {
        self.0.as_ref().is_none_or(CancellationToken::is_cancelled)
    }
}

/// What applies to those who come in now.
pub struct Door {
    config: ArcSwap<ServerConfig>,
    crypto: Crypto,
    policy: Policy,
    handshake_timeout: Duration,
    early_data: bool,
}

impl Door {
    pub fn new(settings: &Settings<'_>, identity: &Identity, used: &Arc<Used>) -> io::Result<Door> {
        let Settings { conf, crypto, early } = settings;
        Ok(Door {
            config: ArcSwap::from_pointee(config::server(conf, crypto(), identity, used)?),
            crypto: crypto.clone(),
            policy: Policy::new(conf),
            handshake_timeout: conf.handshake_timeout,
            early_data: *early,
        })
    }

    /// With the certificates and rules of this moment. All connections share it: each keeps it.
    pub fn config(&self) -> Arc<ServerConfig> {
        let (last, crypto) = (self.config.load_full(), (self.crypto)());
        if std::ptr::addr_eq(Arc::as_ptr(&last.crypto), Arc::as_ptr(&crypto)) {
            return last;
        }
        let mut next = (*last).clone();
        next.crypto = crypto;
        let next = Arc::new(next);
        self.config.store(next.clone());
        next
    }
}

/// Where all connections of an endpoint are.
pub struct Hall<H> {
    host: Arc<H>,
    seats: Arc<Seats>,
    metrics: Metrics,
}

/// A handshake under way.
struct Handshake<H> {
    host: Arc<H>,
    seats: Arc<Seats>,
    metrics: Metrics,
    peer: SocketAddr,
    /// `None`: the client has not shown its address, or the address has no limit.
    own: Option<KeyPlace>,
    validated: bool,
    _under_way: Place,
}

impl<H: Host> Hall<H> {
    pub fn new(host: Arc<H>, metrics: Metrics) -> Hall<H> {
        Hall { host, seats: Seats::new(metrics.clone()), metrics }
    }

    /// Follows clients from address to address, without end.
    pub fn watch(&self) -> impl Future<Output = ()> + use<H> {
        self.seats.clone().watch(self.host.clone())
    }

    /// Nothing here waits, and nothing is encrypted but the answer to who is turned away.
    pub fn enter(&self, incoming: Incoming, door: &Door) {
        let (peer, validated) = (incoming.remote_address(), incoming.remote_address_validated());
        let under_way = usize::try_from(self.metrics.handshakes.get()).unwrap_or(0);
        let verdict = door.policy.verdict(under_way, validated, || self.host.owes(peer.ip()));
        let outcome = match verdict {
            Verdict::Ignore => {
                incoming.ignore();
                "ignored"
            }
            Verdict::Refuse => {
                log_bad(peer.ip(), "quic_handshakes", "too many handshakes are under way");
                incoming.refuse();
                "refused"
            }
            Verdict::Accept | Verdict::Retry => match self.places(peer.ip(), validated) {
                Err(refused) => {
                    refused.log(peer.ip());
                    incoming.refuse();
                    "denied"
                }
                Ok(_) if verdict == Verdict::Retry => match incoming.retry() {
                    Ok(()) => "retry",
                    // It is refused as it is dropped. Never: who is not validated can be asked again.
                    Err(_) => "broken",
                },
                Ok((place, own)) => self.admit(incoming, door, place, own.filter(|_| validated)),
            },
        };
        self.metrics.incoming(outcome);
    }

    /// An address that was not shown to be the client's pays for its handshake when that is over.
    fn places(&self, ip: IpAddr, validated: bool) -> Result<(Place, Option<KeyPlace>), Refused> {
        if validated {
            self.host.handshake(ip)?;
        }
        Ok((self.host.connection(ip)?, self.host.address(ip)?))
    }

    fn admit(&self, incoming: Incoming, door: &Door, place: Place, own: Option<KeyPlace>) -> &'static str {
        let (peer, validated) = (incoming.remote_address(), incoming.remote_address_validated());
        let Some(under_way) = Place::among(&self.metrics.handshakes, 0) else { return "broken" };
        let connecting = match incoming.accept_with(door.config()) {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%error, "first packet of a QUIC connection is broken");
                return "broken";
            }
        };
        let handshake = Handshake {
            host: self.host.clone(),
            seats: self.seats.clone(),
            metrics: self.metrics.clone(),
            peer,
            own,
            validated,
            _under_way: under_way,
        };
        let limit = door.handshake_timeout;
        match door.early_data {
            false => drop(tokio::spawn(handshake.whole(connecting, place, limit))),
            true => drop(tokio::spawn(handshake.early(connecting, place, limit))),
        }
        "accepted"
    }
}

impl<H: Host> Handshake<H> {
    async fn whole(mut self, connecting: Connecting, place: Place, limit: Duration) {
        let outcome = match timeout(limit, connecting).await {
            Ok(Ok(connection)) => match self.own_place() {
                Ok(own) => {
                    let seat = self.seats.take(connection.clone(), own);
                    self.hand_on(connection, place, seat, Confirmed::default());
                    "done"
                }
                Err(refused) => self.turn_away(&connection, refused),
            },
            Ok(Err(error)) => {
                log_bad(self.peer.ip(), "quic_handshake", &error.to_string());
                "failed"
            }
            Err(_) => {
                log_bad(self.peer.ip(), "quic_handshake_timeout", "no QUIC handshake in time");
                "timeout"
            }
        };
        self.metrics.handshake(outcome);
    }

    /// The client may send requests at once, and takes a place of its address when it has shown that it is
    /// there.
    async fn early(mut self, connecting: Connecting, place: Place, limit: Duration) {
        let (connection, accepted) = match connecting.into_0rtt() {
            Ok(early) => early,
            // Never: a server can send before the handshake is over.
            Err(connecting) => return self.whole(connecting, place, limit).await,
        };
        let confirmed = CancellationToken::new();
        let seat = self.seats.take(connection.clone(), None);
        self.hand_on(connection.clone(), place, seat, Confirmed(Some(confirmed.clone())));
        let outcome = match timeout(limit, accepted).await {
            Ok(_) if connection.close_reason().is_some() => "failed",
            Ok(_) => match self.own_place() {
                Ok(own) => {
                    self.seats.assign(&connection, own);
                    "done"
                }
                Err(refused) => self.turn_away(&connection, refused),
            },
            Err(_) => {
                log_bad(self.peer.ip(), "quic_handshake_timeout", "no QUIC handshake in time");
                connection.close(NO_ERROR, b"the handshake took too long");
                "timeout"
            }
        };
        confirmed.cancel();
        self.metrics.handshake(outcome);
    }

    fn own_place(&mut self) -> Result<Option<KeyPlace>, Refused> {
        match self.validated {
            true => Ok(self.own.take()),
            false => {
                self.host.handshake(self.peer.ip())?;
                self.host.address(self.peer.ip())
            }
        }
    }

    fn turn_away(&self, connection: &Connection, refused: Refused) -> &'static str {
        refused.log(self.peer.ip());
        connection.close(EXCESSIVE_LOAD, refused.cause.as_bytes());
        "denied"
    }

    /// To a task of its own, so that the memory of the handshake is free again.
    fn hand_on(&self, connection: Connection, place: Place, seat: Seat, confirmed: Confirmed) {
        let (peer, local) = (self.peer, connection.local_ip());
        let follower = self.seats.follower(&connection);
        let arrival = Arrival { connection, peer, local, confirmed, follower };
        let host = self.host.clone();
        tokio::spawn(async move {
            host.serve(arrival).await;
            drop((place, seat));
        });
    }
}
