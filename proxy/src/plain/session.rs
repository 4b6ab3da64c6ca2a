//! A request as Pingora's `HttpProxy` takes it (its `custom` session), whatever carries it. Pingora's own session of
//! HTTP/1 holds back what has a length, and knows no trailers.

use super::carrier::Carrier;
use crate::forward;
use crate::front::head::{Body, Head};
use crate::upstream::watched::Told;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A body up to this size is kept, to be sent to another server when the first cannot be reached; Pingora's
/// own figure.
const RETRY_BUFFER: usize = 64 << 10;
/// Silence of a client within its body; as for HTTP/1.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

type Messages = Box<dyn futures_util::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

pub struct Exchange {
    head: RequestHeader,
    bodiless: bool,
    carrier: Carrier,
    /// Where trailers are to be found at the answer's end.
    told: Arc<Told>,
    written: Option<Box<ResponseHeader>>,
    /// All of the answer is sent, or it was given up.
    ended: bool,
    retry: Option<Retry>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
    sent: usize,
    read: usize,
}

#[derive(Default)]
struct Retry {
    kept: Vec<u8>,
    truncated: bool,
}

impl Exchange {
    pub fn new(head: Head, carrier: Carrier, told: Arc<Told>) -> Result<Exchange> {
        Ok(Exchange {
            head: request_header(&head)?,
            bodiless: head.body == Body::None,
            carrier,
            told,
            written: None,
            ended: false,
            retry: None,
            read_timeout: Some(READ_TIMEOUT),
            write_timeout: None,
            drain_timeout: None,
            sent: 0,
            read: 0,
        })
    }

    async fn send<T>(
        limit: Option<Duration>,
        sending: impl Future<Output = io::Result<T>> + Send,
    ) -> Result<T> {
        let sent = match limit {
            Some(limit) => {
                timeout(limit, sending).await.map_err(|_| Error::new_down(ErrorType::WriteTimedout))?
            }
            None => sending.await,
        };
        sent.or_err(ErrorType::WriteError, "to the client's stream").map_err(|error| error.into_down())
    }

    async fn send_head(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        // Servers may answer twice by mistake; the first answer counts.
        let over = self.written.as_ref().is_some_and(|before| !before.status.is_informational());
        if over || self.ended {
            return Ok(());
        }
        Self::send(self.write_timeout, self.carrier.send_head((*head).clone(), end)).await?;
        let ends = end && !head.status.is_informational();
        self.written = Some(head);
        if ends { self.end(None).await } else { Ok(()) }
    }

    async fn send_data(&mut self, data: Bytes, end: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.sent += data.len();
        if !data.is_empty() {
            Self::send(self.write_timeout, self.carrier.send_data(data)).await?;
        }
        if end { self.end(None).await } else { Ok(()) }
    }

    async fn end(&mut self, trailers: Option<HeaderMap>) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let trailers = trailers.or_else(|| self.told.take_trailers());
        Self::send(self.write_timeout, self.carrier.end(trailers)).await?;
        self.ended = true;
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        Self::send(self.write_timeout, self.carrier.flush()).await
    }

    fn give_up(&mut self) {
        if !self.ended {
            self.ended = true;
            self.carrier.cut();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// As a server of HTTP/1 is to get it. What has no body has no framing either, but where a server expects one.
fn request_header(Head { parts, body }: &Head) -> Result<RequestHeader> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut header =
        RequestHeader::build(parts.method.clone(), target.as_bytes(), Some(parts.headers.len() + 2))?;
    header.set_version(parts.version.max(http::Version::HTTP_10).min(http::Version::HTTP_11));
    for (name, value) in &parts.headers {
        header.append_header(titled(name.as_str()), value.clone())?;
    }
    match body {
        Body::Chunked => header.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?,
        Body::None
            if [Method::POST, Method::PUT, Method::PATCH].contains(&parts.method)
                && !parts.headers.contains_key(CONTENT_LENGTH) =>
        {
            header.insert_header(CONTENT_LENGTH, HeaderValue::from_static("0"))?;
        }
        Body::None | Body::Length(_) => {}
    }
    Ok(header)
}

/// A name in the form that old servers expect.
fn titled(name: &str) -> String {
    let mut out = Vec::with_capacity(name.len());
    forward::write_name(name, &mut out);
    String::from_utf8(out).unwrap_or_else(|_| name.to_owned())
}

#[async_trait]
impl Session for Exchange {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        if self.bodiless {
            return Ok(None);
        }
        let data = match self.read_timeout {
            Some(limit) => timeout(limit, self.carrier.data())
                .await
                .map_err(|_| Error::new_down(ErrorType::ReadTimedout))?,
            None => self.carrier.data().await,
        };
        let Some(data) = data.transpose().or_err(ErrorType::ReadError, "from the client's stream")? else {
            return Ok(None);
        };
        self.read += data.len();
        if let Some(retry) = &mut self.retry {
            if retry.truncated || retry.kept.len() + data.len() > RETRY_BUFFER {
                *retry = Retry { kept: Vec::new(), truncated: true };
            } else {
                retry.kept.extend_from_slice(&data);
            }
        }
        Ok(Some(data))
    }

    /// What nobody wants is refused with the stream's end.
    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.send_head(head, end).await?;
        self.flush().await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(head.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.send_data(data, end).await?;
        self.flush().await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.end(Some(trailers)).await?;
        self.flush().await
    }

    /// All that the server has sent so far; it goes on to the client at once.
    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut end = false;
        for task in tasks {
            end |= match task {
                HttpTask::Header(head, end) => {
                    self.send_head(head, end).await?;
                    end
                }
                HttpTask::Body(data, end) => {
                    self.send_data(data.unwrap_or_default(), end).await?;
                    end
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.end(Some(*trailers)).await?;
                    true
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::UpgradedBody(..) => return Err(Error::new_in(ErrorType::InternalError)),
                HttpTask::Failed(error) => {
                    self.flush().await?;
                    return Err(error);
                }
            };
        }
        match end {
            true => self.finish().await?,
            false => self.flush().await?,
        }
        Ok(end)
    }

    fn set_read_timeout(&mut self, limit: Option<Duration>) {
        self.read_timeout = limit;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.read_timeout
    }

    fn set_write_timeout(&mut self, limit: Option<Duration>) {
        self.write_timeout = limit;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, limit: Option<Duration>) {
        self.drain_timeout = limit;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    /// For Pingora's own log, which knows no more of a request than ours may.
    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.give_up();
    }

    fn is_body_done(&mut self) -> bool {
        self.bodiless || self.carrier.is_read()
    }

    async fn finish(&mut self) -> Result<()> {
        if self.written.is_none() {
            self.give_up();
        }
        self.end(None).await?;
        self.flush().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.bodiless
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            self.carrier.gone().await;
            return Err(Error::new_down(ErrorType::ConnectionClosed));
        }
        self.read_body_bytes().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        self.read
    }

    fn digest(&self) -> Option<&Digest> {
        None
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.retry.get_or_insert_default();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.retry.as_ref().is_some_and(|retry| retry.truncated)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let retry = self.retry.as_ref().filter(|retry| !retry.truncated && !retry.kept.is_empty())?;
        Some(Bytes::copy_from_slice(&retry.kept))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Messages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _: Messages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
