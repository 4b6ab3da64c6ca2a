//! What a subscriber missed and its reply does not hold: read from the stream in pieces, as fast as the client reads,
//! and written before anything live. Nothing of it waits anywhere, so who missed ten megabytes costs no more memory
//! than who missed one, and is never too slow as long as he reads.
//!
//! Before each read what comes live is held back anew. The read that reaches the stream's top ends it: what is held
//! follows, and then everything as it comes. When the stream no longer has what comes next, the client is told.

use super::held::Went;
use super::pages::{Wanted, follow};
use super::{Hub, bus_error};
use crate::client::Client;
use crate::frame;
use crate::protocol::Push;
use crate::session::Ticket;
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;
use std::time::Duration;
use weir_core::backoff::Backoff;
use weir_core::sync::lock;
use weir_wire::envelope::{History, HistoryQuery, Position};

/// A subscription that has been given its stream up to `at`.
#[derive(Clone, Debug, PartialEq)]
pub struct Behind {
    pub channel: Arc<str>,
    pub ticket: Ticket,
    pub at: Position,
}

/// What comes next of what was missed.
pub struct Piece {
    pub behind: Behind,
    /// Finished; to be written before [`Hub::caught_up`].
    pub frames: Vec<Bytes>,
    came_to: CameTo,
}

enum CameTo {
    /// The stream goes on.
    More,
    Top,
    /// The stream does not have what comes next.
    Lost,
    /// Nobody is subscribed any more.
    Nothing,
}

impl Hub {
    /// Reads the next piece, of about so many bytes; waits while the bus is away.
    pub async fn next_piece(self: Arc<Self>, client: Arc<Client>, behind: Behind, bytes: usize) -> Piece {
        let mut rng = SmallRng::from_os_rng();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let nothing = |behind: Behind| Piece { behind, frames: Vec::new(), came_to: CameTo::Nothing };
        loop {
            let found = self.subscription(&client, &behind.channel, behind.ticket);
            let Some((channel, slot)) = found else { return nothing(behind) };
            let Some(stream) = channel.stream else { return nothing(behind) };
            let held_from = lock(&channel.inner).hold_anew(slot, behind.ticket);
            let Some(held_from) = held_from else { return nothing(behind) };
            let query = HistoryQuery { since: Some(behind.at), limit: u32::MAX, reverse: false };
            match self.read(&channel.name, Wanted { query, bytes }, stream).await {
                // It has less than was delivered here: what is held does not follow it.
                Ok(history) if history.top.epoch == behind.at.epoch && history.top.offset < held_from => {}
                Ok(history) => return piece(&client, behind, history),
                Err(error) => {
                    let error = bus_error(&error);
                    tracing::debug!(channel = &*channel.name, ?error, "cannot read what a client missed yet");
                }
            }
            tokio::time::sleep(backoff.next(&mut rng)).await;
        }
    }

    /// A piece is written. Gives what is still to be read.
    pub fn caught_up(&self, client: &Arc<Client>, piece: Piece) -> Option<Behind> {
        let Piece { behind, came_to, .. } = piece;
        let (channel, slot) = self.subscription(client, &behind.channel, behind.ticket)?;
        let went = match came_to {
            CameTo::Nothing => return None,
            CameTo::More => return Some(behind),
            CameTo::Top => lock(&channel.inner).caught_up(slot, behind.ticket, behind.at),
            CameTo::Lost => {
                lock(&channel.inner).remove(slot, behind.ticket);
                Went::Lost
            }
        };
        match went {
            Went::Live => self.metrics.catch_up("done"),
            Went::Lost => self.metrics.catch_up("lost"),
            Went::Behind(_) => {}
        }
        self.went(client, &behind.channel, behind.ticket, went)
    }
}

fn piece(client: &Client, mut behind: Behind, history: History) -> Piece {
    let top = history.top;
    let missing = history.publications.is_empty() && behind.at.offset != top.offset;
    if top.epoch != behind.at.epoch || missing || !follow(behind.at.offset, &history.publications) {
        return Piece { behind, frames: Vec::new(), came_to: CameTo::Lost };
    }
    let mut frames = Vec::with_capacity(history.publications.len());
    for publication in history.publications {
        behind.at.offset = publication.offset;
        // A stream's first publication says which stream it is.
        let epoch = (publication.offset == 1).then_some(top.epoch);
        let push = Push::Publication { channel: behind.channel.clone(), publication, epoch };
        frames.push(frame::push(&push, client.format));
    }
    let came_to = if behind.at.offset == top.offset { CameTo::Top } else { CameTo::More };
    Piece { behind, frames, came_to }
}
