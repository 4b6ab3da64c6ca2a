//! A response's head, and trailers.

use super::add;
use crate::{Error, qpack};
use http::response::Parts;
use http::{HeaderMap, StatusCode, Version};

pub fn decode_response(section: &[u8], limit: usize) -> Result<Parts, Error> {
    let mut status = None;
    let mut headers = HeaderMap::new();
    let mut regular = false;
    qpack::decode(section, limit, |name, value| {
        if name.first() != Some(&b':') {
            regular = true;
            return add(&mut headers, name, value);
        }
        if regular || name != b":status" || status.is_some() {
            return Err(Error::malformed("wrong pseudo-header field in a response"));
        }
        status = Some(StatusCode::from_bytes(value).map_err(|_| Error::malformed("bad :status"))?);
        Ok(())
    })?;
    super::content_length(&headers)?;
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status.ok_or(Error::malformed("no :status"))?;
    parts.version = Version::HTTP_3;
    parts.headers = headers;
    Ok(parts)
}

/// Fields of an HTTP/1.1 connection are left out.
pub fn encode_response(status: StatusCode, headers: &HeaderMap) -> qpack::Encoder {
    let mut encoder = qpack::Encoder::new();
    encoder.field(":status", status.as_str().as_bytes());
    fields(headers, &mut encoder);
    encoder
}

pub fn decode_trailers(section: &[u8], limit: usize) -> Result<HeaderMap, Error> {
    let mut trailers = HeaderMap::new();
    qpack::decode(section, limit, |name, value| match name.first() {
        Some(b':') => Err(Error::malformed("pseudo-header field in trailers")),
        _ => add(&mut trailers, name, value),
    })?;
    Ok(trailers)
}

pub fn encode_trailers(trailers: &HeaderMap) -> qpack::Encoder {
    let mut encoder = qpack::Encoder::new();
    fields(trailers, &mut encoder);
    encoder
}

fn fields(headers: &HeaderMap, encoder: &mut qpack::Encoder) {
    for (name, value) in headers.iter().filter(|(name, _)| !super::is_of_connection(name)) {
        encoder.field(name.as_str(), value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_is_written_is_read() {
        let mut headers = HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        headers.insert("connection", HeaderValue::from_static("close"));
        let parts =
            decode_response(&encode_response(StatusCode::NOT_FOUND, &headers).finish(), 1000).unwrap();
        headers.remove("connection");
        assert_eq!((parts.status, &parts.headers), (StatusCode::NOT_FOUND, &headers));
        assert_eq!(decode_trailers(&encode_trailers(&headers).finish(), 1000), Ok(headers));
    }

    #[test]
    fn wrong_ones() {
        for fields in [
            [("x", "y")].as_slice(),
            &[(":status", "200"), (":status", "200")],
            &[("x", "y"), (":status", "200")],
            &[(":status", "99")],
            &[(":status", "200"), (":path", "/")],
        ] {
            let mut encoder = qpack::Encoder::new();
            fields.iter().for_each(|(name, value)| encoder.field(name, value.as_bytes()));
            let section = encoder.finish();
            assert!(decode_response(&section, 1000).is_err(), "{fields:?}");
            assert!(fields.len() == 1 && fields[0].0 == "x" || decode_trailers(&section, 1000).is_err());
        }
    }
}
