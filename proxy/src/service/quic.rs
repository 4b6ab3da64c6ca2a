//! A client's QUIC connection: HTTP/3 on it, whose requests go the way of all others.

use super::Service;
use crate::admit::Refused;
use crate::admit::counts::{KeyPlace, Place};
use crate::front::arrive::{Link, Secured};
use crate::front::h3::{self, H3Stream, Handler, Limits};
use crate::front::stream::RequestStream;
use crate::quic::{Arrival, Confirmed, Host};
use crate::tls::redirect;
use crate::tls::subject::ClientCert;
use crate::upstream::proxy_protocol::Ends;
use http::header::{HeaderMap, HeaderValue, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use pingora_core::server::ShutdownWatch;
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use weir_core::accept::Transport;
use weir_h3::EarlyData;

/// Sessions of WebTransport on one connection; browsers open one each.
const MAX_SESSIONS: u32 = 16;
/// For what is written without any progress; QUIC itself gives up a client that is gone sooner.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// H3_REQUEST_REJECTED.
const NOT_TOLD: quinn::VarInt = quinn::VarInt::from_u32(0x10b);

/// The service, as one QUIC endpoint sees it.
pub struct Front {
    pub service: Arc<Service>,
    pub shutdown: ShutdownWatch,
    /// Where it listens.
    pub local: SocketAddr,
}

impl Host for Front {
    fn connection(&self, ip: IpAddr) -> Result<Place, Refused> {
        let snapshot = self.service.snapshot.load();
        if !snapshot.trusted.contains(ip) {
            snapshot.admit.listed(ip)?;
        }
        snapshot.admit.connection()
    }

    fn address(&self, ip: IpAddr) -> Result<Option<KeyPlace>, Refused> {
        self.service.snapshot.load().address(ip)
    }

    fn handshake(&self, ip: IpAddr) -> Result<(), Refused> {
        self.service.snapshot.load().tls_handshake(ip)
    }

    fn owes(&self, ip: IpAddr) -> bool {
        let snapshot = self.service.snapshot.load();
        !snapshot.trusted.contains(ip) && snapshot.admit.owes_tls_handshakes(ip)
    }

    async fn serve(self: Arc<Self>, arrival: Arrival) {
        let snapshot = self.service.snapshot.load_full();
        let shown = arrival.connection.peer_identity();
        let shown = shown.and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let shown = match shown.map(|chain| ClientCert::of(&chain)) {
            // Never: the handshake refuses it.
            Some(None) => return arrival.connection.close(NOT_TOLD, b"the certificate cannot be passed on"),
            shown => shown.flatten(),
        };
        let mut told = HeaderMap::new();
        if let Some(hsts) = redirect::hsts(snapshot.conf.tls.hsts) {
            told.insert(STRICT_TRANSPORT_SECURITY, hsts);
        }
        let local = SocketAddr::new(arrival.local.unwrap_or(self.local.ip()), self.local.port());
        let link = Link {
            ends: Ends { client: arrival.peer, local },
            transport: Transport::H3,
            tls: Some(Arc::new(Secured { shown, told })),
            follower: Some(arrival.follower),
            bound: Default::default(),
        };
        let limits = Limits {
            max_field_section: u32::try_from(snapshot.conf.http2.max_header_list).unwrap_or(u32::MAX),
            head_timeout: snapshot.conf.head_timeout,
            idle_timeout: snapshot.conf.keepalive_timeout,
            write_timeout: WRITE_TIMEOUT,
            max_sessions: MAX_SESSIONS,
        };
        drop(snapshot);
        let drain = self.service.drain.clone();
        let requests = Requests { front: self, link, confirmed: arrival.confirmed };
        h3::serve(arrival.connection, Arc::new(requests), limits, drain).await;
    }
}

/// The requests of one connection.
struct Requests {
    front: Arc<Front>,
    link: Link,
    confirmed: Confirmed,
}

impl Handler for Requests {
    async fn request(&self, mut head: Parts, stream: H3Stream) {
        // RFC 8470, 5.1: what may be a recording is marked as one, whoever said so.
        head.headers.remove(EARLY_DATA);
        if head.extensions.get::<EarlyData>().is_some() && !self.confirmed.is_done() {
            head.headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
        }
        let service = self.front.service.clone();
        let stream = RequestStream::H3(Box::new(stream));
        Box::pin(service.streamed(stream, head, self.link.clone(), &self.front.shutdown)).await;
    }

    fn refused(&self, cause: &'static str) {
        self.front.service.metrics.http3_error(cause);
    }
}

const EARLY_DATA: &str = "early-data";
