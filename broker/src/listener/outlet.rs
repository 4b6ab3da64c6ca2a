//! A remote node's deliveries: bounded by the room in its inbox, of which it keeps us informed,
//! and by the bytes that wait for its link.

use crate::engine::Engine;
use crate::link::{Kind, SendQueue};
use crate::outlet::Outlet;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Weak};
use weir_wire::codec::{self, HEADER};
use weir_wire::envelope::{Body, Delivery, Position, Publication};
use weir_wire::peer::{Bye, CHUNK_SIZE, FromBroker};

/// Bytes of deliveries that may wait for the link.
const MAX_WAITING: usize = 8 << 20;

pub struct LinkOutlet {
    queue: Arc<SendQueue>,
    engine: Weak<Engine>,
    inbox: i64,
    /// Deliveries that may still be sent before the node has taken others out of its inbox.
    credit: AtomicI64,
    /// Something was refused: the engine waits for room.
    starved: AtomicBool,
    /// All interest is restored. Before that nothing is sent: a resync is to come in any case.
    live: AtomicBool,
}

impl LinkOutlet {
    pub fn new(queue: Arc<SendQueue>, engine: &Arc<Engine>, inbox: u32) -> LinkOutlet {
        let inbox = i64::from(inbox.max(1));
        LinkOutlet {
            queue,
            engine: Arc::downgrade(engine),
            inbox,
            credit: AtomicI64::new(inbox),
            starved: AtomicBool::new(false),
            live: AtomicBool::new(false),
        }
    }

    pub fn go_live(&self) {
        self.live.store(true, SeqCst);
    }

    /// The node took deliveries out of its inbox. False: more than it ever got.
    pub fn consumed(&self, count: u32) -> bool {
        let credit = self.credit.fetch_add(i64::from(count), SeqCst) + i64::from(count);
        self.look_for_room();
        credit <= self.inbox
    }

    /// To be called whenever there may be more room than before.
    pub fn look_for_room(&self) {
        if self.starved.load(SeqCst)
            && self.room()
            && self.starved.swap(false, SeqCst)
            && let Some(engine) = self.engine.upgrade()
        {
            engine.wake();
        }
    }

    fn room(&self) -> bool {
        self.credit.load(SeqCst) * 2 >= self.inbox && self.queue.bytes(Kind::Delivery) <= MAX_WAITING / 4
    }
}

impl Outlet for LinkOutlet {
    fn offer(&self, frame: &Bytes) -> bool {
        let counted = is_delivery(frame);
        if counted && !self.live.load(SeqCst) {
            return true;
        }
        let full = self.queue.bytes(Kind::Delivery) + frame.len() > MAX_WAITING;
        if full || (counted && self.credit.load(SeqCst) < 1) {
            self.starved.store(true, SeqCst);
            return false;
        }
        if counted {
            self.credit.fetch_sub(1, SeqCst);
        }
        // A queue at its end takes nothing; the attachment ends with it.
        self.queue.push(frame.clone(), Kind::Delivery);
        true
    }

    fn resync(&self, positions: Vec<(String, Option<Position>)>) {
        for frame in resync_frames(positions) {
            // In the order of the deliveries around it, but never dropped for them.
            self.queue.push(frame, Kind::Delivery);
        }
    }

    fn has_room(&self) -> bool {
        if self.room() {
            return true;
        }
        self.starved.store(true, SeqCst);
        // Room that came between the two lines above was not announced.
        self.room()
    }

    fn close(&self, why: Bye) {
        self.queue.finish(codec::encode(&FromBroker::Bye(why)).ok());
    }

    fn tell_again(&self) {
        self.close(Bye::Void);
    }
}

/// In chunks, so that no frame grows with the number of channels.
fn resync_frames(positions: Vec<(String, Option<Position>)>) -> Vec<Bytes> {
    let mut chunks = vec![Vec::new()];
    let mut size = 0;
    for entry in positions {
        // Offset, epoch and lengths come to this at most.
        size += entry.0.len() + 32;
        if size > CHUNK_SIZE {
            chunks.push(Vec::new());
            size = 0;
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(entry);
        }
    }
    let count = chunks.len();
    let frames = chunks
        .into_iter()
        .enumerate()
        .map(|(at, positions)| codec::encode(&FromBroker::Resync { positions, last: at + 1 == count }));
    frames.filter_map(Result::ok).collect()
}

/// Tells deliveries from control and surveys without decoding them: a frame's body begins with
/// its variant.
fn is_delivery(frame: &Bytes) -> bool {
    static TAG: LazyLock<Option<u8>> = LazyLock::new(|| {
        let publication = Publication { offset: 0, data: Bytes::new(), info: None, tags: vec![] };
        let body = Body::Publication(publication);
        let any = FromBroker::Deliver(Delivery { channel: String::new(), epoch: None, body });
        codec::encode(&any).ok()?.get(HEADER).copied()
    });
    frame.get(HEADER).copied() == *TAG
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_wire::envelope::{Control, Target};
    use weir_wire::id::Epoch;

    fn outlet(inbox: u32) -> LinkOutlet {
        let outlet = LinkOutlet {
            queue: Arc::default(),
            engine: Weak::new(),
            inbox: i64::from(inbox),
            credit: AtomicI64::new(i64::from(inbox)),
            starved: AtomicBool::new(false),
            live: AtomicBool::new(false),
        };
        outlet.go_live();
        outlet
    }

    fn delivery(size: usize) -> Bytes {
        let publication = Publication { offset: 1, data: vec![0; size].into(), info: None, tags: vec![] };
        let body = Body::Publication(publication);
        codec::encode(&FromBroker::Deliver(Delivery { channel: "c".into(), epoch: None, body })).unwrap()
    }

    #[test]
    fn deliveries_take_credit_and_control_does_not() {
        let outlet = outlet(4);
        let control = Control::Unsubscribe { target: Target::default(), channel: "c".into() };
        let control = codec::encode(&FromBroker::Control(control)).unwrap();
        assert!((0..4).all(|_| outlet.offer(&delivery(1))));
        assert!(outlet.offer(&control));
        assert!(!outlet.offer(&delivery(1)) && !outlet.has_room());
        assert!(outlet.consumed(1) && !outlet.has_room(), "a quarter");
        assert!(outlet.consumed(1) && outlet.has_room(), "half");
        assert!(!outlet.consumed(3), "more than it got");
    }

    #[test]
    fn the_bytes_that_wait_are_bounded() {
        let (outlet, frame) = (outlet(1000), delivery(1 << 20));
        let taken = (0..100).filter(|_| outlet.offer(&frame)).count();
        assert_eq!(taken, MAX_WAITING / frame.len());
        assert!(!outlet.has_room());
    }

    #[test]
    fn a_large_resync_comes_in_chunks_of_which_one_is_last() {
        let position = Some(Position { epoch: Epoch(u64::MAX), offset: u64::MAX });
        let positions: Vec<_> = (0..20_000).map(|i| (format!("channel-{i}"), position)).collect();
        let (mut all, mut lasts) = (Vec::new(), Vec::new());
        for mut frame in resync_frames(positions.clone()) {
            assert!(frame.len() <= CHUNK_SIZE + 64);
            let body = codec::next_frame(&mut frame).unwrap().unwrap();
            let FromBroker::Resync { positions, last } = codec::decode(&body).unwrap() else { panic!() };
            all.extend(positions);
            lasts.push(last);
        }
        assert_eq!(all, positions);
        assert!(lasts.pop() == Some(true) && lasts.len() > 3 && !lasts.contains(&true));
        assert_eq!(resync_frames(vec![]).len(), 1);
    }
}
