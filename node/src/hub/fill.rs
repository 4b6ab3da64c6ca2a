//! Fetches what is missing in a channel's deliveries, as long as it takes: while the bus is away
//! the channel's deliveries wait (bounded by the channel) and live connections stay.

use super::Hub;
use super::channel::{Channel, Fill};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;
use std::time::Duration;
use weir_core::backoff::Backoff;
use weir_core::sync::lock;
use weir_wire::envelope::HistoryQuery;

/// Publications per question.
const PAGE: u32 = 1000;

pub(super) async fn run(hub: Arc<Hub>, channel: Arc<Channel>, fill: Fill) {
    let Ok(_permit) = hub.fills.acquire().await else { return };
    let mut rng = SmallRng::from_os_rng();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let Some(stream) = channel.stream else { return };
    let mut round = fill.round;
    loop {
        let Some(since) = lock(&channel.inner).wants(round) else { return };
        let query = HistoryQuery { since: Some(since), limit: PAGE, reverse: false };
        let Ok(bus) = hub.bus() else { return };
        // A page: some megabytes at most, and the next one when these are handed on.
        match bus.history_page(channel.name.to_string(), query, stream).await {
            Err(error) => {
                tracing::debug!(channel = &*channel.name, %error, "cannot fill a hole yet");
                tokio::time::sleep(backoff.next(&mut rng)).await;
            }
            Ok((history, _)) => {
                backoff.reset();
                let outcome = lock(&channel.inner).filled(round, history);
                hub.count(&channel, &outcome);
                match outcome.fill {
                    Some(next) => round = next.round,
                    None => {
                        if !outcome.gave_up {
                            hub.metrics.gap("filled");
                        }
                        return;
                    }
                }
            }
        }
    }
}
