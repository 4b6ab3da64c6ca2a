//! The unit of a write: some records with one checksum. It is there whole or not at all.
//!
//! ```text
//!   magic 4 │ crc 4 │ length 4 │ number 8 │ synced 8 │ oldest 8 │ records …
//! ```

/// Also found when looking for what comes after a broken place.
const MAGIC: [u8; 4] = [0xd7, b'w', b'L', 0x1e];
pub const HEADER: usize = 36;

/// What a frame says besides its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// One more than the frame before, over all segments.
    pub number: u64,
    /// Up to this frame everything was known to be on disk when this one was written. So a broken
    /// frame after which another one says so is damage; any other one was never promised.
    pub synced: u64,
    /// Segments before this one are not needed, by what was on disk already.
    pub oldest: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub head: Head,
    pub records: &'a [u8],
}

/// A buffer with room for the header, to which records are appended.
pub fn begin() -> Vec<u8> {
    vec![0; HEADER]
}

/// May be called again with another head.
pub fn seal(buffer: &mut [u8], head: Head) {
    let length = (buffer.len() - HEADER) as u32;
    buffer[..4].copy_from_slice(&MAGIC);
    buffer[8..12].copy_from_slice(&length.to_le_bytes());
    buffer[12..20].copy_from_slice(&head.number.to_le_bytes());
    buffer[20..28].copy_from_slice(&head.synced.to_le_bytes());
    buffer[28..36].copy_from_slice(&head.oldest.to_le_bytes());
    let crc = crc32fast::hash(&buffer[8..]);
    buffer[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The frame that begins here, if a whole one does.
pub fn read(bytes: &[u8]) -> Option<Frame<'_>> {
    let header = bytes.get(..HEADER)?;
    let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let long = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    if header[..4] != MAGIC {
        return None;
    }
    let end = HEADER.checked_add(word(8)? as usize)?;
    let rest = bytes.get(8..end)?;
    (crc32fast::hash(rest) == word(4)?).then_some(())?;
    let head = Head { number: long(12)?, synced: long(20)?, oldest: long(28)? };
    Some(Frame { head, records: &bytes[HEADER..end] })
}

/// Whole frames wherever they begin, broken places skipped.
pub fn search(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let starts = bytes.windows(MAGIC.len()).enumerate().filter(|(_, w)| *w == MAGIC);
    starts.filter_map(|(at, _)| read(&bytes[at..]))
}

/// The frames from the beginning on, and where they end.
pub fn read_all(bytes: &[u8]) -> (Vec<Frame<'_>>, usize) {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some(frame) = read(&bytes[at..]) {
        at += HEADER + frame.records.len();
        frames.push(frame);
    }
    (frames, at)
}
