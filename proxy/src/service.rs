//! The one path of a connection: read a head, admit, route; then a WebSocket is tunnelled or
//! handed to the node of this process, and anything else goes through Pingora's `HttpProxy`,
//! after which the connection may bring its next request.

mod routed;

use crate::access::{Access, End};
use crate::admit::Refused;
use crate::admit::counts::KeyPlace;
use crate::answer;
use crate::client::Client;
use crate::forward::{self, Origin};
use crate::front::arrive::{self, From, Places};
use crate::front::head::{Bad, Head};
use crate::front::upgrade::{is_websocket, tokens};
use crate::metrics::Metrics;
use crate::plain::Plain;
use crate::snapshot::Snapshot;
use crate::tunnel::register::Open;
use crate::upstream::proxy_protocol::Ends;
use arc_swap::ArcSwap;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use routed::Asking;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;
use weir_core::drain::Drain;

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
    pub async fn connection(
        self: Arc<Self>,
        tcp: tokio::net::TcpStream,
        peer: SocketAddr,
        shutdown: ShutdownWatch,
    ) {
        let local = tcp.local_addr().unwrap_or(peer);
        let mut snapshot = self.snapshot.load_full();
        let mut client = Client::new(tcp, snapshot.conf.head_size);
        let (peer, mut places) = match self.enter(&snapshot, &mut client, peer).await {
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
                Err(bad) => return self.reject(client, bad, peer.ip()).await,
            };
            let from = arrive::origin(&snapshot, Ends { client: peer, local }, &mut head.parts.headers);
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
        socket: SocketAddr,
    ) -> Result<(SocketAddr, Places), Option<Refused>> {
        let admit = &snapshot.admit;
        let spoken_for = |peer: SocketAddr| snapshot.trusted.contains(peer.ip());
        if !spoken_for(socket) {
            admit.listed(socket.ip())?;
            return Ok((socket, (admit.connection()?, admit.address(socket.ip())?)));
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
        admit.listed(peer.ip())?;
        Ok((peer, (place, admit.address(peer.ip())?)))
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
        let own_address = match self.named(snapshot, &from, &mut head) {
            Ok(address) => address,
            Err(refused) => return self.refuse(snapshot, client, refused, &access, websocket).await,
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

    /// The lists and places of the client that a trusted peer speaks for; and what no client may say is
    /// thrown away.
    fn named(&self, snapshot: &Snapshot, from: &From, head: &mut Head) -> Result<Option<KeyPlace>, Refused> {
        snapshot.admit.drop_claims(&mut head.parts.headers);
        if !from.trusted {
            return Ok(None);
        }
        snapshot.admit.listed(from.client)?;
        snapshot.admit.address(from.client)
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
