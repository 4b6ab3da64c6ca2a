//! Frames between processes, and the only place that knows how their bytes are made.
//!
//! ```text
//!   0         4       5         6
//!   ┌─────────┬───────┬─────────┬──────────────┐
//!   │ length  │ magic │ version │ body …       │    length: of all that follows it, u32, little endian
//!   └─────────┴───────┴─────────┴──────────────┘
//! ```
//!
//! The body is bincode 2 `standard()`, written by wincode with varint integers (the tests compare
//! with bincode's own output). Nothing a peer sends makes this code panic, and nothing it merely
//! *announces* makes it allocate: a frame's length is checked against the reader's limit before a
//! byte of it is kept, and a sequence's length against a bound that follows from the frame's size.

use bytes::{Buf, Bytes, BytesMut};
use wincode::SchemaWrite;
use wincode::config::{self, Configuration};
use wincode::int_encoding::{LittleEndian, VarInt};
use wincode::len::BincodeLen;

/// Version of the frames between processes.
pub const VERSION: u8 = 1;
/// Tells a frame of ours from a stray HTTP request or a TLS hello.
pub const MAGIC: u8 = 0xb7;
/// Bytes before the body.
pub const HEADER: usize = 6;
/// No frame is larger, whatever a reader's own limit says.
pub const MAX_FRAME: usize = 32 << 20;

/// A configuration with a bound on what one sequence may reserve ahead of its elements.
type Bounded<const RESERVE: usize> = Configuration<
    true,
    RESERVE,
    BincodeLen,
    LittleEndian,
    VarInt,
    u32,
    { config::DESERIALIZATION_SIZE_LIMIT_DISABLED },
>;

const SMALL: usize = 1 << 10;
const MIDDLE: usize = 64 << 10;
/// A decoded element is larger than its bytes (an empty string: 24 to 1), so a sequence may
/// reserve this many times what a frame of its class holds.
const GROWTH: usize = 64;

type Writing = Bounded<{ config::PREALLOCATION_SIZE_LIMIT_DISABLED }>;
type ReadingSmall = Bounded<{ SMALL * GROWTH }>;
type ReadingMiddle = Bounded<{ MIDDLE * GROWTH }>;
type ReadingLarge = Bounded<{ MAX_FRAME * 4 }>;

/// What can be written into a frame.
pub trait Encode: SchemaWrite<Writing, Src = Self> + Sized {}
impl<T: SchemaWrite<Writing, Src = T>> Encode for T {}

/// What can be read back from one, owning all of its data.
pub trait Decode:
    Sized
    + for<'de> wincode::SchemaRead<'de, ReadingSmall, Dst = Self>
    + for<'de> wincode::SchemaRead<'de, ReadingMiddle, Dst = Self>
    + for<'de> wincode::SchemaRead<'de, ReadingLarge, Dst = Self>
{
}
impl<T> Decode for T where
    T: for<'de> wincode::SchemaRead<'de, ReadingSmall, Dst = T>
        + for<'de> wincode::SchemaRead<'de, ReadingMiddle, Dst = T>
        + for<'de> wincode::SchemaRead<'de, ReadingLarge, Dst = T>
{
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("frame of {len} bytes is over the limit of {limit}")]
    TooLong { len: usize, limit: usize },
    #[error("not a frame of ours (first byte {0:#04x})")]
    Magic(u8),
    #[error("frame version {0}, this build speaks {VERSION}")]
    Version(u8),
    #[error("malformed frame: {0}")]
    Malformed(String),
}

/// Bytes of `value` without a header.
pub fn size(value: &impl Encode) -> Result<usize, CodecError> {
    let size = config::serialized_size(value, Writing::new()).map_err(malformed)?;
    usize::try_from(size).map_err(|_| CodecError::TooLong { len: usize::MAX, limit: MAX_FRAME })
}

/// Appends `value` as one frame. On an error `out` is as before.
pub fn encode_into(out: &mut Vec<u8>, value: &impl Encode) -> Result<(), CodecError> {
    let (start, body) = (out.len(), size(value)?);
    if HEADER + body > MAX_FRAME {
        return Err(CodecError::TooLong { len: body, limit: MAX_FRAME });
    }
    out.reserve(HEADER + body);
    let length = u32::try_from(body + 2).map_err(|_| CodecError::TooLong { len: body, limit: MAX_FRAME })?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[MAGIC, VERSION]);
    config::serialize_into(&mut *out, value, Writing::new()).map_err(|e| {
        out.truncate(start);
        malformed(e)
    })
}

/// `value` as one frame of its own.
pub fn encode(value: &impl Encode) -> Result<Bytes, CodecError> {
    let mut out = Vec::new();
    encode_into(&mut out, value)?;
    Ok(out.into())
}

/// `value` without a header, for whoever puts it into frames by parts.
pub fn encode_body(value: &impl Encode) -> Result<Bytes, CodecError> {
    let size = size(value)?;
    if size > MAX_FRAME {
        return Err(CodecError::TooLong { len: size, limit: MAX_FRAME });
    }
    let mut out = Vec::with_capacity(size);
    config::serialize_into(&mut out, value, Writing::new()).map_err(malformed)?;
    Ok(out.into())
}

/// The header of a frame whose body has `body` bytes, at most [`MAX_FRAME`] with it.
pub fn header(body: usize) -> [u8; HEADER] {
    let length = u32::try_from(body + HEADER - 4).unwrap_or(u32::MAX);
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, MAGIC, VERSION]
}

/// Reads a frame's body; every byte of it must be used.
pub fn decode<T: Decode>(body: &[u8]) -> Result<T, CodecError> {
    match body.len() {
        len if len <= SMALL => config::deserialize_exact(body, ReadingSmall::new()),
        len if len <= MIDDLE => config::deserialize_exact(body, ReadingMiddle::new()),
        len if len <= MAX_FRAME => config::deserialize_exact(body, ReadingLarge::new()),
        len => return Err(CodecError::TooLong { len, limit: MAX_FRAME }),
    }
    .map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> CodecError {
    CodecError::Malformed(error.to_string())
}

/// Looks at the header of the first frame in `bytes`. `None`: more bytes are needed. Otherwise
/// the length of the whole frame, which may not be there yet.
pub fn frame_len(bytes: &[u8], limit: usize) -> Result<Option<usize>, CodecError> {
    // The magic comes after the length, so that a stranger's bytes are refused by whichever is wrong.
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    if let Some(&magic) = rest.first()
        && magic != MAGIC
    {
        return Err(CodecError::Magic(magic));
    }
    if let Some(&version) = rest.get(1)
        && version != VERSION
    {
        return Err(CodecError::Version(version));
    }
    let (len, limit) = (u32::from_le_bytes(*length) as usize, limit.min(MAX_FRAME));
    if len < 2 {
        return Err(CodecError::Malformed("no room for a header".into()));
    }
    if len + 4 > limit {
        return Err(CodecError::TooLong { len: len + 4, limit });
    }
    Ok(Some(len + 4))
}

/// Takes the first whole frame out of `buffer`, and returns its body.
pub fn take_frame(buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, CodecError> {
    match frame_len(buffer, limit)? {
        Some(len) if buffer.len() >= len => {
            let mut frame = buffer.split_to(len);
            frame.advance(HEADER);
            Ok(Some(frame))
        }
        _ => Ok(None),
    }
}

/// The same for frames that lie one after the other in shared bytes. `None` at the end.
pub fn next_frame(frames: &mut Bytes) -> Result<Option<Bytes>, CodecError> {
    if frames.is_empty() {
        return Ok(None);
    }
    match frame_len(frames, MAX_FRAME)? {
        Some(len) if frames.len() >= len => {
            let mut frame = frames.split_to(len);
            frame.advance(HEADER);
            Ok(Some(frame))
        }
        _ => Err(CodecError::Malformed("cut short".into())),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
