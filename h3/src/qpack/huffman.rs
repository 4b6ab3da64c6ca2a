//! The Huffman code of HPACK and QPACK (RFC 7541, appendix B). Its table and encoder are httlib-huffman's; that
//! crate's decoder takes padding which the RFC forbids, so decoding is ours. The code is canonical: codes of
//! one length are consecutive numbers, so a length, its first code and a list of symbols say it all.

use httlib_huffman::encoder::table::ENCODE_TABLE;
use std::sync::LazyLock;

const SHORTEST: u32 = 5;
const LONGEST: u32 = 30;
/// The end of a string; it must not be in one.
const EOS: u16 = 256;

static CODE: LazyLock<Canonical> = LazyLock::new(Canonical::new);

struct Canonical {
    /// By length: the first code beyond those of this length, aligned to the left of 32 bits.
    limit: [u64; LONGEST as usize + 1],
    /// By length: the first code.
    first: [u32; LONGEST as usize + 1],
    /// By length: where the symbols of this length begin.
    offset: [usize; LONGEST as usize + 1],
    symbols: Vec<u16>,
}

impl Canonical {
    fn new() -> Canonical {
        let mut code = Canonical { limit: [0; 31], first: [0; 31], offset: [0; 31], symbols: Vec::new() };
        for length in SHORTEST..=LONGEST {
            let at = length as usize;
            code.offset[at] = code.symbols.len();
            let mut of_length: Vec<(u32, u16)> = (0..=EOS)
                .zip(ENCODE_TABLE)
                .filter(|(_, (bits, _))| u32::from(*bits) == length)
                .map(|(symbol, (_, code))| (code, symbol))
                .collect();
            of_length.sort_unstable();
            code.first[at] = of_length.first().map_or(0, |(code, _)| *code);
            let beyond = of_length.last().map_or(0, |(code, _)| u64::from(*code) + 1);
            code.limit[at] = beyond << (32 - length);
            code.symbols.extend(of_length.iter().map(|(_, symbol)| symbol));
        }
        code
    }
}

/// The string is not Huffman code, or would be longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    Invalid,
    TooLong,
}

/// Appends what `input` stands for, at most `limit` bytes.
pub fn decode(input: &[u8], limit: usize, output: &mut Vec<u8>) -> Result<(), Broken> {
    let code = &*CODE;
    let end = output.len().saturating_add(limit);
    let (mut bits, mut held) = (0_u64, 0_u32);
    let mut input = input.iter();
    loop {
        while held <= 32 {
            let Some(byte) = input.next() else { break };
            bits |= u64::from(*byte) << (56 - held);
            held += 8;
        }
        if held == 0 {
            return Ok(());
        }
        let window = bits >> 32;
        let length = (SHORTEST..=LONGEST).find(|length| window < code.limit[*length as usize]);
        match length {
            Some(length) if length <= held => {
                let at = length as usize;
                let place = (window >> (32 - length)) as u32 - code.first[at];
                let symbol = code.symbols.get(code.offset[at] + place as usize).copied().unwrap_or(EOS);
                let byte = u8::try_from(symbol).map_err(|_| Broken::Invalid)?;
                if output.len() == end {
                    return Err(Broken::TooLong);
                }
                output.push(byte);
                bits <<= length;
                held -= length;
            }
            // What is left is padding: less than a byte of ones.
            _ => {
                let ones = held < 8 && bits >> (64 - held) == (1 << held) - 1;
                return if ones { Ok(()) } else { Err(Broken::Invalid) };
            }
        }
    }
}

/// The code of `text`, if it is shorter than that.
pub fn encode(text: &[u8]) -> Option<Vec<u8>> {
    let bits: usize = text.iter().map(|byte| usize::from(ENCODE_TABLE[usize::from(*byte)].0)).sum();
    if bits.div_ceil(8) >= text.len() {
        return None;
    }
    let mut output = Vec::with_capacity(bits.div_ceil(8));
    httlib_huffman::encode(text, &mut output).ok()?;
    Some(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut output = Vec::new();
        decode(input, 1 << 16, &mut output).map(|()| output)
    }

    #[test]
    fn the_rfcs_examples_and_every_symbol() {
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&host).unwrap(), b"www.example.com");
        assert_eq!(encode(b"www.example.com").unwrap(), host);
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        for byte in 0..=255 {
            let mut code = Vec::new();
            httlib_huffman::encode(&[byte, byte], &mut code).unwrap();
            assert_eq!(decoded(&code).unwrap(), [byte, byte], "{byte}");
        }
    }

    #[test]
    fn bad_padding_eos_and_bombs_are_refused() {
        // "0" is 00000, so three bits of padding follow.
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
        assert_eq!(decoded(&[0b0000_0011]), Err(Broken::Invalid));
        assert_eq!(decoded(&[0b0000_0000]), Err(Broken::Invalid));
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(Broken::Invalid));
        assert_eq!(decoded(&[0xff; 4]), Err(Broken::Invalid));
        let mut output = Vec::new();
        assert_eq!(decode(&[0; 1000], 10, &mut output), Err(Broken::TooLong));
        assert_eq!(output.len(), 10);
    }
}
