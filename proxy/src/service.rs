//! The one path of a connection: read a head, admit, route; then a WebSocket is tunnelled or
//! handed to the node of this process, and anything else goes through Pingora's `HttpProxy`,
//! after which the connection may bring its next request.

use crate::access::{Access, End};
use crate::admit::{AddressPlace, Place, Refused};
use crate::answer;
use crate::client::Client;
use crate::client_addr::Trusted;
use crate::forward::{self, Origin};
use crate::front::head::{self, Bad, Head};
use crate::front::upgrade::is_websocket;
use crate::local::{H1Exchange, LogAtEnd, Status};
use crate::metrics::Metrics;
use crate::plain::{self, Passage, Plain};
use crate::route::{Target, sticky_key};
use crate::server::Closing;
use crate::snapshot::Snapshot;
use crate::tunnel::greet::{self, Greeted};
use crate::tunnel::relay::Relay;
use crate::tunnel::{self, Held};
use crate::upstream::proxy_protocol::Ends;
use arc_swap::ArcSwap;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;
use weir_core::accept::{Acceptor, Request};
use weir_core::drain::{Busy, Drain};
use weir_wire::hop::REQUEST_ID;
use weir_wire::id::ConnId;

pub struct Service {
    /// Read once for each request; replaced by a reload.
    pub snapshot: ArcSwap<Snapshot>,
    pub plain: Arc<HttpProxy<Plain>>,
    pub metrics: Metrics,
    pub closing: Arc<Closing>,
    /// Of this proxy's connections.
    pub drain: Drain,
    /// Another snapshot is in force.
    pub swapped: Notify,
}

/// One request's origin, and its place among its address's connections.
struct From {
    client: IpAddr,
    /// For servers that ask for the PROXY protocol.
    ends: Ends,
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
        let ends = Ends { client: peer, local: tcp.local_addr().unwrap_or(peer) };
        let peer = peer.ip().to_canonical();
        let _unsupported_matters_not = tcp.set_nodelay(true);
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
            let from = origin(&snapshot.trusted, ends, &head);
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
        mut client: Client,
        places: Places,
        mut head: Head,
        from: From,
        shutdown: &ShutdownWatch,
    ) -> Next {
        // From here on, and not only once there is a tunnel: a drain waits for handshakes too.
        let busy = self.drain.busy();
        let mut access = Access::new(&head.parts, from.conn.clone(), from.client);
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
        let Some(route) = snapshot.routes.find(&head.parts) else {
            if websocket {
                self.metrics.handshake("no_route");
            }
            return self.answer(client, &access, 404, None, "no_route").await;
        };
        let wants_close = crate::front::upgrade::tokens(&head.parts.headers, http::header::CONNECTION)
            .any(|t| t.eq_ignore_ascii_case("close"));
        let origin = Origin { client: from.client, conn: &from.conn, trusted: from.trusted };
        forward::rewrite(&mut head.parts.headers, &origin);
        let upstream = route.target.upstream();
        access.upstream = Some(upstream.name.clone());
        if !websocket {
            let plan = upstream.plan(&sticky_key(&route.sticky, &head.parts, from.client));
            let plan = plan.on_behalf_of(from.ends);
            let passage = Passage { plan, access, deadlines: snapshot.deadlines() };
            return self.plain(client, (places, own_address), head, passage, wants_close, shutdown).await;
        }
        forward::mark_upgrade(&mut head.parts.headers);
        match &route.target {
            Target::Node { acceptor, .. } => {
                self.hand_over(acceptor, client, head.parts, from, access, (places, own_address, busy));
                Next::Done
            }
            Target::Upstream(upstream) => {
                let plan = upstream.plan(&sticky_key(&route.sticky, &head.parts, from.client));
                let mut plan = plan.on_behalf_of(from.ends);
                let (head, deadlines) = (&head.parts, snapshot.deadlines());
                let greeted = greet::greet(&mut plan, head, deadlines, &mut access, client.gone()).await;
                let held = Held {
                    access,
                    metrics: self.metrics.clone(),
                    closing: self.closing.clone(),
                    idle: snapshot.conf.idle_timeout,
                    permit: (places.place, places.address.or(own_address), busy, None),
                };
                self.tunnel(client, greeted, held).await
            }
        }
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

    /// To the node of this process, which has the connection from here on.
    fn hand_over(
        &self,
        node: &Arc<dyn Acceptor>,
        client: Client,
        head: http::request::Parts,
        from: From,
        access: Access,
        held: (Places, Option<AddressPlace>, Busy),
    ) {
        self.metrics.handshake("handed_to_node");
        let status = Status::default();
        let exchange = Box::new(H1Exchange { client, status: status.clone() });
        let permit = Box::new((held, LogAtEnd { access, status }));
        node.accept(Request { head, client: from.client, conn: from.conn, exchange, permit });
    }

    async fn tunnel(self: &Arc<Self>, client: Client, greeted: Greeted, mut held: Held) -> Next {
        match greeted {
            Greeted::Failed { status, retry_after, cause } => {
                self.metrics.handshake(cause);
                self.answer(client, &held.access, status, retry_after, cause).await
            }
            Greeted::ClientGone => {
                self.metrics.handshake("client_gone");
                held.access.log("websocket", End { status: 0, bytes: None, cause: "client_gone" });
                Next::Done
            }
            Greeted::Refused(response) => {
                self.metrics.handshake("refused_by_server");
                let status = response.status().as_u16();
                let (mut tcp, _dies_here) = client.into_parts();
                let _client_gone = answer::send_and_close(&mut tcp, response).await;
                held.access.log("websocket", End { status, bytes: None, cause: "refused_by_server" });
                Next::Done
            }
            Greeted::Accepted(mut headers, server, from_server, permit) => {
                held.permit.3 = permit;
                let (mut tcp, from_client) = client.into_parts();
                forward::rewrite_response(&mut headers);
                forward::mark_upgrade(&mut headers);
                let mut out = answer::status_line(http::StatusCode::SWITCHING_PROTOCOLS);
                forward::write_headers(&headers, &mut out);
                out.extend_from_slice(b"\r\n");
                if answer::write(&mut tcp, &out).await.is_err() {
                    self.metrics.handshake("client_gone");
                    held.access.log("websocket", End { status: 0, bytes: None, cause: "client_gone" });
                    return Next::Done;
                }
                self.metrics.handshake("accepted");
                let _unsupported_matters_not = tunnel::watch_peer(&tcp);
                let _unsupported_matters_not = server.watch_peer();
                // A task of its own: the memory of this one, sized for Pingora's path, is free again.
                tokio::spawn(tunnel::run(Relay::new(tcp, from_client, server, from_server), Box::new(held)));
                Next::Done
            }
        }
    }

    async fn plain(
        self: &Arc<Self>,
        mut client: Client,
        (places, _own_address): (Places, Option<AddressPlace>),
        head: Head,
        passage: Passage,
        wants_close: bool,
        shutdown: &ShutdownWatch,
    ) -> Next {
        client.gate(head.body);
        let mut session = ServerSession::new_http1(Box::new(client));
        session.set_pipelined_prefix(plain::head_bytes(&head.parts));
        let reused = plain::with(passage, self.plain.process_new_http(session, shutdown)).await;
        let Some((stream, _settings)) = reused.map(|r| r.consume()) else { return Next::Done };
        let Ok(mut client) = stream.into_any().downcast::<Client>() else { return Next::Done };
        if wants_close || head.parts.version == http::Version::HTTP_10 {
            return Next::Done;
        }
        client.open();
        Next::Another(*client, places)
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

fn origin(trusted: &Trusted, ends: Ends, head: &Head) -> From {
    let peer = ends.client.ip().to_canonical();
    let is_trusted = trusted.contains(peer);
    let told = head.parts.headers.get(REQUEST_ID).filter(|_| is_trusted);
    let conn = told.and_then(|v| v.to_str().ok()).and_then(ConnId::parse);
    let client = trusted.client(peer, &head.parts.headers);
    let port = if client == peer { ends.client.port() } else { 0 };
    From {
        client,
        ends: Ends { client: SocketAddr::new(client, port), ..ends },
        conn: conn.unwrap_or_else(|| ConnId::from_random(rand::random())),
        trusted: is_trusted,
    }
}

const TOO_LARGE: Bad = Bad { status: 431, why: "head too large" };
