//! What operators see of an upstream, and what they can say.

use super::Upstream;
use super::desk::State;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_core::breaker;

#[derive(Clone, Debug)]
pub struct ServerStatus {
    /// Its address.
    pub name: Arc<str>,
    /// The entry in the conf that it comes from; the same as the name unless that is to be looked up.
    pub entry: Arc<str>,
    pub weight: u32,
    /// What an operator has said.
    pub state: State,
    /// By active checks; true without them.
    pub healthy: bool,
    pub breaker: breaker::State,
    /// Open tunnels and requests.
    pub open: usize,
    pub handshakes: usize,
    /// Of its weight; below 1 while it starts slowly.
    pub share: f64,
    /// Cause, and how long ago.
    pub last_failure: Option<(&'static str, Duration)>,
}

#[derive(Debug, thiserror::Error)]
#[error("there is no server {server:?}; known are {known}")]
pub struct UnknownServer {
    pub server: String,
    pub known: String,
}

impl Upstream {
    pub fn status(&self) -> Vec<ServerStatus> {
        let (now, set) = (Instant::now(), self.set.load());
        let inner = self.desk.lock();
        let one = |server: &Arc<super::Server>| {
            let (shared, entry) = (&server.shared, &server.entry);
            ServerStatus {
                name: shared.name.clone(),
                entry: entry.text.clone(),
                weight: entry.weight,
                state: inner.state(&shared.name, &entry.text),
                healthy: shared.is_healthy(),
                breaker: shared.breaker_state(),
                open: shared.open(),
                handshakes: shared.handshakes(),
                share: shared.share(self.settings.slow_start, now),
                last_failure: shared
                    .last_failure()
                    .map(|(cause, at)| (cause, now.saturating_duration_since(at))),
            }
        };
        set.servers.iter().map(one).collect()
    }

    /// `server` is a server's name, or an entry of the conf for all that it stands for, now and later.
    /// Kept until it is said otherwise, over reloads too. Ending the tunnels of one that is `Down` is the
    /// caller's; returns the names that are meant.
    pub fn set_state(&self, server: &str, state: State) -> Result<Vec<Arc<str>>, UnknownServer> {
        let set = self.set.load();
        let meant = |s: &&Arc<super::Server>| *s.shared.name == *server || *s.entry.text == *server;
        let servers: Vec<_> = set.servers.iter().filter(meant).collect();
        let is_entry = self.entries.iter().any(|entry| *entry.text == *server);
        if servers.is_empty() && !is_entry {
            let known: Vec<&str> = set.servers.iter().map(|s| &*s.shared.name).collect();
            return Err(UnknownServer { server: server.to_owned(), known: known.join(", ") });
        }
        let now = Instant::now();
        let mut inner = self.desk.lock();
        for server in &servers {
            if inner.state(&server.shared.name, &server.entry.text) != State::Up && state == State::Up {
                server.shared.came(now);
            }
            if is_entry {
                // What was said of one of them before is overruled.
                inner.states.remove(&*server.shared.name);
            }
        }
        inner.states.insert(server.to_owned(), state);
        // What says nothing need not be kept.
        let needed =
            |name: &String| servers.iter().any(|s| *s.shared.name == **name && *s.entry.text != **name);
        if state == State::Up && !needed(&server.to_owned()) {
            inner.states.remove(server);
        }
        drop(inner);
        tracing::info!(upstream = &*self.name, server, state = state.as_str(), "server set by an operator");
        self.desk.call();
        Ok(servers.iter().map(|server| server.shared.name.clone()).collect())
    }
}
