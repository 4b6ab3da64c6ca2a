//! The one path of a connection: read a head, admit, route; then a WebSocket is tunnelled or
//! handed to the node of this process, and anything else goes through Pingora's `HttpProxy`,
//! after which the connection may bring its next request.

mod routed;

use crate::access::{Access, End};
use crate::admit::{AddressPlace, Place, Refused};
use crate::answer;
use crate::client::Client;
use crate::client_addr::Trusted;
use crate::forward::{self, Origin};
use crate::front::head::{self, Bad, Head};
use crate::front::upgrade::{is_websocket, tokens};
use crate::metrics::Metrics;
use crate::plain::Plain;
use crate::snapshot::Snapshot;
use crate::tunnel::register::Open;
use arc_swap::ArcSwap;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use routed::Asking;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use weir_core::drain::Drain;
use weir_wire::hop::REQUEST_ID;
use weir_wire::id::ConnId;

pub struct Service {
    /// Read once for each request; replaced by a reload.
    pub snapshot: ArcSwap<Snapshot>,
    pub plain: Arc<HttpProxy<Plain>>,
    pub metrics: Metrics,
    pub open: Arc<Open>,
    /// Of this proxy's connections.
    pub drain: Drain,
}

/// One request's origin, and its place among its address's connections.
struct From {
    client: IpAddr,
    conn: ConnId,
    trusted: bool,
}

/// What a connection holds as long as it lives.
struct Places {
    place: Place,
    /// Of the peer itself; where the peer is trusted, the address is counted per request.
    address: Option<AddressPlace>,
}

/// What became of one request.
enum Next {
    /// The connection is still ours.
    Another(Client, Places),
    Done,
}

impl Service {
    pub async fn connection(
        self: Arc<Self>,
        tcp: tokio::net::TcpStream,
        peer: SocketAddr,
        shutdown: ShutdownWatch,
    ) {
        let peer = peer.ip().to_canonical();
        let mut snapshot = self.snapshot.load_full();
        let mut client = Client::new(tcp, snapshot.conf.head_size);
        let trusted = snapshot.trusted.contains(peer);
        let address = if trusted { Ok(None) } else { snapshot.admit.address(peer) };
        let places = snapshot.admit.connection().and_then(|place| Ok(Places { place, address: address? }));
        let mut places = match places {
            Ok(places) => places,
            Err(refused) => return self.refuse(client, refused, None).await,
        };
        let mut first = true;
        loop {
            if !first {
                if !self.another(&snapshot, &mut client).await {
                    return;
                }
                snapshot = self.snapshot.load_full();
            }
            let head = match read_head(&snapshot, &mut client).await {
                Ok(Some(head)) => head,
                Ok(None) => return,
                Err(bad) => return self.reject(client, bad, peer).await,
            };
            let from = origin(&snapshot.trusted, peer, &head);
            match Box::pin(self.request(&snapshot, client, places, head, from, &shutdown)).await {
                Next::Another(again, held) => (client, places) = (again, held),
                Next::Done => return,
            }
            first = false;
            if self.drain.has_begun() {
                return;
            }
        }
    }

    /// Whether a kept-alive connection brings another request.
    async fn another(&self, snapshot: &Snapshot, client: &mut Client) -> bool {
        if !client.ahead.is_empty() {
            return true;
        }
        tokio::select! {
            begun = timeout(snapshot.conf.keepalive_timeout, client.fill()) => matches!(begun, Ok(Ok(1..))),
            () = self.drain.begun() => false,
        }
    }

    async fn request(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        client: Client,
        places: Places,
        mut head: Head,
        from: From,
        shutdown: &ShutdownWatch,
    ) -> Next {
        // From here on, and not only once there is a tunnel: a drain waits for handshakes too.
        let busy = self.drain.busy();
        let access = Access::new(&head.parts, from.conn.clone(), from.client);
        let websocket = match is_websocket(&head) {
            Ok(websocket) => websocket,
            Err(bad) => {
                self.metrics.handshake("malformed");
                return self.answer(client, &access, bad.status, None, bad.why).await;
            }
        };
        let own_address = match self.admit_one(snapshot, &from, websocket) {
            Ok(address) => address,
            Err(refused) => {
                self.refuse(client, refused, Some(&access)).await;
                return Next::Done;
            }
        };
        let wants_close =
            tokens(&head.parts.headers, http::header::CONNECTION).any(|t| t.eq_ignore_ascii_case("close"));
        // Before the routes: they look at headers as servers get them.
        let forwarded = snapshot.conf.forwarded;
        let origin = Origin { client: from.client, conn: &from.conn, trusted: from.trusted, forwarded };
        forward::rewrite(&mut head.parts.headers, &origin);
        let asking = Asking { client, places, own_address, busy, head, from, access, websocket, wants_close };
        self.routed(snapshot, asking, shutdown).await
    }

    /// A handshake by its rate; behind a trusted peer the client's own address by its connections, too.
    fn admit_one(
        &self,
        snapshot: &Snapshot,
        from: &From,
        websocket: bool,
    ) -> Result<Option<AddressPlace>, Refused> {
        let address = if from.trusted { snapshot.admit.address(from.client) } else { Ok(None) };
        if !websocket {
            return address;
        }
        let admitted = address.and_then(|address| snapshot.admit.handshake(from.client).map(|()| address));
        admitted.inspect_err(|refused| self.metrics.handshake(refused.cause()))
    }

    async fn reject(&self, client: Client, bad: Bad, peer: IpAddr) {
        self.metrics.refuse(match bad.status {
            408 => "head_timeout",
            431 => "head_size",
            _ => "malformed",
        });
        tracing::debug!(client = %peer, status = bad.status, why = bad.why, "head refused");
        let (mut tcp, _dies_here) = client.into_parts();
        let _client_gone = answer::send_and_close(&mut tcp, answer::response(bad.status, None)).await;
    }

    async fn refuse(&self, client: Client, refused: Refused, access: Option<&Access>) {
        self.metrics.refuse(refused.cause());
        let (mut tcp, _dies_here) = client.into_parts();
        let response = answer::response(refused.status(), Some(refused.retry_after()));
        let _client_gone = answer::send_and_close(&mut tcp, response).await;
        if let Some(access) = access {
            access.log("refused", End { status: refused.status(), bytes: None, cause: refused.cause() });
        }
    }

    /// An answer of our own; the connection ends with it.
    async fn answer(
        &self,
        client: Client,
        access: &Access,
        status: u16,
        retry_after: Option<Duration>,
        cause: &'static str,
    ) -> Next {
        let (mut tcp, _dies_here) = client.into_parts();
        let _client_gone = answer::send_and_close(&mut tcp, answer::response(status, retry_after)).await;
        access.log("refused", End { status, bytes: None, cause });
        Next::Done
    }
}

/// `None`: the client left without asking anything.
async fn read_head(snapshot: &Snapshot, client: &mut Client) -> Result<Option<Head>, Bad> {
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

fn origin(trusted: &Trusted, peer: IpAddr, head: &Head) -> From {
    let is_trusted = trusted.contains(peer);
    let told = head.parts.headers.get(REQUEST_ID).filter(|_| is_trusted);
    let conn = told.and_then(|v| v.to_str().ok()).and_then(ConnId::parse);
    From {
        client: trusted.client(peer, &head.parts.headers),
        conn: conn.unwrap_or_else(|| ConnId::from_random(rand::random())),
        trusted: is_trusted,
    }
}

const TOO_LARGE: Bad = Bad { status: 431, why: "head too large" };
