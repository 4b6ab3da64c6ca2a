//! Between those who hand over writes and the thread that carries them out: what waits, and what
//! is told when it is done. What is told is bounded by the number of shards, however late it is
//! fetched: of each shard only the last number counts.

use super::record::Record;
use super::{Event, Refused, State};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use weir_core::sync::lock;
use weir_wire::replica::Place;

#[derive(Debug)]
pub enum Op {
    Write {
        shard: u16,
        write: u64,
        at: Place,
        data: Bytes,
    },
    Truncate {
        shard: u16,
        write: u64,
        after: u64,
    },
    Reset {
        shard: u16,
        write: u64,
        resets: u64,
        keep: bool,
    },
    /// Installed if it has a write's number and `resets`; otherwise a snapshot for compaction.
    State {
        shard: u16,
        at: Place,
        data: Bytes,
        install: Option<(u64, u64)>,
    },
    Retire {
        shard: u16,
    },
    Group {
        records: Vec<Record>,
        done: oneshot::Sender<io::Result<()>>,
    },
}

/// What it costs to wait.
const OVERHEAD: usize = 96;

impl Op {
    pub fn cost(&self) -> usize {
        OVERHEAD
            + match self {
                Op::Write { data, .. } | Op::State { data, .. } => data.len(),
                _ => 0,
            }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    ops: VecDeque<Op>,
    closing: bool,
    /// Ends at once, with what waits lost.
    abandoned: bool,
    /// The thread has ended; nothing will be carried out any more.
    ended: bool,
    asleep: bool,
}

#[derive(Debug, Default)]
struct Told {
    persisted: BTreeMap<u16, u64>,
    wanted: BTreeSet<u16>,
    state: Option<State>,
    /// A shard that was given up has nothing told of its life before.
    lives: BTreeMap<u16, u32>,
}

#[derive(Debug)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    work: Condvar,
    told: Mutex<Told>,
    news: Notify,
    bytes: AtomicUsize,
    limit: usize,
    state: AtomicU8,
    pub counts: Counts,
}

/// For metrics.
#[derive(Debug, Default)]
pub struct Counts {
    pub written_bytes: AtomicU64,
    pub entries: AtomicU64,
    pub syncs: AtomicU64,
    pub errors: AtomicU64,
    pub log_bytes: AtomicU64,
    pub segments: AtomicU64,
}

/// What the thread finds to do.
pub enum Work {
    Ops(VecDeque<Op>),
    Timeout,
    Closing,
    Abandoned,
}

impl Queue {
    pub fn new(limit: usize) -> Queue {
        Queue {
            waiting: Mutex::default(),
            work: Condvar::new(),
            told: Mutex::default(),
            news: Notify::new(),
            bytes: AtomicUsize::new(0),
            limit,
            state: AtomicU8::new(0),
            counts: Counts::default(),
        }
    }

    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Ok,
            1 => State::Full,
            2 => State::Failed,
            _ => State::Closed,
        }
    }

    pub fn admit(&self) -> Result<(), Refused> {
        match self.state() {
            State::Ok if self.bytes.load(Ordering::Relaxed) < self.limit => Ok(()),
            State::Ok => Err(Refused::Busy),
            State::Full => Err(Refused::Full),
            State::Failed | State::Closed => Err(Refused::Failed),
        }
    }

    pub fn waiting_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Dropped after the thread has ended; a group's caller then learns it by its channel.
    pub fn push(&self, op: Op) {
        let mut waiting = lock(&self.waiting);
        if waiting.ended {
            return;
        }
        self.bytes.fetch_add(op.cost(), Ordering::Relaxed);
        if let Op::Retire { shard } = op {
            let mut told = lock(&self.told);
            *told.lives.entry(shard).or_default() += 1;
            told.persisted.remove(&shard);
            told.wanted.remove(&shard);
        }
        waiting.ops.push_back(op);
        if std::mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.work.notify_one();
        }
    }

    pub fn close(&self) {
        lock(&self.waiting).closing = true;
        self.work.notify_all();
    }

    pub fn abandon(&self) {
        lock(&self.waiting).abandoned = true;
        self.close();
    }

    pub fn end(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.ended = true;
        waiting.ops.clear();
        drop(waiting);
        self.set_state(State::Closed);
    }

    /// Everything that waits, or after `patience` nothing.
    pub fn take(&self, patience: Option<Duration>) -> Work {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.abandoned {
                return Work::Abandoned;
            }
            if !waiting.ops.is_empty() {
                return Work::Ops(std::mem::take(&mut waiting.ops));
            }
            if waiting.closing {
                return Work::Closing;
            }
            waiting.asleep = true;
            let Some(patience) = patience else {
                waiting = self.work.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let woken = self.work.wait_timeout(waiting, patience);
            let (guard, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            waiting.asleep = false;
            if timeout.timed_out() && waiting.ops.is_empty() && !waiting.closing {
                return Work::Timeout;
            }
        }
    }

    /// What came meanwhile, without waiting.
    pub fn take_more(&self, into: &mut VecDeque<Op>) {
        into.append(&mut lock(&self.waiting).ops);
    }

    /// Waits before a try is repeated; `false` if it is not to be.
    pub fn pause(&self, pause: Duration) -> bool {
        let waiting = lock(&self.waiting);
        let woken = self.work.wait_timeout_while(waiting, pause, |w| !w.closing);
        !woken.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    pub fn done(&self, cost: usize, persisted: &[(u16, u32, u64)], wanted: &[u16]) {
        self.bytes.fetch_sub(cost, Ordering::Relaxed);
        if persisted.is_empty() && wanted.is_empty() {
            return;
        }
        let mut told = lock(&self.told);
        for (shard, life, write) in persisted {
            if told.lives.get(shard).copied().unwrap_or(0) == *life {
                told.persisted.insert(*shard, *write);
            }
        }
        told.wanted.extend(wanted);
        drop(told);
        self.news.notify_one();
    }

    pub fn set_state(&self, state: State) {
        let number = match state {
            State::Ok => 0,
            State::Full => 1,
            State::Failed => 2,
            State::Closed => 3,
        };
        if self.state.swap(number, Ordering::AcqRel) != number {
            lock(&self.told).state = Some(state);
            self.news.notify_one();
        }
    }

    pub async fn events(&self) -> Vec<Event> {
        loop {
            let (persisted, wanted, state) = {
                let mut told = lock(&self.told);
                let told = &mut *told;
                (std::mem::take(&mut told.persisted), std::mem::take(&mut told.wanted), told.state.take())
            };
            let mut events: Vec<Event> =
                persisted.into_iter().map(|(shard, write)| Event::Persisted { shard, write }).collect();
            events.extend(wanted.into_iter().map(|shard| Event::SnapshotWanted { shard }));
            events.extend(state.map(Event::State));
            if !events.is_empty() {
                return events;
            }
            self.news.notified().await;
        }
    }
}
