//! How an authority is asked: one connection for each request, over TLS, with a deadline and a bound.

use super::problem::{NoAnswer, told};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// For all of it: name, connect, TLS, answer. Authorities take some seconds to sign.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest answers are chains of certificates.
const MAX_SIZE: usize = 1 << 20;
const AGENT: &str = concat!("weir/", env!("CARGO_PKG_VERSION"));

#[derive(Clone)]
pub struct Http(TlsConnector);

impl Http {
    /// `ca`: the authorities to believe, as PEM; `None`: those of the system.
    pub fn new(ca: Option<&[u8]>) -> Result<Http, String> {
        let conf = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        Ok(Http(TlsConnector::from(Arc::new(conf))))
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, NoAnswer> {
        let uri = request.uri().clone();
        let host = uri.host().unwrap_or_default();
        match timeout(DEADLINE, self.ask(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(none)) => Err(NoAnswer { text: format!("{host}: {}", none.text), ..none }),
            Err(_) => Err(NoAnswer::new(format!("{host}: no answer within {} s", DEADLINE.as_secs()))),
        }
    }

    async fn ask(self, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, NoAnswer> {
        let uri = request.uri().clone();
        // The directory says where to send what is signed; it cannot say so for plain HTTP.
        if uri.scheme_str() != Some("https") {
            return Err(NoAnswer::new("the directory leads to an address without https"));
        }
        let authority = uri.authority().ok_or_else(|| NoAnswer::new("an address without a host"))?;
        to_origin(&mut request, authority.as_str(), &uri)?;
        let bare = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(bare.clone()).map_err(|error| NoAnswer::new(error.to_string()))?;
        let tcp = TcpStream::connect((bare, authority.port_u16().unwrap_or(443))).await;
        let tcp = tcp.map_err(|error| NoAnswer::new(format!("cannot connect: {error}")))?;
        let tls = self.0.connect(name, tcp).await;
        let tls = tls.map_err(|error| NoAnswer::new(format!("TLS: {error}")))?;
        let failed = |error: hyper::Error| NoAnswer::new(format!("HTTP: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(failed)?;
        let answer = async {
            let (parts, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
            let body = Limited::new(body, MAX_SIZE).collect().await;
            let body = body.map_err(|error| NoAnswer::new(format!("body: {error}")))?.to_bytes();
            judge(parts, body)
        };
        // The connection has to be driven beside it; both end together.
        let (mut connection, mut answer) = (std::pin::pin!(connection), std::pin::pin!(answer));
        let mut open = true;
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                _ended = &mut connection, if open => open = false,
            }
        }
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let exchange = self.clone().exchange(request);
        Box::pin(async move { exchange.await.map_err(|none| Error::Other(Box::new(none))) })
    }
}

/// As one asks a server itself, and not a proxy.
fn to_origin(request: &mut Request<BodyWrapper<Bytes>>, host: &str, uri: &Uri) -> Result<(), NoAnswer> {
    let no_header = |_| NoAnswer::new("an address that cannot be asked for");
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = target.parse().map_err(|_| NoAnswer::new("an address that cannot be asked for"))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(host).map_err(no_header)?);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let library = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let agent = format!("{AGENT} {library}");
    headers.insert(header::USER_AGENT, HeaderValue::from_str(agent.trim_end()).map_err(no_header)?);
    Ok(())
}

/// Answers that say to come again later: the crate would lose when.
fn judge(parts: http::response::Parts, body: Bytes) -> Result<BytesResponse, NoAnswer> {
    let limited = parts.status == http::StatusCode::TOO_MANY_REQUESTS;
    if !limited && !parts.status.is_server_error() {
        return Ok(BytesResponse { parts, body: Box::new(body) });
    }
    let problem = serde_json::from_slice::<Problem>(&body).ok();
    let text = problem.map_or_else(String::new, |problem| format!(": {}", told(&problem)));
    Err(NoAnswer {
        text: format!("answered {}{text}", parts.status),
        rate_limited: limited,
        retry_after: retry_after(&parts.headers, SystemTime::now()),
    })
}

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()))
}

fn roots(ca: Option<&[u8]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = ca else {
        let found = rustls_native_certs::load_native_certs().certs;
        return match roots.add_parsable_certificates(found) {
            (0, _) => Err("is not set, and the system has no authorities to believe".to_owned()),
            _ => Ok(roots),
        };
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("is no PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("has a certificate of no use: {error}"))?;
    }
    if roots.is_empty() {
        return Err("has no certificate".to_owned());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(status: u16, headers: &[(&'static str, &'static str)]) -> http::response::Parts {
        let mut builder = http::Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn answers_that_say_when_to_come_again() {
        let body = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}"#;
        let told = judge(parts(429, &[("retry-after", "7200")]), Bytes::from(body)).err().unwrap();
        assert_eq!(told.text, "answered 429 Too Many Requests: rateLimited: too many");
        assert_eq!((told.rate_limited, told.retry_after), (true, Some(Duration::from_secs(7200))));
        let told = judge(parts(503, &[]), Bytes::from("<html>")).err().unwrap();
        assert_eq!(told.text, "answered 503 Service Unavailable");
        assert_eq!((told.rate_limited, told.retry_after), (false, None));
        // What is wrong with the request is for the crate to read, nonces above all.
        assert!(judge(parts(400, &[("retry-after", "5")]), Bytes::new()).is_ok());
    }

    #[test]
    fn when_to_come_again_as_a_number_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let read = |text: &'static str| retry_after(&parts(503, &[("retry-after", text)]).headers, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sat, 06 Nov 1993 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }

    #[tokio::test]
    async fn nothing_is_sent_without_tls() {
        assert_eq!(Http::new(Some(b"")).err().unwrap(), "has no certificate");
        let http = Http(TlsConnector::from(Arc::new(
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth(),
        )));
        let request = Request::get("http://127.0.0.1:9/x").body(BodyWrapper::default()).unwrap();
        let told = http.exchange(request).await.err().unwrap();
        assert_eq!(told.text, "127.0.0.1: the directory leads to an address without https");
    }
}
