//! A server's answer to a handshake: a switch of protocols, or an ordinary response that is read
//! whole (up to a bound) so that it can be passed on.

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
/// Of the body of a refusal; such bodies are a page of text at most.
const MAX_BODY: usize = 1 << 20;

pub enum Answer {
    Switch { headers: HeaderMap, rest: Bytes },
    Plain(Response<Bytes>),
}

#[derive(Debug, PartialEq, Eq)]
pub enum ReadError {
    Closed,
    Malformed,
    TooLarge,
}

/// The caller sets the deadline.
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
                        return plain(server, bytes, status, headers).await;
                    }
                }
            }
            status => return plain(server, bytes, status, headers).await,
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

async fn plain<S: AsyncRead + Unpin>(
    server: &mut S,
    mut bytes: BytesMut,
    status: StatusCode,
    mut headers: HeaderMap,
) -> Result<Answer, ReadError> {
    let length = headers.get(CONTENT_LENGTH).map(|v| v.to_str().ok().and_then(|t| t.parse::<usize>().ok()));
    let body = if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        Bytes::new()
    } else if headers.contains_key(TRANSFER_ENCODING) {
        chunks(server, bytes).await?
    } else {
        match length {
            Some(None) => return Err(ReadError::Malformed),
            Some(Some(length)) if length > MAX_BODY => return Err(ReadError::TooLarge),
            Some(Some(length)) => {
                while bytes.len() < length {
                    fill(server, &mut bytes, MAX_BODY).await?;
                }
                bytes.split_to(length).freeze()
            }
            None => to_end(server, bytes).await?,
        }
    };
    headers.remove(TRANSFER_ENCODING);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(Answer::Plain(response))
}

async fn to_end<S: AsyncRead + Unpin>(server: &mut S, mut bytes: BytesMut) -> Result<Bytes, ReadError> {
    loop {
        match fill(server, &mut bytes, MAX_BODY).await {
            Ok(()) => {}
            Err(ReadError::Closed) => return Ok(bytes.freeze()),
            Err(error) => return Err(error),
        }
    }
}

/// RFC 9112, 7.1; trailers are dropped.
async fn chunks<S: AsyncRead + Unpin>(server: &mut S, mut bytes: BytesMut) -> Result<Bytes, ReadError> {
    let mut body = BytesMut::new();
    loop {
        let (skip, size) = loop {
            match httparse::parse_chunk_size(&bytes) {
                Ok(httparse::Status::Complete(found)) => break found,
                Ok(httparse::Status::Partial) => fill(server, &mut bytes, MAX_HEAD + MAX_BODY).await?,
                Err(_) => return Err(ReadError::Malformed),
            }
        };
        let size = usize::try_from(size).map_err(|_| ReadError::TooLarge)?;
        if body.len() + size.min(MAX_BODY + 1) > MAX_BODY {
            return Err(ReadError::TooLarge);
        }
        if size == 0 {
            return Ok(body.freeze());
        }
        while bytes.len() < skip + size + 2 {
            fill(server, &mut bytes, MAX_HEAD + MAX_BODY).await?;
        }
        body.extend_from_slice(&bytes[skip..skip + size]);
        if &bytes[skip + size..skip + size + 2] != b"\r\n" {
            return Err(ReadError::Malformed);
        }
        let _taken = bytes.split_to(skip + size + 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body_of(text: &str) -> Result<(u16, String), ReadError> {
        match read(&mut text.as_bytes()).await? {
            Answer::Plain(r) => Ok((r.status().as_u16(), String::from_utf8(r.body().to_vec()).unwrap())),
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
            ("HTTP/1.1 403 F\r\nContent-Length: 99999999\r\n\r\n", Err(ReadError::TooLarge)),
            (
                "HTTP/1.1 403 F\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                Err(ReadError::TooLarge),
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
