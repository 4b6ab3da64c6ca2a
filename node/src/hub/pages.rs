//! Reading a stream in parts: a broker is asked for a number of publications, but what they cost is their bytes, which
//! nobody knows before. So few are asked for first, and then as many as by the size of those fit.

use super::{Hub, bus_error};
use weir_broker::BusError;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{History, HistoryQuery, Position, Publication, StreamOptions};

/// Asked for when nothing is known of their size.
const FIRST: u64 = 50;
const MOST: u64 = 1000;
/// What a publication takes beside its data, about.
const AROUND: usize = 64;

/// What is wanted of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub query: HistoryQuery,
    /// At most, but for a single publication that is larger.
    pub bytes: usize,
}

/// What was read so far.
struct Pages {
    wanted: Wanted,
    read: Vec<Publication>,
    bytes: usize,
}

impl Pages {
    fn new(wanted: Wanted) -> Pages {
        Pages { wanted, read: Vec::new(), bytes: 0 }
    }

    /// How many to ask for; 0: that is enough.
    fn next(&self) -> u32 {
        let read = self.read.len() as u64;
        let left = u64::from(self.wanted.query.limit).saturating_sub(read);
        let fit = match read {
            0 => FIRST,
            _ if self.bytes >= self.wanted.bytes => 0,
            _ => ((self.wanted.bytes - self.bytes) as u64 * read / (self.bytes as u64).max(1)).max(1),
        };
        u32::try_from(left.min(fit).min(MOST)).unwrap_or(u32::MAX)
    }

    /// Keeps of a page what fits. False: not all of it did.
    fn add(&mut self, page: Vec<Publication>) -> bool {
        for publication in page {
            let size = size(&publication);
            if !self.read.is_empty() && self.bytes + size > self.wanted.bytes {
                return false;
            }
            self.bytes += size;
            self.read.push(publication);
        }
        true
    }
}

fn size(publication: &Publication) -> usize {
    let info = |info: &weir_wire::envelope::ClientInfo| {
        info.user.len() + info.client.len() + info.conn_info.len() + info.chan_info.len()
    };
    let tags: usize = publication.tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    publication.data.len() + publication.info.as_ref().map_or(0, info) + tags + AROUND
}

impl Hub {
    /// Reads a part of a stream. Only so many at once: what is read is in memory before it can be written anywhere.
    pub(super) async fn read(
        &self,
        channel: &str,
        wanted: Wanted,
        stream: StreamOptions,
    ) -> Result<History, BusError> {
        let unavailable = |_| BusError::Unavailable("the node ends");
        let _permit = self.reads.acquire().await.map_err(unavailable)?;
        let (bus, mut query) = (self.bus()?, wanted.query);
        let mut pages = Pages::new(wanted);
        let mut epoch = None;
        loop {
            query.limit = pages.next();
            let (page, cut) = bus.history_page(channel.to_owned(), query, stream).await?;
            if epoch.is_some_and(|epoch| epoch != page.top.epoch) {
                // Numbering began anew in between: what was read before is of no use.
                pages = Pages::new(wanted);
            }
            epoch = Some(page.top.epoch);
            let (top, came) = (page.top, page.publications.len());
            let all = pages.add(page.publications);
            let ended = !cut && (came as u64) < u64::from(query.limit);
            let last = pages.read.last().map(|last| Position { epoch: top.epoch, offset: last.offset });
            if !all || ended || came == 0 || pages.next() == 0 {
                return Ok(History { top, publications: pages.read });
            }
            query.since = last;
        }
    }

    /// For a client's history command.
    pub async fn history(
        &self,
        channel: &str,
        query: HistoryQuery,
        stream: StreamOptions,
        bytes: usize,
    ) -> Result<History, ErrorCode> {
        self.read(channel, Wanted { query, bytes }, stream).await.map_err(|e| bus_error(&e))
    }
}

/// What they take, about.
pub(super) fn bytes(publications: &[Publication]) -> usize {
    publications.iter().map(size).sum()
}

/// Whether these follow `since` one by one.
pub(super) fn follow(since: u64, publications: &[Publication]) -> bool {
    publications.iter().zip(since + 1..).all(|(publication, offset)| publication.offset == offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn of(size: usize, n: usize) -> Vec<Publication> {
        let data = Bytes::from(vec![b'x'; size - AROUND]);
        vec![Publication { offset: 1, data, info: None, tags: vec![] }; n]
    }

    #[test]
    fn as_many_are_asked_for_as_fit_by_the_size_of_those_that_came() {
        let wanted = |limit, bytes| {
            Pages::new(Wanted { query: HistoryQuery { limit, ..HistoryQuery::default() }, bytes })
        };
        assert_eq!(wanted(0, 1000).next(), 0, "the position alone");
        assert_eq!(wanted(20, 1000).next(), 20);
        let mut pages = wanted(u32::MAX, 100_000);
        assert_eq!(pages.next(), 50);
        assert!(pages.add(of(100, 50)));
        assert_eq!(pages.next(), 950);
        assert!(!pages.add(of(1000, 100)), "they grew");
        assert_eq!((pages.read.len(), pages.bytes, pages.next()), (145, 100_000, 0));
        let mut huge = wanted(300, 1000);
        assert!(!huge.add(of(5000, 50)));
        assert_eq!((huge.read.len(), huge.next()), (1, 0), "one, however large");
        let mut small = wanted(60, 1 << 20);
        small.add(of(100, 50));
        assert_eq!(small.next(), 10);
    }
}
