//! Our direction of a request's stream.

use super::{H3Stream, Half};
use crate::front::h3::shared::broken;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use quinn::WriteError;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::time::timeout;
use weir_h3::{Code, Error, frame, head, qpack};

impl H3Stream {
    /// A response's head, also an interim one. `end`: there is no content.
    pub async fn send_head(&mut self, status: StatusCode, headers: &HeaderMap, end: bool) -> io::Result<()> {
        self.send_section(head::encode_response(status, headers)).await?;
        self.answered = true;
        if end { self.finish().await } else { Ok(()) }
    }

    /// A piece of content. Cancelled on its way, it is still sent before whatever comes next.
    pub async fn send_data(&mut self, data: Bytes, end: bool) -> io::Result<()> {
        if !data.is_empty() {
            let mut header = Vec::with_capacity(9);
            frame::data_header(data.len(), &mut header);
            self.send_frame([header.into(), data]).await?;
        }
        if end { self.finish().await } else { Ok(()) }
    }

    /// Ends the content.
    pub async fn send_trailers(&mut self, trailers: &HeaderMap) -> io::Result<()> {
        self.send_section(head::encode_trailers(trailers)).await?;
        self.finish().await
    }

    async fn send_section(&mut self, section: qpack::Encoder) -> io::Result<()> {
        let limit = self.shared.settings.get().and_then(|settings| settings.max_field_section_size);
        if limit.is_some_and(|limit| section.size() as u64 > limit) {
            return Err(broken(Error::stream(Code::H3_INTERNAL_ERROR, "more fields than the client takes")));
        }
        self.send_frame([frame::headers(&section.finish()).into(), Bytes::new()]).await
    }

    async fn send_frame(&mut self, frame: [Bytes; 2]) -> io::Result<()> {
        self.flush().await?;
        self.out = frame;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        let limit = self.shared.limits.write_timeout;
        match timeout(limit, poll_fn(|cx| self.poll_out(cx))).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Ends our direction.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.end_writing();
        Ok(())
    }

    pub(in crate::front::h3) fn end_writing(&mut self) {
        if self.writing == Half::Open {
            // Fails only after a reset of ours.
            let _reset = self.send.finish();
            self.writing = Half::Ended;
        }
    }

    /// Hands the frame on its way to QUIC.
    pub(in crate::front::h3) fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Half::Broken(kind) = self.writing {
            return Poll::Ready(Err(kind.into()));
        }
        while self.out.iter().any(|part| !part.is_empty()) {
            if let Err(error) = ready!(pin!(self.send.write_chunks(&mut self.out)).poll(cx)) {
                self.cancelled |= matches!(error, WriteError::Stopped(_));
                let kind = io::Error::from(error).kind();
                self.writing = Half::Broken(kind);
                return Poll::Ready(Err(kind.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}
