//! QPACK (RFC 9204) with the static table and literals alone: no table is kept for a peer, no stream waits for
//! another, and a field section costs what is written into it.

mod huffman;
mod instructions;
mod prefix;
mod table;

pub use instructions::{Instructions, Kind};

use crate::{Code, Error};
use prefix::{Fault, read_int, read_string, write_int, write_string};

/// What a field costs beside its name and value (RFC 9114, 4.2.2).
const OVERHEAD: usize = 32;

/// Never to be put in a table of anybody's (RFC 9204, 4.5.4).
const NEVER_INDEXED: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "set-cookie"];

/// Gives each field of a section to `field`, in order. Ends where the fields' size goes over `limit`.
pub fn decode(
    section: &[u8],
    limit: usize,
    mut field: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut input = section;
    prefix(&mut input).map_err(refusal)?;
    let mut left = limit;
    let (mut name, mut value) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        name.clear();
        value.clear();
        let room = left.checked_sub(OVERHEAD).ok_or(TOO_LARGE)?;
        line(&mut input, room, &mut name, &mut value).map_err(refusal)?;
        left = room.checked_sub(name.len() + value.len()).ok_or(TOO_LARGE)?;
        field(&name, &value)?;
    }
    Ok(())
}

/// The section is larger than we take. Answered with 431 by servers.
pub const TOO_LARGE: Error = Error::stream(Code::H3_EXCESSIVE_LOAD, "field section too large");

fn refusal(fault: Fault) -> Error {
    match fault {
        Fault::TooLarge => TOO_LARGE,
        Fault::Short | Fault::Invalid => {
            Error::connection(Code::QPACK_DECOMPRESSION_FAILED, "field section not decodable")
        }
    }
}

/// Required insert count and base. Without a dynamic table only zero can be asked for.
fn prefix(input: &mut &[u8]) -> Result<(), Fault> {
    if read_int(input, 8)? != 0 {
        return Err(Fault::Invalid);
    }
    // A negative base is invalid; another one means nothing, as nothing refers to it.
    let negative = input.first().ok_or(Fault::Short)? & 0x80 != 0;
    read_int(input, 7)?;
    if negative { Err(Fault::Invalid) } else { Ok(()) }
}

fn line(input: &mut &[u8], limit: usize, name: &mut Vec<u8>, value: &mut Vec<u8>) -> Result<(), Fault> {
    let first = *input.first().ok_or(Fault::Short)?;
    if first & 0x80 != 0 {
        let (known, content) = entry(input, first & 0x40 != 0, 6)?;
        name.extend_from_slice(known.as_bytes());
        value.extend_from_slice(content.as_bytes());
        return Ok(());
    }
    if first & 0x40 != 0 {
        let (known, _) = entry(input, first & 0x10 != 0, 4)?;
        name.extend_from_slice(known.as_bytes());
    } else if first & 0x20 != 0 {
        read_string(input, 3, limit, name)?;
    } else {
        // Behind the base: the dynamic table.
        return Err(Fault::Invalid);
    }
    read_string(input, 7, limit.saturating_sub(name.len()), value)
}

fn entry(input: &mut &[u8], in_static_table: bool, bits: u32) -> Result<(&'static str, &'static str), Fault> {
    let index = read_int(input, bits)?;
    if !in_static_table {
        return Err(Fault::Invalid);
    }
    usize::try_from(index).ok().and_then(|at| table::TABLE.get(at)).copied().ok_or(Fault::Invalid)
}

/// Writes field sections.
pub struct Encoder {
    output: Vec<u8>,
    size: usize,
}

impl Encoder {
    #[expect(clippy::new_without_default, reason = "a section begins with its prefix; it is not empty")]
    pub fn new() -> Encoder {
        // Required insert count and base: zero.
        Encoder { output: vec![0, 0], size: 0 }
    }

    pub fn field(&mut self, name: &str, value: &[u8]) {
        self.size += name.len() + value.len() + OVERHEAD;
        let never = if NEVER_INDEXED.contains(&name) { 0x20 } else { 0 };
        match table::find(name, value) {
            Some((index, true)) => write_int(0xc0, 6, index as u64, &mut self.output),
            Some((index, false)) => {
                write_int(0x50 | never, 4, index as u64, &mut self.output);
                write_string(0, 7, value, &mut self.output);
            }
            None => {
                write_string(0x20 | never >> 1, 3, name.as_bytes(), &mut self.output);
                write_string(0, 7, value, &mut self.output);
            }
        }
    }

    /// As limits of field sections count.
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn finish(self) -> Vec<u8> {
        self.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(section: &[u8], limit: usize) -> Result<Vec<(String, String)>, Error> {
        let mut found = Vec::new();
        decode(section, limit, |name, value| {
            found.push((
                String::from_utf8_lossy(name).into_owned(),
                String::from_utf8_lossy(value).into_owned(),
            ));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn appendix_b_1() {
        let section = [&[0, 0, 0x51, 0x0b], b"/index.html".as_slice()].concat();
        assert_eq!(fields(&section, 1000).unwrap(), [(":path".to_owned(), "/index.html".to_owned())]);
    }

    #[test]
    fn what_needs_a_dynamic_table_is_refused() {
        let refused = Error::connection(Code::QPACK_DECOMPRESSION_FAILED, "field section not decodable");
        // Appendix B.2 (insert count 3, post-base), B.3 (indexed, dynamic), a dynamic name, a negative base.
        for section in [
            [0x03, 0x81, 0x10, 0x11].as_slice(),
            &[0x05, 0x00, 0x80, 0xc1, 0x81],
            &[0, 0, 0x80],
            &[0, 0, 0x40, 0x01, b'a'],
            &[0, 0, 0x10],
            &[0, 0, 0x00, 0x01, b'a'],
            &[0, 0x80, 0xc1],
            &[0, 0, 0xff, 0x24],
        ] {
            assert_eq!(fields(section, 1000), Err(refused), "{section:x?}");
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        // The longest entry of the static table, over and over.
        let section = [vec![0, 0], [0xff, 85 - 63].repeat(10_000)].concat();
        let mut seen = 0;
        let result = decode(&section, 16 * 1024, |_, _| {
            seen += 1;
            Ok(())
        });
        assert_eq!(result, Err(TOO_LARGE));
        assert!(seen < 16 * 1024 / OVERHEAD, "{seen}");
        // A literal that says it is huge.
        assert_eq!(fields(&[0, 0, 0x51, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f], 16 * 1024), Err(TOO_LARGE));
    }

    #[test]
    fn all_kinds_of_lines_come_back_and_no_cut_panics() {
        let given = [
            (":method", "GET"),
            (":path", "/some/where?x=y"),
            ("cookie", "a=b"),
            ("x-unknown-name", "Some Value \u{e9}"),
            ("x", ""),
            ("authorization", "secret"),
        ];
        let mut encoder = Encoder::new();
        given.iter().for_each(|(name, value)| encoder.field(name, value.as_bytes()));
        let size: usize = given.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        assert_eq!(encoder.size(), size);
        let section = encoder.finish();
        let found = fields(&section, size).unwrap();
        assert_eq!(found.len(), given.len());
        for ((name, value), (seen_name, seen_value)) in given.iter().zip(&found) {
            assert_eq!((*name, *value), (seen_name.as_str(), seen_value.as_str()));
        }
        assert_eq!(fields(&section, size - 1), Err(TOO_LARGE));
        for end in 0..section.len() {
            let _complete_lines_or_an_error = fields(&section[..end], 10_000);
        }
    }

    /// Any bytes: an error or fields, never a panic, never more than the limit.
    #[test]
    fn noise_is_survived() {
        for seed in 0..20_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            };
            let length = next() % 64;
            let section: Vec<u8> = [0, 0].into_iter().chain((0..length).map(|_| next())).collect();
            if let Ok(found) = fields(&section, 500) {
                let size: usize = found.iter().map(|(n, _)| n.chars().count() + 32).sum();
                assert!(size <= 500, "seed {seed}");
            }
        }
    }
}
