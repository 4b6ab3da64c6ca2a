//! How a connection arrives: whose it is, and its next request's head, each with a deadline.

use super::head::{self, Bad, Head};
use super::proxy_protocol::{self, Parsed};
use crate::admit::counts::{KeyPlace, Place};
use crate::admit::{UnderWay, gate};
use crate::client::Client;
use crate::quic::Follower;
use crate::snapshot::Snapshot;
use crate::tls::subject::ClientCert;
use crate::upstream::bound::Bound;
use crate::upstream::proxy_protocol::Ends;
use http::HeaderMap;
use http::header::{FORWARDED, HeaderValue};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use weir_conf::proxy::{ForwardedHeader, ProxyProtocol};
use weir_core::accept::Transport;
use weir_core::client_addr::Told;
use weir_core::drain::Busy;
use weir_wire::hop::{FORWARDED_PROTO, REQUEST_ID};
use weir_wire::id::ConnId;

/// For a header of the PROXY protocol that has begun, or has to come.
const PROXY_TIMEOUT: Duration = Duration::from_secs(3);

/// A client's connection, whatever is asked on it.
#[derive(Clone)]
pub struct Link {
    /// The client, or the trusted peer that a header of the PROXY protocol named; and our own address.
    pub ends: Ends,
    pub transport: Transport,
    /// There with TLS.
    pub tls: Option<Arc<Secured>>,
    /// Of a QUIC connection, whose client may go on from another address.
    pub follower: Option<Follower>,
    /// Its own connections to servers, if it has any.
    pub bound: Bound,
}

/// What TLS has shown of a client.
pub struct Secured {
    /// Its certificate, if it has shown one that is good.
    pub shown: Option<ClientCert>,
    /// What each answer over it tells besides, if the server has not: to come with TLS always
    /// (Strict-Transport-Security), and that there is HTTP/3 (Alt-Svc).
    pub told: HeaderMap,
}

impl Secured {
    pub fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.told {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}

/// One request's origin.
pub struct From {
    pub client: IpAddr,
    /// For servers that ask for the PROXY protocol.
    pub ends: Ends,
    pub conn: ConnId,
    pub transport: Transport,
    pub tls: Option<Arc<Secured>>,
    /// The peer is trusted: it spoke for the client.
    pub trusted: bool,
    pub bound: Bound,
}

/// What a connection, or a WebSocket on a stream, holds as long as it lives: its place, and that of its
/// address. Where the peer is trusted, the address is that of a request.
pub type Places = (Option<Place>, Option<KeyPlace>);

/// What one request holds besides: the place of the client for whom a trusted peer speaks, those in its route, and
/// those of a request that goes to a server.
pub type OfRequest = (Option<KeyPlace>, gate::Held, Option<UnderWay>);

/// Given back when a connection that became a WebSocket has ended.
pub type Permit = (Places, OfRequest, Busy);

/// The peer that a trusted one names in a header of the PROXY protocol; it is taken off. `Ok(None)`: it
/// left without a word, as load balancers do to see whether somebody listens. `Err`: why the connection
/// ends.
pub async fn named_peer(
    snapshot: &Snapshot,
    client: &mut Client,
    peer: SocketAddr,
) -> Result<Option<SocketAddr>, &'static str> {
    let required = match snapshot.conf.proxy_protocol {
        ProxyProtocol::Off => return Ok(Some(peer)),
        ProxyProtocol::Optional => false,
        ProxyProtocol::Required => true,
    };
    if !required && client.ahead.is_empty() {
        // Nothing has begun: it has the time of a head.
        match timeout(snapshot.conf.head_timeout, client.fill()).await {
            Ok(Ok(1..)) => {}
            _ => return Ok(None),
        }
    }
    let header = async {
        loop {
            match proxy_protocol::parse(&client.ahead) {
                Parsed::Whole { length, client: named } => {
                    let _taken_off = client.ahead.split_to(length);
                    return Ok(Some(named.unwrap_or(peer)));
                }
                Parsed::Absent if !required => return Ok(Some(peer)),
                Parsed::Absent => return Err("no header of the PROXY protocol"),
                Parsed::Bad(why) => return Err(why),
                Parsed::Partial => {}
            }
            match client.fill().await {
                Ok(1..) => {}
                _ if client.ahead.is_empty() => return Ok(None),
                _ => return Err("closed within its header"),
            }
        }
    };
    timeout(PROXY_TIMEOUT, header).await.unwrap_or(Err("no whole header within 3 s"))
}

/// `None`: the client left without asking anything.
pub async fn read_head(snapshot: &Snapshot, client: &mut Client) -> Result<Option<Head>, Bad> {
    let limit = snapshot.conf.head_size;
    let whole = async {
        let mut seen = 0;
        loop {
            if let Some(end) = head::end(&client.ahead, seen)? {
                return if end > limit { Err(TOO_LARGE) } else { Ok(Some(end)) };
            }
            seen = client.ahead.len();
            if seen >= limit {
                return Err(TOO_LARGE);
            }
            match client.fill().await {
                Ok(1..) => {}
                // It never asked anything, so there is nothing to be answered.
                _ if client.ahead.is_empty() => return Ok(None),
                _ => return Err(Bad { status: 400, why: "head cut short" }),
            }
        }
    };
    let end = match timeout(snapshot.conf.head_timeout, whole).await {
        Ok(end) => end?,
        Err(_) => return Err(Bad { status: 408, why: "slow head" }),
    };
    let Some(end) = end else { return Ok(None) };
    head::parse(&client.ahead.split_to(end)).map(Some)
}

/// Whose request it is. Of a trusted peer's `Forwarded` only what was believed stays.
pub fn origin(snapshot: &Snapshot, link: &Link, headers: &mut HeaderMap) -> From {
    let ends = link.ends;
    let peer = ends.client.ip().to_canonical();
    let trusted = snapshot.trusted.contains(peer);
    let named = headers.get(REQUEST_ID).filter(|_| trusted);
    let conn = named.and_then(|v| v.to_str().ok()).and_then(ConnId::parse);
    let told = snapshot.trusted.client(peer, headers, snapshot.conf.forwarded_header);
    if trusted {
        pass_on(&told, headers);
    }
    let port = if told.client == peer { ends.client.port() } else { 0 };
    From {
        client: told.client,
        ends: Ends { client: SocketAddr::new(told.client, port), ..ends },
        conn: conn.unwrap_or_else(|| ConnId::from_random(rand::random())),
        transport: link.transport,
        tls: link.tls.clone(),
        trusted,
        bound: link.bound.clone(),
    }
}

/// `X-Forwarded-For` is written anew for every request; `Forwarded` where it was there, and says the same.
fn pass_on(told: &Told, headers: &mut HeaderMap) {
    headers.remove(FORWARDED);
    if told.by != Some(ForwardedHeader::Forwarded) {
        return;
    }
    let client = match told.client {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    let proto = told.proto.map(|proto| format!(";proto={proto}")).unwrap_or_default();
    if let Ok(value) = HeaderValue::try_from(client + &proto) {
        headers.insert(FORWARDED, value);
    }
    if let Some(proto) = told.proto {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
}

const TOO_LARGE: Bad = Bad { status: 431, why: "head too large" };
