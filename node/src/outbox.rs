//! Bytes that wait for one client: finished frames, shared with every other client they go to.
//!
//! Many push (the hub's fan-out, the client's own session), one takes (the connection's task).
//! A push is a lock, a reference and a wake; it never waits. Over the limit the outbox *overflows*:
//! it drops what it holds, takes nothing more, and the task closes the client with 3008. Nothing
//! is dropped from the middle: a client sees all of its frames up to some point, or the close.

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use weir_core::sync::lock;

/// Queues that grew in a burst are given back when they are empty again.
const KEPT_CAPACITY: usize = 32;

pub struct Outbox {
    queue: Mutex<VecDeque<Bytes>>,
    /// Bytes pushed and not yet handed to the socket.
    waiting: AtomicUsize,
    limit: usize,
    state: AtomicState,
    waker: AtomicWaker,
}

/// Open: takes frames. Shut: takes none. Overflown: shut because it was full.
#[derive(Default)]
struct AtomicState {
    shut: AtomicBool,
    overflown: AtomicBool,
}

impl Outbox {
    pub fn new(limit: usize) -> Outbox {
        Outbox {
            queue: Mutex::new(VecDeque::new()),
            waiting: AtomicUsize::new(0),
            limit,
            state: AtomicState::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// Adds a finished frame and wakes the task that writes. False: not taken.
    pub fn push(&self, frame: Bytes) -> bool {
        let taken = self.add(frame);
        self.waker.wake();
        taken
    }

    /// Adds a finished frame; for the task that will write it anyway.
    pub fn add(&self, frame: Bytes) -> bool {
        let mut queue = lock(&self.queue);
        if self.state.shut.load(Ordering::Relaxed) {
            return false;
        }
        let waiting = self.waiting.fetch_add(frame.len(), Ordering::Relaxed) + frame.len();
        if waiting > self.limit {
            self.state.shut.store(true, Ordering::Relaxed);
            self.state.overflown.store(true, Ordering::Relaxed);
            let dropped: usize = queue.iter().map(Bytes::len).sum::<usize>() + frame.len();
            *queue = VecDeque::new();
            self.waiting.fetch_sub(dropped, Ordering::Relaxed);
            return false;
        }
        queue.push_back(frame);
        true
    }

    /// Takes no more frames from now on; `last` still goes out, after what is there already.
    pub fn shut(&self, last: Option<Bytes>) {
        let mut queue = lock(&self.queue);
        self.state.shut.store(true, Ordering::Relaxed);
        if let Some(frame) = last {
            self.waiting.fetch_add(frame.len(), Ordering::Relaxed);
            queue.push_back(frame);
        }
    }

    /// Drops everything that waits and takes no more.
    pub fn clear(&self) {
        let mut queue = lock(&self.queue);
        self.state.shut.store(true, Ordering::Relaxed);
        let dropped: usize = queue.iter().map(Bytes::len).sum();
        *queue = VecDeque::new();
        self.waiting.fetch_sub(dropped, Ordering::Relaxed);
    }

    pub fn overflown(&self) -> bool {
        self.state.overflown.load(Ordering::Relaxed)
    }

    /// Exchanges the taker's empty queue with what waits. The bytes go on counting until `wrote`.
    pub fn take(&self, empty: &mut VecDeque<Bytes>) {
        debug_assert!(empty.is_empty());
        if empty.capacity() > KEPT_CAPACITY {
            *empty = VecDeque::new();
        }
        let mut queue = lock(&self.queue);
        if !queue.is_empty() {
            std::mem::swap(&mut *queue, empty);
        }
    }

    pub fn wrote(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that may be pushed before it overflows.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.waiting())
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub fn wake(&self) {
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    #[test]
    fn what_was_taken_but_not_written_still_counts() {
        let (outbox, mut taken) = (Outbox::new(10), VecDeque::new());
        assert!(outbox.push(frame(6)));
        outbox.take(&mut taken);
        assert_eq!((taken.len(), outbox.waiting()), (1, 6));
        outbox.wrote(2);
        assert!(outbox.push(frame(6)), "4 + 6 fit");
        assert!(!outbox.push(frame(1)));
        assert!(outbox.overflown());
        assert_eq!(outbox.waiting(), 4, "only what the writer holds is left");
        taken.clear();
        outbox.take(&mut taken);
        assert!(taken.is_empty() && !outbox.push(frame(1)), "an overflown outbox stays shut");
    }

    #[test]
    fn the_last_frame_goes_behind_all_others() {
        let (outbox, mut taken) = (Outbox::new(100), VecDeque::new());
        outbox.push(frame(1));
        outbox.shut(Some(frame(2)));
        assert!(!outbox.push(frame(3)));
        outbox.take(&mut taken);
        assert_eq!(taken.iter().map(Bytes::len).collect::<Vec<_>>(), [1, 2]);
        assert!(!outbox.overflown());
    }
}
