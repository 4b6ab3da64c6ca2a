//! The operator's listener: `/health`, `/ready`, `/metrics`.
//!
//! It is a listener of its own, so that nothing here can be reached through the public ones, and
//! it wants a bearer token as soon as it listens anywhere but on loopback.

use crate::drain::Drain;
use crate::jwt::same_secret;
use crate::metrics::{self, Registry};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use weir_conf::admin::Admin as Conf;

/// Connections served at once; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;
/// A connection is closed after this, whatever it does: scrapers reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// One thing that must be well for `/ready`; the error says what is not.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Bound, not yet serving.
pub struct Admin {
    listener: TcpListener,
    token: weir_conf::units::Secret,
    token_for_all: bool,
}

impl Admin {
    pub fn bind(conf: &Conf) -> io::Result<Admin> {
        let listener = std::net::TcpListener::bind(conf.listen)?;
        listener.set_nonblocking(true)?;
        Ok(Admin {
            listener: TcpListener::from_std(listener)?,
            token: conf.token.clone(),
            token_for_all: !conf.listen.ip().is_loopback(),
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves to the very end: while the rest drains, `/ready` says 503 and `/metrics` shows progress.
    pub async fn run(self, registry: Registry, checks: Vec<(&'static str, Check)>, drain: Drain) {
        let state = Arc::new(State {
            registry,
            checks,
            token: self.token,
            token_for_all: self.token_for_all,
            drain: drain.clone(),
        });
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = drain.stopped() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let state = state.clone();
                    tokio::spawn(async move {
                        serve(stream, state).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin listener cannot accept");
                    // Out of descriptors: the connection stays in the backlog, so a retry at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

struct State {
    registry: Registry,
    checks: Vec<(&'static str, Check)>,
    token: weir_conf::units::Secret,
    token_for_all: bool,
    drain: Drain,
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| {
        let response = state.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!(%error, "admin connection");
    }
}

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if self.token_for_all && !self.authorized(request) {
            return text(StatusCode::UNAUTHORIZED, "401 a bearer token (admin.token) is needed\n".into());
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/health") => text(StatusCode::OK, "ok\n".into()),
            (&Method::GET, "/ready") => self.ready(),
            (&Method::GET, "/metrics") => {
                let mut response = text(StatusCode::OK, metrics::render(&self.registry));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
                response
            }
            (_, "/health" | "/ready" | "/metrics") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "405 GET only\n".into())
            }
            _ => text(StatusCode::NOT_FOUND, "404 /health /ready /metrics\n".into()),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let mut wrong: Vec<String> = self
            .checks
            .iter()
            .filter_map(|(name, check)| check().err().map(|error| format!("{name}: {error}\n")))
            .collect();
        if self.drain.has_begun() {
            wrong.push("draining\n".into());
        }
        match wrong.is_empty() {
            true => text(StatusCode::OK, "ready\n".into()),
            false => text(StatusCode::SERVICE_UNAVAILABLE, wrong.concat()),
        }
    }

    fn authorized(&self, request: &Request<Incoming>) -> bool {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let given = given.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or("");
        same_secret(given, self.token.reveal())
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use weir_conf::units::Secret;

    async fn get(addr: SocketAddr, path: &str, extra: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut out = String::new();
        stream.read_to_string(&mut out).await.unwrap();
        out
    }

    async fn start(listen: &str, token: &str, check: Check) -> (SocketAddr, Drain) {
        let conf = Conf { enabled: true, listen: listen.parse().unwrap(), token: Secret::new(token.into()) };
        let admin = Admin::bind(&conf).unwrap();
        let mut addr = admin.local_addr().unwrap();
        addr.set_ip([127, 0, 0, 1].into());
        let drain = Drain::new();
        tokio::spawn(admin.run(metrics::registry(), vec![("bus", check)], drain.clone()));
        (addr, drain)
    }

    #[tokio::test]
    async fn ready_follows_its_checks_and_the_drain() {
        let up = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = up.clone();
        let check =
            move || seen.load(std::sync::atomic::Ordering::Relaxed).then_some(()).ok_or("link down".into());
        let (addr, drain) = start("127.0.0.1:0", "", Box::new(check)).await;
        let down = get(addr, "/ready", "").await;
        assert!(down.starts_with("HTTP/1.1 503") && down.ends_with("bus: link down\n"), "{down}");
        up.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(get(addr, "/ready", "").await.starts_with("HTTP/1.1 200"));
        assert!(get(addr, "/metrics", "").await.contains("process_cpu_seconds_total"));
        drain.begin();
        assert!(get(addr, "/ready", "").await.starts_with("HTTP/1.1 503"));
        assert!(get(addr, "/health", "").await.starts_with("HTTP/1.1 200"));
        assert!(get(addr, "/admin/v1/none", "").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn off_loopback_everything_needs_the_token() {
        let (addr, _drain) = start("0.0.0.0:0", "sesame", Box::new(|| Ok(()))).await;
        assert!(get(addr, "/metrics", "").await.starts_with("HTTP/1.1 401"));
        let wrong = get(addr, "/health", "Authorization: Bearer sesamo\r\n").await;
        assert!(wrong.starts_with("HTTP/1.1 401"));
        let right = get(addr, "/health", "Authorization: Bearer sesame\r\n").await;
        assert!(right.starts_with("HTTP/1.1 200"));
    }
}
