//! The one path of a connection: read a head, admit, route; then a WebSocket is tunnelled or
//! handed to the node of this process, and anything else goes through Pingora's `HttpProxy`,
//! after which the connection may bring its next request.

use crate::access::{Access, End};
use crate::admit::Refused;
use crate::admit::budget::Slot;
use crate::admit::counts::KeyPlace;
use crate::admit::gate::{Admitted, Asked};
use crate::answer;
use crate::client::Client;
use crate::forward::{self, Origin};
use crate::front::arrive::{self, From, OfRequest, Permit, Places};
use crate::front::head::{Bad, Head};
use crate::front::upgrade::is_websocket;
use crate::local::{H1Exchange, LogAtEnd, Status};
use crate::metrics::Metrics;
use crate::plain::{self, Passage, Plain};
use crate::route::{Route, Target, sticky_key};
use crate::server::Closing;
use crate::snapshot::Snapshot;
use crate::tunnel::greet::{self, Greeted};
use crate::tunnel::relay::Relay;
use crate::tunnel::{self, Held};
use arc_swap::ArcSwap;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use weir_core::accept::{Acceptor, Request};
use weir_core::drain::Drain;

pub struct Service {
    /// Read once for each request; replaced by a reload.
    pub snapshot: ArcSwap<Snapshot>,
    pub plain: Arc<HttpProxy<Plain>>,
    pub metrics: Metrics,
    pub closing: Arc<Closing>,
    /// Of this proxy's connections.
    pub drain: Drain,
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
        let _unsupported_matters_not = tcp.set_nodelay(true);
        let mut snapshot = self.snapshot.load_full();
        let mut client = Client::new(tcp, snapshot.conf.head_size);
        let (peer, mut places) = match self.enter(&snapshot, &mut client, peer.ip().to_canonical()).await {
            Ok(entered) => entered,
            Err(Some(refused)) => return self.turn_away(&snapshot, client, refused).await,
            Err(None) => return,
        };
        let mut first = true;
        loop {
            if !first {
                if !self.another(&snapshot, &mut client).await {
                    return;
                }
                snapshot = self.snapshot.load_full();
            }
            let mut head = match arrive::read_head(&snapshot, &mut client).await {
                Ok(Some(head)) => head,
                Ok(None) => return,
                Err(bad) => return self.reject(client, bad, peer).await,
            };
            let from = arrive::origin(&snapshot, peer, &mut head.parts.headers);
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

    /// The lists of addresses and the places, before a byte is read; behind a trusted peer when it is
    /// known who is. `Err(None)`: there is nobody to be answered.
    async fn enter(
        &self,
        snapshot: &Snapshot,
        client: &mut Client,
        socket: IpAddr,
    ) -> Result<(IpAddr, Places), Option<Refused>> {
        let admit = &snapshot.admit;
        let spoken_for = |peer| snapshot.trusted.contains(peer);
        if !spoken_for(socket) {
            admit.listed(socket)?;
            return Ok((socket, (admit.connection()?, admit.address(socket)?)));
        }
        let place = admit.connection()?;
        let peer = arrive::named_peer(snapshot, client, socket).await.map_err(|why| {
            self.metrics.refuse("proxy_protocol");
            tracing::debug!(peer = %socket, why, "header of the PROXY protocol refused");
        });
        let peer = peer.map_err(|()| None)?.ok_or(None)?;
        if spoken_for(peer) {
            return Ok((peer, (place, None)));
        }
        admit.listed(peer)?;
        Ok((peer, (place, admit.address(peer)?)))
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
        let mut access = Access::new(&head.parts, from.conn.clone(), from.client);
        let websocket = match is_websocket(&head) {
            Ok(websocket) => websocket,
            Err(bad) => {
                self.metrics.handshake("malformed");
                return self.answer(client, &access, bad.status, None, bad.why).await;
            }
        };
        let (own_address, route) = match self.found(snapshot, &from, &mut head) {
            Ok(found) => found,
            Err(refused) => return self.refuse(snapshot, client, refused, &access, websocket).await,
        };
        let Some(route) = route else {
            if websocket {
                self.metrics.handshake("no_route");
            }
            return self.answer(client, &access, 404, None, "no_route").await;
        };
        let sticky = |head: &http::request::Parts| sticky_key(&route.sticky, head, from.client);
        let asked = Asked { head: &mut head.parts, client: from.client, websocket, sticky: &sticky };
        let Admitted { held, proof, handshake } = match route.gate.admit(&snapshot.admit, asked).await {
            Ok(admitted) => admitted,
            Err(refused) => return self.refuse(snapshot, client, refused, &access, websocket).await,
        };
        let of_request = (own_address, held);
        let wants_close = crate::front::upgrade::tokens(&head.parts.headers, http::header::CONNECTION)
            .any(|t| t.eq_ignore_ascii_case("close"));
        let origin = Origin { client: from.client, conn: &from.conn, trusted: from.trusted };
        forward::rewrite(&mut head.parts.headers, &origin);
        if let Some(proof) = &proof {
            proof.pass_on(&mut head.parts.headers);
        }
        let upstream = route.target.upstream();
        access.upstream = Some(upstream.name.clone());
        if !websocket {
            let plan = upstream.plan(&sticky_key(&route.sticky, &head.parts, from.client));
            let passage = Passage { plan, access, deadlines: snapshot.deadlines() };
            return self.plain(client, (places, of_request), head, passage, wants_close, shutdown).await;
        }
        forward::mark_upgrade(&mut head.parts.headers);
        match &route.target {
            Target::Node { acceptor, .. } => {
                let held = (places, of_request, busy);
                self.hand_over(acceptor, (client, handshake), head.parts, from, access, held);
                Next::Done
            }
            Target::Upstream(upstream) => {
                let mut plan = upstream.plan(&sticky_key(&route.sticky, &head.parts, from.client));
                let greeted = greet::greet(&mut plan, &head.parts, snapshot.deadlines(), &mut access).await;
                drop(handshake);
                let held = Held {
                    access,
                    metrics: self.metrics.clone(),
                    closing: self.closing.clone(),
                    idle: snapshot.conf.idle_timeout,
                    permit: (places, of_request, busy),
                };
                self.tunnel(client, greeted, held).await
            }
        }
    }

    /// The route of a request, after the lists and places of the client that a trusted peer speaks for.
    fn found<'s>(
        &self,
        snapshot: &'s Snapshot,
        from: &From,
        head: &mut Head,
    ) -> Result<(Option<KeyPlace>, Option<&'s Arc<Route>>), Refused> {
        let mut address = None;
        if from.trusted {
            snapshot.admit.listed(from.client)?;
            address = snapshot.admit.address(from.client)?;
        }
        snapshot.admit.drop_claims(&mut head.parts.headers);
        Ok((address, snapshot.routes.find(&head.parts)))
    }

    /// To the node of this process, which has the connection from here on.
    fn hand_over(
        &self,
        node: &Arc<dyn Acceptor>,
        (client, handshake): (Client, Option<Slot>),
        head: http::request::Parts,
        from: From,
        access: Access,
        held: Permit,
    ) {
        self.metrics.handshake("handed_to_node");
        let status = Status::default();
        let exchange = Box::new(H1Exchange { client, status: status.clone(), handshake });
        let permit = Box::new((held, LogAtEnd { access, status }));
        node.accept(Request { head, client: from.client, conn: from.conn, exchange, permit });
    }

    async fn tunnel(self: &Arc<Self>, client: Client, greeted: Greeted, held: Held) -> Next {
        match greeted {
            Greeted::Failed { status, retry_after, cause } => {
                self.metrics.handshake(cause);
                self.answer(client, &held.access, status, retry_after, cause).await
            }
            Greeted::Refused(response) => {
                self.metrics.handshake("refused_by_server");
                let status = response.status().as_u16();
                let (mut tcp, _dies_here) = client.into_parts();
                let _client_gone = answer::send_and_close(&mut tcp, response).await;
                held.access.log("websocket", End { status, bytes: None, cause: "refused_by_server" });
                Next::Done
            }
            Greeted::Accepted(mut headers, server, from_server) => {
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
                for socket in [&tcp, &server] {
                    let _unsupported_matters_not = tunnel::watch_peer(socket);
                }
                // A task of its own: the memory of this one, sized for Pingora's path, is free again.
                tokio::spawn(tunnel::run(Relay::new(tcp, from_client, server, from_server), Box::new(held)));
                Next::Done
            }
        }
    }

    async fn plain(
        self: &Arc<Self>,
        mut client: Client,
        (places, _of_request): (Places, OfRequest),
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

    /// A connection that may not come in. So many are answered with patience; in a flood the rest is
    /// closed at once, which costs next to nothing.
    async fn turn_away(&self, snapshot: &Snapshot, client: Client, refused: Refused) {
        self.metrics.refuse(refused.cause);
        tracing::debug!(cause = refused.cause, "connection refused");
        let Some(_lingering) = snapshot.admit.linger() else { return };
        let (mut tcp, _dies_here) = client.into_parts();
        let response = answer::response(refused.status, refused.retry_after);
        let _client_gone = answer::send_and_close(&mut tcp, response).await;
    }

    /// A request that may not come in: always answered, and with patience where there is leave for it.
    async fn refuse(
        &self,
        snapshot: &Snapshot,
        client: Client,
        refused: Refused,
        access: &Access,
        websocket: bool,
    ) -> Next {
        let Refused { status, cause, .. } = refused;
        if websocket {
            self.metrics.handshake(cause);
        }
        self.metrics.refuse(cause);
        let (mut tcp, _dies_here) = client.into_parts();
        let response = answer::response(status, refused.retry_after);
        let _client_gone = match snapshot.admit.linger() {
            Some(_lingering) => answer::send_and_close(&mut tcp, response).await,
            None => answer::send(&mut tcp, response).await,
        };
        access.log("refused", End { status, bytes: None, cause });
        Next::Done
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
