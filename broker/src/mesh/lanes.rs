//! Messages on their way to one broker. Each lane has its bound; the next bytes to write are taken
//! from all of them so that talk goes first, none of the others starves, and a large message
//! stands in nobody's way: it goes out in parts. Pure.
//!
//! Beyond talk, a lane may write its quantum before those below it get their turn; a round of all
//! of them is the longest that any of them waits.

use std::collections::VecDeque;
use weir_wire::codec;
use weir_wire::mesh::{Lane, MORE, PART};

use bytes::Bytes;

const LANES: usize = Lane::ALL.len();
/// What is written at once, roughly.
pub const BATCH: usize = 64 << 10;
/// What a waiting message costs beside its bytes.
const OVERHEAD: usize = 96;

/// Bytes that may wait in each lane. One message always may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds(pub [usize; LANES]);

impl Default for Bounds {
    fn default() -> Bounds {
        // Deliveries are bounded by credit, see `credit`.
        Bounds([16 << 20, 32 << 20, 16 << 20, 32 << 20, 4 << 20, 16 << 20])
    }
}

const QUANTA: [isize; LANES] = [0, 256 << 10, 128 << 10, 128 << 10, 64 << 10, 64 << 10];

struct Message {
    data: Bytes,
    /// Written already.
    at: usize,
    /// The request that it is, or 0.
    tag: u64,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
    /// May still write so much in this round.
    quantum: isize,
}

pub struct Lanes {
    queues: [Queue; LANES],
    bounds: Bounds,
}

impl Lanes {
    pub fn new(bounds: Bounds) -> Lanes {
        let mut queues: [Queue; LANES] = Default::default();
        for (queue, quantum) in queues.iter_mut().zip(QUANTA) {
            queue.quantum = quantum;
        }
        Lanes { queues, bounds }
    }

    pub fn bytes(&self, lane: Lane) -> usize {
        self.queues[lane as usize].bytes
    }

    /// Less than a quarter of the bound waits.
    pub fn has_room(&self, lane: Lane) -> bool {
        self.bytes(lane) < self.bounds.0[lane as usize] / 4
    }

    /// False, and nothing is changed, if there is no room.
    pub fn push(&mut self, lane: Lane, data: Bytes, tag: u64) -> bool {
        let bytes = self.bytes(lane);
        if bytes > 0 && bytes + data.len() + OVERHEAD > self.bounds.0[lane as usize] {
            return false;
        }
        self.push_anyway(lane, data, tag);
        true
    }

    /// For what is bounded otherwise.
    pub fn push_anyway(&mut self, lane: Lane, data: Bytes, tag: u64) {
        let queue = &mut self.queues[lane as usize];
        queue.bytes += data.len() + OVERHEAD;
        queue.messages.push_back(Message { data, at: 0, tag });
    }

    /// Appends the next frames to `out`, until a batch is full or nothing waits. Messages whose
    /// last part is among them are counted.
    pub fn fill(&mut self, out: &mut Vec<u8>) -> [u64; LANES] {
        let mut written = [0; LANES];
        while out.len() < BATCH
            && let Some(lane) = self.next()
        {
            written[lane as usize] += u64::from(self.write_part(lane, out));
        }
        written
    }

    fn next(&mut self) -> Option<Lane> {
        if !self.queues[0].messages.is_empty() {
            return Some(Lane::Talk);
        }
        let waiting = |queue: &Queue| !queue.messages.is_empty();
        if !self.queues.iter().any(waiting) {
            return None;
        }
        loop {
            let may = |lane: &&Lane| {
                let queue = &self.queues[**lane as usize];
                waiting(queue) && queue.quantum > 0
            };
            if let Some(lane) = Lane::ALL[1..].iter().find(may) {
                return Some(*lane);
            }
            // A part may be larger than what was left: that is owed.
            for (queue, quantum) in self.queues.iter_mut().zip(QUANTA) {
                queue.quantum = (queue.quantum + quantum).min(quantum);
            }
        }
    }

    /// Whether the message ends with it.
    fn write_part(&mut self, lane: Lane, out: &mut Vec<u8>) -> bool {
        let queue = &mut self.queues[lane as usize];
        let Some(message) = queue.messages.front_mut() else { return false };
        let part = (message.data.len() - message.at).min(PART);
        let end = message.at + part == message.data.len();
        out.extend_from_slice(&codec::header(1 + part));
        out.push(lane as u8 | if end { 0 } else { MORE });
        out.extend_from_slice(&message.data[message.at..message.at + part]);
        message.at += part;
        queue.quantum -= part as isize;
        queue.bytes -= part;
        if end {
            queue.bytes -= OVERHEAD;
            queue.messages.pop_front();
            if queue.messages.is_empty() {
                queue.quantum = QUANTA[lane as usize];
            }
        }
        end
    }

    /// Empties the lanes. Returns the requests that the other side surely never saw whole.
    pub fn clear(&mut self) -> Vec<u64> {
        let mut tags = Vec::new();
        for queue in &mut self.queues {
            tags.extend(queue.messages.drain(..).map(|m| m.tag).filter(|tag| *tag != 0));
            queue.bytes = 0;
        }
        tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::parts::Parts;
    use bytes::BytesMut;

    fn filled(lane: Lane, len: usize) -> (Lane, Bytes) {
        (lane, vec![lane as u8; len].into())
    }

    /// All that is written next, batch by batch, put together as the other side does.
    fn drain(lanes: &mut Lanes) -> Vec<(Lane, usize)> {
        let (mut parts, mut got) = (Parts::default(), Vec::new());
        loop {
            let mut out = Vec::new();
            lanes.fill(&mut out);
            if out.is_empty() {
                return got;
            }
            assert!(out.len() < BATCH + PART + 16);
            let mut bytes = BytesMut::from(&out[..]);
            while let Some(frame) = codec::take_frame(&mut bytes, codec::MAX_FRAME).unwrap() {
                if let Some((lane, data)) = parts.take(frame).unwrap() {
                    assert!(data.iter().all(|b| *b == lane as u8), "mixed up");
                    got.push((lane, data.len()));
                }
            }
        }
    }

    #[test]
    fn talk_overtakes_and_a_large_message_stands_in_nobodys_way() {
        let mut lanes = Lanes::new(Bounds::default());
        for (lane, data) in [
            filled(Lane::Bulk, 1 << 20),
            filled(Lane::Replica, 1 << 20),
            filled(Lane::Forward, 100),
            filled(Lane::Deliver, 100),
            filled(Lane::Talk, 10),
        ] {
            assert!(lanes.push(lane, data, 0));
        }
        let order: Vec<_> = drain(&mut lanes).into_iter().map(|(lane, _)| lane).collect();
        assert_eq!(order, [Lane::Talk, Lane::Forward, Lane::Deliver, Lane::Replica, Lane::Bulk]);
    }

    #[test]
    fn every_lane_gets_its_share_while_others_are_full() {
        let mut lanes = Lanes::new(Bounds([usize::MAX; LANES]));
        for _ in 0..1000 {
            for lane in &Lane::ALL[1..] {
                lanes.push(*lane, vec![0; 10 << 10].into(), 0);
            }
        }
        let mut out = Vec::new();
        let mut written = [0; LANES];
        for _ in 0..100 {
            out.clear();
            let batch = lanes.fill(&mut out);
            written.iter_mut().zip(batch).for_each(|(sum, n)| *sum += n);
        }
        let all: u64 = written.iter().sum();
        for (lane, share) in [(Lane::Replica, 40), (Lane::Forward, 20), (Lane::Bulk, 10)] {
            let got = written[lane as usize] * 100 / all;
            assert!((share - 4..=share + 4).contains(&got), "{lane:?}: {got} % of {written:?}");
        }
    }

    #[test]
    fn a_lane_takes_no_more_than_its_bound_but_one_message_always() {
        let mut lanes = Lanes::new(Bounds([1000; LANES]));
        assert!(lanes.push(Lane::Replica, vec![1; 5000].into(), 0), "alone");
        assert!(!lanes.push(Lane::Replica, vec![1; 1].into(), 0));
        assert!(lanes.push(Lane::Forward, vec![2; 1].into(), 0), "lanes are apart");
        drain(&mut lanes);
        assert!(Lane::ALL.iter().all(|lane| lanes.bytes(*lane) == 0));
        let taken = (0..100).filter(|_| lanes.push(Lane::Replica, vec![1; 100].into(), 0)).count();
        assert_eq!(taken, 1000 / (100 + OVERHEAD));
    }

    #[test]
    fn what_was_written_in_part_only_was_not_seen() {
        let mut lanes = Lanes::new(Bounds::default());
        lanes.push(Lane::Forward, vec![2; 10].into(), 7);
        lanes.push(Lane::Forward, vec![2; PART * 2].into(), 8);
        lanes.push(Lane::Control, vec![4; 10].into(), 9);
        lanes.push(Lane::Forward, vec![2; 10].into(), 0);
        lanes.fill(&mut Vec::new());
        assert_eq!(lanes.clear(), [8, 9]);
        assert!(Lane::ALL.iter().all(|lane| lanes.bytes(*lane) == 0));
    }
}
