//! A client's connection: who may open one, TLS, and then its requests: one after the other (HTTP/1), or each
//! on a stream of its own.

use super::{Next, Service};
use crate::admit::{Refused, log_bad};
use crate::answer;
use crate::batched::batched;
use crate::client::stream::TlsStream;
use crate::client::{Client, ClientStream};
use crate::front::arrive::{self, Link, Places, Secured};
use crate::front::asker::{Asker, By};
use crate::front::h2;
use crate::front::head::Bad;
use crate::front::stream::RequestStream;
use crate::front::streamed::{self, Asks};
use crate::front::upgrade::is_websocket;
use crate::snapshot::Snapshot;
use crate::tls::Kind;
use crate::tls::accept::{Arrived, Cause};
use crate::tls::config::Speaks;
use crate::tls::redirect;
use crate::tls::subject::ClientCert;
use crate::upstream::bound::Bound;
use crate::upstream::proxy_protocol::Ends;
use http::header::{ALT_SVC, HeaderMap, HeaderValue, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use pingora_core::server::ShutdownWatch;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::timeout;
use weir_core::accept::Transport;
use weir_core::descriptors;
use weir_core::unproven;

/// Seconds that a client may remember that there is HTTP/3 (RFC 7838).
const ALT_SVC_AGE: u32 = 86_400;

impl Service {
    pub async fn connection(
        self: Arc<Self>,
        tcp: TcpStream,
        peer: SocketAddr,
        kind: Kind,
        shutdown: ShutdownWatch,
    ) {
        let local = tcp.local_addr().unwrap_or(peer);
        let snapshot = self.snapshot.load_full();
        let mut client = Client::new(ClientStream::Tcp(tcp), snapshot.conf.head_size);
        let silent = match snapshot.admit.silent(peer.ip()) {
            Ok(silent) => silent,
            Err(refused) => return self.close(&refused, peer.ip()),
        };
        let entered = tokio::select! {
            entered = self.enter(&snapshot, &mut client, peer, &silent) => entered,
            () = silent.taken() => return self.displaced(peer.ip()),
        };
        let (peer, places) = match entered {
            Ok(entered) => entered,
            // Over TLS there is no way to say it that costs nothing.
            Err(Some(refused)) if kind != Kind::Plain => return self.close(&refused, peer.ip()),
            Err(Some(refused)) => return self.turn_away(&snapshot, client, refused, peer.ip()).await,
            Err(None) => return,
        };
        let mut link = Link {
            ends: Ends { client: peer, local },
            transport: Transport::H1,
            tls: None,
            follower: None,
            bound: Bound::default(),
        };
        let Kind::Tls(speaks) = kind else {
            return self.http1(client, link, (places, silent), &shutdown).await;
        };
        if let Err(refused) = snapshot.tls_handshake(peer.ip()) {
            return self.close(&refused, peer.ip());
        }
        let (ClientStream::Tcp(stream), ahead) = client.into_parts() else { return };
        let arrived = Arrived { stream, ahead: ahead.into(), local: local.ip(), speaks };
        let arrived = tokio::select! {
            arrived = snapshot.tls.accept(arrived, snapshot.conf.tls.handshake_timeout) => arrived,
            () = silent.taken() => return self.displaced(peer.ip()),
        };
        let stream = match arrived {
            Ok(stream) => stream,
            // As those do who only look whether somebody listens.
            Err(Cause::Eof | Cause::Challenge) => return,
            Err(Cause::Timeout) => return log_bad(peer.ip(), "tls_handshake_timeout", "no TLS handshake"),
            Err(cause) => return log_bad(peer.ip(), cause.name(), "no TLS handshake"),
        };
        let connection = stream.get_ref().1;
        let shown = connection.peer_certificates().and_then(ClientCert::of);
        link.tls = Some(Arc::new(Secured { shown, told: told(&snapshot, speaks, local) }));
        if connection.alpn_protocol() == Some(b"h2") {
            link.transport = Transport::H2;
            return self.http2(&snapshot, stream, link, (places, silent), &shutdown).await;
        }
        let client = Client::new(stream.into(), snapshot.conf.head_size);
        self.http1(client, link, (places, silent), &shutdown).await;
    }

    async fn http1(
        self: &Arc<Self>,
        mut client: Client,
        link: Link,
        (mut places, silent): (Places, unproven::Place),
        shutdown: &ShutdownWatch,
    ) {
        let mut silent = Some(silent);
        let mut snapshot = self.snapshot.load_full();
        loop {
            if silent.is_none() {
                if !self.another(&snapshot, &mut client).await {
                    return;
                }
                snapshot = self.snapshot.load_full();
            }
            let head = tokio::select! {
                head = arrive::read_head(&snapshot, &mut client) => head,
                () = taken(silent.as_ref()) => return self.displaced(link.ends.client.ip()),
            };
            silent = None;
            let mut head = match head {
                Ok(Some(head)) => head,
                Ok(None) => return,
                Err(bad) => {
                    return self
                        .reject(Asker::new(By::Connection(client), &link), bad, link.ends.client.ip())
                        .await;
                }
            };
            let from = arrive::origin(&snapshot, &link, &mut head.parts.headers);
            let asks = is_websocket(&head).map(|yes| if yes { Asks::WebSocket } else { Asks::Http });
            let (asker, asked) = (Asker::new(By::Connection(client), &link), (head, asks));
            match Box::pin(self.request(&snapshot, asker, places, asked, from, shutdown)).await {
                Next::Another(again, held) => (client, places) = (again, held),
                Next::Done => return,
            }
            if self.drain.has_begun() {
                return;
            }
        }
    }

    async fn http2(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        stream: TlsStream,
        link: Link,
        (_places, silent): (Places, unproven::Place),
        shutdown: &ShutdownWatch,
    ) {
        let conf = &snapshot.conf;
        let (taken, mut silent) = (silent.signal(), Some(silent));
        let deadlines = h2::Deadlines { head: conf.head_timeout, idle: conf.keepalive_timeout };
        let serve = h2::serve(stream, &conf.http2, deadlines, &self.drain, |parts, stream| {
            silent = None;
            let (service, link, shutdown) = (self.clone(), link.clone(), shutdown.clone());
            tokio::spawn(async move {
                Box::pin(service.streamed(RequestStream::H2(stream), parts, link, &shutdown)).await;
            });
        });
        let end = tokio::select! {
            end = batched(serve) => end,
            () = taken.cancelled() => return self.displaced(link.ends.client.ip()),
        };
        if let Some(cause) = end.cause() {
            self.metrics.refuse(cause);
            log_bad(link.ends.client.ip(), cause, "the connection was closed");
        }
    }

    /// One request on a stream of its own.
    pub async fn streamed(
        self: Arc<Self>,
        mut stream: RequestStream,
        parts: Parts,
        mut link: Link,
        shutdown: &ShutdownWatch,
    ) {
        let snapshot = self.snapshot.load_full();
        let protocol = stream.protocol(&parts);
        if streamed::may_have_a_body(&parts) && !stream.is_read() {
            match timeout(snapshot.conf.head_timeout, stream.begun()).await {
                Ok(Ok(())) => {}
                // The client gave it up.
                Ok(Err(_)) => return,
                Err(_) => {
                    let asker = Asker::new(By::Stream(stream), &link);
                    return self.reject(asker, streamed::SLOW, link.ends.client.ip()).await;
                }
            }
        }
        let ended = stream.is_read();
        let asker = Asker::new(By::Stream(stream), &link);
        let (mut head, asks) = match streamed::request(parts, protocol.as_deref(), ended, rand::random()) {
            Ok(request) => request,
            Err(bad) => return self.reject(asker, bad, link.ends.client.ip()).await,
        };
        if asks == Asks::WebTransport {
            link.transport = Transport::WebTransport;
        }
        let from = arrive::origin(&snapshot, &link, &mut head.parts.headers);
        // Each that lasts counts as a connection does.
        let places = match asks {
            Asks::Http => Ok((None, None)),
            _ => self.place_of_stream(&snapshot, &link),
        };
        match places {
            Ok(places) => {
                self.request(&snapshot, asker, places, (head, Ok(asks)), from, shutdown).await;
            }
            Err(refused) => {
                let Refused { status, cause, retry_after } = refused;
                refused.log(link.ends.client.ip());
                self.metrics.refuse(cause);
                self.metrics.handshake(cause, link.transport);
                let _client_gone = asker.answer(answer::response(status, retry_after), true).await;
            }
        }
    }

    /// Where the client is now, which over QUIC may be another address than at first.
    fn place_of_stream(&self, snapshot: &Snapshot, link: &Link) -> Result<Places, Refused> {
        let place = Some(snapshot.admit.connection()?);
        let Some(follower) = &link.follower else {
            return Ok((place, snapshot.address(link.ends.client.ip())?));
        };
        let own = snapshot.address(follower.address())?;
        if let Some(own) = &own {
            follower.follow(own);
        }
        Ok((place, own))
    }

    /// The lists of addresses and the places, before a byte is read; behind a trusted peer when it is
    /// known who is. `Err(None)`: there is nobody to be answered.
    async fn enter(
        &self,
        snapshot: &Snapshot,
        client: &mut Client,
        socket: SocketAddr,
        silent: &unproven::Place,
    ) -> Result<(SocketAddr, Places), Option<Refused>> {
        let admit = &snapshot.admit;
        let spoken_for = |peer: SocketAddr| snapshot.trusted.contains(peer.ip());
        if !spoken_for(socket) {
            admit.listed(socket.ip())?;
            let place = Some(admit.socket(silent)?);
            return Ok((socket, (place, snapshot.address(socket.ip())?)));
        }
        let place = Some(admit.socket(silent)?);
        let peer = arrive::named_peer(snapshot, client, socket).await.map_err(|why| {
            self.metrics.refuse("proxy_protocol");
            log_bad(socket.ip(), "proxy_protocol", why);
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

    async fn reject(&self, asker: Asker, bad: Bad, peer: IpAddr) {
        let cause = match bad.status {
            408 => "head_timeout",
            431 => "head_size",
            _ => "malformed",
        };
        self.metrics.refuse(cause);
        log_bad(peer, cause, bad.why);
        let _client_gone = asker.answer(answer::response(bad.status, None), true).await;
    }

    /// A connection that may not come in. So many are answered with patience; in a flood the rest is
    /// closed at once, which costs next to nothing.
    async fn turn_away(&self, snapshot: &Snapshot, client: Client, refused: Refused, peer: IpAddr) {
        self.close(&refused, peer);
        let (Some(_lingering), Some(_socket)) = (snapshot.admit.linger(), descriptors::take()) else {
            return;
        };
        let response = answer::response(refused.status, refused.retry_after);
        let _client_gone = Asker { by: By::Connection(client), tls: None }.answer(response, true).await;
    }

    fn close(&self, refused: &Refused, peer: IpAddr) {
        self.metrics.refuse(refused.cause);
        refused.log(peer);
    }

    /// It had asked for nothing, and others need its place.
    fn displaced(&self, peer: IpAddr) {
        self.metrics.refuse("displaced");
        log_bad(peer, "displaced", "it had asked for nothing yet, and others came");
    }
}

/// Never, for who has asked for something.
async fn taken(silent: Option<&unproven::Place>) {
    match silent {
        Some(silent) => silent.taken().await,
        None => std::future::pending().await,
    }
}

/// What answers over TLS tell besides.
fn told(snapshot: &Snapshot, speaks: Speaks, local: SocketAddr) -> HeaderMap {
    let mut told = HeaderMap::new();
    if let Some(hsts) = redirect::hsts(snapshot.conf.tls.hsts) {
        told.insert(STRICT_TRANSPORT_SECURITY, hsts);
    }
    if speaks.http3
        && let Ok(there) = HeaderValue::try_from(format!("h3=\":{}\"; ma={ALT_SVC_AGE}", local.port()))
    {
        told.insert(ALT_SVC, there);
    }
    told
}
