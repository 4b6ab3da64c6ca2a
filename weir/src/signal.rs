//! The one owner of signals.
//!
//! SIGTERM or SIGINT begins a drain; a second one stops at once. SIGHUP reloads the conf. SIGQUIT
//! hands the listeners to a successor.

use crate::operate::Operator;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use weir_core::drain::Drain;

/// Watches until aborted. Signals count from now on, also those that come before `operator` is there.
pub fn watch(drain: Drain, operator: tokio::sync::oneshot::Receiver<Arc<Operator>>) -> JoinHandle<()> {
    let signals =
        [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()]
            .map(signal);
    tokio::spawn(async move {
        let [Ok(mut term), Ok(mut int), Ok(mut hup), Ok(mut quit)] = signals else {
            tracing::error!("signals cannot be watched: the process ends without a drain when it is told to");
            return;
        };
        let serving = async {
            let Ok(operator) = operator.await else { return };
            loop {
                tokio::select! {
                    // Its outcome is logged where it is known.
                    _ = hup.recv() => drop(operator.reload().await),
                    _ = quit.recv() => {
                        if let Err(why) = operator.hand_over().await {
                            tracing::error!("not handed over, nothing has changed: {why}");
                        }
                    }
                }
            }
        };
        let stopping = async {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                if drain.has_begun() {
                    tracing::warn!("second signal: stopping now");
                    drain.stop();
                } else {
                    tracing::info!("draining; a second signal stops at once");
                    drain.begin();
                }
            }
        };
        let ((), ()) = tokio::join!(serving, stopping);
    })
}
