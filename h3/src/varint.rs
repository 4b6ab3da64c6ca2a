//! QUIC's variable-length integers (RFC 9000, 16): the first two bits tell the length.

use bytes::{Buf, BufMut};

/// The largest value that can be written.
pub const MAX: u64 = (1 << 62) - 1;

/// Takes one from the front; `None` takes nothing, since bytes are missing.
pub fn read(input: &mut impl Buf) -> Option<u64> {
    let first = *input.chunk().first()?;
    let length = 1 << (first >> 6);
    if input.remaining() < length {
        return None;
    }
    Some(match length {
        1 => u64::from(input.get_u8()),
        2 => u64::from(input.get_u16() & 0x3fff),
        4 => u64::from(input.get_u32() & 0x3fff_ffff),
        _ => input.get_u64() & MAX,
    })
}

/// In the shortest form. A value over [`MAX`] is cut to it.
pub fn write(value: u64, output: &mut impl BufMut) {
    let value = value.min(MAX);
    match len(value) {
        1 => output.put_u8(value as u8),
        2 => output.put_u16(value as u16 | 0x4000),
        4 => output.put_u32(value as u32 | 0x8000_0000),
        _ => output.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Bytes that [`write()`] takes.
pub fn len(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

/// Numbers of frames, streams and settings that mean nothing, so that peers learn to ignore what they do not
/// know (RFC 9114, 7.2.8).
pub fn is_reserved(value: u64) -> bool {
    value >= 0x21 && (value - 0x21).is_multiple_of(0x1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_examples() {
        let cases: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (mut bytes, value) in cases {
            assert_eq!(read(&mut bytes), Some(value));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn every_length_comes_back_and_nothing_is_taken_of_half_a_number() {
        for value in [0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, MAX] {
            let mut bytes = Vec::new();
            write(value, &mut bytes);
            assert_eq!(bytes.len(), len(value));
            for end in 0..bytes.len() {
                let mut cut = &bytes[..end];
                assert_eq!(read(&mut cut), None);
                assert_eq!(cut.len(), end);
            }
            assert_eq!(read(&mut bytes.as_slice()), Some(value));
        }
    }
}
