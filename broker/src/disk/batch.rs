//! Ops become frames: all that waits goes into one, up to a size, with what is to be noted and
//! told once it is written. States go along in pieces, so that nobody waits long behind one.

use super::frame;
use super::ledger::Ledger;
use super::queue::Op;
use super::record::{self, Record};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use tokio::sync::oneshot;
use weir_wire::replica::Place;

/// A frame takes no more ops over this.
const FRAME: usize = 1 << 20;
/// Of a state that goes along, and of one that others of its shard wait for.
const PIECE: usize = 128 << 10;
/// About what a state takes besides its bytes.
const RECORD: usize = 64;

/// One frame, not yet written.
#[derive(Debug)]
pub struct Batch {
    pub buffer: Vec<u8>,
    /// What to do when it is written.
    pub notes: Vec<Note>,
    pub persisted: Vec<(u16, u32, u64)>,
    pub group: Vec<Record>,
    pub answers: Vec<oneshot::Sender<io::Result<()>>>,
    pub cost: usize,
    pub entries: u64,
    /// On disk before anything is told, whatever the policy.
    pub sync: bool,
}

#[derive(Debug)]
pub enum Note {
    Entry { shard: u16, index: u64, bytes: usize },
    Part { shard: u16, id: u64, bytes: usize },
    Record(Record),
}

impl Batch {
    pub fn new() -> Batch {
        Batch {
            buffer: frame::begin(),
            notes: Vec::new(),
            persisted: Vec::new(),
            group: Vec::new(),
            answers: Vec::new(),
            cost: 0,
            entries: 0,
            sync: false,
        }
    }

    fn record(&mut self, record: Record) {
        record.put(&mut self.buffer);
        self.notes.push(Note::Record(record));
    }
}

/// A state on its way into the log.
#[derive(Debug)]
struct Transfer {
    shard: u16,
    id: u64,
    at: Place,
    data: Bytes,
    sent: usize,
    install: Option<(u64, u64)>,
    cost: usize,
}

/// What was taken from the queue and is not in a frame yet.
#[derive(Debug, Default)]
pub struct Backlog {
    pub ops: VecDeque<Op>,
    installing: Option<Transfer>,
    snapshots: VecDeque<Transfer>,
    /// As counted here; what is told must be of the same life.
    lives: BTreeMap<u16, u32>,
    /// Of shards that began anew, written or not.
    resets: BTreeMap<u16, u64>,
    next_id: u64,
}

impl Backlog {
    /// `first_id` is larger than any that the log has.
    pub fn new(first_id: u64) -> Backlog {
        Backlog { next_id: first_id, ..Backlog::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.installing.is_none() && self.snapshots.is_empty()
    }

    pub fn batch(&mut self, ledger: &Ledger) -> Batch {
        let mut batch = Batch::new();
        while batch.buffer.len() < FRAME {
            if self.installing.is_some() {
                self.install(&mut batch);
                continue;
            }
            let Some(op) = self.ops.pop_front() else { break };
            self.op(op, &mut batch);
        }
        self.snapshot(&mut batch, ledger);
        batch
    }

    fn op(&mut self, op: Op, batch: &mut Batch) {
        let cost = op.cost();
        match op {
            Op::Write { shard, write, at, data } => {
                record::put_entry(&mut batch.buffer, shard, at, &data);
                batch.notes.push(Note::Entry { shard, index: at.index, bytes: data.len() });
                batch.entries += 1;
                self.told(batch, shard, write);
            }
            Op::Truncate { shard, write, after } => {
                batch.record(Record::Truncate { shard, after });
                self.told(batch, shard, write);
            }
            Op::Reset { shard, write, resets, keep } => {
                self.forget_snapshots(shard, batch);
                self.resets.insert(shard, resets);
                batch.record(Record::Reset { shard, resets, keep });
                self.told(batch, shard, write);
            }
            Op::Retire { shard } => {
                self.forget_snapshots(shard, batch);
                self.resets.insert(shard, 0);
                *self.lives.entry(shard).or_default() += 1;
                batch.record(Record::Retire { shard });
            }
            Op::State { shard, at, data, install } => {
                self.forget_snapshots(shard, batch);
                self.next_id += 1;
                let transfer = Transfer { shard, id: self.next_id, at, data, sent: 0, install, cost };
                match install {
                    Some((_, resets)) => {
                        self.resets.insert(shard, resets);
                        self.installing = Some(transfer);
                    }
                    None => self.snapshots.push_back(transfer),
                }
                return;
            }
            Op::Group { records, done } => {
                records.iter().for_each(|r| r.put(&mut batch.buffer));
                batch.group.extend(records);
                batch.answers.push(done);
                batch.sync = true;
            }
        }
        batch.cost += cost;
    }

    fn told(&self, batch: &mut Batch, shard: u16, write: u64) {
        let life = self.lives.get(&shard).copied().unwrap_or(0);
        match batch.persisted.last_mut() {
            Some(last) if (last.0, last.1) == (shard, life) => last.2 = write,
            _ => batch.persisted.push((shard, life, write)),
        }
    }

    fn forget_snapshots(&mut self, shard: u16, batch: &mut Batch) {
        let gone = self.snapshots.iter().filter(|s| s.shard == shard);
        batch.cost += gone.map(|s| s.cost).sum::<usize>();
        self.snapshots.retain(|s| s.shard != shard);
    }

    /// What comes after it waits until it is whole.
    fn install(&mut self, batch: &mut Batch) {
        let Some(mut transfer) = self.installing.take() else { return };
        let room = FRAME.saturating_sub(batch.buffer.len()).max(PIECE);
        if !transfer.piece(batch, room) {
            self.installing = Some(transfer);
        } else if let Some((write, resets)) = transfer.install {
            transfer.end(batch, resets, true);
            self.told(batch, transfer.shard, write);
        }
    }

    /// Many small ones, or a piece of a large one.
    fn snapshot(&mut self, batch: &mut Batch, ledger: &Ledger) {
        let mut room = PIECE;
        while room > 0
            && let Some(mut transfer) = self.snapshots.pop_front()
        {
            let before = transfer.sent;
            if transfer.piece(batch, room) {
                let resets = self.resets.get(&transfer.shard).copied();
                let resets = resets.unwrap_or_else(|| ledger.resets(transfer.shard));
                transfer.end(batch, resets, false);
                room = room.saturating_sub(transfer.sent - before + RECORD);
            } else {
                self.snapshots.push_back(transfer);
                room = 0;
            }
        }
    }
}

impl Transfer {
    /// One more piece; whether that was all.
    fn piece(&mut self, batch: &mut Batch, room: usize) -> bool {
        let end = (self.sent + room).min(self.data.len());
        let piece = &self.data[self.sent..end];
        if !piece.is_empty() {
            record::put_part(&mut batch.buffer, self.shard, self.id, piece);
            batch.notes.push(Note::Part { shard: self.shard, id: self.id, bytes: piece.len() });
        }
        self.sent = end;
        end == self.data.len()
    }

    fn end(&self, batch: &mut Batch, resets: u64, install: bool) {
        let (shard, id, at, bytes) = (self.shard, self.id, self.at, self.data.len() as u64);
        batch.record(Record::State { shard, id, bytes, at, resets, install });
        batch.cost += self.cost;
    }
}
