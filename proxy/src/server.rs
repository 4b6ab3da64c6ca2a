//! Pingora's `Server` in a thread of its own, our listeners in it, and its end.
//!
//! Listeners are bound by us before it starts, so a port in use is known at once. Pingora is told
//! to stop by [`Stop`] only when nothing is under way any more, or nothing is waited for.

use crate::listeners::Opened;
use crate::quic::Endpoint;
use crate::service::Service;
use crate::service::quic::Front as QuicFront;
use crate::tls;
use async_trait::async_trait;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_core::descriptors::within_reserve;
use weir_core::limited;
use weir_core::net::BACKLOG;

/// How often the tables of the rate limiter are swept.
const SWEEP: Duration = Duration::from_secs(60);

/// Idle connections to servers that are kept, for each thread; Pingora's own number.
const KEPT: usize = 128;

/// What Pingora needs to be told.
pub fn conf(conf: &weir_conf::proxy::Proxy) -> ServerConf {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if conf.threads == 0 { cores } else { conf.threads };
    ServerConf {
        threads,
        // They have their place in the reserve of descriptors.
        upstream_keepalive_pool_size: within_reserve(KEPT * threads).div_ceil(threads),
        work_stealing: true,
        // How often is the plan's to say (`upstream/plan.rs`); this is the most that the conf allows.
        max_retries: 100,
        // We stop it when all is done: there is nothing left to be waited for.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    }
}

/// The listeners as a service of Pingora's, on the runtime that it makes.
pub struct Front {
    pub service: Arc<Service>,
    /// Listeners, now and after each reload. Taken when the service starts.
    pub opened: Option<mpsc::UnboundedReceiver<Opened>>,
    /// Endpoints of QUIC, likewise.
    pub quic_opened: Option<mpsc::UnboundedReceiver<Endpoint>>,
    pub threads: usize,
}

#[async_trait]
impl pingora_core::services::Service for Front {
    async fn start_service(
        &mut self,
        _: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        tokio::spawn(sweep(self.service.clone()));
        tokio::spawn(tend(self.service.clone()));
        tokio::spawn(look_at_files(self.service.clone()));
        tokio::spawn(automatic_certificates(self.service.clone()));
        if let Some(opened) = self.quic_opened.take() {
            tokio::spawn(quic(opened, self.service.clone(), shutdown.clone()));
        }
        if let Some(mut opened) = self.opened.take() {
            while let Some(listener) = opened.recv().await {
                tokio::spawn(accept(listener, self.service.clone(), shutdown.clone()));
            }
        }
        // Tunnels live on this runtime; it ends when Pingora is told to stop.
        std::future::pending::<()>().await;
    }

    fn name(&self) -> &str {
        "weir"
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}

async fn quic(mut opened: mpsc::UnboundedReceiver<Endpoint>, service: Arc<Service>, shutdown: ShutdownWatch) {
    while let Some(endpoint) = opened.recv().await {
        let local = endpoint.local_addr();
        let front = Arc::new(QuicFront { service: service.clone(), shutdown: shutdown.clone(), local });
        tokio::spawn(async move {
            if let Err(error) = endpoint.serve(front).await {
                tracing::error!(%local, %error, "no HTTP/3 here");
            }
        });
    }
}

async fn accept(opened: Opened, service: Arc<Service>, shutdown: ShutdownWatch) {
    let Opened { listener, kind, closed, served: _until_the_socket_is_closed } = opened;
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the listener cannot be used"),
    };
    let serve = |(tcp, peer)| {
        let kind = **kind.load();
        tokio::spawn(service.clone().connection(tcp, peer, kind, shutdown.clone()))
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => {
                serve(accepted);
            }
            Err(error) => {
                service.metrics.refuse("accept_error");
                limited!(warn, ("proxy.listen", "accept"), %error, "cannot accept");
                // Out of descriptors the connection stays in the backlog, and accept fails at once again.
                if !matches!(error.kind(), std::io::ErrorKind::ConnectionAborted) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    // Who is in the queue when it closes would be reset; the kernel has let them in, so they are served.
    for _ in 0..BACKLOG {
        match poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))).await {
            Poll::Ready(Ok(accepted)) => drop(serve(accepted)),
            _ => return,
        }
    }
}

async fn sweep(service: Arc<Service>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => service.snapshot.load().admit.sweep(),
            () = service.drain.begun() => return,
        }
    }
}

/// Those that we renew. Once a drain has begun that is for the successor, which has the listeners.
async fn automatic_certificates(service: Arc<Service>) {
    let acme = service.snapshot.load().acme.clone();
    tokio::select! {
        () = acme.run() => {}
        () = service.drain.begun() => {}
    }
}

/// Certificates that others renew.
async fn look_at_files(service: Arc<Service>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(tls::LOOK) => {}
            () = service.drain.begun() => return,
        }
        let tls = service.snapshot.load().tls.clone();
        // A panic there leaves what was read before.
        let _looked = tokio::task::spawn_blocking(move || tls.look()).await;
    }
}

/// Lookups and checks of the upstreams that are in force; those of a conf that was replaced end.
async fn tend(service: Arc<Service>) {
    let mut tended = JoinSet::new();
    loop {
        let swapped = service.swapped.notified();
        tended.abort_all();
        while tended.join_next().await.is_some() {}
        for upstream in service.snapshot.load().upstreams.values() {
            tended.spawn(crate::upstream::tend(Arc::downgrade(upstream)));
        }
        swapped.await;
    }
}

struct Stop(CancellationToken);

#[async_trait]
impl ShutdownSignalWatch for Stop {
    async fn recv(&self) -> ShutdownSignal {
        self.0.cancelled().await;
        ShutdownSignal::FastShutdown
    }
}

/// Runs until `stop`. Pingora blocks its thread and makes its own runtimes.
pub fn run(
    front: Front,
    conf: ServerConf,
    stop: CancellationToken,
) -> std::io::Result<Pin<Box<tokio::sync::oneshot::Receiver<()>>>> {
    let (ended, when_ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("weir-proxy".into()).spawn(move || {
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.add_service(front);
        server.run(RunArgs { shutdown_signal: Box::new(Stop(stop)) });
        let _nobody_waits = ended.send(());
    })?;
    Ok(Box::pin(when_ended))
}
