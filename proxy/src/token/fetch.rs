//! Where a set of keys comes from: a file, or one GET with a deadline and a bound.

use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls_native_certs::load_native_certs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use weir_conf::proxy::Token;

/// For all of it: name, connect, TLS, answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Sets with their certificates are some tens of KiB.
const MAX_SIZE: usize = 256 * 1024;

pub enum Source {
    File(PathBuf),
    Http { uri: Uri, tls: Option<TlsConnector> },
}

impl Source {
    pub fn new(conf: &Token) -> Result<Source, String> {
        if let Some(path) = conf.jwks.strip_prefix("file:") {
            return Ok(Source::File(PathBuf::from(path)));
        }
        let uri: Uri = conf.jwks.parse().map_err(|error| format!("no address: {error}"))?;
        let tls = match uri.scheme_str() {
            Some("https") => Some(connector(conf.jwks_ca.reveal())?),
            _ => None,
        };
        Ok(Source::Http { uri, tls })
    }

    /// `None`: it is no file.
    pub fn read_file(&self) -> Option<Result<Vec<u8>, String>> {
        let Source::File(path) = self else { return None };
        let mut text = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(MAX_SIZE as u64 + 1).read_to_end(&mut text))
            .map_err(|error| format!("cannot read {}: {error}", path.display()));
        Some(read.and_then(|size| match size {
            0..=MAX_SIZE => Ok(text),
            _ => Err(format!("{} is larger than 256KiB", path.display())),
        }))
    }

    pub async fn fetch(&self) -> Result<Vec<u8>, String> {
        match self {
            // Small, and local or none of our concern.
            Source::File(_) => self.read_file().unwrap_or_else(|| Err("no file".to_owned())),
            Source::Http { uri, tls } => match timeout(DEADLINE, get(uri, tls.as_ref())).await {
                Ok(outcome) => outcome,
                Err(_) => Err("no answer within 5 s".to_owned()),
            },
        }
    }
}

fn connector(ca: &str) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    if ca.is_empty() {
        let (known, _unreadable) = roots.add_parsable_certificates(load_native_certs().certs);
        if known == 0 {
            return Err("the system has no certificates of authorities; needed for https:// without jwks_ca"
                .to_owned());
        }
    }
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("jwks_ca is no PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("jwks_ca: {error}"))?;
    }
    let conf = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(conf)))
}

async fn get(uri: &Uri, tls: Option<&TlsConnector>) -> Result<Vec<u8>, String> {
    let host = uri.host().ok_or("the address has no host")?;
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let bare = host.trim_matches(['[', ']']);
    let tcp = TcpStream::connect((bare, port)).await.map_err(|error| format!("cannot connect: {error}"))?;
    match tls {
        None => exchange(tcp, uri).await,
        Some(tls) => {
            let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
            let stream = tls.connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))?;
            exchange(stream, uri).await
        }
    }
}

async fn exchange<S>(stream: S, uri: &Uri) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(uri.path_and_query().map_or("/", |target| target.as_str()))
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_SIZE).collect().await;
        Ok(body.map_err(|error| format!("body: {error}"))?.to_bytes().to_vec())
    };
    // The connection has to be driven beside it; both end together.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _ended = &mut connection, if open => open = false,
        }
    }
}
