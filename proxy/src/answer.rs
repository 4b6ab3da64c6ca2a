//! The proxy's own answers, and how they are sent so that they arrive.

use crate::{forward, token};
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
    WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// For writing an answer; the client has only to take a few hundred bytes.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// After an answer that ends the connection, what the client still sends is read and thrown
/// away for so long: closing at once would reset the connection, and with it the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// Marks the answer to a HEAD: as long as it says, and without its body.
#[derive(Clone, Copy)]
pub struct ToHead;

/// A short answer of ours.
pub fn response(status: u16, retry_after: Option<Duration>) -> Response<Bytes> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(wait) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}

/// What of a cause a client is told: that another token would do (RFC 6750, section 3.1).
pub fn explain(response: &mut Response<Bytes>, cause: &str) {
    let why = match cause {
        token::EXPIRED => "Bearer error=\"invalid_token\", error_description=\"the token has expired\"",
        token::NOT_YET => "Bearer error=\"invalid_token\", error_description=\"the token is not valid yet\"",
        _ => return,
    };
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(why));
}

/// Whole seconds, rounded up: who comes back a moment early is refused again.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Sends a response of HTTP/1.1 that ends the connection, and ends it.
pub async fn send_and_close<S>(stream: &mut S, response: Response<Bytes>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    send(stream, response).await?;
    linger(stream).await;
    Ok(())
}

/// Ends the connection so that what was answered arrives.
pub async fn linger<S: AsyncRead + AsyncWrite + Unpin + ?Sized>(stream: &mut S) {
    let _ = timeout(LINGER, discard(stream)).await;
}

/// The same to a client that has sent its request and, most likely, nothing after it.
pub async fn send<S>(stream: &mut S, response: Response<Bytes>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let (mut parts, body) = response.into_parts();
    forward::rewrite_response(&mut parts.headers);
    let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match bodiless {
        true => parts.headers.remove(CONTENT_LENGTH),
        false => parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len())),
    };
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut out = status_line(parts.status);
    forward::write_headers(&parts.headers, &mut out);
    out.extend_from_slice(b"\r\n");
    if !bodiless && parts.extensions.get::<ToHead>().is_none() {
        out.extend_from_slice(&body);
    }
    write(stream, &out).await
}

pub fn status_line(status: StatusCode) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    out
}

pub async fn write<S: AsyncWrite + Unpin + ?Sized>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    let all = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    timeout(WRITE_TIMEOUT, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn discard<S: AsyncRead + AsyncWrite + Unpin + ?Sized>(stream: &mut S) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut scratch, mut left) = ([0u8; 2048], LINGER_BYTES);
    while left > 0 {
        match stream.read(&mut scratch).await? {
            0 => break,
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up() {
        let wait = |d| response(503, Some(d)).headers()[RETRY_AFTER].to_str().unwrap().to_string();
        assert_eq!(wait(Duration::from_secs(3)), "3");
        assert_eq!(wait(Duration::from_millis(3001)), "4");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_the_client_and_no_longer_than_it_should() {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(&[b'x'; 1000]).await.unwrap();
        send_and_close(&mut ours, response(400, None)).await.unwrap();
        drop(ours);
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(text.contains("Connection: close\r\n") && text.ends_with("\r\n\r\n400 Bad Request\n"));
    }
}
