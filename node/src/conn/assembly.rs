//! Where in a WebSocket message its client is (RFC 6455, 5.2 and 5.4), by the headers of its frames alone. Pure.
//!
//! tungstenite keeps this to itself, and what it has returned does not say it: pings may stand between the
//! fragments of a message, and must not make it look as if it had just begun.

/// Of a header, with the longest length and a mask.
const MAX_HEADER: usize = 14;

#[derive(Default)]
pub(super) struct Assembly {
    header: [u8; MAX_HEADER],
    have: usize,
    /// Payload of the frame under way that is still to come.
    left: u64,
    /// The frame under way belongs to a message, and is its last.
    data: bool,
    last: bool,
    fragmented: bool,
    /// Of the message under way, headers included.
    bytes: usize,
}

impl Assembly {
    /// Whether something has begun and not ended: a message, or a frame of any kind.
    pub fn is_amid(&self) -> bool {
        self.fragmented || self.left > 0 || self.have > 0
    }

    /// What a message that has not ended came to so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Follows input that was read. What is no frame is for whoever parses it to refuse.
    pub fn read(&mut self, mut input: &[u8]) {
        while let Some((&byte, rest)) = input.split_first() {
            if self.left > 0 {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                self.left -= n as u64;
                self.count(n);
                input = &input[n..];
            } else {
                self.header[self.have] = byte;
                self.have += 1;
                input = rest;
                if !self.begins() {
                    continue;
                }
            }
            if self.left == 0 && self.data && self.last {
                self.bytes = 0;
            }
        }
    }

    /// Whether the header is whole now; a frame begins then.
    fn begins(&mut self) -> bool {
        let [first, second, ..] = self.header;
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let masked = if second & 0x80 != 0 { 4 } else { 0 };
        if self.have < 2 || self.have < 2 + extended + masked {
            return false;
        }
        let length = self.header[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.left = if extended == 0 { u64::from(second & 0x7f) } else { length };
        (self.data, self.last) = (first & 0x8 == 0, first & 0x80 != 0);
        if self.data {
            self.fragmented = !self.last;
        }
        let header = std::mem::take(&mut self.have);
        self.count(header);
        true
    }

    fn count(&mut self, bytes: usize) {
        if self.data {
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match payload {
            0..126 => frame.push(0x80 | payload as u8),
            126..0x1_0000 => {
                frame.push(0xfe);
                frame.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(0xff);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[1, 2, 3, 4]);
        frame.resize(frame.len() + payload, 7);
        frame
    }

    /// In pieces of any size it comes to the same.
    fn after(frames: &[Vec<u8>]) -> (bool, usize) {
        let all = frames.concat();
        let ends = [1, 3, 7, all.len().max(1)].map(|piece| {
            let mut assembly = Assembly::default();
            all.chunks(piece).for_each(|part| assembly.read(part));
            (assembly.is_amid(), assembly.bytes())
        });
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        ends[0]
    }

    #[test]
    fn what_has_begun_and_not_ended_is_known() {
        let (text, first, more, last) = (frame(0x81, 10), frame(0x01, 10), frame(0x00, 0), frame(0x80, 300));
        let (ping, long) = (frame(0x89, 125), frame(0x82, 70_000));
        let cut = |frame: &[u8]| frame[..frame.len() - 1].to_vec();
        let first_bytes = first.len();
        for (frames, end) in [
            (vec![], (false, 0)),
            (vec![text.clone()], (false, 0)),
            (vec![text.clone(), long.clone()], (false, 0)),
            (vec![first.clone()], (true, first_bytes)),
            (vec![first.clone(), ping.clone()], (true, first_bytes)),
            (vec![first.clone(), ping.clone(), more.clone(), ping.clone()], (true, first_bytes + 6)),
            (vec![first.clone(), ping.clone(), more.clone(), last.clone()], (false, 0)),
            (vec![first.clone(), last.clone(), ping.clone()], (false, 0)),
            (vec![cut(&long)], (true, long.len() - 1)),
            (vec![text.clone(), text[..1].to_vec()], (true, 0)),
            (vec![cut(&ping)], (true, 0)),
            (vec![frame(0x81, 0)], (false, 0)),
        ] {
            assert_eq!(after(&frames), end, "{} frames", frames.len());
        }
    }
}
