//! A server's answer to a handshake: a switch of protocols, or an ordinary response, whose body is read piece by
//! piece so that it can be passed on as it comes.

use crate::front::upgrade::tokens;
use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Of a server's head.
const MAX_HEAD: usize = 32 << 10;
const MAX_HEADERS: usize = 128;
/// Read of a body at once.
const PIECE: usize = 32 << 10;

pub enum Answer {
    Switch {
        headers: HeaderMap,
        rest: Bytes,
    },
    /// Its body is still to come.
    Plain(Response<Body>),
}

#[derive(Debug, PartialEq, Eq)]
pub enum ReadError {
    Closed,
    Malformed,
    TooLarge,
}

/// Up to the end of the head. The caller sets the deadline.
pub async fn read<S: AsyncRead + Unpin>(server: &mut S) -> Result<Answer, ReadError> {
    let mut bytes = BytesMut::with_capacity(2048);
    loop {
        fill(server, &mut bytes, MAX_HEAD).await?;
        let Some((status, headers, length)) = parse(&bytes)? else { continue };
        let _head = bytes.split_to(length);
        match status {
            StatusCode::SWITCHING_PROTOCOLS => return Ok(Answer::Switch { headers, rest: bytes.freeze() }),
            // 100, 103: another answer follows.
            status if status.is_informational() => {
                if bytes.is_empty() {
                    continue;
                }
                // What follows is here already: look at it before reading more.
                while let Some((status, headers, length)) = parse(&bytes)? {
                    let _head = bytes.split_to(length);
                    if status == StatusCode::SWITCHING_PROTOCOLS {
                        return Ok(Answer::Switch { headers, rest: bytes.freeze() });
                    }
                    if !status.is_informational() {
                        return plain(bytes, status, headers);
                    }
                }
            }
            status => return plain(bytes, status, headers),
        }
    }
}

/// The status alone, of an answer that is not to be passed on. The caller sets the deadline.
pub async fn status<S: AsyncRead + Unpin>(server: &mut S) -> Result<u16, ReadError> {
    let mut bytes = BytesMut::with_capacity(2048);
    loop {
        fill(server, &mut bytes, MAX_HEAD).await?;
        while let Some((status, _, length)) = parse(&bytes)? {
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(status.as_u16());
            }
            let _head = bytes.split_to(length);
        }
    }
}

/// Status, upgrade and the accept value of this very key (RFC 6455, 4.1).
pub fn is_valid_switch(headers: &HeaderMap, accept: &str) -> bool {
    let mut accepts = headers.get_all(SEC_WEBSOCKET_ACCEPT).iter();
    let proven =
        accepts.next().is_some_and(|v| v.as_bytes() == accept.as_bytes()) && accepts.next().is_none();
    switches_to(headers, "websocket") && proven
}

/// To this protocol, and no other one.
pub fn switches_to(headers: &HeaderMap, protocol: &str) -> bool {
    let mut protocols = tokens(headers, UPGRADE);
    let upgraded =
        protocols.next().is_some_and(|t| t.eq_ignore_ascii_case(protocol)) && protocols.next().is_none();
    upgraded && tokens(headers, CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"))
}

async fn fill<S: AsyncRead + Unpin>(from: &mut S, into: &mut BytesMut, max: usize) -> Result<(), ReadError> {
    if into.len() >= max {
        return Err(ReadError::TooLarge);
    }
    match from.read_buf(into).await {
        Ok(0) | Err(_) => Err(ReadError::Closed),
        Ok(_) => Ok(()),
    }
}

type ParsedHead = (StatusCode, HeaderMap, usize);

fn parse(bytes: &[u8]) -> Result<Option<ParsedHead>, ReadError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(ReadError::Malformed),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or(0)).map_err(|_| ReadError::Malformed)?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| ReadError::Malformed)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| ReadError::Malformed)?;
        headers.append(name, value);
    }
    Ok(Some((status, headers, length)))
}

fn plain(bytes: BytesMut, status: StatusCode, mut headers: HeaderMap) -> Result<Answer, ReadError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let first = lengths.next().cloned();
    if lengths.any(|other| Some(other) != first.as_ref()) {
        return Err(ReadError::Malformed);
    }
    if let Some(first) = &first {
        headers.insert(CONTENT_LENGTH, first.clone());
    }
    let length = first.map(|v| v.to_str().ok().and_then(|t| t.parse::<usize>().ok()));
    let left = if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        Left::Length(0)
    } else if headers.contains_key(TRANSFER_ENCODING) {
        Left::Chunk(0, false)
    } else {
        match length {
            Some(None) => return Err(ReadError::Malformed),
            Some(Some(length)) => Left::Length(length),
            None => Left::ToEnd,
        }
    };
    if matches!(left, Left::Chunk(..)) {
        headers.remove(CONTENT_LENGTH);
    }
    headers.remove(TRANSFER_ENCODING);
    let mut response = Response::new(Body { bytes, left });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(Answer::Plain(response))
}

/// What is still to come of a refusal.
#[derive(Debug)]
pub struct Body {
    /// Read, and not handed out.
    bytes: BytesMut,
    left: Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Length(usize),
    /// Of this chunk; after it, and before its end mark was read (true).
    Chunk(usize, bool),
    ToEnd,
}

impl Body {
    /// The next piece, as it comes; `None`: the end. It may be dropped while it waits. The caller sets the deadline.
    pub async fn next<S: AsyncRead + Unpin>(&mut self, server: &mut S) -> Result<Option<Bytes>, ReadError> {
        loop {
            let most = match self.left {
                Left::Length(0) => return Ok(None),
                Left::Length(left) => left,
                Left::Chunk(0, mark) => match self.chunk(mark)? {
                    Some(0) => return Ok(None),
                    Some(size) => {
                        self.left = Left::Chunk(size, true);
                        size
                    }
                    None => {
                        fill(server, &mut self.bytes, MAX_HEAD).await?;
                        continue;
                    }
                },
                Left::Chunk(left, _) => left,
                Left::ToEnd => usize::MAX,
            };
            if self.bytes.is_empty() {
                match (fill(server, &mut self.bytes, PIECE).await, self.left) {
                    (Err(ReadError::Closed), Left::ToEnd) => return Ok(None),
                    (read, _) => read?,
                }
            }
            let piece = self.bytes.split_to(self.bytes.len().min(most)).freeze();
            match &mut self.left {
                Left::Length(left) | Left::Chunk(left, _) => *left -= piece.len(),
                Left::ToEnd => {}
            }
            return Ok(Some(piece));
        }
    }

    /// The size of the next chunk (RFC 9112, 7.1), behind the mark at the end of the one before; trailers are dropped.
    fn chunk(&mut self, mark: bool) -> Result<Option<usize>, ReadError> {
        let begins = if mark { 2 } else { 0 };
        if self.bytes.len() <= begins {
            return Ok(None);
        }
        if mark && &self.bytes[..2] != b"\r\n" {
            return Err(ReadError::Malformed);
        }
        match httparse::parse_chunk_size(&self.bytes[begins..]) {
            Ok(httparse::Status::Complete((skip, size))) => {
                let _taken = self.bytes.split_to(begins + skip);
                usize::try_from(size).map(Some).map_err(|_| ReadError::TooLarge)
            }
            Ok(httparse::Status::Partial) => Ok(None),
            Err(_) => Err(ReadError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body_of(text: &str) -> Result<(u16, String), ReadError> {
        let mut server = text.as_bytes();
        match read(&mut server).await? {
            Answer::Plain(r) => {
                let (parts, mut body) = r.into_parts();
                let mut whole = Vec::new();
                while let Some(piece) = body.next(&mut server).await? {
                    whole.extend_from_slice(&piece);
                }
                Ok((parts.status.as_u16(), String::from_utf8(whole).unwrap()))
            }
            Answer::Switch { rest, .. } => Ok((101, String::from_utf8(rest.to_vec()).unwrap())),
        }
    }

    #[tokio::test]
    async fn answers_are_read_whole_whatever_frames_them() {
        let ok = |status, body: &str| Ok((status, body.to_owned()));
        for (text, expected) in [
            ("HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\nfirst frame", ok(101, "first frame")),
            ("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 101 S\r\n\r\nx", ok(101, "x")),
            ("HTTP/1.1 403 F\r\nContent-Length: 2\r\n\r\nnoX", ok(403, "no")),
            (
                "HTTP/1.1 400 B\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\n!\r\n0\r\n\r\n",
                ok(400, "no!"),
            ),
            ("HTTP/1.0 500 E\r\n\r\nuntil the end", ok(500, "until the end")),
            ("HTTP/1.1 403 F\r\nContent-Length: 9\r\n\r\nno", Err(ReadError::Closed)),
            ("HTTP/1.1 403 F\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nnoX", ok(403, "no")),
            ("HTTP/1.1 403 F\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nno", Err(ReadError::Malformed)),
            (
                "HTTP/1.1 403 F\r\nTransfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n",
                Err(ReadError::Malformed),
            ),
            ("SSH-2.0-OpenSSH\r\n\r\n", Err(ReadError::Malformed)),
            ("", Err(ReadError::Closed)),
        ] {
            assert_eq!(body_of(text).await, expected, "{text}");
        }
    }

    #[test]
    fn a_switch_needs_all_three_headers() {
        let check = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            is_valid_switch(&headers, "right")
        };
        let good = [("upgrade", "WebSocket"), ("connection", "Upgrade"), ("sec-websocket-accept", "right")];
        assert!(check(&good));
        for missing in 0..3 {
            let mut fields = good.to_vec();
            fields.remove(missing);
            assert!(!check(&fields), "without {}", good[missing].0);
        }
        assert!(!check(&[good[0], good[1], ("sec-websocket-accept", "wrong")]));
        assert!(!check(&[good[0], ("upgrade", "h2c"), good[1], good[2]]));
    }
}
