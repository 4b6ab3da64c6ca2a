//! What the client missed in its channels: one channel after the other, piece by piece, the next one when the last one
//! is written. See [`crate::hub::Hub::next_piece`].

use super::core::Core;
use crate::client::Client;
use crate::hub::{Behind, Hub, Piece};
use crate::session::Live;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

#[derive(Default)]
pub(super) struct Missed {
    waiting: VecDeque<Behind>,
    reading: Option<Pin<Box<dyn Future<Output = Piece> + Send>>>,
    /// Being written.
    written: Option<Piece>,
}

impl Missed {
    pub fn add(&mut self, behind: Behind) {
        self.waiting.push_back(behind);
    }

    pub fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.reading.is_none() && self.written.is_none()
    }

    /// All that was beside the outbox is written: the last piece is through.
    pub fn through(&mut self, hub: &Hub, client: &Arc<Client>) {
        if let Some(piece) = self.written.take()
            && let Some(behind) = hub.caught_up(client, piece)
        {
            // Behind the other channels, so that each gets its turn.
            self.waiting.push_back(behind);
        }
    }

    /// The next piece, to be written at once.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        hub: &Arc<Hub>,
        client: &Arc<Client>,
        bytes: usize,
    ) -> Poll<&mut Piece> {
        let Some(reading) = &mut self.reading else {
            let Some(behind) = self.waiting.pop_front() else { return Poll::Pending };
            self.reading = Some(Box::pin(hub.clone().next_piece(client.clone(), behind, bytes)));
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let Poll::Ready(piece) = reading.as_mut().poll(cx) else { return Poll::Pending };
        self.reading = None;
        Poll::Ready(self.written.insert(piece))
    }
}

impl Core {
    pub(super) fn go_live(&mut self, live: Live) {
        let Live { channel, ticket, behind } = live;
        let behind = match behind {
            Some(at) => Some(Behind { channel, ticket, at }),
            None => self.shared.hub.go_live(&self.client, &channel, ticket),
        };
        if let Some(behind) = behind {
            self.missed.get_or_insert_default().add(behind);
        }
    }

    /// Goes on with what the client missed, when it has read what it was given. True: there was something.
    pub(super) fn poll_missed(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(missed) = &mut self.missed else { return false };
        let outbox = &self.client.outbox;
        if self.client.beside() > 0 || outbox.waiting() > outbox.limit() / 2 {
            return false;
        }
        missed.through(&self.shared.hub, &self.client);
        if missed.is_over() {
            self.missed = None;
            return true;
        }
        let bytes = self.shared.settings.piece_size;
        let Poll::Ready(piece) = missed.poll(cx, &self.shared.hub, &self.client, bytes) else { return false };
        // It may have unsubscribed meanwhile.
        let (channel, ticket) = (&piece.behind.channel, piece.behind.ticket);
        let frames = std::mem::take(&mut piece.frames);
        if self.shared.hub.has_ticket(&self.client, channel, ticket) {
            self.shared.metrics.deliveries.inc_by(frames.len() as u64);
            self.output.add_beside(frames.into(), &self.client);
        }
        true
    }

    /// Whether something goes on when the client has read.
    pub(super) fn waits_for_room(&self) -> bool {
        self.missed.is_some() || self.session.holds_commands()
    }
}
