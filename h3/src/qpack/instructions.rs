//! The peer's encoder and decoder streams. We keep no table and refer to none, so few instructions are right:
//! they are read, checked, and mean nothing.

use super::prefix::{Fault, read_int};
use crate::{Code, Error};

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Instructions for the table that we do not keep.
    Encoder,
    /// What became of the table that we do not have the peer keep.
    Decoder,
}

/// Reads one of them, in whatever pieces it comes.
pub struct Instructions {
    kind: Kind,
    /// The beginning of an integer.
    partial: Vec<u8>,
}

/// An integer of 62 bits takes fewer.
const LONGEST: usize = 12;

impl Instructions {
    pub fn new(kind: Kind) -> Instructions {
        Instructions { kind, partial: Vec::new() }
    }

    pub fn read(&mut self, input: &[u8]) -> Result<(), Error> {
        for byte in input {
            self.partial.push(*byte);
            match self.one() {
                Ok(()) => self.partial.clear(),
                Err(Fault::Short) if self.partial.len() < LONGEST => {}
                Err(_) => return Err(self.refusal()),
            }
        }
        Ok(())
    }

    fn one(&self) -> Result<(), Fault> {
        let mut input = self.partial.as_slice();
        let first = *input.first().ok_or(Fault::Short)?;
        match self.kind {
            // Set Dynamic Table Capacity, to what we allow.
            Kind::Encoder if first & 0xe0 == 0x20 => match read_int(&mut input, 5)? {
                0 => Ok(()),
                _ => Err(Fault::Invalid),
            },
            // Stream Cancellation. The two others acknowledge what we never sent.
            Kind::Decoder if first & 0xc0 == 0x40 => read_int(&mut input, 6).map(|_| ()),
            _ => Err(Fault::Invalid),
        }
    }

    fn refusal(&self) -> Error {
        match self.kind {
            Kind::Encoder => {
                Error::connection(Code::QPACK_ENCODER_STREAM_ERROR, "instruction for a dynamic table")
            }
            Kind::Decoder => {
                Error::connection(Code::QPACK_DECODER_STREAM_ERROR, "acknowledged what was not sent")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_no_table() {
        let mut encoder = Instructions::new(Kind::Encoder);
        assert_eq!(encoder.read(&[0x20, 0x20]), Ok(()));
        // Appendix B.2: capacity 220.
        assert_eq!(encoder.read(&[0x3f]), Ok(()));
        assert_eq!(encoder.read(&[0xbd, 0x01]).unwrap_err().code, Code::QPACK_ENCODER_STREAM_ERROR);
        for insert in [0x80, 0xc0, 0x4a, 0x02] {
            assert!(Instructions::new(Kind::Encoder).read(&[insert, 0]).is_err(), "{insert:#x}");
        }
        let mut decoder = Instructions::new(Kind::Decoder);
        assert_eq!(decoder.read(&[0x48, 0x7f, 0x20]), Ok(()));
        assert_eq!(decoder.read(&[0x84]).unwrap_err().code, Code::QPACK_DECODER_STREAM_ERROR);
        assert!(Instructions::new(Kind::Decoder).read(&[0x01]).is_err());
        assert!(Instructions::new(Kind::Decoder).read(&[[0x7f].as_slice(), &[0xff; 30]].concat()).is_err());
    }
}
