//! The thread that writes: a frame, a sync if the policy asks for one, then it tells. A write that
//! failed is tried again until it succeeds, so there is never a hole; meanwhile nothing new is
//! admitted.

use super::batch::{Backlog, Batch, Note};
use super::files::{Appender, Files};
use super::frame::{self, Head};
use super::image::Group;
use super::ledger::Ledger;
use super::queue::{Queue, Work};
use super::record::Record;
use super::recover::{Recovered, name};
use super::{Fsync, Options, State};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A wanted snapshot that does not come is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// So many shards are asked at once to free old segments.
const ASKED_AT_ONCE: usize = 16;

pub struct Writer {
    files: Arc<dyn Files>,
    queue: Arc<Queue>,
    options: Options,
    boot: Bytes,
    backlog: Backlog,
    ledger: Ledger,
    group: Group,
    segments: VecDeque<(u64, u64)>,
    active: Option<Active>,
    next_segment: u64,
    next_frame: u64,
    /// Up to this frame everything is on disk, and segments before `oldest` are not needed by that.
    synced: u64,
    oldest: u64,
    synced_at: Instant,
    asked: BTreeMap<u16, Instant>,
    /// A sync failed after writes had been told: all shards are to be written anew.
    doubtful: bool,
}

struct Active {
    number: u64,
    file: Box<dyn Appender>,
    length: u64,
    dirty: bool,
}

pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Writer {
    /// Begins a segment, so that what cannot be written is known at once.
    pub fn start(
        files: Arc<dyn Files>,
        queue: Arc<Queue>,
        options: Options,
        boot: Bytes,
        found: Recovered,
        group: Group,
    ) -> io::Result<Writer> {
        let mut writer = Writer {
            files,
            queue,
            options,
            boot,
            backlog: Backlog::new(found.next_frame),
            ledger: found.ledger,
            group,
            oldest: found.segments.front().map_or(0, |(number, _)| *number),
            segments: found.segments,
            active: None,
            next_segment: found.next_segment,
            next_frame: found.next_frame,
            synced: found.next_frame - 1,
            synced_at: Instant::now(),
            asked: BTreeMap::new(),
            doubtful: false,
        };
        writer.roll()?;
        Ok(writer)
    }

    pub fn run(mut self) {
        loop {
            if self.backlog.is_empty() {
                match self.queue.take(self.until_sync()) {
                    Work::Ops(ops) => self.backlog.ops = ops,
                    Work::Timeout => {
                        self.sync_in_time();
                        continue;
                    }
                    Work::Closing => break,
                    Work::Abandoned => return self.queue.end(),
                }
            } else {
                self.queue.take_more(&mut self.backlog.ops);
            }
            let batch = self.backlog.batch(&self.ledger);
            if !self.persist(batch) {
                return self.queue.end();
            }
            if self.until_sync().is_some_and(|d| d.is_zero()) {
                self.sync_in_time();
            }
        }
        let mut last = Batch::new();
        Record::Clean.put(&mut last.buffer);
        last.sync = true;
        // Frames before the mark are on disk before it, so that damage among them is told from a cut.
        let closed = self.sync().and_then(|()| self.attempt(&mut last));
        if let Err(error) = closed {
            tracing::error!(%error, "the data directory could not be closed in order");
        }
        self.queue.end();
    }

    fn until_sync(&self) -> Option<Duration> {
        let Fsync::Interval(interval) = self.options.fsync else { return None };
        let dirty = self.active.as_ref().is_some_and(|a| a.dirty);
        (dirty || self.doubtful).then(|| interval.saturating_sub(self.synced_at.elapsed()))
    }

    fn sync_in_time(&mut self) {
        self.synced_at = Instant::now();
        match self.sync() {
            Ok(()) => self.recovered(),
            Err(error) => self.failed(&error),
        }
    }

    /// Until it is written. Once the disk is closed, a failure is the last.
    fn persist(&mut self, mut batch: Batch) -> bool {
        let (mut pause, mut closing) = (FIRST_PAUSE, false);
        while let Err(error) = self.attempt(&mut batch) {
            self.failed(&error);
            if closing {
                return false;
            }
            closing = !self.queue.pause(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.recovered();
        self.tell(batch);
        if let Err(error) = self.free() {
            self.failed(&error);
        }
        true
    }

    fn failed(&self, error: &io::Error) {
        self.queue.counts.errors.fetch_add(1, Relaxed);
        let state = if is_full(error) { State::Full } else { State::Failed };
        if self.queue.state() != state {
            tracing::error!(%error, ?state, "writing to the data directory fails; publications are refused");
        }
        self.queue.set_state(state);
    }

    fn recovered(&self) {
        if self.queue.state() != State::Ok {
            tracing::info!("writing to the data directory works again");
            self.queue.set_state(State::Ok);
        }
    }

    fn head(&self) -> Head {
        Head { number: self.next_frame, synced: self.synced, oldest: self.oldest }
    }

    fn attempt(&mut self, batch: &mut Batch) -> io::Result<()> {
        if self.active.as_ref().is_none_or(|a| a.length >= self.options.segment_bytes) {
            self.roll()?;
            // All of before is on disk, under any policy.
            self.free()?;
        }
        let head = self.head();
        let Some(active) = &mut self.active else { return Err(io::Error::other("no segment")) };
        frame::seal(&mut batch.buffer, head);
        if let Err(error) = active.file.append(&batch.buffer) {
            // What a part of it left must not stand between frames.
            let clean = active.file.cut(active.length).is_ok();
            if !clean || !is_full(&error) {
                self.give_up(false);
            }
            return Err(error);
        }
        active.dirty = true;
        let length = active.length + batch.buffer.len() as u64;
        if batch.sync || self.options.fsync == Fsync::Always {
            // Only this frame is in doubt after a failed sync; it is written again elsewhere.
            let number = self.next_frame;
            if let Err(error) = self.sync_active() {
                self.give_up(true);
                return Err(error);
            }
            self.synced = number;
        }
        self.next_frame += 1;
        self.written(length);
        Ok(())
    }

    fn written(&mut self, length: u64) {
        if let Some(active) = &mut self.active {
            let more = length - active.length;
            active.length = length;
            self.queue.counts.written_bytes.fetch_add(more, Relaxed);
            if let Some(last) = self.segments.back_mut() {
                last.1 = length;
            }
        }
        let total = self.segments.iter().map(|(_, bytes)| bytes).sum();
        self.queue.counts.log_bytes.store(total, Relaxed);
        self.queue.counts.segments.store(self.segments.len() as u64, Relaxed);
    }

    /// The segment is not trusted any more. What it has that was told but not synced is in doubt,
    /// and a second sync after one that failed would not prove anything.
    fn give_up(&mut self, sync_failed: bool) {
        if let Some(mut active) = self.active.take()
            && self.synced + 1 < self.next_frame
            && (sync_failed || active.file.sync().is_err())
        {
            self.doubtful = true;
        }
    }

    fn sync_active(&mut self) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.dirty {
            self.queue.counts.syncs.fetch_add(1, Relaxed);
            active.file.sync()?;
            active.dirty = false;
            self.synced_at = Instant::now();
        }
        Ok(())
    }

    /// A sync that failed is not repeated: the pages may pass for clean by then.
    fn sync(&mut self) -> io::Result<()> {
        if let Err(error) = self.sync_active() {
            self.active = None;
            self.doubtful = true;
            return Err(error);
        }
        self.synced = self.next_frame - 1;
        if self.doubtful {
            self.roll()?;
        }
        self.free()
    }

    /// Begins the next segment with all that must not depend on older ones.
    fn roll(&mut self) -> io::Result<()> {
        if self.sync_active().is_err() {
            self.doubtful = true;
        }
        self.active = None;
        let number = self.next_segment;
        self.next_segment += 1;
        let mut file = self.files.create(&name(number))?;
        let mut buffer = frame::begin();
        let always = self.options.fsync == Fsync::Always;
        Record::Opened { always, boot: self.boot.clone() }.put(&mut buffer);
        self.group.records().for_each(|record| record.put(&mut buffer));
        if self.oldest == 0 {
            self.oldest = number;
        }
        frame::seal(&mut buffer, self.head());
        let begun = file.append(&buffer).and_then(|()| file.sync());
        if let Err(error) = begun.and_then(|()| self.files.sync_names()) {
            if self.oldest == number {
                self.oldest = 0;
            }
            // One that stays is known by its first frame, which the next one repeats.
            let _ = self.files.remove(&name(number));
            return Err(error);
        }
        if !std::mem::take(&mut self.doubtful) {
            self.synced = self.next_frame;
        } else {
            let shards: Vec<u16> = self.ledger.shards().collect();
            tracing::error!(shards = shards.len(), "a sync failed: all shards are written anew");
            self.queue.done(0, &[], &shards);
        }
        self.next_frame += 1;
        self.segments.push_back((number, 0));
        self.active = Some(Active { number, file, length: 0, dirty: false });
        self.written(buffer.len() as u64);
        Ok(())
    }

    /// What is written is noted and told.
    fn tell(&mut self, batch: Batch) {
        let Some(segment) = self.active.as_ref().map(|a| a.number) else { return };
        let mut wanted = Vec::new();
        for note in batch.notes {
            match note {
                Note::Entry { shard, index, bytes } => {
                    self.ledger.entry(segment, shard, index, bytes);
                    if self.ledger.is_long(shard, self.options.snapshot_after) {
                        self.want(shard, &mut wanted);
                    }
                }
                Note::Part { shard, id, bytes } => self.ledger.part(segment, shard, id, bytes),
                Note::Record(record) => {
                    if let Record::State { shard, .. } = record {
                        self.asked.remove(&shard);
                    }
                    self.ledger.note(segment, &record);
                }
            }
        }
        batch.group.into_iter().for_each(|record| self.group.apply(record));
        self.ask_the_oldest(&mut wanted);
        self.queue.counts.entries.fetch_add(batch.entries, Relaxed);
        self.queue.done(batch.cost, &batch.persisted, &wanted);
        for answer in batch.answers {
            // Whoever asked may have gone.
            let _ = answer.send(Ok(()));
        }
    }

    fn want(&mut self, shard: u16, wanted: &mut Vec<u16>) {
        let now = Instant::now();
        if self.asked.get(&shard).is_none_or(|at| now.duration_since(*at) >= ASK_AGAIN) {
            self.asked.insert(shard, now);
            wanted.push(shard);
        }
    }

    /// Over the budget, those who hold the oldest segment are to write their states anew.
    fn ask_the_oldest(&mut self, wanted: &mut Vec<u16>) {
        let total: u64 = self.segments.iter().map(|(_, bytes)| bytes).sum();
        let budget = self.options.log_bytes.max(3 * self.ledger.state_bytes());
        let many = self.segments.len() > self.options.segments;
        let Some((oldest, _)) = self.segments.front().copied() else { return };
        if (total > budget || many) && self.segments.len() > 1 {
            let holding: Vec<u16> = self.ledger.holding(oldest).take(ASKED_AT_ONCE).collect();
            holding.into_iter().for_each(|shard| self.want(shard, wanted));
        }
    }

    /// Removes segments that nobody needs by what is on disk, once that is on disk itself.
    fn free(&mut self) -> io::Result<()> {
        let Some(active) = self.active.as_ref().map(|a| a.number) else { return Ok(()) };
        if self.synced + 1 != self.next_frame {
            return Ok(());
        }
        self.oldest = self.oldest.max(self.ledger.oldest(active));
        let oldest = self.oldest;
        if self.segments.front().is_none_or(|(number, _)| *number >= oldest) {
            return Ok(());
        }
        let mut mark = Batch::new();
        mark.sync = true;
        self.attempt(&mut mark)?;
        while let Some((number, _)) = self.segments.front().copied().filter(|(n, _)| *n < oldest) {
            self.files.remove(&name(number))?;
            self.segments.pop_front();
        }
        self.files.sync_names()
    }
}
