//! Messages out of the parts in which they came, lane by lane. Pure.

use crate::link::LinkError;
use bytes::{Buf, BytesMut};
use weir_wire::codec::MAX_FRAME;
use weir_wire::mesh::{Lane, PART};

/// Messages that are not complete yet; none grows beyond the largest frame.
#[derive(Default)]
pub struct Parts([BytesMut; Lane::ALL.len()]);

impl Parts {
    /// A frame's body; `Some` if a message ends with it.
    pub fn take(&mut self, mut body: BytesMut) -> Result<Option<(Lane, BytesMut)>, LinkError> {
        let first = body.first().copied().ok_or(LinkError::Unexpected("an empty frame"))?;
        let (lane, more) = Lane::parse(first).ok_or(LinkError::Unexpected("such a lane"))?;
        body.advance(1);
        let so_far = &mut self.0[lane as usize];
        if body.len() > PART || so_far.len() + body.len() > MAX_FRAME {
            return Err(LinkError::Unexpected("a message of this length"));
        }
        if so_far.is_empty() && !more {
            return Ok(Some((lane, body)));
        }
        if body.is_empty() {
            // Would never come to an end.
            return Err(LinkError::Unexpected("an empty part"));
        }
        so_far.extend_from_slice(&body);
        Ok((!more).then(|| (lane, std::mem::take(so_far))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_wire::mesh::MORE;

    #[test]
    fn nonsense_is_an_error_and_an_endless_message_too() {
        let body = |bytes: &[u8]| BytesMut::from(bytes);
        let mut parts = Parts::default();
        assert!(parts.take(body(&[])).is_err() && parts.take(body(&[6])).is_err());
        assert!(parts.take(body(&[MORE])).is_err(), "a part of nothing");
        assert!(parts.take(body(&vec![1; PART + 2])).is_err());
        let part = vec![Lane::Bulk as u8 | MORE; PART + 1];
        let taken = (0..1000).take_while(|_| parts.take(body(&part)).is_ok()).count();
        assert_eq!(taken, MAX_FRAME / PART);
    }
}
