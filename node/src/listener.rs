//! The node's own listener: HTTP/1.1, a handful of paths, and the handshake to a WebSocket.
//!
//! | path | answer |
//! |---|---|
//! | `/connection/websocket`, `/connection/uni_websocket` | a WebSocket |
//! | `/connection/webtransport` | the stream of a session that a proxy in `trusted` holds |
//! | `/connection/init` | `{}`: can you reach me? |
//! | `/api`, `/api/<method>` | the server HTTP API, with a key |
//! | `/`, `/demo/…` | the demo page, where it is switched on |
//!
//! hyper reads the head (bounded in size, against a deadline); after the upgrade its state goes,
//! and a task of the connection's own takes the bare socket.

pub mod handshake;
mod origin;

use crate::conn::{Conn, Socket};
use crate::shared::Shared;
use crate::{api, demo};
use bytes::Bytes;
use handshake::{UNI_WEBSOCKET, Visitor, WEBSOCKET, WEBTRANSPORT, text};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use weir_core::accept::Transport;
use weir_core::descriptors::{self, Descriptor};
use weir_core::drain::Drain;
use weir_core::limited;
use weir_core::net::keep_little_unsent;
use weir_core::unproven::{self, Gone, Place, Room, Shown, Unproven};
use weir_wire::hop;

/// Of a request head; over it 431.
const HEAD_SIZE: usize = 16 << 10;
/// Sockets that are being read as HTTP, at once: of one address, and of all; a newcomer takes the place of who has
/// the least to show for itself. Peers that are trusted speak for many.
const STRANGERS: Room = Room { total: 4096, per_address: 1024, time: Duration::from_millis(500) };
const TRUSTED: Room = Room { per_address: 4096, ..STRANGERS };
/// For the first byte of a connection, if `handshake_timeout` is not shorter.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// Until it is looked again for a place.
const PLACE_PAUSE: Duration = Duration::from_millis(10);
/// After a failed accept (too many open files): no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the drain begins.
pub async fn run(listener: TcpListener, shared: Arc<Shared>, drain: Drain) {
    let places = Unproven::new(STRANGERS, TRUSTED);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.begun() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let Some(socket) = descriptors::take() else {
                    refused(&shared, peer.ip(), "descriptors");
                    continue;
                };
                // A proxy of this process comes from here, too.
                let known = is_trusted(&shared, peer.ip()) || peer.ip().to_canonical().is_loopback();
                let Some(place) = enter(&places, peer.ip(), known).await else {
                    refused(&shared, peer.ip(), "too_many_at_once");
                    continue;
                };
                tokio::spawn(serve(tcp, peer, (place, socket), shared.clone(), drain.clone()));
            }
            Err(error) => {
                shared.metrics.accept_errors.inc();
                limited!(warn, ("node.listen", "accept"), %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// `None`: its address has its share. While all places are taken by such as have just come, further ones wait in
/// the kernel.
async fn enter(places: &Unproven, peer: IpAddr, known: bool) -> Option<Place> {
    loop {
        match places.enter(peer, known) {
            Ok((place, _another_one_went)) => return Some(place),
            Err(unproven::Full::Address) => return None,
            Err(unproven::Full::Total) => tokio::time::sleep(PLACE_PAUSE).await,
        }
    }
}

fn is_trusted(shared: &Shared, peer: IpAddr) -> bool {
    shared.conf.trusted.iter().any(|net| net.contains(peer))
}

fn refused(shared: &Shared, peer: IpAddr, cause: &'static str) {
    shared.metrics.handshake(cause, Transport::H1);
    handshake::log(peer, cause);
}

async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    (place, socket): (Place, Descriptor),
    shared: Arc<Shared>,
    drain: Drain,
) {
    let _ = tcp.set_nodelay(true);
    keep_little_unsent(&tcp);
    let deadline = shared.conf.handshake_timeout;
    if let Err(gone) = place.first_byte(&tcp, FIRST_BYTE.min(deadline)).await {
        if gone != Gone::Left {
            refused(&shared, peer.ip(), gone.cause());
        }
        return;
    }
    let (shown, counts, socket) = (&place, shared.clone(), Arc::new(socket));
    let service = service_fn(move |request| {
        let (shared, socket) = (shared.clone(), socket.clone());
        async move {
            shown.shows(Shown::Served);
            let response = route(request, peer.ip(), shared, socket).await;
            shown.shows(Shown::Something);
            Ok::<_, Infallible>(response.map(Full::new))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(deadline).max_buf_size(HEAD_SIZE).max_headers(100);
    let connection = http.serve_connection(TokioIo::new(tcp), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // An error is the client's: it sent no HTTP, or left. Nothing of it is worth a log line.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = place.taken() => return refused(&counts, peer.ip(), Gone::Taken.cause()),
        () = drain.begun() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = drain.stopped() => {}
    }
}

async fn route(
    request: Request<Incoming>,
    peer: IpAddr,
    shared: Arc<Shared>,
    socket: Arc<Descriptor>,
) -> Response<Bytes> {
    let path = request.uri().path();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match path {
        WEBSOCKET | UNI_WEBSOCKET => upgrade(request, peer, (shared, socket), Transport::H1),
        WEBTRANSPORT if shared.conf.webtransport => {
            if is_trusted(&shared, peer) {
                return upgrade(request, peer, (shared, socket), Transport::WebTransport);
            }
            shared.metrics.handshake("untrusted", Transport::WebTransport);
            handshake::log(peer, "untrusted");
            closing(text(StatusCode::FORBIDDEN, "WebTransport comes here through a proxy that is trusted"))
        }
        "/connection/init" if get => json(StatusCode::OK, "{}".into()),
        _ if (path == "/api" || path.starts_with("/api/")) && !shared.conf.api_key.is_empty() => {
            let response = api::serve(request, shared).await;
            if response.status() == StatusCode::UNAUTHORIZED {
                handshake::log(peer, "api_key");
            }
            response
        }
        _ if get && shared.conf.demo_page => match demo::serve(path, &shared) {
            Some(response) => response,
            None => text(StatusCode::NOT_FOUND, "not found"),
        },
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn upgrade(
    request: Request<Incoming>,
    peer: IpAddr,
    (shared, descriptor): (Arc<Shared>, Arc<Descriptor>),
    transport: Transport,
) -> Response<Bytes> {
    let (head, body) = request.into_parts();
    let address = origin::client_address(&head, peer, &shared.conf.trusted);
    let conn = origin::conn_id(&head, peer, &shared.conf.trusted);
    // It is the connection's as long as that lives, whatever it becomes.
    let visitor = Visitor { conn, transport, address, permit: Some(Box::new(descriptor)) };
    let (headers, accepted) = match handshake::check(&shared, &head, visitor) {
        Ok(good) => good,
        Err(refusal) => return closing(refusal),
    };
    let upgrade = hyper::upgrade::on(Request::from_parts(head, body));
    let deadline = shared.conf.handshake_timeout;
    tokio::spawn(async move {
        // An error: the client left before our answer was out.
        let Ok(Ok(upgraded)) = tokio::time::timeout(deadline, upgrade).await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
        let socket = Socket::Tcp(parts.io.into_inner(), parts.read_buf);
        // A task of its own: this one's room was that of a handshake.
        tokio::spawn(Conn::new(shared, socket, accepted).run());
    });
    switching(headers, if transport == Transport::WebTransport { hop::WEBTRANSPORT } else { "websocket" })
}

fn switching(headers: HeaderMap, to: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

/// After a refused handshake the connection ends: what follows it was meant for a WebSocket.
fn closing(mut response: Response<Bytes>) -> Response<Bytes> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

pub fn json(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
