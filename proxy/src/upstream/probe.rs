//! Looks after requests that wait for a server in silence (`upstream/silence.rs`), and asks the server itself when
//! there is a suspicion: by the request of its active checks, or else by `OPTIONS *`, HTTP's own ping
//! (RFC 9110 §9.3.7), on a connection of its own. Any byte that comes back, and even a close, is an answer.

use super::Upstream;
use super::attempt::blame;
use super::proxy_protocol;
use super::server::Server;
use super::settings::Question;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep_until, timeout};

/// For one request of ours; then another one goes, as long as the suspicion lasts.
const ONE: Duration = Duration::from_secs(10);
/// Until the next one, where one could not be sent or was refused.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of a request of ours.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Answer,
    Nothing,
    /// We could not ask: this process or machine ran out of something.
    Unable,
}

/// Looks until nobody waits any more.
pub async fn watch(server: Arc<Server>, upstream: Arc<Upstream>) {
    let shared = server.shared.clone();
    let mut asking = None;
    loop {
        let now = Instant::now();
        let look = shared.look(now);
        match (look.ask, &asking) {
            (true, None) => {
                shared.asked(Some(now));
                asking = Some(Box::pin(again(&server, &upstream.settings.question)));
            }
            // Somebody was answered meanwhile.
            (false, Some(_)) => asking = None,
            _ => {}
        }
        let Some(next) = look.next else { return };
        let heard = async {
            match &mut asking {
                Some(asking) => asking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = heard => {
                asking = None;
                if heard == Heard::Answer {
                    shared.word(Instant::now());
                    upstream.desk.call();
                } else {
                    shared.asked(None);
                    tokio::time::sleep(PAUSE).await;
                }
            }
            () = sleep_until(next.into()) => {}
            () = shared.sooner.notified() => {}
        }
    }
}

/// Asks, again and again, until there is an answer or no way to ask.
async fn again(server: &Server, question: &Question) -> Heard {
    loop {
        let began = Instant::now();
        match timeout(ONE, ask(server, question)).await.unwrap_or(Heard::Nothing) {
            Heard::Nothing => tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await,
            heard => return heard,
        }
    }
}

async fn ask(server: &Server, question: &Question) -> Heard {
    let header = question.proxy_protocol.then(|| proxy_protocol::header(None));
    let mut stream = match server.dial.open(header.as_deref()).await {
        Ok(stream) => stream,
        Err(error) => {
            return match (blame(&error), error.kind()) {
                (None, _) => Heard::Unable,
                // It has understood TLS, or closed: somebody is there.
                (_, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => Heard::Answer,
                _ => Heard::Nothing,
            };
        }
    };
    let request = question.text(server.entry.authority());
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        stream.read(&mut [0; 1]).await
    };
    match asked.await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Heard::Nothing,
        _answered_or_closed => Heard::Answer,
    }
}
