//! One channel's stream: epoch, offsets, and the publications that are still kept. Pure: the time
//! and the epoch are arguments, and nobody is told here; who is interested is the shard's matter.
//!
//! Offsets in the ring are contiguous and end at `top`: publications leave it at the old end only,
//! by size, by age, or because the broker's memory is short. A reader sees what is missing by the
//! offsets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use weir_wire::envelope::{ClientInfo, History, HistoryQuery, Position, Publication, StreamOptions};
use weir_wire::id::Epoch;

#[derive(Debug)]
pub struct ChannelLog {
    epoch: Epoch,
    top: u64,
    ring: VecDeque<Kept>,
    bytes: usize,
    version: u64,
    version_epoch: String,
    last_use: Instant,
    outlives_use: Duration,
}

#[derive(Debug)]
struct Kept {
    publication: Publication,
    at: Instant,
    expires: Instant,
}

/// Far enough to mean never, near enough that adding it to an `Instant` cannot overflow.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn duration(ms: u64) -> Duration {
    Duration::from_millis(ms).min(FOREVER)
}

impl ChannelLog {
    pub fn new(now: Instant, epoch: Epoch, options: &StreamOptions) -> ChannelLog {
        let mut log = ChannelLog {
            epoch,
            top: 0,
            ring: VecDeque::new(),
            bytes: 0,
            version: 0,
            version_epoch: String::new(),
            last_use: now,
            outlives_use: Duration::ZERO,
        };
        log.touch(now, options);
        log
    }

    /// Counts as a use: epoch and top live on for `meta_ttl`.
    pub fn touch(&mut self, now: Instant, options: &StreamOptions) {
        self.last_use = now;
        self.outlives_use = duration(options.meta_ttl_ms.max(options.ttl_ms));
    }

    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Where the next publication goes.
    pub fn next(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top + 1 }
    }

    /// Appends what was given its offset by [`next`](Self::next).
    pub fn append(&mut self, now: Instant, options: &StreamOptions, publication: Publication) {
        debug_assert_eq!(publication.offset, self.top + 1);
        self.touch(now, options);
        self.top = publication.offset;
        let expires = now + duration(options.ttl_ms);
        // A shorter ttl than before holds for what is there too: the front stays the first to go.
        for kept in self.ring.iter_mut().rev().take_while(|k| k.expires > expires) {
            kept.expires = expires;
        }
        self.bytes += size_of_publication(&publication);
        self.ring.push_back(Kept { publication, at: now, expires });
        while self.ring.len() > options.size as usize {
            self.drop_front();
        }
        self.expire(now);
    }

    /// Drops what is past its time.
    pub fn expire(&mut self, now: Instant) {
        while self.ring.front().is_some_and(|k| k.expires <= now) {
            self.drop_front();
        }
    }

    pub fn read(&mut self, now: Instant, query: &HistoryQuery) -> History {
        self.expire(now);
        let (first, count) = (self.top + 1 - self.ring.len() as u64, self.ring.len());
        // Index of the first publication after `offset`.
        let after = |offset: u64| (offset.saturating_add(1).max(first) - first).min(count as u64) as usize;
        let take = |it: &mut dyn Iterator<Item = &Kept>| {
            it.take(query.limit as usize).map(|k| k.publication.clone()).collect()
        };
        let publications = match query.since {
            Some(since) if since.epoch != self.epoch => Vec::new(),
            Some(since) if query.reverse => {
                take(&mut self.ring.range(..after(since.offset.saturating_sub(1))).rev())
            }
            Some(since) => take(&mut self.ring.range(after(since.offset)..)),
            None if query.reverse => take(&mut self.ring.iter().rev()),
            None => take(&mut self.ring.iter()),
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
        self.bytes = 0;
    }

    /// Memory held by publications.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest publication was made.
    pub fn oldest(&self) -> Option<Instant> {
        self.ring.front().map(|k| k.at)
    }

    /// Drops the oldest publication, to free memory.
    pub fn drop_front(&mut self) {
        if let Some(kept) = self.ring.pop_front() {
            self.bytes -= size_of_publication(&kept.publication);
        }
        // A burst must not hold its room for ever.
        if self.ring.capacity() > 64 && self.ring.len() < self.ring.capacity() / 4 {
            self.ring.shrink_to(self.ring.len() * 2);
        }
    }

    /// When there is something to expire next: a publication, or the log itself.
    pub fn deadline(&self) -> Instant {
        self.ring.front().map_or(self.last_use + self.outlives_use, |k| k.expires)
    }

    /// Whether epoch and top may be forgotten too.
    pub fn is_dead(&self, now: Instant) -> bool {
        self.ring.is_empty() && self.last_use + self.outlives_use <= now
    }
}

/// What a publication occupies, allocations included; an estimate, but one that both appending
/// and dropping use.
fn size_of_publication(p: &Publication) -> usize {
    let info = |i: &ClientInfo| i.user.len() + i.client.len() + i.conn_info.len() + i.chan_info.len() + 64;
    let tags: usize = p.tags.iter().map(|(k, v)| k.len() + v.len() + 48 + 32).sum();
    size_of::<Kept>() + 16 + p.data.len() + p.info.as_ref().map_or(0, info) + tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const OPTIONS: StreamOptions = StreamOptions { size: 5, ttl_ms: 10_000, meta_ttl_ms: 60_000 };
    const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };

    fn publication(offset: u64) -> Publication {
        Publication { offset, data: Bytes::from(vec![0; 100]), info: None, tags: vec![] }
    }

    fn log_of(now: Instant, count: u64) -> ChannelLog {
        let mut log = ChannelLog::new(now, Epoch(7), &OPTIONS);
        (1..=count).for_each(|o| log.append(now, &OPTIONS, publication(o)));
        log
    }

    fn offsets(history: &History) -> Vec<u64> {
        history.publications.iter().map(|p| p.offset).collect()
    }

    #[test]
    fn reads_both_ways_from_any_place() {
        let now = Instant::now();
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
        let t0 = Instant::now();
        let mut log = log_of(t0, 2);
        let t1 = t0 + Duration::from_secs(4);
        log.append(t1, &OPTIONS, publication(3));
        assert_eq!(log.deadline(), t0 + Duration::from_secs(10));
        assert_eq!(offsets(&log.read(t0 + Duration::from_millis(9_999), &ALL)), [1, 2, 3]);
        assert_eq!(offsets(&log.read(t0 + Duration::from_secs(10), &ALL)), [3]);
        assert_eq!(offsets(&log.read(t0 + Duration::from_secs(14), &ALL)), [] as [u64; 0]);
        assert_eq!(log.position().offset, 3);
        assert!(!log.is_dead(t1 + Duration::from_secs(59)) && log.is_dead(t1 + Duration::from_secs(60)));
    }

    #[test]
    fn a_shorter_ttl_holds_for_what_is_there() {
        let now = Instant::now();
        let mut log = log_of(now, 2);
        log.append(now, &StreamOptions { ttl_ms: 1_000, ..OPTIONS }, publication(3));
        assert!(log.read(now + Duration::from_secs(1), &ALL).publications.is_empty());
        log.append(now, &StreamOptions { size: 0, ..OPTIONS }, publication(4));
        assert_eq!((log.position().offset, log.bytes()), (4, 0));
        // Times that no clock holds are for ever, not a panic.
        log.append(now, &StreamOptions { ttl_ms: u64::MAX, meta_ttl_ms: u64::MAX, size: 9 }, publication(5));
        assert_eq!(offsets(&log.read(now + Duration::from_secs(1 << 31), &ALL)), [5]);
    }

    #[test]
    fn bytes_follow_what_is_kept() {
        let now = Instant::now();
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
        let mut log = log_of(Instant::now(), 0);
        assert!(!log.is_stale(0, "") && !log.is_stale(1, ""));
        log.set_version(5, String::new());
        assert!(log.is_stale(5, "") && log.is_stale(4, "") && !log.is_stale(6, ""));
        assert!(!log.is_stale(0, ""), "no version: never late");
        assert!(!log.is_stale(1, "b"), "another epoch of versions starts anew");
        log.set_version(1, "b".into());
        assert!(log.is_stale(1, "b") && !log.is_stale(5, ""));
    }
}
