//! The one path of a request: its head is read, it is admitted and routed; then a WebSocket is tunnelled or
//! handed to the node of this process, and anything else goes through Pingora's `HttpProxy`. How a connection
//! brings its requests, one after the other or in streams: `service/connection.rs`.

mod connection;
pub mod quic;
mod routed;
#[cfg(test)]
mod session_tests;

use crate::access::{Access, End};
use crate::admit::Refused;
use crate::admit::counts::KeyPlace;
use crate::answer;
use crate::client::Client;
use crate::forward::{self, Origin};
use crate::front::arrive::{From, Places};
use crate::front::asker::Asker;
use crate::front::head::{Bad, Head};
use crate::front::streamed::Asks;
use crate::front::upgrade::tokens;
use crate::metrics::Metrics;
use crate::plain::{Plain, Wishes};
use crate::snapshot::Snapshot;
use crate::tls::{redirect, subject};
use crate::tunnel::register::Open;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONNECTION, TE};
use http::{Method, Response, Version};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use routed::Asking;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use weir_core::drain::Drain;
use weir_wire::hop::FORWARDED_PROTO;

pub struct Service {
    /// Read once for each request; replaced by a reload.
    pub snapshot: ArcSwap<Snapshot>,
    pub plain: Arc<HttpProxy<Plain>>,
    pub metrics: Metrics,
    pub open: Arc<Open>,
    /// Of this proxy's connections.
    pub drain: Drain,
    /// Another snapshot is in force.
    pub swapped: Notify,
}

/// What became of one request.
enum Next {
    /// The connection is still ours.
    Another(Client, Places),
    Done,
}

impl Service {
    async fn request(
        self: &Arc<Self>,
        snapshot: &Arc<Snapshot>,
        asker: Asker,
        places: Places,
        (mut head, asks): (Head, Result<Asks, Bad>),
        from: From,
        shutdown: &ShutdownWatch,
    ) -> Next {
        // From here on, and not only once there is a tunnel: a drain waits for handshakes too.
        let busy = self.drain.busy();
        let access = Access::new(&head.parts, &from);
        let asks = match asks {
            Ok(asks) => asks,
            Err(bad) => {
                self.metrics.handshake("malformed", access.transport());
                return self.answer(asker, &access, bad.status, None, bad.why).await;
            }
        };
        let own_address = match self.named(snapshot, &from) {
            Ok(address) => address,
            Err(refused) => return self.refuse(snapshot, asker, refused, &access, asks != Asks::Http).await,
        };
        let wishes = wishes(&head);
        // Before the routes: they look at headers as servers get them.
        let (forwarded, secure) = (snapshot.conf.forwarded, from.tls.is_some());
        let origin =
            Origin { client: from.client, conn: &from.conn, trusted: from.trusted, secure, forwarded };
        forward::rewrite(&mut head.parts.headers, &origin, &snapshot.guarded);
        let shown = from.tls.as_ref().and_then(|tls| tls.shown.as_ref());
        if !from.trusted || shown.is_some() {
            subject::tell(&mut head.parts.headers, shown);
        }
        if let Some((response, cause)) = self.beforehand(snapshot, &head) {
            let status = response.status().as_u16();
            let _client_gone = asker.answer(response, true).await;
            access.log("reply", End { status, bytes: None, cause });
            return Next::Done;
        }
        let asking = Asking { asker, places, own_address, busy, head, from, access, asks, wishes };
        self.routed(snapshot, asking, shutdown).await
    }

    /// What no route has a say in.
    fn beforehand(&self, snapshot: &Snapshot, head: &Head) -> Option<(Response<Bytes>, &'static str)> {
        if head.parts.method == Method::GET
            && let Some(answer) = snapshot.acme.http_challenge(head.parts.uri.path())
        {
            return Some((answer, "acme_challenge"));
        }
        Some((self.to_tls(snapshot, head)?, "to_tls"))
    }

    /// Where everybody is to come with TLS: the way to it, for whoever came without, or came without to the
    /// trusted peer in front.
    fn to_tls(&self, snapshot: &Snapshot, head: &Head) -> Option<Response<Bytes>> {
        if !snapshot.conf.tls.redirect_http
            || head.parts.headers.get(FORWARDED_PROTO).is_some_and(|proto| proto == "https")
        {
            return None;
        }
        redirect::redirect(&head.parts, snapshot.tls.port()?)
    }

    /// The lists and places of the client that a trusted peer speaks for.
    fn named(&self, snapshot: &Snapshot, from: &From) -> Result<Option<KeyPlace>, Refused> {
        if !from.trusted {
            return Ok(None);
        }
        snapshot.admit.listed(from.client)?;
        snapshot.admit.address(from.client)
    }

    /// A request that may not come in: always answered, and with patience where there is leave for it.
    async fn refuse(
        &self,
        snapshot: &Snapshot,
        asker: Asker,
        refused: Refused,
        access: &Access,
        websocket: bool,
    ) -> Next {
        let Refused { status, cause, .. } = refused;
        if websocket {
            self.metrics.handshake(cause, access.transport());
        }
        self.metrics.refuse(cause);
        let response = answer::response(status, refused.retry_after);
        let lingering = snapshot.admit.linger();
        let _client_gone = asker.answer(response, lingering.is_some()).await;
        access.log("refused", End { status, bytes: None, cause });
        Next::Done
    }

    /// An answer of our own; the connection ends with it.
    async fn answer(
        &self,
        asker: Asker,
        access: &Access,
        status: u16,
        retry_after: Option<Duration>,
        cause: &'static str,
    ) -> Next {
        let mut response = answer::response(status, retry_after);
        answer::explain(&mut response, cause);
        let _client_gone = asker.answer(response, true).await;
        access.log("refused", End { status, bytes: None, cause });
        Next::Done
    }
}

/// What a request asks of its answer; to be looked at before what is of this hop is taken off.
fn wishes(head: &Head) -> Wishes {
    let says = |name, word: &str| tokens(&head.parts.headers, name).any(|t| t.eq_ignore_ascii_case(word));
    Wishes {
        head_alone: head.parts.method == Method::HEAD,
        old: head.parts.version == Version::HTTP_10,
        close: says(CONNECTION, "close"),
        trailers: says(TE, "trailers"),
    }
}
