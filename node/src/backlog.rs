//! Replies that are larger than their clients' outboxes, of the whole node: what they take together is bounded.
//! Over it whoever has read least of theirs in its time is closed (3008), so that it is never a client that reads.

use crate::client::Client;
use crate::session::Event;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use weir_core::sync::lock;
use weir_wire::close::Close;

/// Before that nobody is slow.
const GRACE: Duration = Duration::from_secs(1);

pub struct Backlog {
    limit: usize,
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    client: Weak<Client>,
    /// Since this much waited.
    since: Instant,
    bytes: usize,
}

impl Backlog {
    pub fn new(limit: usize) -> Backlog {
        Backlog { limit, entries: Mutex::default() }
    }

    /// A reply of so many bytes is about to wait for its client. Gives how many were closed to make room.
    pub fn enter(&self, client: &Arc<Client>, bytes: usize, now: Instant) -> usize {
        let mut entries = lock(&self.entries);
        let waiting = |entry: &Entry| entry.client.upgrade().map_or(0, |client| client.beside());
        entries.retain(|entry| waiting(entry) > 0 && entry.client.as_ptr() != Arc::as_ptr(client));
        let mut total = entries.iter().map(waiting).sum::<usize>() + client.beside() + bytes;
        let mut closed = 0;
        while total > self.limit {
            let pace = |entry: &Entry| {
                let read = entry.bytes.saturating_sub(waiting(entry)) as f64;
                read / (now.saturating_duration_since(entry.since) + GRACE).as_secs_f64()
            };
            let slowest = (0..entries.len()).min_by(|a, b| pace(&entries[*a]).total_cmp(&pace(&entries[*b])));
            let Some(slowest) = slowest else { break };
            let entry = entries.swap_remove(slowest);
            total -= waiting(&entry);
            if let Some(client) = entry.client.upgrade() {
                client.post(Event::Disconnect(Close::SLOW));
                closed += 1;
            }
        }
        let bytes = client.beside() + bytes;
        entries.push(Entry { client: Arc::downgrade(client), since: now, bytes });
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Format;

    #[test]
    fn who_reads_is_not_closed_for_who_does_not() {
        let (backlog, t0) = (Backlog::new(100), Instant::now());
        let client = || Arc::new(Client::new("c".into(), Format::Json, 10));
        let enter = |client: &Arc<Client>, bytes, at: u64| {
            let closed = backlog.enter(client, bytes, t0 + Duration::from_secs(at));
            client.add_beside(bytes);
            closed
        };
        let (reads, does_not, gone, last) = (client(), client(), client(), client());
        assert_eq!(enter(&reads, 40, 0) + enter(&does_not, 40, 0) + enter(&gone, 20, 0), 0);
        reads.took_beside(20);
        assert_eq!(enter(&last, 20, 5), 0);
        drop(gone);
        assert_eq!(enter(&last, 10, 5), 0, "what is gone takes no room");
        assert_eq!(enter(&client(), 30, 6), 1);
        assert!(matches!(does_not.take_mail(), Some(Event::Disconnect(close)) if close == Close::SLOW));
        assert!(reads.take_mail().is_none() && last.take_mail().is_none());
        assert_eq!(enter(&client(), 1000, 9), 2, "one that is too large alone is bounded elsewhere");
    }
}
