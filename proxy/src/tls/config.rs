//! What rustls is told for each kind of listener: protocols, versions, sessions, certificates of clients.

use super::certs::{ACME_TLS_1, Certs};
use super::clients::Tellable;
use crate::error::BindError;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache,
    StoresServerSessions, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::sync::Arc;
use weir_conf::proxy::tls::{ClientCerts, Listen, Version};

/// Sessions of QUIC that are kept. Tickets would do without, but early data needs a session that
/// is used once only.
const SESSIONS: usize = 8192;

/// What clients are offered at a listener with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaks {
    pub http2: bool,
    pub http3: bool,
    pub client_certs: ClientCerts,
}

impl From<&Listen> for Speaks {
    fn from(listen: &Listen) -> Speaks {
        Speaks { http2: listen.http2, http3: listen.http3, client_certs: listen.client_certs }
    }
}

/// What sessions are resumed with. One for the process: a reload must not cost everybody a full handshake.
#[derive(Clone)]
pub struct Sessions {
    tickets: Arc<dyn ProducesTickets>,
    quic: Arc<dyn StoresServerSessions>,
}

impl Sessions {
    pub fn new() -> Result<Sessions, BindError> {
        let tickets = ring::Ticketer::new().map_err(wrong)?;
        Ok(Sessions { tickets, quic: ServerSessionMemoryCache::new(SESSIONS) })
    }
}

/// One for each kind of listener that this conf can have.
pub struct Configs {
    open: ByVersion,
    optional: ByVersion,
    required: ByVersion,
    /// Only with challenges of ACME, and without asking for anything.
    pub challenge: Arc<ServerConfig>,
}

/// With the same treatment of clients.
#[derive(Clone)]
struct ByVersion {
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    http3: Arc<QuicServerConfig>,
    early: Arc<QuicServerConfig>,
}

/// All that configs are made of.
pub struct Parts<'a> {
    pub conf: &'a weir_conf::proxy::tls::Tls,
    pub certs: &'a Arc<Certs>,
    pub sessions: &'a Sessions,
    /// Whose clients are believed. Without, a listener that asks for them lets nobody in.
    pub roots: Option<Arc<RootCertStore>>,
}

impl Configs {
    pub fn build(parts: &Parts<'_>) -> Result<Configs, BindError> {
        let provider = Arc::new(ring::default_provider());
        let Some(roots) = &parts.roots else {
            let nobody: Arc<dyn ResolvesServerCert> = Arc::new(Nothing);
            let closed = parts.by_version(&provider, nobody, None)?;
            return Ok(Configs {
                open: parts.by_version(&provider, parts.certs.clone(), None)?,
                optional: closed.clone(),
                required: closed,
                challenge: parts.challenge(&provider)?,
            });
        };
        let verifier = || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let unbuilt = |error: rustls::server::VerifierBuilderError| wrong(error.to_string());
        let optional = Arc::new(Tellable(verifier().allow_unauthenticated().build().map_err(unbuilt)?));
        let required = Arc::new(Tellable(verifier().build().map_err(unbuilt)?));
        Ok(Configs {
            open: parts.by_version(&provider, parts.certs.clone(), None)?,
            optional: parts.by_version(&provider, parts.certs.clone(), Some(optional))?,
            required: parts.by_version(&provider, parts.certs.clone(), Some(required))?,
            challenge: parts.challenge(&provider)?,
        })
    }

    pub fn tcp(&self, speaks: Speaks) -> &Arc<ServerConfig> {
        let of = self.of(speaks.client_certs);
        if speaks.http2 { &of.http2 } else { &of.http1 }
    }

    /// `early`: clients may send with their first packet, which can be replayed by whoever sees it. Never so
    /// where they show certificates.
    pub fn quic(&self, client_certs: ClientCerts, early: bool) -> &Arc<QuicServerConfig> {
        let of = self.of(client_certs);
        if early { &of.early } else { &of.http3 }
    }

    fn of(&self, client_certs: ClientCerts) -> &ByVersion {
        match client_certs {
            ClientCerts::Off => &self.open,
            ClientCerts::Optional => &self.optional,
            ClientCerts::Required => &self.required,
        }
    }
}

impl Parts<'_> {
    fn by_version(
        &self,
        provider: &Arc<CryptoProvider>,
        shown: Arc<dyn ResolvesServerCert>,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ByVersion, BindError> {
        let tcp_versions: &[&SupportedProtocolVersion] = match self.conf.min_version {
            Version::Tls12 => &[&TLS13, &TLS12],
            Version::Tls13 => &[&TLS13],
        };
        // A resumed session would not have its certificate looked at again, nor that it was asked for.
        let resumes = self.conf.session_tickets && clients.is_none();
        let tcp = |protocols: &[&[u8]]| {
            let mut config = base(provider, tcp_versions, shown.clone(), clients.clone(), protocols)?;
            if resumes {
                config.ticketer = self.sessions.tickets.clone();
                config.send_tls13_tickets = 2;
            }
            Ok(Arc::new(config))
        };
        let quic = |early: bool| {
            let mut config = base(provider, &[&TLS13], shown.clone(), clients.clone(), &[b"h3"])?;
            if resumes {
                config.session_storage = self.sessions.quic.clone();
                config.send_tls13_tickets = 2;
                config.max_early_data_size = if early { u32::MAX } else { 0 };
            }
            QuicServerConfig::try_from(config).map(Arc::new).map_err(wrong)
        };
        Ok(ByVersion {
            http1: tcp(&[b"http/1.1"])?,
            http2: tcp(&[b"h2", b"http/1.1"])?,
            http3: quic(false)?,
            early: quic(true)?,
        })
    }

    fn challenge(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<ServerConfig>, BindError> {
        let shown = Arc::new(Challenges(self.certs.clone()));
        base(provider, &[&TLS13, &TLS12], shown, None, &[ACME_TLS_1]).map(Arc::new)
    }
}

/// Without sessions and early data.
fn base(
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    shown: Arc<dyn ResolvesServerCert>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    protocols: &[&[u8]],
) -> Result<ServerConfig, BindError> {
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
    let builder = builder.map_err(wrong)?;
    let mut config = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    }
    .with_cert_resolver(shown);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn wrong(error: impl ToString) -> BindError {
    BindError::TlsSetup(error.to_string())
}

#[derive(Debug)]
struct Challenges(Arc<Certs>);

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.alpn_challenge(hello.server_name()?)
    }
}

#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}
