//! The harness: real processes of the built binary, a scripted client, links that can be cut.
//!
//! A test here starts what it needs, waits only for things that happen (each wait has a deadline), and
//! prints the processes' logs when it fails.

#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod checker;
pub mod client;
pub mod cluster;
pub mod conf;
pub mod echo;
pub mod edge;
pub mod http;
pub mod load;
pub mod net;
pub mod pebble;
pub mod ports;
pub mod process;
pub mod recorder;
pub mod systems;

use std::future::{Future, IntoFuture};
use std::time::{Duration, Instant};

/// Every wait ends: long enough for a loaded machine, short enough to say what was waited for.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Ends a wait by its deadline, and says what was waited for.
pub async fn within<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// Asks again until the answer is `Ok`; the last `Err` is what is told at the deadline.
/// For what another process decides in its own time, such as a breaker that opens.
pub async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        let last = match ask().await {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}: {last}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A name that no other test uses.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}{:08x}", rand::random::<u32>())
}
