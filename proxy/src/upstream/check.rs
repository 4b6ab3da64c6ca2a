//! Active checks: every server of an upstream is asked in turn whether it is well.

use super::Upstream;
use super::proxy_protocol;
use super::server::Server;
use crate::front::upgrade::accept_for;
use crate::tunnel::answer::{self, Answer};
use base64::Engine;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_conf::proxy::{Check, Health};

/// For the server's part of the closing handshake.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// Checks all servers, again and again, until the upstream is gone.
pub async fn watch(upstream: Weak<Upstream>) {
    loop {
        let begun = Instant::now();
        let interval = {
            let Some(upstream) = upstream.upgrade() else { return };
            let Some(health) = &upstream.settings.health else { return };
            let health = Arc::new(health.clone());
            let mut checks = JoinSet::new();
            for server in &upstream.set.load().servers {
                // Spread out, so that many proxies and many servers do not beat in step.
                let wait = (health.interval / 10).mul_f64(rand::random());
                checks.spawn(one(
                    server.clone(),
                    health.clone(),
                    wait,
                    upstream.settings.send_proxy_protocol,
                ));
            }
            drop(upstream);
            finish(&mut checks).await;
            health.interval
        };
        if let Some(upstream) = upstream.upgrade() {
            upstream.desk.call();
        }
        let next = interval.mul_f64(rand::random_range(0.9..=1.1));
        tokio::time::sleep(next.saturating_sub(begun.elapsed())).await;
    }
}

async fn finish(checks: &mut JoinSet<()>) {
    while let Some(done) = checks.join_next().await {
        if let Err(error) = done
            && error.is_panic()
        {
            tracing::error!(%error, "a health check has panicked");
        }
    }
}

async fn one(server: Arc<Server>, health: Arc<Health>, wait: Duration, header: bool) {
    tokio::time::sleep(wait).await;
    let outcome = match timeout(health.timeout, check(&server, &health, header)).await {
        Ok(outcome) => outcome,
        Err(_) => Err("check_timeout"),
    };
    server.shared.checked(outcome, health.rise, health.fall, Instant::now());
}

async fn check(server: &Server, health: &Health, header: bool) -> Result<(), &'static str> {
    let header = header.then(|| proxy_protocol::header(None));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "check_refused",
        _ => "check_error",
    };
    let mut stream = server.dial.open(header.as_deref()).await.map_err(failed)?;
    if health.kind == Check::Tcp {
        return Ok(());
    }
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    let more = match health.kind {
        Check::WebSocket => format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        ),
        Check::Tcp | Check::Http => "Connection: close\r\n".to_owned(),
    };
    let host = health.host.as_deref().unwrap_or_else(|| server.entry.authority());
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weir-health-check\r\n{more}\r\n",
        health.path
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    if health.kind == Check::Http {
        return match answer::status(&mut stream).await {
            Ok(status) if health.status.contains(status) => Ok(()),
            Ok(_) => Err("check_status"),
            Err(_) => Err("check_answer"),
        };
    }
    match answer::read(&mut stream).await {
        Ok(Answer::Switch { headers, .. })
            if answer::is_valid_switch(&headers, &accept_for(key.as_bytes())) =>
        {
            // 1000, as a client has to send it: masked.
            let mask: [u8; 4] = rand::random();
            let code = 1000u16.to_be_bytes();
            let close =
                [0x88, 0x82, mask[0], mask[1], mask[2], mask[3], code[0] ^ mask[0], code[1] ^ mask[1]];
            let said = async {
                stream.write_all(&close).await?;
                stream.flush().await?;
                stream.read_u8().await
            };
            let _well_either_way = timeout(CLOSE_WAIT, said).await;
            Ok(())
        }
        Ok(_) => Err("check_status"),
        Err(_) => Err("check_answer"),
    }
}
