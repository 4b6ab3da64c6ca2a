//! Who waits for a server below its limits: bounded, and fair. Pure, but for the channel that calls a waiter.
//!
//! Each address has a lane, first come, first served; lanes take turns, so that one which is long costs the others
//! nothing, and holds its share of the places alone.
//!
//! A waiter that is called takes its turn: it tries, and either it has what it waited for, and the next
//! one is called, or it goes back to the front of its lane, and the next lane is called: what this one could not
//! have (its address holds its share) another may. When all lanes had their turn in vain, nobody is called until
//! something is given back. One at a time has its turn. As long as anybody waits or has its turn, whoever comes
//! lines up at the end of its lane.

use crate::admit::counts;
use crate::admit::key::Key;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::oneshot;

/// An address; `None`: those of whom none is known.
pub type Lane = Option<Key>;

#[derive(Debug, Default)]
pub struct Queue {
    /// None of them is empty.
    lanes: BTreeMap<Lane, VecDeque<(u64, oneshot::Sender<()>)>>,
    /// Lanes that have yet to be called, in this order.
    round: VecDeque<Lane>,
    /// The lanes that were called in vain, in this order.
    passed: VecDeque<Lane>,
    /// Somebody was called, and is not done yet.
    turn: bool,
    waiting: usize,
    next: u64,
}

/// The queue is full, or the lane's share of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Queue {
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && !self.turn
    }

    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether who comes now has to wait for others: for those of its lane, and for those who may still have what there
    /// is. Whoever tried in vain since something was given back is in nobody's way.
    pub fn lines_up(&self, lane: Lane) -> bool {
        self.turn || !self.round.is_empty() || self.lanes.contains_key(&lane)
    }

    /// A place at the end of a lane, which may have this share of all. `tried`: it has just tried in vain.
    pub fn join(
        &mut self,
        (lane, tried): (Lane, bool),
        bound: usize,
        share: f64,
    ) -> Result<(u64, oneshot::Receiver<()>), Full> {
        let mine = self.lanes.get(&lane).map_or(0, VecDeque::len);
        let over = lane.is_some() && mine >= counts::share(bound, share);
        if self.waiting >= bound || over {
            return Err(Full);
        }
        let (call, called) = oneshot::channel();
        let id = self.next;
        self.next += 1;
        if !self.lanes.contains_key(&lane) {
            self.round.retain(|other| *other != lane);
            if tried { &mut self.passed } else { &mut self.round }.push_back(lane);
        }
        self.lanes.entry(lane).or_default().push_back((id, call));
        self.waiting += 1;
        self.call();
        Ok((id, called))
    }

    /// Back to the front, after a turn in which nothing was to be had.
    pub fn rejoin(&mut self, lane: Lane, id: u64) -> oneshot::Receiver<()> {
        let (call, called) = oneshot::channel();
        self.turn = false;
        self.lanes.entry(lane).or_default().push_front((id, call));
        self.waiting += 1;
        // Not again before something is given back.
        self.round.retain(|other| *other != lane);
        self.passed.push_back(lane);
        self.call();
        called
    }

    /// Something was given back: all may try again, those who did not try longest first.
    pub fn freed(&mut self) {
        let passed = std::mem::take(&mut self.passed);
        self.round.extend(passed);
        self.call();
    }

    /// The turn of the next lane's first who still waits, unless somebody has it.
    fn call(&mut self) {
        while !self.turn
            && let Some(lane) = self.round.pop_front()
        {
            let Some(waiting) = self.lanes.get_mut(&lane) else { continue };
            while !self.turn
                && let Some((_, call)) = waiting.pop_front()
            {
                self.waiting -= 1;
                self.turn = call.send(()).is_ok();
            }
            match waiting.is_empty() {
                true => drop(self.lanes.remove(&lane)),
                // Its next one comes after the others.
                false => self.round.push_back(lane),
            }
        }
    }

    /// Leaves, waiting or in its turn; then the next one may try. True: it had its turn.
    pub fn leave(&mut self, lane: Lane, id: u64) -> bool {
        if let Some(waiting) = self.lanes.get_mut(&lane) {
            let before = waiting.len();
            waiting.retain(|(waiter, _)| *waiter != id);
            if waiting.len() < before {
                self.waiting -= 1;
                if waiting.is_empty() {
                    self.lanes.remove(&lane);
                    self.round.retain(|other| *other != lane);
                    self.passed.retain(|other| *other != lane);
                }
                return false;
            }
        }
        self.turn = false;
        self.call();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::key::of_ip;

    fn is_called(called: &mut oneshot::Receiver<()>) -> bool {
        called.try_recv().is_ok()
    }

    fn lane(n: u8) -> Lane {
        Some(of_ip([10, 0, 0, n].into(), 64))
    }

    fn join(queue: &mut Queue, lane: Lane) -> (u64, oneshot::Receiver<()>) {
        let tried = !queue.lines_up(lane);
        queue.join((lane, tried), 1000, 1.0).unwrap()
    }

    #[test]
    fn first_come_first_served_within_the_bound() {
        let mut queue = Queue::default();
        let (a, mut a_called) = queue.join((None, true), 2, 0.5).unwrap();
        let (b, mut b_called) = queue.join((None, false), 2, 0.5).unwrap();
        assert_eq!(queue.join((None, false), 2, 0.5).unwrap_err(), Full);
        assert!(!is_called(&mut a_called), "it has just tried");
        queue.freed();
        queue.freed();
        assert!(is_called(&mut a_called) && !is_called(&mut b_called), "one at a time");
        // Nothing was to be had: still before the other.
        let mut a_called = queue.rejoin(None, a);
        assert!(!is_called(&mut a_called) && !is_called(&mut b_called));
        queue.freed();
        assert!(is_called(&mut a_called) && !is_called(&mut b_called));
        assert!(queue.leave(None, a));
        assert!(is_called(&mut b_called) && !queue.is_idle());
        assert!(queue.leave(None, b) && queue.is_idle());
    }

    #[test]
    fn who_has_gone_is_passed_over_and_a_turn_keeps_others_in_line() {
        let mut queue = Queue::default();
        let (_, a_called) = join(&mut queue, None);
        let (b, mut b_called) = join(&mut queue, None);
        drop(a_called);
        queue.freed();
        assert!(is_called(&mut b_called));
        assert!(queue.len() == 0 && !queue.is_idle() && queue.lines_up(lane(1)));
        assert!(queue.leave(None, b) && queue.is_idle());
        queue.freed(); // nobody: nothing
        assert!(queue.is_idle() && !queue.lines_up(None));
    }

    #[test]
    fn an_address_with_many_waiters_is_one_of_several_and_has_its_share_of_the_queue() {
        let mut queue = Queue::default();
        let mut many: Vec<_> = (0..5).map(|_| queue.join((lane(1), true), 10, 0.5).unwrap()).collect();
        assert_eq!(queue.join((lane(1), false), 10, 0.5).unwrap_err(), Full, "half of ten");
        let (other, mut other_called) = queue.join((lane(2), true), 10, 0.5).unwrap();
        queue.freed();
        assert!(is_called(&mut many[0].1));
        // It has what it wanted; the next place is the other one's, though four came before it.
        assert!(queue.leave(lane(1), many[0].0));
        assert!(is_called(&mut other_called));
        assert!(queue.leave(lane(2), other));
        assert!(is_called(&mut many[1].1));
    }

    #[test]
    fn who_cannot_have_what_there_is_stands_in_nobodys_way() {
        let mut queue = Queue::default();
        let (held_back, mut called) = join(&mut queue, lane(1));
        queue.freed();
        assert!(is_called(&mut called));
        // Its address has its share: it waits on, and whoever comes may try at once.
        let mut called = queue.rejoin(lane(1), held_back);
        assert!(!queue.lines_up(lane(2)) && queue.lines_up(lane(1)));
        let (second, mut second_called) = join(&mut queue, lane(2));
        queue.freed();
        assert!(is_called(&mut called) && !is_called(&mut second_called));
        queue.rejoin(lane(1), held_back);
        assert!(is_called(&mut second_called), "the turn is passed on");
        assert!(queue.leave(lane(2), second) && !queue.leave(lane(1), held_back) && queue.is_idle());
    }

    #[test]
    fn whatever_comes_and_goes_it_ends_empty() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut queue, mut waiting) = (Queue::default(), Vec::new());
            for _ in 0..300 {
                match rng.random_range(0..4) {
                    0 | 1 => {
                        let lane = lane(rng.random_range(0..5));
                        let (id, called) = join(&mut queue, lane);
                        waiting.push((lane, id, called));
                    }
                    2 => queue.freed(),
                    _ if waiting.is_empty() => {}
                    _ => {
                        let index = rng.random_range(0..waiting.len());
                        let (lane, id, mut called) = waiting.swap_remove(index);
                        if is_called(&mut called) && rng.random_bool(0.5) {
                            waiting.push((lane, id, queue.rejoin(lane, id)));
                        } else {
                            queue.leave(lane, id);
                        }
                    }
                }
                let called = waiting.iter_mut().filter(|(.., called)| !called.is_empty()).count();
                assert!(called <= 1, "seed {seed}: {called} have their turn");
                assert_eq!(queue.len() + called, waiting.len(), "seed {seed}");
            }
            for (lane, id, _) in waiting {
                queue.leave(lane, id);
            }
            assert!(queue.is_idle() && queue.lanes.is_empty() && queue.round.is_empty(), "seed {seed}");
            assert!(queue.passed.is_empty(), "seed {seed}");
        }
    }
}
