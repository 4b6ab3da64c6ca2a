//! Heads of requests and responses as field sections, and the rules for them (RFC 9114, 4.1 to 4.4; RFC 9220).

mod request;
mod response;

pub use request::{decode_request, encode_request, escaped};
pub use response::{decode_response, decode_trailers, encode_response, encode_trailers};

use crate::Error;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The `:protocol` of an extended CONNECT; an extension of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol(Box<str>);

impl Protocol {
    /// `None` if it is no token.
    pub fn new(name: &str) -> Option<Protocol> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
        (!name.is_empty() && name.bytes().all(good)).then(|| Protocol(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An extension of requests that came in early data (RFC 8470): somebody may have replayed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyData;

/// How long the message says its content is.
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = value.as_bytes();
        let number = Some(digits)
            .filter(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok())
            .ok_or(Error::malformed("bad content-length"))?;
        if length.is_some_and(|before| before != number) {
            return Err(Error::malformed("two content-lengths"));
        }
        length = Some(number);
    }
    Ok(length)
}

/// Of one connection of HTTP/1.1, so wrong in a message of HTTP/3.
fn is_of_connection(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || name == "keep-alive"
        || name == "proxy-connection"
}

/// Adds a field that is no pseudo-header field.
fn add(headers: &mut HeaderMap, name: &[u8], value: &[u8]) -> Result<(), Error> {
    // Refuses upper case, too.
    let name = HeaderName::from_lowercase(name).map_err(|_| Error::malformed("bad field name"))?;
    if is_of_connection(&name) {
        return Err(Error::malformed("field of an HTTP/1.1 connection"));
    }
    if name == header::TE && !value.eq_ignore_ascii_case(b"trailers") {
        return Err(Error::malformed("te other than trailers"));
    }
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if blank(value.first()) || blank(value.last()) {
        return Err(Error::malformed("bad field value"));
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| Error::malformed("bad field value"))?;
    headers.try_append(name, value).map_err(|_| crate::qpack::TOO_LARGE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_lengths() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            content_length(&headers)
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["7"]), Ok(Some(7)));
        assert_eq!(of(&["7", "07"]), Ok(Some(7)));
        for wrong in [["7", "8"].as_slice(), &[""], &["+7"], &["7, 7"], &["-1"], &["18446744073709551616"]] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
    }
}
