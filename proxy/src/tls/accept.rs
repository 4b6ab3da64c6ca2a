//! One TLS handshake over TCP, whoever is at the other end: within a deadline, with its outcome counted, and
//! with an answer for those who forgot about TLS.

use super::certs::ACME_TLS_1;
use super::config::Speaks;
use super::{Tls, answer_plain};
use crate::answer;
use bytes::BytesMut;
use rustls::server::{Accepted, Acceptor};
use rustls::sign::SingleCertAndKey;
use rustls::{HandshakeKind, PeerIncompatible, ServerConfig};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::{StartHandshake, TlsStream};

/// Read at once until the client's first message is whole.
const READ: usize = 2048;

/// Why there is no connection. The client has been told, as far as there is a way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Timeout,
    /// HTTP without TLS; it was answered with 400.
    PlainHttp,
    /// Not one that could be shown.
    NoCertificate,
    BadRecord,
    /// The client showed none, or one that is not good.
    ClientCert,
    Version,
    /// No cipher, group or signature in common.
    Cipher,
    Alpn,
    /// The client gave up, most likely over our certificate.
    Alert,
    /// The client left.
    Eof,
    /// An ACME server, which has seen what it came for.
    Challenge,
    Protocol,
}

impl Cause {
    pub fn name(self) -> &'static str {
        match self {
            Cause::Timeout => "timeout",
            Cause::PlainHttp => "plain_http",
            Cause::NoCertificate => "no_certificate",
            Cause::BadRecord => "bad_record",
            Cause::ClientCert => "client_cert",
            Cause::Version => "version",
            Cause::Cipher => "cipher",
            Cause::Alpn => "alpn",
            Cause::Alert => "alert",
            Cause::Eof => "eof",
            Cause::Challenge => "acme_challenge",
            Cause::Protocol => "protocol",
        }
    }

    fn of(error: &io::Error) -> Cause {
        use rustls::Error;
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            None => Cause::Eof,
            Some(Error::InvalidMessage(_) | Error::DecryptError | Error::PeerSentOversizedRecord) => {
                Cause::BadRecord
            }
            Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => Cause::ClientCert,
            Some(Error::NoApplicationProtocol) => Cause::Alpn,
            Some(Error::AlertReceived(_)) => Cause::Alert,
            Some(Error::PeerIncompatible(what)) => match what {
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled => Cause::Version,
                _ => Cause::Cipher,
            },
            Some(_) => Cause::Protocol,
        }
    }
}

/// One connection to be accepted.
pub struct Arrived<S> {
    pub stream: S,
    /// Read from it already.
    pub ahead: BytesMut,
    /// Where it came in: the certificate for this address is shown to clients that ask for no name.
    pub local: IpAddr,
    pub speaks: Speaks,
}

impl Tls {
    /// The handshake, counted. Takes no longer than `limit`, and a moment to say goodbye if it fails.
    pub async fn accept<S>(&self, arrived: Arrived<S>, limit: Duration) -> Result<TlsStream<S>, Cause>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let begun = Instant::now();
        let shaken = match timeout_at(begun + limit, self.shake(arrived)).await {
            Ok(shaken) => shaken,
            Err(_) => Err((Cause::Timeout, None)),
        };
        let (cause, left) = match shaken {
            Ok(stream) => {
                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                self.metrics.accepted(begun.elapsed(), resumed);
                return Ok(stream);
            }
            Err(failed) => failed,
        };
        self.metrics.handshake(cause.name());
        if let Some(mut stream) = left {
            match cause {
                Cause::PlainHttp => drop(answer::send_and_close(&mut stream, answer_plain()).await),
                Cause::Eof => {}
                // Closed at once, our alert would be lost with what it still sends.
                _ => answer::linger(&mut stream).await,
            }
        }
        Err(cause)
    }

    async fn shake<S>(&self, arrived: Arrived<S>) -> Result<TlsStream<S>, (Cause, Option<S>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Arrived { mut stream, mut ahead, local, speaks } = arrived;
        let accepted = match hello(&mut stream, &mut ahead).await {
            Ok(accepted) => accepted,
            Err(cause) => return Err((cause, Some(stream))),
        };
        let challenged = self.is_challenge(&accepted);
        let (config, shown) = match challenged {
            true => (self.configs.load().challenge.clone(), true),
            false => self.choose(&accepted, local, speaks),
        };
        let start = StartHandshake::from_parts(accepted, stream);
        let shaking = start.into_stream_with(config, |connection| {
            // What follows the first message is early data; it is skipped once it is read.
            let mut rest = &ahead[..];
            while !rest.is_empty() && matches!(connection.read_tls(&mut rest), Ok(1..)) {}
        });
        let mut shaken = match shaking.into_fallible().await {
            Ok(shaken) => shaken,
            Err((_, stream)) if !shown => return Err((Cause::NoCertificate, Some(stream))),
            Err((error, stream)) => return Err((Cause::of(&error), Some(stream))),
        };
        if challenged {
            // Nothing else is spoken over it.
            let _gone_or_told = shaken.shutdown().await;
            return Err((Cause::Challenge, Some(shaken.into_inner().0)));
        }
        Ok(shaken)
    }

    fn is_challenge(&self, accepted: &Accepted) -> bool {
        let hello = accepted.client_hello();
        let only = hello
            .alpn()
            .is_some_and(|mut offered| offered.next() == Some(ACME_TLS_1) && offered.next().is_none());
        only && hello.server_name().is_some_and(|name| self.certs.alpn_challenge(name).is_some())
    }

    /// With whether there is anything to be shown.
    fn choose(&self, accepted: &Accepted, local: IpAddr, speaks: Speaks) -> (Arc<ServerConfig>, bool) {
        let config = self.configs.load().tcp(speaks).clone();
        let hello = accepted.client_hello();
        let schemes = hello.signature_schemes();
        let default = self.certs.find(hello.server_name(), schemes);
        let of_address = hello.server_name().is_none().then(|| self.certs.find_ip(local, schemes)).flatten();
        match (of_address, default) {
            (Some(key), Some(default)) if !Arc::ptr_eq(&key, &default) => {
                let mut config = ServerConfig::clone(&config);
                config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
                (Arc::new(config), true)
            }
            (_, default) => (config, default.is_some()),
        }
    }
}

/// The client's first message. What is wrong with it, the client is told.
async fn hello<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    ahead: &mut BytesMut,
) -> Result<Accepted, Cause> {
    let mut acceptor = Acceptor::default();
    let mut first = true;
    loop {
        if ahead.is_empty() {
            ahead.reserve(READ);
            match stream.read_buf(ahead).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(Cause::Eof),
            }
        }
        if std::mem::take(&mut first) && ahead[0].is_ascii_uppercase() {
            return Err(Cause::PlainHttp);
        }
        while !ahead.is_empty() {
            let mut rest = &ahead[..];
            let read = acceptor.read_tls(&mut rest).map_err(|_| Cause::BadRecord)?;
            let _consumed = ahead.split_to(read);
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    if alert.write_all(&mut bytes).is_ok() {
                        let _gone_or_told = stream.write_all(&bytes).await;
                    }
                    return Err(Cause::of(&io::Error::other(error)));
                }
            }
        }
    }
}
