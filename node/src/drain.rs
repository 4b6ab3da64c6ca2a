//! Sending clients away at a pace that the rest of the system can take them in again.

use crate::session::Event;
use crate::shared::Shared;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use weir_core::drain::Drain;
use weir_wire::close::Close;

const TICK: Duration = Duration::from_millis(50);
/// Said so often how far it is.
const REPORT: Duration = Duration::from_secs(5);
/// After the last one was told: time for close frames to be answered.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// The oldest first: they have been served longest, and most of what is young came from another
/// node that drains too. Returns when all are gone, or were told and had their time.
pub async fn run(shared: &Shared, drain: &Drain) {
    shared.draining.store(true, Ordering::Relaxed);
    let (conf, pace) = (shared.conf.drain, drain.pace());
    let rate = pace.per_second.unwrap_or(conf.rate.per_second);
    let timeout = pace.timeout.unwrap_or(conf.timeout);
    let (begun, total) = (Instant::now(), shared.live());
    tracing::info!(connections = total, rate, "draining");
    let mut last_report = begun;
    let (mut told, mut after) = (0u64, None);
    while shared.live() > 0 && begun.elapsed() < timeout {
        let due = (begun.elapsed().as_secs_f64() * rate).ceil() as u64;
        let batch = shared.oldest(after, due.saturating_sub(told).min(10_000) as usize);
        for (key, client) in batch {
            client.post(Event::Disconnect(Close::SHUTDOWN));
            (told, after) = (told + 1, Some(key));
        }
        if last_report.elapsed() >= REPORT {
            last_report = Instant::now();
            tracing::info!(told, left = shared.live(), of = total, "draining");
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = drain.stopped() => break,
        }
    }
    let rest = shared.oldest(after, usize::MAX);
    for (_, client) in &rest {
        client.post(Event::Disconnect(Close::SHUTDOWN));
    }
    let deadline = Instant::now() + LAST_WAIT;
    while shared.live() > 0 && Instant::now() < deadline {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            // Stop now: one more moment for close frames that are being written.
            () = drain.stopped() => {
                tokio::time::sleep(TICK).await;
                break;
            }
        }
    }
    tracing::info!(told, at_once = rest.len(), left = shared.live(), "drained");
}
