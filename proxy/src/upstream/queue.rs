//! Who waits for a server below its limits: first come, first served, bounded. Pure, but for the
//! channel that calls a waiter.
//!
//! A waiter that is called takes its turn: it tries, and either it has what it waited for, and the next
//! one is called, or it goes back to the front. One at a time has its turn, so nobody is overtaken; what is
//! given back meanwhile is seen by it or by the next. As long as anybody waits or has its turn, whoever
//! comes lines up at the end.

use std::collections::VecDeque;
use tokio::sync::oneshot;

#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
    /// Somebody was called, and is not done yet.
    turn: bool,
    next: u64,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Queue {
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.turn
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A place at the end.
    pub fn join(&mut self, bound: usize) -> Result<(u64, oneshot::Receiver<()>), Full> {
        if self.waiting.len() >= bound {
            return Err(Full);
        }
        let (call, called) = oneshot::channel();
        let id = self.next;
        self.next += 1;
        self.waiting.push_back((id, call));
        Ok((id, called))
    }

    /// Back to the front, after a turn in which nothing was to be had.
    pub fn rejoin(&mut self, id: u64) -> oneshot::Receiver<()> {
        let (call, called) = oneshot::channel();
        self.turn = false;
        self.waiting.push_front((id, call));
        called
    }

    /// The turn of the first who still waits, unless somebody has it.
    pub fn call(&mut self) {
        while !self.turn
            && let Some((_, call)) = self.waiting.pop_front()
        {
            self.turn = call.send(()).is_ok();
        }
    }

    /// Leaves, waiting or in its turn. True: it had its turn, so the next one may try.
    pub fn leave(&mut self, id: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiter, _)| *waiter != id);
        let had_turn = self.waiting.len() == before;
        if had_turn {
            self.turn = false;
        }
        had_turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_called(called: &mut oneshot::Receiver<()>) -> bool {
        called.try_recv().is_ok()
    }

    #[test]
    fn first_come_first_served_within_the_bound() {
        let mut queue = Queue::default();
        let (a, mut a_called) = queue.join(2).unwrap();
        let (b, mut b_called) = queue.join(2).unwrap();
        assert_eq!(queue.join(2).unwrap_err(), Full);
        queue.call();
        queue.call();
        assert!(is_called(&mut a_called) && !is_called(&mut b_called), "one at a time");
        // Nothing was to be had: still before the other.
        let mut a_called = queue.rejoin(a);
        queue.call();
        assert!(is_called(&mut a_called) && !is_called(&mut b_called));
        assert!(queue.leave(a));
        assert!(!queue.is_idle());
        assert!(!queue.leave(b), "it never had a turn");
        assert!(queue.is_idle());
    }

    #[test]
    fn who_has_gone_is_passed_over_and_a_turn_keeps_others_in_line() {
        let mut queue = Queue::default();
        let (_, a_called) = queue.join(9).unwrap();
        let (b, mut b_called) = queue.join(9).unwrap();
        drop(a_called);
        queue.call();
        assert!(is_called(&mut b_called));
        assert!(queue.len() == 0 && !queue.is_idle());
        assert!(queue.leave(b) && queue.is_idle());
        queue.call(); // nobody: nothing
        assert!(queue.is_idle());
    }
}
