//! A request's stream of HTTP/2 or /3 as Pingora's `HttpProxy` takes it: the same path as for HTTP/1, with the
//! stream's own way to read a body and to send an answer.

use crate::forward;
use crate::front::head::{Body, Head};
use crate::front::stream::RequestStream;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Response};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::HttpTask;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::time::timeout;

/// A body up to this size is kept, to be sent to another server when the first cannot be reached; Pingora's
/// own figure.
const RETRY_BUFFER: usize = 64 << 10;
/// Silence of a client within its body; as for HTTP/1.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

type Messages = Box<dyn futures_util::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

pub struct Streamed {
    head: RequestHeader,
    bodiless: bool,
    stream: RequestStream,
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

impl Streamed {
    pub fn new(head: Head, stream: RequestStream) -> Streamed {
        let Head { mut parts, body } = head;
        // Pingora writes it as HTTP/1.1, and the framing is up to the head.
        parts.version = http::Version::HTTP_11;
        if body == Body::Chunked {
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Streamed {
            head: parts.into(),
            bodiless: body == Body::None,
            stream,
            written: None,
            ended: false,
            retry: None,
            read_timeout: Some(READ_TIMEOUT),
            write_timeout: None,
            drain_timeout: None,
            sent: 0,
            read: 0,
        }
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

    async fn send_head(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        // Servers may answer twice by mistake; the first answer counts.
        let over = self.written.as_ref().is_some_and(|before| !before.status.is_informational());
        if over || self.ended {
            return Ok(());
        }
        let mut response = Response::new(());
        (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers.clone());
        forward::rewrite_response(response.headers_mut());
        response.headers_mut().remove(TRANSFER_ENCODING);
        Self::send(self.write_timeout, self.stream.send_head(response, end)).await?;
        self.ended |= end && !head.status.is_informational();
        Ok(())
    }

    fn give_up(&mut self) {
        if !self.ended {
            self.ended = true;
            self.stream.reset();
        }
    }
}

#[async_trait]
impl Session for Streamed {
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
            Some(limit) => timeout(limit, self.stream.data())
                .await
                .map_err(|_| Error::new_down(ErrorType::ReadTimedout))?,
            None => self.stream.data().await,
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
        self.send_head(&head, end).await?;
        self.written = Some(head);
        Ok(())
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(head.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        if self.ended || (data.is_empty() && !end) {
            return Ok(());
        }
        self.sent += data.len();
        Self::send(self.write_timeout, self.stream.send_data(data, end)).await?;
        self.ended |= end;
        Ok(())
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        Self::send(self.write_timeout, self.stream.send_trailers(trailers)).await?;
        self.ended = true;
        Ok(())
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut end = false;
        for task in tasks {
            end |= match task {
                HttpTask::Header(head, end) => {
                    self.write_response_header(head, end).await?;
                    end
                }
                HttpTask::Body(data, end) => {
                    self.write_body(data.unwrap_or_default(), end).await?;
                    end
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.write_trailers(*trailers).await?;
                    true
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::UpgradedBody(..) => return Err(Error::new_in(ErrorType::InternalError)),
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if end {
            self.finish().await?;
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
        self.bodiless || self.stream.is_read()
    }

    async fn finish(&mut self) -> Result<()> {
        if self.written.is_none() {
            self.give_up();
        }
        if self.ended {
            return Ok(());
        }
        self.write_body(Bytes::new(), true).await
    }

    fn is_body_empty(&mut self) -> bool {
        self.bodiless
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            self.stream.gone().await;
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
