//! From an admitted request to its end: the route is found and does what it says, be it an answer of its
//! own, a tunnel, the node of this process, or Pingora's path.

use super::{Next, Service};
use crate::access::{Access, End};
use crate::admit::UnderWay;
use crate::admit::counts::KeyPlace;
use crate::admit::gate::{self, Admitted, AtGate};
use crate::answer::{self, ToHead};
use crate::forward;
use crate::front::arrive::{From, Permit, Places};
use crate::front::asker::{Asker, By};
use crate::front::head::{Body, Head};
use crate::front::streamed::Asks;
use crate::local::{Handshake, LogAtEnd, Status};
use crate::plain::{self, After, Carrier, Exchange, Http1, Passage, Wishes};
use crate::route::affinity::Issue;
use crate::route::sticky::{Known, Pick};
use crate::route::{Action, Asked, Route, Target, path};
use crate::snapshot::Snapshot;
use crate::tunnel::greet::{self, Greeted};
use crate::tunnel::{Held, Tunnel, limits};
use crate::upstream::Plan;
use crate::upstream::watched::Told;
use http::request::Parts;
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use prometheus_client::metrics::histogram::Histogram;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::oneshot;
use weir_core::accept::{Acceptor, Request};
use weir_core::drain::Busy;

/// An admitted request that looks for its route, and all that it holds.
pub(super) struct Asking {
    pub(super) asker: Asker,
    pub(super) places: Places,
    pub(super) own_address: Option<KeyPlace>,
    pub(super) busy: Busy,
    pub(super) head: Head,
    pub(super) from: From,
    pub(super) access: Access,
    pub(super) asks: Asks,
    pub(super) wishes: Wishes,
}

impl Asking {
    /// It asks for a tunnel of some kind.
    fn is_handshake(&self) -> bool {
        self.asks != Asks::Http
    }
}

impl Service {
    /// Finds the route, and does what it says.
    pub(super) async fn routed(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        mut asking: Asking,
        shutdown: &ShutdownWatch,
    ) -> Next {
        let tidy = match path::tidy(asking.head.parts.uri.path()) {
            Ok(tidy) => tidy.into_owned(),
            Err(bad) => return self.fail(asking, bad.status, "ambiguous_path").await,
        };
        let asked = Asked { head: &asking.head.parts, path: &tidy, websocket: asking.is_handshake() };
        let Some(route) = snapshot.routes.find(&asked) else {
            return self.fail(asking, 404, "no_route").await;
        };
        asking.access.found(route);
        let client = asking.from.client;
        let key = |head: &Parts, claims: Option<&Map<String, Value>>| {
            route.key_of(&Known { head, path: &tidy, client, claims })
        };
        let websocket = asking.is_handshake();
        let at = AtGate { head: &mut asking.head.parts, client, websocket, sticky: &key };
        let admitted = async {
            let under_way = snapshot.under_way(route.action.goes_to_server(websocket), client)?;
            Ok((under_way, route.gate.admit(&snapshot.admit, at).await?))
        };
        let (under_way, admitted) = match admitted.await {
            Ok(admitted) => admitted,
            Err(refused) => {
                let Asking { asker, access, places, own_address, .. } = asking;
                // While it is answered, its places are others'.
                drop((places, own_address));
                return self.refuse(snapshot, asker, refused, &access, websocket).await;
            }
        };
        let target = match &route.action {
            Action::Forward(target) => target,
            Action::Answer(_) | Action::Redirect(_) => return self.reply(asking, route).await,
        };
        let upstream = target.upstream();
        asking.access.upstream = Some(upstream.name.clone());
        let claims = admitted.proof.as_ref().map(|proof| &proof.claims);
        let known = Known { head: &asking.head.parts, path: &tidy, client, claims };
        let (pick, hash) = route.pick(&known, upstream, SystemTime::now());
        asking.access.key = Some(hash);
        if matches!(asking.head.body, Body::Length(n) if route.max_body_size > 0 && n > route.max_body_size) {
            return self.fail(asking, 413, "body_size").await;
        }
        if let Err(bad) = route.prepare(&mut asking.head.parts, &tidy, &asking.access, asking.from.trusted) {
            return self.fail(asking, bad.status, "rewritten_path").await;
        }
        if let Some(proof) = &admitted.proof {
            proof.pass_on(&mut asking.head.parts.headers);
        }
        if websocket {
            return self.handshake(snapshot, (route, target), pick, asking, (admitted, under_way)).await;
        }
        let plan = upstream.plan(&pick.key, pick.prefer.as_deref()).on_behalf_of(asking.from.ends);
        self.pass((route, plan, pick.issue), asking, (admitted.held, under_way), shutdown).await
    }

    /// Any request but a handshake, to its server.
    async fn pass(
        self: &Arc<Self>,
        (route, plan, issue): (&Arc<Route>, Plan, Option<Issue>),
        asking: Asking,
        (held, under_way): (gate::Held, Option<UnderWay>),
        shutdown: &ShutdownWatch,
    ) -> Next {
        let own = (asking.from.bound, asking.from.client);
        let Asking { asker, places, own_address, busy: _until_answered, head, access, wishes, .. } = asking;
        let held = (own_address, held, under_way);
        // Over HTTP/2 and /3 trailers are passed on to whoever asks.
        let takes_trailers = wishes.trailers || !matches!(asker.by, By::Connection(_));
        let told = Arc::new(Told::new(wishes.head_alone, takes_trailers));
        let passage = Passage { plan, access, route: route.clone(), issue, tls: asker.tls, own, told };
        let carrier = match asker.by {
            By::Connection(client) => {
                let (exchange, given_back) = Http1::new(client, head.body, wishes);
                self.plain(head, Carrier::Http1(exchange), passage, shutdown).await;
                drop(held);
                return after(given_back, places).await;
            }
            By::Stream(stream) => Carrier::Stream(stream),
        };
        self.plain(head, carrier, passage, shutdown).await;
        Next::Done
    }

    async fn handshake(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        (route, target): (&Arc<Route>, &Target),
        pick: Pick,
        mut asking: Asking,
        (admitted, under_way): (Admitted, Option<UnderWay>),
    ) -> Next {
        let upstream = match target {
            Target::Node { acceptor, .. } => {
                self.hand_over(acceptor, route, asking, admitted);
                return Next::Done;
            }
            Target::Upstream(upstream) => upstream,
        };
        let conf = match asking.asks {
            Asks::WebTransport => {
                forward::mark_session(&mut asking.head.parts.headers);
                limits::for_session(&route.tunnel)
            }
            _ => {
                forward::mark_upgrade(&mut asking.head.parts.headers);
                route.tunnel.clone()
            }
        };
        let mut plan = upstream.plan(&pick.key, pick.prefer.as_deref()).on_behalf_of(asking.from.ends);
        let Asking { mut asker, places, own_address, busy, head, mut access, .. } = asking;
        let deadlines = route.deadlines;
        let mut greeted = greet::greet(&mut plan, &head.parts, deadlines, &mut access, asker.gone()).await;
        drop(admitted.handshake);
        let mut at_server = None;
        if let Greeted::Accepted(_, server, _, permit) = &mut greeted {
            at_server = permit.take();
            let _unsupported_matters_not = server.watch_peer(&snapshot.conf);
        }
        let permit: Permit = (places, (own_address, admitted.held, under_way), busy);
        let until = admitted.proof.and_then(|proof| proof.close_at).map(Into::into);
        let held = Held { access, conf, until, _permit: (permit, at_server) };
        self.tunnel(asker, greeted, route, pick.issue, held).await
    }

    /// To the node of this process, which has the connection from here on.
    fn hand_over(&self, node: &Arc<dyn Acceptor>, route: &Arc<Route>, asking: Asking, admitted: Admitted) {
        let Asking { asker, places, own_address, busy, mut head, from, access, .. } = asking;
        match &asker.by {
            By::Connection(_) => forward::mark_upgrade(&mut head.parts.headers),
            By::Stream(_) => head.parts.method = http::Method::CONNECT,
        }
        self.outcome(&access, "handed_to_node");
        let status = Status::default();
        let exchange = Box::new(Handshake {
            asker,
            status: status.clone(),
            switched: access.switched(),
            route: route.clone(),
            vars: access.vars(),
            latency: self.latency(&access),
            began: access.started,
            slot: admitted.handshake,
        });
        let held: Permit = (places, (own_address, admitted.held, None), busy);
        let permit = Box::new((held, LogAtEnd { access, status }));
        let (client, conn, transport) = (from.client, from.conn, from.transport);
        node.accept(Request { head: head.parts, transport, client, conn, exchange, permit });
    }

    async fn tunnel(
        self: &Arc<Self>,
        asker: Asker,
        greeted: Greeted,
        route: &Route,
        issue: Option<Issue>,
        held: Held,
    ) -> Next {
        match greeted {
            Greeted::Failed { status, retry_after, cause } => {
                self.outcome(&held.access, cause);
                self.answer(asker, &held.access, status, retry_after, cause).await
            }
            Greeted::ClientGone => {
                self.outcome(&held.access, "client_gone");
                held.access.log("websocket", End { status: 0, bytes: None, cause: "client_gone" });
                Next::Done
            }
            Greeted::Refused(mut refusal) => {
                self.outcome(&held.access, "refused_by_server");
                let status = refusal.status();
                // On a stream a success would be the tunnel's own (RFC 8441 §5, RFC 9220 §3).
                if (200..300).contains(&status) && !matches!(asker.by, By::Connection(_)) {
                    return self.answer(asker, &held.access, 502, None, "not_switched").await;
                }
                // Before ours are put in, which `Connection` could name.
                forward::rewrite_response(refusal.headers_mut());
                dress(refusal.headers_mut(), route, issue, &held.access);
                let _client_gone = refusal.pass_on(asker).await;
                held.access.log("websocket", End { status, bytes: None, cause: "refused_by_server" });
                Next::Done
            }
            Greeted::Accepted(mut headers, server, from_server, _) => {
                forward::rewrite_response(&mut headers);
                dress(&mut headers, route, issue, &held.access);
                // Before the client knows of it: whoever drains from then on finds this tunnel.
                let text = |name: &Option<Arc<str>>| name.clone().unwrap_or_default();
                let seat = self.open.enter(
                    text(&held.access.upstream),
                    text(&held.access.server),
                    held.access.transport(),
                );
                let Ok(client) = asker.switch(headers).await else {
                    self.outcome(&held.access, "client_gone");
                    held.access.log("websocket", End { status: 0, bytes: None, cause: "client_gone" });
                    return Next::Done;
                };
                self.outcome(&held.access, "accepted");
                self.latency(&held.access).observe(held.access.started.elapsed().as_secs_f64());
                // A task of its own: the memory of this one, sized for Pingora's path, is free again.
                tokio::spawn(Tunnel::new(client, (server, from_server), seat, held));
                Next::Done
            }
        }
    }

    /// What became of a handshake for which a route was found.
    fn outcome(&self, access: &Access, outcome: &'static str) {
        self.metrics.handshake(outcome, access.transport());
        if let Some(route) = &access.route {
            self.metrics.route_handshake(route, outcome, access.transport());
        }
    }

    fn latency(&self, access: &Access) -> Histogram {
        let text = |name: &Option<Arc<str>>| name.clone().unwrap_or_default();
        self.metrics.latency.of(&text(&access.route), &text(&access.upstream))
    }

    /// The route's own answer.
    async fn reply(&self, asking: Asking, route: &Route) -> Next {
        let websocket = asking.is_handshake();
        let Asking { asker, head, access, .. } = asking;
        let Some((mut response, cause)) = route.reply(&head.parts, &access.vars()) else { return Next::Done };
        let status = response.status().as_u16();
        match websocket {
            true => self.outcome(&access, cause),
            false => self.metrics.request(&route.name, status, access.transport()),
        }
        if head.parts.method == http::Method::HEAD {
            response.extensions_mut().insert(ToHead);
        }
        let sent = asker.answer(response, true).await;
        // A client that has gone is its own business; one that stays and takes nothing is not.
        let unread = sent.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut);
        if unread {
            self.metrics.refuse("unread");
        }
        access.log("reply", End { status, bytes: None, cause: if unread { "unread" } else { cause } });
        Next::Done
    }

    /// A refusal after admission: no route, or not as the route wants it.
    async fn fail(&self, asking: Asking, status: u16, cause: &'static str) -> Next {
        match (asking.is_handshake(), &asking.access.route) {
            (true, _) => self.outcome(&asking.access, cause),
            (false, Some(route)) => self.metrics.request(route, status, asking.access.transport()),
            (false, None) => {}
        }
        self.answer(asking.asker, &asking.access, status, None, cause).await
    }

    async fn plain(
        self: &Arc<Self>,
        head: Head,
        carrier: Carrier,
        passage: Passage,
        shutdown: &ShutdownWatch,
    ) {
        match Exchange::new(head, carrier, passage.told.clone()) {
            Ok(exchange) => {
                let session = ServerSession::new_custom(Box::new(exchange));
                let _given_back_by_itself =
                    plain::with(passage, self.plain.process_new_http(session, shutdown)).await;
            }
            // What was read as a head can be written as one.
            Err(error) => tracing::error!(%error, "a request cannot be sent on"),
        }
    }
}

/// What becomes of a connection of HTTP/1 after its exchange.
async fn after(given_back: oneshot::Receiver<After>, places: Places) -> Next {
    match given_back.await {
        Ok(After::Next(client)) => Next::Another(client, places),
        Ok(After::Close(mut client)) => {
            answer::linger(client.stream()).await;
            Next::Done
        }
        Ok(After::Cut) | Err(_) => Next::Done,
    }
}

/// An answer to a handshake as the route wants it: its headers, and the cookie for the server that it was.
fn dress(headers: &mut http::HeaderMap, route: &Route, issue: Option<Issue>, access: &Access) {
    if !route.response_headers.is_empty() {
        route.response_headers.apply(headers, &access.vars());
    }
    if let (Some(issue), Some(server)) = (issue, &access.server)
        && let Some(cookie) = issue.set_cookie(server, SystemTime::now())
    {
        headers.append(http::header::SET_COOKIE, cookie);
    }
}
