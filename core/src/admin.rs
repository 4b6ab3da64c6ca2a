//! The operator's listener: `/health`, `/ready`, `/metrics`, and `/admin/v1/VERB` (see `admin/verbs.rs`).
//!
//! It is a listener of its own, so that nothing here can be reached through the public ones, and
//! it wants a bearer token as soon as it listens anywhere but on loopback. Pages of strangers do not get to read it
//! by a name of theirs (`admin/host.rs`).

mod host;
pub mod verbs;

use crate::drain::Drain;
use crate::jwt::same_secret;
use crate::limited;
use crate::metrics::{self, Registry};
use crate::unproven::{Gone, Place, Room, Shown, Unproven};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use verbs::{Failure, Verbs};
use weir_conf::admin::Admin as Conf;

/// Connections at once, and of one address; a newcomer takes the place of who has the least to show for itself.
const ROOM: Room = Room { total: 256, per_address: 128, time: Duration::ZERO };
/// Of an operator's own machine, which may be where everybody else seems to come from, too.
const LOCAL_ROOM: Room = ROOM;
/// For the first byte of a connection.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// A connection is closed after this, whatever it does: scrapers reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const VERBS: &str = "/admin/v1/";
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// One thing that must be well for `/ready`; the error says what is not.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Bound, not yet serving.
pub struct Admin {
    listener: TcpListener,
    token: weir_conf::units::Secret,
    token_for_all: bool,
    hosts: Vec<String>,
}

impl Admin {
    /// `inherited` is a predecessor's socket, in place of a new one.
    pub fn bind(conf: &Conf, inherited: Option<std::net::TcpListener>) -> io::Result<Admin> {
        let listener = crate::net::listen(conf.listen, inherited)?;
        Ok(Admin {
            listener: TcpListener::from_std(listener)?,
            token: conf.token.clone(),
            token_for_all: !conf.listen.ip().is_loopback(),
            hosts: conf.hosts.clone(),
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A second handle of its socket, for a successor.
    pub fn socket(&self) -> io::Result<std::net::TcpListener> {
        use std::os::fd::AsFd;
        self.listener.as_fd().try_clone_to_owned().map(Into::into)
    }

    /// Serves to the very end: while the rest drains, `/ready` says 503 and `/metrics` shows progress.
    pub async fn run(
        self,
        mut registry: Registry,
        checks: Vec<(&'static str, Check)>,
        verbs: Arc<dyn Verbs>,
        drain: Drain,
    ) {
        let closed = Family::<Cause, Counter>::default();
        registry.register(
            "weir_admin_closed",
            "Connections to admin.listen that were closed early, by cause",
            closed.clone(),
        );
        let state = Arc::new(State {
            closed,
            registry,
            checks,
            verbs,
            token: self.token,
            token_for_all: self.token_for_all,
            hosts: self.hosts,
            drain: drain.clone(),
        });
        let places = Unproven::new(Room::within_reserve(ROOM), Room::within_reserve(LOCAL_ROOM));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = drain.stopped() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let local = peer.ip().to_canonical().is_loopback();
                    // There is always somebody who goes.
                    let Ok((place, displaced)) = places.enter(peer.ip(), local) else { continue };
                    if displaced {
                        limited!(warn, ("admin.listen", "displaced"), %peer, "admin.listen is full: a new one takes a place");
                    }
                    tokio::spawn(serve(stream, place, state.clone()));
                }
                Err(error) => {
                    limited!(warn, ("admin.listen", "accept"), %error, "admin listener cannot accept");
                    // Out of descriptors: the connection stays in the backlog, so a retry at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

struct State {
    closed: Family<Cause, Counter>,
    registry: Registry,
    checks: Vec<(&'static str, Check)>,
    verbs: Arc<dyn Verbs>,
    token: weir_conf::units::Secret,
    token_for_all: bool,
    hosts: Vec<String>,
    drain: Drain,
}

async fn serve(stream: TcpStream, place: Place, state: Arc<State>) {
    if let Err(gone) = place.first_byte(&stream, FIRST_BYTE).await {
        return state.count(gone);
    }
    let counts = state.clone();
    let shown = &place;
    let service = service_fn(move |request| {
        let state = state.clone();
        async move {
            shown.shows(Shown::Served);
            let answer = state.answer(request).await;
            shown.shows(Shown::Something);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection) => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "admin connection");
            }
        }
        () = place.taken() => counts.count(Gone::Taken),
    }
}

impl State {
    fn count(&self, gone: Gone) {
        self.closed.get_or_create(&Cause { cause: gone.cause() }).inc();
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let verb = request.uri().path().strip_prefix(VERBS).map(str::to_owned);
        let authorized = self.authorized(&request);
        if (self.token_for_all || verb.is_some()) && !authorized {
            let why = match self.token.is_empty() {
                true => "401 there is no admin.token in the conf, so orders are off\n",
                false => "401 a bearer token (admin.token) is needed\n",
            };
            return text(StatusCode::UNAUTHORIZED, why.into());
        }
        if !authorized && let Some(refusal) = self.misdirected(&request) {
            return refusal;
        }
        if let Some(verb) = verb {
            return self.order(&verb, request).await;
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
            _ => text(StatusCode::NOT_FOUND, "404 /health /ready /metrics /admin/v1/VERB\n".into()),
        }
    }

    /// The answer to whoever asks by a name that is not ours. Without the token only a GET has anything to read.
    fn misdirected(&self, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        if request.method() != Method::GET {
            return None;
        }
        let host = match host::named(request.uri(), request.headers()) {
            Ok(host) if host::is_ours(&host, &self.hosts) => return None,
            Ok(host) | Err(host) => host,
        };
        // Nothing but what a probe wants to know, and not why.
        let probed = match request.uri().path() {
            "/health" => Some(StatusCode::OK),
            "/ready" => Some(self.ready().status()),
            _ => None,
        };
        if let Some(status) = probed {
            let word = if status.is_success() { "ok" } else { "not ready" };
            return Some(text(status, format!("{word}\n")));
        }
        tracing::debug!(host, "a request by a name that is not in admin.hosts");
        let why = format!("421 Host {} is not in admin.hosts\n", host.escape_default());
        Some(text(StatusCode::MISDIRECTED_REQUEST, why))
    }

    async fn order(&self, verb: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "405 POST only\n".into());
        }
        let answer = match order_of(request).await {
            Ok(order) => {
                tracing::info!(verb, "order from an operator");
                self.verbs.call(verb, order).await
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(value) => {
                let mut response = text(StatusCode::OK, format!("{value}\n"));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(failure) => text(failure.status, format!("{}\n", failure.text)),
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

/// The body as a JSON object; none is an empty one.
async fn order_of(request: Request<Incoming>) -> Result<serde_json::Value, Failure> {
    let body = Limited::new(request.into_body(), verbs::MAX_BODY).collect().await;
    let body = body.map_err(|error| Failure::bad(format!("the body cannot be read: {error}")))?.to_bytes();
    if body.is_empty() {
        return Ok(serde_json::Value::Object(Default::default()));
    }
    match serde_json::from_slice(&body) {
        Ok(order @ serde_json::Value::Object(_)) => Ok(order),
        Ok(_) => Err(Failure::bad("the body is not a JSON object")),
        Err(error) => Err(Failure::bad(format!("the body is not JSON: {error}"))),
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
        get_as(addr, path, "127.0.0.1", extra).await
    }

    async fn get_as(addr: SocketAddr, path: &str, host: &str, extra: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{extra}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut out = String::new();
        stream.read_to_string(&mut out).await.unwrap();
        out
    }

    async fn start(listen: &str, token: &str, check: Check) -> (SocketAddr, Drain) {
        let conf = Conf {
            listen: listen.parse().unwrap(),
            token: Secret::new(token.into()),
            hosts: vec!["weir.internal".into()],
            ..weir_conf::Config::default().admin
        };
        let admin = Admin::bind(&conf, None).unwrap();
        let mut addr = admin.local_addr().unwrap();
        addr.set_ip([127, 0, 0, 1].into());
        let drain = Drain::new();
        tokio::spawn(admin.run(metrics::registry(), vec![("bus", check)], Arc::new(Echo), drain.clone()));
        (addr, drain)
    }

    struct Echo;

    impl Verbs for Echo {
        fn call<'a>(&'a self, verb: &'a str, order: serde_json::Value) -> verbs::Answer<'a> {
            Box::pin(
                async move { if verb == "none" { Err(Failure::unknown("no such verb")) } else { Ok(order) } },
            )
        }
    }

    #[tokio::test]
    async fn orders_need_the_token_and_an_object() {
        let post = |addr, verb: &'static str, token: &'static str, body: &'static str| async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let head = format!(
                "POST /admin/v1/{verb} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                 Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut out = String::new();
            stream.read_to_string(&mut out).await.unwrap();
            out
        };
        let (closed, _drain) = start("127.0.0.1:0", "", Box::new(|| Ok(()))).await;
        assert!(post(closed, "echo", "", "{}").await.starts_with("HTTP/1.1 401"));
        let (addr, _drain) = start("127.0.0.1:0", "sesame", Box::new(|| Ok(()))).await;
        assert!(
            get(addr, "/metrics", "").await.starts_with("HTTP/1.1 200"),
            "on loopback only orders need it"
        );
        assert!(post(addr, "echo", "wrong", "{}").await.starts_with("HTTP/1.1 401"));
        assert!(post(addr, "echo", "sesame", r#"{"a":1}"#).await.ends_with("{\"a\":1}\n"));
        assert!(post(addr, "echo", "sesame", "").await.ends_with("{}\n"));
        assert!(post(addr, "echo", "sesame", "[]").await.starts_with("HTTP/1.1 400"));
        assert!(post(addr, "none", "sesame", "").await.starts_with("HTTP/1.1 404"));
        let get = get(addr, "/admin/v1/echo", "Authorization: Bearer sesame\r\n").await;
        assert!(get.starts_with("HTTP/1.1 405"), "{get}");
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
        assert!(get(addr, "/none", "").await.starts_with("HTTP/1.1 404"));
    }

    /// Silent ones, and such as begin a request and go on a byte at a time; all of this machine, as behind a NAT.
    #[tokio::test]
    async fn who_asks_for_nothing_keeps_nobody_out() {
        let (addr, _drain) = start("127.0.0.1:0", "", Box::new(|| Ok(()))).await;
        let mut kept = Vec::new();
        for n in 0..500 {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"GET /hea").await.unwrap();
            }
            kept.push(stream);
        }
        for path in ["/health", "/ready"] {
            let asked = tokio::time::timeout(Duration::from_secs(1), get(addr, path, "")).await;
            assert!(asked.unwrap().starts_with("HTTP/1.1 200"), "{path}");
        }
        let metrics = get(addr, "/metrics", "").await;
        assert!(metrics.contains("weir_admin_closed_total{cause=\"displaced\"}"), "{metrics}");
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

    #[tokio::test]
    async fn pages_of_strangers_get_nothing_but_a_status() {
        let (addr, drain) = start("127.0.0.1:0", "sesame", Box::new(|| Err("down".into()))).await;
        let status = |answer: &str| answer.split(' ').nth(1).unwrap().to_owned();
        let bearer = "Authorization: Bearer sesame\r\n";
        for (host, path, extra, want) in [
            ("evil.example", "/metrics", "", "421"),
            ("evil.example", "/none", "", "421"),
            ("evil.example", "/admin/v1/status", "", "401"),
            ("evil.example", "/metrics", "Authorization: Bearer sesamo\r\n", "421"),
            ("evil.example", "/metrics", bearer, "200"),
            ("weir.internal:9000", "/metrics", "", "200"),
            ("localhost:9000", "/metrics", "", "200"),
            ("[::1]:9000", "/metrics", "", "200"),
            ("evil.example", "/health", "", "200"),
            ("evil.example", "/ready", "", "503"),
        ] {
            let answer = get_as(addr, path, host, extra).await;
            assert_eq!(status(&answer), want, "{host} {path} {extra}: {answer}");
            let told = answer.contains("bus: down");
            assert!(!told, "{host} {path}: {answer}");
            assert_eq!(answer.contains("admin.hosts"), want == "421", "{answer}");
        }
        assert!(get(addr, "/ready", "").await.contains("bus: down"));
        assert!(get_as(addr, "/ready", "evil.example", bearer).await.contains("bus: down"));
        drain.stop();
    }
}
