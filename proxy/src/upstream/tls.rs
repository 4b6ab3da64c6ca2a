//! TLS towards servers, by rustls over ring. One client per upstream: its sessions are resumed.

use super::stream::{ServerStream, Socket};
use std::io;
use std::sync::Arc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

#[derive(Clone)]
pub struct Client {
    conf: weir_conf::proxy::Tls,
    connector: TlsConnector,
}

impl Client {
    /// `before` is used again if nothing has changed, sessions and all; a file may have.
    pub fn new(conf: &weir_conf::proxy::Tls, before: Option<&Client>) -> io::Result<Client> {
        if let Some(before) = before.filter(|before| before.conf == *conf && conf.ca.is_none()) {
            return Ok(before.clone());
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let mut client = match conf.verify {
            true => builder.with_root_certificates(roots(conf.ca.as_deref())?),
            false => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        }
        .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Client { conf: conf.clone(), connector: TlsConnector::from(Arc::new(client)) })
    }

    /// The name that a server of this host is asked for.
    pub fn name(&self, host: Option<&str>) -> io::Result<ServerName<'static>> {
        let name = self.conf.sni.as_deref().or(host).unwrap_or_default().to_owned();
        let wrong = |_| io::Error::other(format!("{name:?} is not a name for TLS"));
        ServerName::try_from(name.clone()).map_err(wrong)
    }

    pub async fn connect(&self, socket: Socket, name: ServerName<'static>) -> io::Result<ServerStream> {
        Ok(self.connector.connect(name, socket).await?.into())
    }
}

fn roots(ca: Option<&str>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let told = |error: String| io::Error::other(format!("cannot use the file {file:?}: {error}"));
            let certs = CertificateDer::pem_file_iter(file).map_err(|e| told(e.to_string()))?;
            for cert in certs {
                let cert = cert.map_err(|e| told(e.to_string()))?;
                roots.add(cert).map_err(|e| told(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(told("it has no certificate".to_owned()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (_, _unusable) = roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(io::Error::other(
                    "the system has no authorities to believe; name a file: tls = { ca = \"…\" }",
                ));
            }
        }
    }
    Ok(roots)
}

/// `verify = false`: any certificate will do, though its key must have signed the handshake.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
