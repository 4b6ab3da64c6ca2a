//! What `broker.data_dir` keeps: one log for all shards and for the metadata group.
//!
//! ```text
//!  <data_dir>/lock                  one process at a time
//!             identity.json         format, cluster, broker
//!             0000000000000001.log  segments: frames of records, appended, freed oldest first
//! ```
//!
//! | file | |
//! |---|---|
//! | `frame`, `record` | the bytes: frames with a number and a checksum, and what they carry |
//! | `queue`, `batch`, `writer` | from calls to synced frames, and back as [`Event`]s |
//! | `image`, `recover` | what a start makes of it |
//! | `ledger` | which segments are still needed, and whose state would free them |
//! | `group` | the store of the metadata group |
//! | `identity`, `files` | whose directory, and how files are touched |
//!
//! **A log of our own.** The embedded stores were tried, and each lacks something that we promise:
//!
//! - *fjall 3.1* has the right shape (one journal, `Buffer` and `SyncData`), but takes a flipped bit
//!   in its journal for its end: with 200 synced writes, a flip in 11 of 40 neighbouring bytes made a
//!   start find about 100 of them, without an error. What is cut off is not reported. A full disk
//!   poisons it until it is opened anew.
//! - *redb 4.6* cannot commit without a sync so that a killed process does not lose it
//!   (`Durability::None` changes the header in memory only), so `interval` and `never` are not to be
//!   had; a commit costs whole pages for each shard (four times fjall's CPU, twice the bytes). After a
//!   full disk it fails until it is opened anew, which reads all of it.
//!
//! We need much less than a store: no lookups (all is in memory), appends, and one pass at a start.
//!
//! **One sync for all.** What waits while a sync is under way goes into the next frame, whatever its
//! shard; a frame is there whole or not at all.
//!
//! **States bound the log.** A shard whose log grew is asked for its applied state
//! ([`Event::SnapshotWanted`]), which goes into the log too; so is one that alone keeps an old segment,
//! when the log is over its budget. Segments go when what replaces them is synced.
//!
//! **Damage is not passed over.** Frames say up to where everything was synced. A broken frame at the
//! end that nobody vouches for is a torn write: cut off, and reported. One that a later frame vouches
//! for is an error at the start: the other brokers have what was lost, so the directory is to be moved
//! away. A flip in the very last write before a crash looks like a torn one; after an orderly
//! end nothing is excused.
//!
//! **A disk that is full or fails** ([`State`]): nothing new is admitted, what waits is tried again
//! until it succeeds, and nothing is told as persisted before. A sync that failed is never repeated on
//! the same file: its frame is written again to a new one. Where earlier writes had been told already
//! (`interval`, `never`), all shards are asked for their states.
//!
//! **Who may have forgotten.** Under `interval` and `never` a power failure may lose what was
//! acknowledged. A start after an end without a mark, in another boot of the machine, says so
//! ([`Report::may_have_lost`]): such a broker must come back as another one ([`Disk::forget_group`]).
//! A killed process loses nothing under any policy.

mod batch;
mod files;
mod frame;
mod group;
mod identity;
mod image;
mod ledger;
mod queue;
mod record;
mod recover;
#[cfg(test)]
mod tests;
mod writer;

use crate::meta::store::MetaStore;
use bytes::Bytes;
use files::{Directory, Files};
use group::GroupStore;
use identity::Held;
use queue::{Op, Queue};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use weir_core::sync::lock;
use weir_wire::replica::Place;
use writer::Writer;

pub use identity::Identity;
pub use image::Shard;
pub use queue::Counts;
pub use recover::{Cut, Damage};

/// When a write counts as persisted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// After a sync that it shares with all that waits.
    Always,
    /// Once the system has it; synced so often.
    Interval(Duration),
    /// Once the system has it; synced only when a segment is full.
    Never,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub fsync: Fsync,
    pub segment_bytes: u64,
    /// Over so many bytes, or three times the states if that is more, or so many segments,
    /// states are asked for that free the oldest segment.
    pub log_bytes: u64,
    pub segments: usize,
    /// A shard's own bytes since its last state, before it is asked for one.
    pub snapshot_after: usize,
    /// Handed over and not written; over it nothing is admitted.
    pub queue_bytes: usize,
}

impl Options {
    pub fn new(fsync: Fsync) -> Options {
        Options {
            fsync,
            segment_bytes: 16 << 20,
            log_bytes: 256 << 20,
            segments: 64,
            snapshot_after: 4 << 20,
            queue_bytes: 32 << 20,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("broker.data_dir {}: {doing}: {error}", path.display())]
    Io { path: PathBuf, doing: &'static str, error: io::Error },
    #[error("broker.data_dir {} is in use by another process; give each broker its own", path.display())]
    InUse { path: PathBuf },
    #[error("broker.data_dir: {} was not made by Weir; give an empty directory", path.display())]
    NotOurs { path: PathBuf },
    #[error("{} has format {found}, this version knows {known}; start the version that wrote it", path.display())]
    Format { path: PathBuf, found: u32, known: u32 },
    #[error(
        "broker.data_dir {}: {damage}. Move the directory away: the broker then starts as a new one \
         and copies its shards from the others; without others, restore it from a backup",
        path.display()
    )]
    Damaged { path: PathBuf, damage: Damage },
    #[error("broker.data_dir {} belongs to broker {} of cluster {}", path.display(), owner.broker, owner.cluster)]
    OtherOwner { path: PathBuf, owner: Identity },
}

/// What the start found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The last process ended in an orderly way; also for a new directory.
    pub clean: bool,
    /// Promises of before may be missing: this broker must not pass for the one of before.
    pub may_have_lost: bool,
    /// A write under way at the end was cut off; it had not been promised under `always`.
    pub cut: Option<Cut>,
    pub segments: usize,
    pub bytes: u64,
}

pub struct Opened {
    pub disk: Disk,
    pub events: Events,
    pub meta: Arc<dyn MetaStore>,
    pub shards: BTreeMap<u16, Shard>,
    /// `None` until [`Disk::claim`].
    pub identity: Option<Identity>,
    pub report: Report,
}

/// Whether writing works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// No space. It is tried again by itself.
    Full,
    /// Writes or syncs fail. It is tried again by itself.
    Failed,
    Closed,
}

/// Why nothing is admitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("too much waits for the disk")]
    Busy,
    #[error("the disk is full")]
    Full,
    #[error("the disk fails")]
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All writes of the shard up to this one, since it was last retired.
    Persisted {
        shard: u16,
        write: u64,
    },
    /// Its applied state would shorten the log: see [`Disk::snapshot`]. Repeated now and then.
    SnapshotWanted {
        shard: u16,
    },
    State(State),
}

/// What is done, in the order of the writes of each shard. May be fetched late: of each shard the
/// last counts.
#[derive(Debug)]
pub struct Events(Arc<Queue>);

impl Events {
    /// Waits until there is one. May be dropped while it waits.
    pub async fn next(&mut self) -> Vec<Event> {
        self.0.events().await
    }
}

/// Hands writes to the thread that carries them out, in order. None of them waits; ask
/// [`Disk::admit`] *before* something is proposed or taken from a peer, as what a replica has
/// taken must reach the disk. Dropping it ends the thread as a crash would; see [`Disk::close`].
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    queue: Arc<Queue>,
    group: Arc<GroupStore>,
    thread: Mutex<Option<JoinHandle<()>>>,
    held: Option<Held>,
    identity: Mutex<Option<Identity>>,
}

impl Disk {
    /// Reads everything. Blocks.
    pub fn open(dir: &Path, fsync: Fsync) -> Result<Opened, OpenError> {
        Disk::open_with(dir, Options::new(fsync))
    }

    pub fn open_with(dir: &Path, options: Options) -> Result<Opened, OpenError> {
        let (held, identity) = Held::take(dir)?;
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let files = Arc::new(Directory(dir.into()));
        Disk::assemble(dir, files, options, boot.into(), Some(held), identity)
    }

    fn assemble(
        dir: &Path,
        files: Arc<dyn Files>,
        options: Options,
        boot: Bytes,
        held: Option<Held>,
        identity: Option<Identity>,
    ) -> Result<Opened, OpenError> {
        let damaged = |damage| OpenError::Damaged { path: dir.into(), damage };
        let mut found = recover::recover(&*files).map_err(|damage| match damage {
            Damage::Io { file, error } => OpenError::Io { path: dir.join(file), doing: "reading", error },
            damage => damaged(damage),
        })?;
        if identity.is_some() && found.segments.is_empty() {
            return Err(damaged(Damage::Missing { file: "every segment".into() }));
        }
        let image = std::mem::take(&mut found.image);
        let clean = found.segments.is_empty() || (image.clean && found.cut.is_none());
        let promised =
            image.opened.clone().is_none_or(|(always, of)| always || (of == boot && !of.is_empty()));
        let report = Report {
            clean,
            may_have_lost: !clean && !promised,
            cut: found.cut.clone(),
            segments: found.segments.len(),
            bytes: found.segments.iter().map(|(_, bytes)| bytes).sum(),
        };
        let (shards, group) = image.finish().map_err(|hole| damaged(Damage::Hole(hole)))?;
        let queue = Arc::new(Queue::new(options.queue_bytes));
        let saved = Mutex::new(group.saved());
        let failed = |doing| move |error| OpenError::Io { path: dir.into(), doing, error };
        let writer = Writer::start(files, queue.clone(), options, boot, found, group)
            .map_err(failed("beginning a segment"))?;
        let thread = thread::Builder::new().name("weir-disk".into()).spawn(move || writer.run());
        let thread = thread.map_err(failed("starting the thread that writes"))?;
        let group = Arc::new(GroupStore { queue: queue.clone(), saved });
        let (meta, events) = (group.clone(), Events(queue.clone()));
        let disk = Disk {
            path: dir.into(),
            queue,
            group,
            thread: Mutex::new(Some(thread)),
            held,
            identity: Mutex::new(identity),
        };
        Ok(Opened { disk, events, meta, shards, identity, report })
    }

    /// From now on only this broker of this cluster may use the directory.
    pub fn claim(&self, mine: Identity) -> Result<(), OpenError> {
        let mut identity = lock(&self.identity);
        match *identity {
            Some(owner) if owner == mine => return Ok(()),
            Some(owner) => return Err(OpenError::OtherOwner { path: self.path.clone(), owner }),
            None => {}
        }
        if let Some(held) = &self.held {
            let doing = "writing identity.json";
            let written = held.write(Some(mine));
            written.map_err(|error| OpenError::Io { path: self.path.clone(), doing, error })?;
        }
        *identity = Some(mine);
        Ok(())
    }

    /// The next [`Group`](crate::meta::Group) started on this store is another broker. What the
    /// shards hold stays, for it to catch up from.
    pub async fn forget_group(&self) -> io::Result<()> {
        if let Some(held) = &self.held {
            held.write(None)?;
        }
        *lock(&self.identity) = None;
        self.group.clear().await
    }

    /// Whether something new may be taken that leads to writes.
    pub fn admit(&self) -> Result<(), Refused> {
        self.queue.admit()
    }

    pub fn state(&self) -> State {
        self.queue.state()
    }

    pub fn waiting_bytes(&self) -> usize {
        self.queue.waiting_bytes()
    }

    pub fn counts(&self) -> &Counts {
        &self.queue.counts
    }

    pub fn write(&self, shard: u16, write: u64, at: Place, data: Bytes) {
        self.queue.push(Op::Write { shard, write, at, data });
    }

    pub fn truncate(&self, shard: u16, write: u64, after: u64) {
        self.queue.push(Op::Truncate { shard, write, after });
    }

    /// The state becomes this one, and the log goes on after `at`; both or nothing.
    pub fn install(&self, shard: u16, write: u64, at: Place, resets: u64, data: Bytes) {
        self.queue.push(Op::State { shard, at, data, install: Some((write, resets)) });
    }

    pub fn reset(&self, shard: u16, write: u64, resets: u64, keep: bool) {
        self.queue.push(Op::Reset { shard, write, resets, keep });
    }

    /// The applied state as of `at`, an entry that is committed: what is before it may go.
    pub fn snapshot(&self, shard: u16, at: Place, data: Bytes) {
        self.queue.push(Op::State { shard, at, data, install: None });
    }

    /// The shard is not held any more. Its writes may be numbered anew.
    pub fn retire(&self, shard: u16) {
        self.queue.push(Op::Retire { shard });
    }

    /// Carries out what waits, syncs, and leaves the mark of an orderly end. Blocks. While the disk
    /// fails it gives up on what waits, and leaves no mark.
    pub fn close(&self) {
        self.queue.close();
        self.join();
    }

    fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes to the data directory panicked");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if lock(&self.thread).is_some() {
            self.queue.abandon();
            self.join();
        }
    }
}
