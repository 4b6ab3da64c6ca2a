//! What is on its way to the socket: frames of the outbox, and between them what the outbox does not count.
//!
//! A reply that is larger than the room in the outbox, and pieces of what a client missed, are no sign that it reads
//! too slowly. They go *beside* the outbox: in order with what is in it already, and before all that comes after.

use super::io::advance;
use crate::client::Client;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Instant;

#[derive(Default)]
pub(super) struct Output {
    pub writing: VecDeque<Bytes>,
    /// `writing` is beside the outbox.
    beside: bool,
    /// The first of `writing` is a frame that was begun.
    inside_frame: bool,
    pub blocked_since: Option<Instant>,
    /// What comes behind `writing`, and before what is in the outbox.
    #[expect(clippy::box_collection, reason = "hardly any connection has any: a word for all others")]
    next: Option<Box<VecDeque<Batch>>>,
}

struct Batch {
    frames: VecDeque<Bytes>,
    beside: bool,
}

impl Output {
    pub fn has_any(&mut self, client: &Client) -> bool {
        if self.writing.is_empty() {
            match self.next.as_mut().and_then(|next| next.pop_front()) {
                Some(batch) => (self.writing, self.beside) = (batch.frames, batch.beside),
                None => {
                    (self.next, self.beside) = (None, false);
                    client.outbox.take(&mut self.writing);
                }
            }
        }
        !self.writing.is_empty()
    }

    /// Behind what is in the outbox now.
    pub fn add_beside(&mut self, frames: VecDeque<Bytes>, client: &Client) {
        let mut before = VecDeque::new();
        client.outbox.take(&mut before);
        let next = self.next.get_or_insert_default();
        client.add_beside(frames.iter().map(Bytes::len).sum());
        let batches = [Batch { frames: before, beside: false }, Batch { frames, beside: true }];
        next.extend(batches.into_iter().filter(|batch| !batch.frames.is_empty()));
    }

    /// So many bytes of `writing`. Gives the number of frames that are through.
    pub fn wrote(&mut self, written: usize, client: &Client) -> u64 {
        self.blocked_since = None;
        count(client, self.beside, written);
        let (frames, begun) = advance(&mut self.writing, written);
        self.inside_frame = begun;
        frames
    }

    /// Who does not read does not get what waits, except the end of a frame that was begun: the
    /// close is to be seen as one.
    pub fn forget(&mut self, client: &Client) {
        client.outbox.clear();
        let keep = usize::from(self.inside_frame);
        count(client, self.beside, self.writing.iter().skip(keep).map(Bytes::len).sum());
        self.writing.truncate(keep);
        for batch in self.next.take().into_iter().flat_map(|next| *next) {
            count(client, batch.beside, batch.frames.iter().map(Bytes::len).sum());
        }
    }

    /// The socket is gone.
    pub fn clear(&mut self, client: &Client) {
        self.inside_frame = false;
        self.forget(client);
    }
}

/// So many bytes wait no longer.
fn count(client: &Client, beside: bool, bytes: usize) {
    match beside {
        true => client.took_beside(bytes),
        false => client.outbox.wrote(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Format;

    #[test]
    fn what_is_beside_the_outbox_is_in_order_with_it_and_not_counted_there() {
        let client = Client::new("c".into(), Format::Json, 10);
        let (mut output, mut got) = (Output::default(), Vec::new());
        client.outbox.push("a".into());
        output.add_beside(["large".repeat(10).into(), "b".into()].into(), &client);
        client.outbox.push("123456789".into());
        assert_eq!((client.outbox.waiting(), client.beside()), (10, 51));
        while output.has_any(&client) {
            got.push(String::from_utf8(output.writing[0].to_vec()).unwrap());
            let len = output.writing[0].len();
            output.wrote(len, &client);
        }
        assert_eq!(got, ["a", &"large".repeat(10), "b", "123456789"]);
        assert_eq!((client.outbox.waiting(), client.beside()), (0, 0));
        assert!(!client.outbox.overflown());
    }

    #[test]
    fn of_what_is_forgotten_the_begun_frame_is_left() {
        let client = Client::new("c".into(), Format::Json, 10);
        let mut output = Output::default();
        output.add_beside(["large".into(), "more".into()].into(), &client);
        client.outbox.push("a".into());
        output.add_beside(["even more".into()].into(), &client);
        assert!(output.has_any(&client));
        output.wrote(2, &client);
        output.forget(&client);
        assert_eq!((client.outbox.waiting(), client.beside(), output.writing.len()), (0, 3, 1));
        output.clear(&client);
        assert!(client.beside() == 0 && !output.has_any(&client));
    }
}
