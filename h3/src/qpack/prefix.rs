//! Integers and strings behind a prefix of some bits (RFC 9204, 4.1).

use super::huffman::{self, Broken};

/// Why a field section, or an instruction, cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The input ends too early.
    Short,
    Invalid,
    /// Over the limit that was given.
    TooLarge,
}

/// Reads an integer whose first `bits` bits are the low ones of the first byte.
pub fn read_int(input: &mut &[u8], bits: u32) -> Result<u64, Fault> {
    let (first, mut rest) = input.split_first().ok_or(Fault::Short)?;
    let mask = (1_u64 << bits) - 1;
    let mut value = u64::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, after) = rest.split_first().ok_or(Fault::Short)?;
            rest = after;
            // 62 bits are what QUIC's integers have; nothing needs more.
            if shift > 56 {
                return Err(Fault::Invalid);
            }
            value += u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *input = rest;
    Ok(value)
}

pub fn write_int(flags: u8, bits: u32, value: u64, output: &mut Vec<u8>) {
    let mask = (1_u64 << bits) - 1;
    if value < mask {
        output.push(flags | value as u8);
        return;
    }
    output.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        output.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    output.push(rest as u8);
}

/// Appends a string to `output`; `bits` bits of the first byte are its length, the bit above says whether it
/// is Huffman code. At most `limit` bytes.
pub fn read_string(input: &mut &[u8], bits: u32, limit: usize, output: &mut Vec<u8>) -> Result<(), Fault> {
    let coded = input.first().ok_or(Fault::Short)? & (1 << bits) != 0;
    let length = usize::try_from(read_int(input, bits)?).map_err(|_| Fault::TooLarge)?;
    // A symbol takes 30 bits at most, so a string that is surely too long is not looked at.
    if if coded { length / 4 > limit } else { length > limit } {
        return Err(Fault::TooLarge);
    }
    let (text, rest) = input.split_at_checked(length).ok_or(Fault::Short)?;
    *input = rest;
    if !coded {
        output.extend_from_slice(text);
        return Ok(());
    }
    huffman::decode(text, limit, output).map_err(|broken| match broken {
        Broken::Invalid => Fault::Invalid,
        Broken::TooLong => Fault::TooLarge,
    })
}

pub fn write_string(flags: u8, bits: u32, text: &[u8], output: &mut Vec<u8>) {
    match huffman::encode(text) {
        Some(code) => {
            write_int(flags | 1 << bits, bits, code.len() as u64, output);
            output.extend_from_slice(&code);
        }
        None => {
            write_int(flags, bits, text.len() as u64, output);
            output.extend_from_slice(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_in_the_rfc() {
        let mut output = Vec::new();
        write_int(0, 5, 10, &mut output);
        write_int(0, 5, 1337, &mut output);
        write_int(0, 8, 42, &mut output);
        assert_eq!(output, [0x0a, 0x1f, 0x9a, 0x0a, 0x2a]);
        let mut input = output.as_slice();
        assert_eq!(
            [read_int(&mut input, 5), read_int(&mut input, 5), read_int(&mut input, 8)],
            [Ok(10), Ok(1337), Ok(42)]
        );
        assert_eq!(read_int(&mut [0x1f, 0xff, 0xff].as_slice(), 5), Err(Fault::Short));
        assert_eq!(read_int(&mut [0xff; 20].as_slice(), 8), Err(Fault::Invalid));
    }
}
