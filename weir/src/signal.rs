//! The one owner of signals.
//!
//! SIGTERM or SIGINT begins a drain; a second one stops at once. SIGHUP is taken and reported, so
//! that it does not end the process: there is no reload yet.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use weir_core::drain::Drain;

/// Watches until aborted.
pub fn watch(drain: Drain) -> JoinHandle<()> {
    tokio::spawn(async move {
        let signals =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
        let (Ok(mut term), Ok(mut int), Ok(mut hup)) = signals else {
            tracing::error!("signals cannot be watched: the process ends without a drain when it is told to");
            return;
        };
        loop {
            if !ended_by(&mut term, &mut int, &mut hup).await {
                tracing::warn!("SIGHUP: reload is not available in this version; nothing changed");
            } else if drain.has_begun() {
                tracing::warn!("second signal: stopping now");
                drain.stop();
            } else {
                tracing::info!("draining; a second signal stops at once");
                drain.begin();
            }
        }
    })
}

/// True for a signal that ends the process, false for SIGHUP.
async fn ended_by(term: &mut Signal, int: &mut Signal, hup: &mut Signal) -> bool {
    tokio::select! {
        _ = term.recv() => true,
        _ = int.recv() => true,
        _ = hup.recv() => false,
    }
}
