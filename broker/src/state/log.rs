//! One channel's stream: epoch, offsets, and the publications that are still kept. Pure: the time
//! and the epoch are arguments, and nobody is told here.
//!
//! Offsets in the ring are contiguous and end at `top`: publications leave it at the old end only,
//! by size, by age, or because this broker's memory is short. A reader sees what is missing by the
//! offsets. Holders of one shard may keep different parts of a ring, so nothing else is ever
//! decided by what is in it: the stream's own end goes by `top_expires`, not by an empty ring.

use bytes::Bytes;
use std::collections::VecDeque;
use weir_wire::envelope::{ClientInfo, History, HistoryQuery, Position, Publication, StreamOptions};
use weir_wire::id::Epoch;
use weir_wire::snapshot;

#[derive(Debug)]
pub struct ChannelLog {
    epoch: Epoch,
    top: u64,
    ring: VecDeque<Kept>,
    bytes: usize,
    version: u64,
    version_epoch: String,
    last_use: u64,
    outlives_use: u64,
    /// The last use that this holder knows of: not counted ahead, and the same at no two holders.
    used_at: u64,
    /// When the newest publication's time is over; 0 once it was removed.
    top_expires: u64,
}

/// A publication, small: its offset is its place in the ring, and few have more than data.
#[derive(Debug)]
struct Kept {
    data: Bytes,
    more: Option<Box<More>>,
    at: u64,
    expires: u64,
}

#[derive(Debug)]
struct More {
    info: Option<ClientInfo>,
    tags: Vec<(String, String)>,
}

impl Kept {
    fn new(p: Publication, at: u64, expires: u64) -> Kept {
        let more = (p.info.is_some() || !p.tags.is_empty()).then_some(More { info: p.info, tags: p.tags });
        Kept { data: p.data, more: more.map(Box::new), at, expires }
    }

    fn publication(&self, offset: u64) -> Publication {
        let (info, tags) = match &self.more {
            Some(more) => (more.info.clone(), more.tags.clone()),
            None => (None, Vec::new()),
        };
        Publication { offset, data: self.data.clone(), info, tags }
    }

    /// What it occupies, allocations included; an estimate, but one that both appending and
    /// dropping use.
    fn size(&self) -> usize {
        let info =
            |i: &ClientInfo| i.user.len() + i.client.len() + i.conn_info.len() + i.chan_info.len() + 64;
        let more = self.more.as_ref().map_or(0, |more| {
            let tags: usize = more.tags.iter().map(|(k, v)| k.len() + v.len() + 48 + 32).sum();
            size_of::<More>() + 16 + more.info.as_ref().map_or(0, info) + tags
        });
        size_of::<Kept>() + 16 + self.data.len() + more
    }
}

/// Of a full ring, room for so many more: a ring of one takes the room of one.
const MOST_ROOM: usize = 64;

/// A use that changes nothing counts for this part of the stream's life ahead, so that not each
/// of them has to be written into the shard's log.
const AHEAD: u64 = 8;

impl ChannelLog {
    pub fn new(now: u64, epoch: Epoch, options: &StreamOptions) -> ChannelLog {
        let mut log = ChannelLog {
            epoch,
            top: 0,
            ring: VecDeque::new(),
            bytes: 0,
            version: 0,
            version_epoch: String::new(),
            last_use: now,
            outlives_use: 0,
            used_at: now,
            top_expires: 0,
        };
        log.used(now, options);
        log
    }

    /// Counts as a use: epoch and top live on for `meta_ttl`.
    fn used(&mut self, now: u64, options: &StreamOptions) {
        let outlives = outlives(options);
        // What was counted ahead stays.
        self.last_use = if outlives == self.outlives_use { self.last_use.max(now) } else { now };
        self.outlives_use = outlives;
    }

    /// The same for a use that leaves no publication.
    pub fn touch(&mut self, now: u64, options: &StreamOptions) {
        self.note_use(now);
        self.used(now.saturating_add(outlives(options) / AHEAD), options);
    }

    /// A use that nothing depends on but which streams end first where there are too many.
    pub fn note_use(&mut self, now: u64) {
        self.used_at = self.used_at.max(now);
    }

    pub fn used_at(&self) -> u64 {
        self.used_at
    }

    /// Whether there was ever a publication.
    pub fn is_published(&self) -> bool {
        self.top > 0
    }

    /// Whether such a use now is counted already.
    pub fn is_touched(&self, now: u64, options: &StreamOptions) -> bool {
        self.outlives_use == outlives(options) && now <= self.last_use
    }

    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Where the next publication goes.
    pub fn next(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top + 1 }
    }

    /// Appends what was given its offset by [`next`](Self::next).
    pub fn append(&mut self, now: u64, options: &StreamOptions, publication: Publication) {
        debug_assert_eq!(publication.offset, self.top + 1);
        self.note_use(now);
        self.used(now, options);
        self.top = publication.offset;
        let expires = now.saturating_add(options.ttl_ms);
        self.top_expires = if options.size == 0 { 0 } else { expires };
        // A shorter ttl than before holds for what is there too: the front stays the first to go.
        for kept in self.ring.iter_mut().rev().take_while(|k| k.expires > expires) {
            kept.expires = expires;
        }
        self.push(Kept::new(publication, now, expires));
        while self.ring.len() > options.size as usize {
            self.drop_front();
        }
        self.expire(now);
    }

    fn push(&mut self, kept: Kept) {
        if self.ring.len() == self.ring.capacity() {
            self.ring.reserve_exact(self.ring.len().clamp(1, MOST_ROOM));
        }
        self.bytes += kept.size();
        self.ring.push_back(kept);
    }

    /// The offset of the first one in the ring.
    fn first(&self) -> u64 {
        self.top + 1 - self.ring.len() as u64
    }

    /// Drops what is past its time.
    pub fn expire(&mut self, now: u64) {
        while self.ring.front().is_some_and(|k| k.expires <= now) {
            self.drop_front();
        }
    }

    pub fn read(&mut self, now: u64, query: &HistoryQuery) -> History {
        self.expire(now);
        let (first, count) = (self.first(), self.ring.len());
        // Index of the first publication after `offset`.
        let after = |offset: u64| (offset.saturating_add(1).max(first) - first).min(count as u64) as usize;
        let take = |it: &mut dyn Iterator<Item = usize>| {
            let kept = it.take(query.limit as usize).filter_map(|at| Some((at, self.ring.get(at)?)));
            kept.map(|(at, kept)| kept.publication(first + at as u64)).collect()
        };
        let publications = match query.since {
            Some(since) if since.epoch != self.epoch => Vec::new(),
            Some(since) if query.reverse => take(&mut (0..after(since.offset.saturating_sub(1))).rev()),
            Some(since) => take(&mut (after(since.offset)..count)),
            None if query.reverse => take(&mut (0..count).rev()),
            None => take(&mut (0..count)),
        };
        History { top: self.position(), publications }
    }

    /// Whether a publication of this version comes too late. Version 0 is none.
    pub fn is_stale(&self, version: u64, version_epoch: &str) -> bool {
        version != 0 && version_epoch == self.version_epoch && version <= self.version
    }

    pub fn set_version(&mut self, version: u64, version_epoch: String) {
        if version != 0 {
            (self.version, self.version_epoch) = (version, version_epoch);
        }
    }

    /// Forgets the publications; epoch and top stay.
    pub fn clear(&mut self) {
        self.ring.clear();
        self.ring.shrink_to(0);
        (self.bytes, self.top_expires) = (0, 0);
    }

    /// Memory held by publications.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest publication was made.
    pub fn oldest(&self) -> Option<u64> {
        self.ring.front().map(|k| k.at)
    }

    /// Drops the oldest publication, to free memory.
    pub fn drop_front(&mut self) {
        if let Some(kept) = self.ring.pop_front() {
            self.bytes -= kept.size();
        }
        // A burst must not hold its room for ever.
        if self.ring.capacity() > 64 && self.ring.len() < self.ring.capacity() / 4 {
            self.ring.shrink_to(self.ring.len() * 2);
        }
    }

    /// When there is something to expire next: a publication, or the log itself.
    pub fn deadline(&self) -> u64 {
        self.ring.front().map_or(self.end(), |k| k.expires)
    }

    /// From when on epoch and top may be forgotten too.
    fn end(&self) -> u64 {
        self.last_use.saturating_add(self.outlives_use).max(self.top_expires)
    }

    pub fn is_dead(&self, now: u64) -> bool {
        self.end() <= now
    }

    /// Offsets go on, under another epoch.
    pub fn renumber(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// For a snapshot.
    pub fn kept(&self) -> impl Iterator<Item = (Publication, u64, u64)> {
        (self.first()..).zip(&self.ring).map(|(offset, k)| (k.publication(offset), k.at, k.expires))
    }

    /// When each was made, and what it occupies.
    pub fn sizes(&self) -> impl Iterator<Item = (u64, usize)> {
        self.ring.iter().map(|k| (k.at, k.size()))
    }

    pub fn record(&self, channel: &str) -> snapshot::Stream {
        snapshot::Stream {
            channel: channel.to_owned(),
            epoch: self.epoch,
            top: self.top,
            version: self.version,
            version_epoch: self.version_epoch.clone(),
            last_use_ms: self.last_use,
            outlives_ms: self.outlives_use,
            top_expires_ms: self.top_expires,
        }
    }
}

/// A log that is read from a snapshot.
pub struct Restoring {
    log: ChannelLog,
    last: Option<u64>,
}

impl Restoring {
    pub fn new(record: snapshot::Stream) -> Restoring {
        let log = ChannelLog {
            epoch: record.epoch,
            top: record.top,
            ring: VecDeque::new(),
            bytes: 0,
            version: record.version,
            version_epoch: record.version_epoch,
            last_use: record.last_use_ms,
            outlives_use: record.outlives_ms,
            used_at: record.last_use_ms,
            top_expires: record.top_expires_ms,
        };
        Restoring { log, last: None }
    }

    /// One of its publications. False: they are not the last ones, or not in order.
    pub fn restore(&mut self, publication: Publication, at: u64, expires: u64) -> bool {
        let offset = publication.offset;
        if self.last.is_some_and(|last| last + 1 != offset) || offset > self.log.top {
            return false;
        }
        self.last = Some(offset);
        self.log.push(Kept::new(publication, at, expires));
        true
    }

    /// `None`: the publications do not end where they should.
    pub fn whole(self) -> Option<ChannelLog> {
        self.last.is_none_or(|last| last == self.log.top).then_some(self.log)
    }
}

fn outlives(options: &StreamOptions) -> u64 {
    options.meta_ttl_ms.max(options.ttl_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: StreamOptions = StreamOptions { size: 5, ttl_ms: 10_000, meta_ttl_ms: 60_000 };
    const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };

    fn publication(offset: u64) -> Publication {
        Publication { offset, data: Bytes::from(vec![0; 100]), info: None, tags: vec![] }
    }

    fn log_of(now: u64, count: u64) -> ChannelLog {
        let mut log = ChannelLog::new(now, Epoch(7), &OPTIONS);
        (1..=count).for_each(|o| log.append(now, &OPTIONS, publication(o)));
        log
    }

    fn offsets(history: &History) -> Vec<u64> {
        history.publications.iter().map(|p| p.offset).collect()
    }

    #[test]
    fn reads_both_ways_from_any_place() {
        let now = 1_000_000_u64;
        let mut log = log_of(now, 8); // Kept: 4 to 8.
        let at = |offset| Some(Position { epoch: Epoch(7), offset });
        for (since, limit, reverse, expected) in [
            (None, u32::MAX, false, vec![4, 5, 6, 7, 8]),
            (None, 2, false, vec![4, 5]),
            (None, 2, true, vec![8, 7]),
            (None, 0, false, vec![]),
            (at(0), u32::MAX, false, vec![4, 5, 6, 7, 8]),
            (at(5), u32::MAX, false, vec![6, 7, 8]),
            (at(5), 1, false, vec![6]),
            (at(8), 9, false, vec![]),
            (at(u64::MAX), 9, false, vec![]),
            (at(7), 9, true, vec![6, 5, 4]),
            (at(9), 1, true, vec![8]),
            (at(u64::MAX), 1, true, vec![8]),
            (at(4), 9, true, vec![]),
            (at(0), 9, true, vec![]),
            (Some(Position { epoch: Epoch(8), offset: 5 }), 9, false, vec![]),
        ] {
            let history = log.read(now, &HistoryQuery { since, limit, reverse });
            assert_eq!(offsets(&history), expected, "since {since:?} limit {limit} reverse {reverse}");
            assert_eq!(history.top, Position { epoch: Epoch(7), offset: 8 });
        }
    }

    #[test]
    fn publications_leave_by_age_and_the_place_stays() {
        let t0 = 1_000_000_u64;
        let mut log = log_of(t0, 2);
        let t1 = t0 + 4_000;
        log.append(t1, &OPTIONS, publication(3));
        assert_eq!(log.deadline(), t0 + 10_000);
        assert_eq!(offsets(&log.read(t0 + 9_999, &ALL)), [1, 2, 3]);
        assert_eq!(offsets(&log.read(t0 + 10_000, &ALL)), [3]);
        assert_eq!(offsets(&log.read(t0 + 14_000, &ALL)), [] as [u64; 0]);
        assert_eq!(log.position().offset, 3);
        assert!(!log.is_dead(t1 + 59_000) && log.is_dead(t1 + 60_000));
    }

    #[test]
    fn a_shorter_ttl_holds_for_what_is_there() {
        let now = 1_000_000_u64;
        let mut log = log_of(now, 2);
        log.append(now, &StreamOptions { ttl_ms: 1_000, ..OPTIONS }, publication(3));
        assert!(log.read(now + 1_000, &ALL).publications.is_empty());
        log.append(now, &StreamOptions { size: 0, ..OPTIONS }, publication(4));
        assert_eq!((log.position().offset, log.bytes()), (4, 0));
        // Times that no clock holds are for ever, not a panic.
        log.append(now, &StreamOptions { ttl_ms: u64::MAX, meta_ttl_ms: u64::MAX, size: 9 }, publication(5));
        assert_eq!(offsets(&log.read(now + (1 << 31) * 1000, &ALL)), [5]);
    }

    #[test]
    fn bytes_follow_what_is_kept() {
        let now = 1_000_000_u64;
        let mut log = log_of(now, 5);
        let five = log.bytes();
        assert!(five > 500);
        log.append(now, &OPTIONS, publication(6));
        assert_eq!(log.bytes(), five, "full: one in, one out");
        log.drop_front();
        assert_eq!(log.bytes(), five / 5 * 4);
        assert_eq!(offsets(&log.read(now, &ALL)), [3, 4, 5, 6]);
        log.clear();
        assert_eq!((log.bytes(), log.oldest()), (0, None));
        assert_eq!(log.next().offset, 7);
    }

    #[test]
    fn versions_drop_what_comes_late() {
        let mut log = log_of(1_000_000_u64, 0);
        assert!(!log.is_stale(0, "") && !log.is_stale(1, ""));
        log.set_version(5, String::new());
        assert!(log.is_stale(5, "") && log.is_stale(4, "") && !log.is_stale(6, ""));
        assert!(!log.is_stale(0, ""), "no version: never late");
        assert!(!log.is_stale(1, "b"), "another epoch of versions starts anew");
        log.set_version(1, "b".into());
        assert!(log.is_stale(1, "b") && !log.is_stale(5, ""));
    }
}
