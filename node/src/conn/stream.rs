//! Input that comes as a stream of bytes (WebTransport): cut into messages by what the messages say.

use super::read::Parsed;
use crate::protocol::Malformed;
use crate::protocol::protobuf::message_at;
use bytes::Bytes;
use weir_wire::close::Close;

/// Cuts a stream into lines. Holds the begin of a line whose end has not come, and nothing between lines.
pub(super) struct LineCutter {
    begun: Vec<u8>,
    /// Of a line, without its end.
    limit: usize,
}

/// Cuts a stream into messages that have their length in front.
pub(super) struct LengthCutter {
    begun: Vec<u8>,
    /// Of a message, without its length.
    limit: usize,
}

impl LineCutter {
    pub fn new(limit: usize) -> LineCutter {
        LineCutter { begun: Vec::new(), limit }
    }

    /// Whether a line has begun and not ended.
    pub fn is_amid(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Takes from `input` what it gives: as many lines as are there, up to one that is too long or no UTF-8.
    pub fn next(&mut self, input: &mut &[u8]) -> Parsed {
        if self.begun.is_empty() {
            return self.whole_lines(input);
        }
        let Some(end) = line_end(input) else { return self.begin(input) };
        if self.begun.len() + end > self.limit {
            return Parsed::Bad(Close::TOO_BIG);
        }
        let mut line = std::mem::take(&mut self.begun);
        let (rest_of_line, rest) = input.split_at(end + 1);
        line.extend_from_slice(rest_of_line);
        *input = rest;
        match std::str::from_utf8(&line) {
            Ok(_) => Parsed::Text { lines: line.into(), messages: 1 },
            Err(_) => Parsed::Bad(Close::INVALID_DATA),
        }
    }

    fn whole_lines(&mut self, input: &mut &[u8]) -> Parsed {
        let (mut good, mut messages) = (0, 0);
        let bad = loop {
            let rest = &input[good..];
            let Some(end) = line_end(rest) else { break None };
            if end > self.limit {
                break Some(Close::TOO_BIG);
            }
            if std::str::from_utf8(&rest[..end]).is_err() {
                break Some(Close::INVALID_DATA);
            }
            good += end + 1;
            messages += 1;
        };
        if good > 0 {
            let (lines, rest) = input.split_at(good);
            *input = rest;
            return Parsed::Text { lines: Bytes::copy_from_slice(lines), messages };
        }
        bad.map_or_else(|| self.begin(input), Parsed::Bad)
    }

    /// The end of the line is still to come.
    fn begin(&mut self, input: &mut &[u8]) -> Parsed {
        if self.begun.len() + input.len() > self.limit {
            return Parsed::Bad(Close::TOO_BIG);
        }
        self.begun.extend_from_slice(input);
        *input = &[];
        Parsed::All
    }
}

impl LengthCutter {
    pub fn new(limit: usize) -> LengthCutter {
        LengthCutter { begun: Vec::new(), limit }
    }

    /// Whether a message has begun and not ended.
    pub fn is_amid(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Takes from `input` what it gives: as many messages as are there, up to one that is too long.
    pub fn next(&mut self, input: &mut &[u8]) -> Parsed {
        if self.begun.is_empty() {
            return self.whole_messages(input);
        }
        loop {
            let wanted = match self.end(&self.begun) {
                Err(close) => return Parsed::Bad(close),
                Ok(Some(end)) if end == self.begun.len() => {
                    let message = std::mem::take(&mut self.begun);
                    return Parsed::Binary { bytes: message.into(), messages: 1 };
                }
                Ok(Some(end)) => end - self.begun.len(),
                Ok(None) => 1,
            };
            if input.is_empty() {
                return Parsed::All;
            }
            let (taken, rest) = input.split_at(wanted.min(input.len()));
            self.begun.extend_from_slice(taken);
            *input = rest;
        }
    }

    fn whole_messages(&mut self, input: &mut &[u8]) -> Parsed {
        let (mut good, mut messages) = (0, 0);
        let bad = loop {
            let rest = &input[good..];
            match self.end(rest) {
                Err(close) => break Some(close),
                Ok(Some(end)) if end <= rest.len() => {
                    good += end;
                    messages += 1;
                }
                Ok(_) => break None,
            }
        };
        if good > 0 {
            let (whole, rest) = input.split_at(good);
            *input = rest;
            return Parsed::Binary { bytes: Bytes::copy_from_slice(whole), messages };
        }
        if let Some(close) = bad {
            return Parsed::Bad(close);
        }
        self.begun.extend_from_slice(input);
        *input = &[];
        Parsed::All
    }

    /// Where the first message ends; `None`: its length is not all there.
    fn end(&self, bytes: &[u8]) -> Result<Option<usize>, Close> {
        match message_at(bytes) {
            Err(Malformed) => Err(Close::BAD_REQUEST),
            Ok(Some(message)) if message.end - message.start > self.limit => Err(Close::TOO_BIG),
            Ok(message) => Ok(message.map(|message| message.end)),
        }
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|b| *b == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a cutter gives for this input, come in pieces of `piece` bytes.
    fn cut(limit: usize, input: &[u8], piece: usize) -> (String, Option<Close>) {
        let mut cutter = LineCutter::new(limit);
        let mut text = String::new();
        for mut part in input.chunks(piece) {
            loop {
                match cutter.next(&mut part) {
                    Parsed::Text { lines, .. } => text.push_str(std::str::from_utf8(&lines).unwrap()),
                    Parsed::All => break,
                    Parsed::Bad(close) => return (text, Some(close)),
                    other => panic!("{other:?}"),
                }
                assert!(cutter.begun.is_empty());
            }
            assert!(part.is_empty() && cutter.begun.len() <= limit);
        }
        (text, None)
    }

    #[test]
    fn lines_are_the_same_however_they_come() {
        let cases: &[(&[u8], &str, Option<Close>)] = &[
            (b"{}\n{\"id\":1}\n", "{}\n{\"id\":1}\n", None),
            (b"{}\n{\"id\"", "{}\n", None),
            (b"\n\n", "\n\n", None),
            (b"12345678\n", "12345678\n", None),
            (b"{}\n123456789\n{}\n", "{}\n", Some(Close::TOO_BIG)),
            (b"{}\n123456789", "{}\n", Some(Close::TOO_BIG)),
            ("ä{}ä\nä\n".as_bytes(), "ä{}ä\nä\n", None),
            (b"{}\n\xc3\x28\n{}\n", "{}\n", Some(Close::INVALID_DATA)),
            (b"\xc3\n\xa4\n", "", Some(Close::INVALID_DATA)),
        ];
        for (input, lines, end) in cases {
            for piece in 1..=input.len() {
                let got = cut(8, input, piece);
                assert_eq!(got, ((*lines).to_owned(), end.clone()), "{input:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn messages_are_the_same_however_they_come() {
        let long = [&[0x80, 1][..], &[7; 128]].concat();
        let two = [&long[..], &[0, 2, 8, 1]].concat();
        let over = [&[1, 9][..], &[0x81, 1], &[7; 129]].concat();
        let cases: &[(&[u8], &[u8], Option<Close>)] = &[
            (&two, &two, None),
            (&two[..131], &two[..131], None),
            (&two[..129], b"", None),
            (&over, &over[..2], Some(Close::TOO_BIG)),
            // Refused by what it says of itself, before any of it is kept.
            (b"\xff\xff\xff\xff\x0f", b"", Some(Close::TOO_BIG)),
            (b"\x00\xff\xff\xff\xff\xff\x01", b"\x00", Some(Close::BAD_REQUEST)),
        ];
        for (input, want, end) in cases {
            for piece in 1..=input.len() {
                let mut cutter = LengthCutter::new(128);
                let (mut got, mut bad) = (Vec::new(), None);
                'input: for mut part in input.chunks(piece) {
                    loop {
                        match cutter.next(&mut part) {
                            Parsed::Binary { bytes, .. } => got.extend_from_slice(&bytes),
                            Parsed::All => break,
                            Parsed::Bad(close) => {
                                bad = Some(close);
                                break 'input;
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                    assert!(part.is_empty() && cutter.begun.len() <= 128 + 2);
                }
                assert_eq!((&got[..], &bad), (*want, end), "{input:?} in pieces of {piece}");
            }
        }
    }
}
