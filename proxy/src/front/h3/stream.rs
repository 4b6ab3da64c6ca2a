//! A request's stream: frames in, frames out. It holds nothing while idle, and one chunk that QUIC has given,
//! or one frame that QUIC does not take yet, while it is busy.
//!
//! Its two directions end on their own: the client's when it has ended and was read, ours with `end`, by
//! [`H3Stream::finish`] or a shutdown. What is dropped before is reset, never taken for complete.

mod write;

use super::session::{Session, WebTransportStream};
use super::shared::{Shared, broken, code};
use bytes::Bytes;
#[cfg(test)]
use futures_util::FutureExt;
use http::HeaderMap;
use quinn::{ReadError, RecvStream, SendStream, StoppedError};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio_util::task::task_tracker::TaskTrackerToken;
use weir_h3::frame::{self, Frame};
use weir_h3::{Code, Error, head};

/// Chunks that may hold nothing of use until others get the thread.
const CHUNKS_AT_A_TIME: usize = 32;

type Stopped = Pin<Box<dyn Future<Output = Result<Option<quinn::VarInt>, StoppedError>> + Send + Sync>>;

pub struct H3Stream {
    pub(super) send: SendStream,
    recv: RecvStream,
    shared: Arc<Shared>,
    frames: frame::Reader,
    /// Read, and not yet given on.
    ahead: Bytes,
    /// The content's first piece, which was waited for.
    first: Option<Bytes>,
    /// A frame on its way: header and payload.
    pub(super) out: [Bytes; 2],
    /// Of the content, by `content-length`, still to come.
    left: Option<u64>,
    trailers: Option<Box<HeaderMap>>,
    stopped: Option<Stopped>,
    session: Option<Arc<Session>>,
    pub(super) reading: Half,
    pub(super) writing: Half,
    /// A head of ours was written.
    pub(super) answered: bool,
    /// The client gave it up.
    cancelled: bool,
    /// How a drain counts it.
    _busy: TaskTrackerToken,
}

impl std::fmt::Debug for H3Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H3Stream").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Open,
    /// At its proper end.
    Ended,
    Broken(io::ErrorKind),
}

impl H3Stream {
    pub(super) fn new(
        shared: Arc<Shared>,
        send: SendStream,
        recv: RecvStream,
        ahead: Bytes,
        busy: TaskTrackerToken,
    ) -> H3Stream {
        H3Stream {
            send,
            recv,
            frames: frame::Reader::request(shared.limits.max_field_section),
            shared,
            ahead,
            first: None,
            out: [Bytes::new(), Bytes::new()],
            left: None,
            trailers: None,
            stopped: None,
            session: None,
            reading: Half::Open,
            writing: Half::Open,
            answered: false,
            cancelled: false,
            _busy: busy,
        }
    }

    /// The client has ended its direction, and all of it was read.
    pub fn is_read(&self) -> bool {
        self.reading != Half::Open && self.ahead.is_empty() && self.first.is_none()
    }

    /// Ready when the content's first piece is here, or its end.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.first.is_none() {
            self.first = ready!(self.poll_data(cx)).transpose()?;
        }
        Poll::Ready(Ok(()))
    }

    pub fn id(&self) -> u64 {
        u64::from(self.send.id())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn is_early(&self) -> bool {
        self.recv.is_0rtt()
    }

    /// `Err(None)`: the client went away.
    pub(super) async fn read_head(&mut self) -> Result<http::request::Parts, Option<Error>> {
        let section = loop {
            if let Some(frame) = self.frames.next(&mut self.ahead, usize::MAX)? {
                match frame {
                    Frame::Headers(section) => break section,
                    _ => {
                        return Err(Some(Error::connection(
                            Code::H3_FRAME_UNEXPECTED,
                            "frame before a head",
                        )));
                    }
                }
            }
            match poll_fn(|cx| self.poll_chunk(cx)).await {
                Ok(true) => {}
                Ok(false) => return Err(Some(self.frames.end().err().unwrap_or(INCOMPLETE))),
                Err(_) => return Err(None),
            }
        };
        let head = head::decode_request(&section, self.shared.limits.max_field_section as usize)?;
        if head.method == http::Method::CONNECT {
            self.frames.tunnel();
        } else {
            self.left = head::content_length(&head.headers)?;
        }
        Ok(head)
    }

    pub(super) fn begin_session(&mut self, request: &HeaderMap) -> bool {
        self.session = self.shared.sessions.begin(&self.shared, self.id(), request);
        self.session.is_some()
    }

    /// The client asks for a session of WebTransport that can be accepted.
    pub fn is_session(&self) -> bool {
        self.session.is_some()
    }

    /// Answers with 200 and begins the session.
    pub async fn accept_session(mut self, headers: HeaderMap) -> io::Result<WebTransportStream> {
        let session = self.session.clone().ok_or(io::ErrorKind::Unsupported)?;
        session.accept(&mut self, headers).await?;
        self.session = None;
        Ok(Session::run(session, self))
    }

    /// When nothing is ahead: whether there is more now; `false` at the stream's end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // An empty rest would hold on to the packet it came in.
        self.ahead = Bytes::new();
        Poll::Ready(match ready!(pin!(self.recv.read_chunk(usize::MAX, true)).poll(cx)) {
            Ok(Some(chunk)) => {
                self.ahead = chunk.bytes;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                self.cancelled |= matches!(error, ReadError::Reset(_));
                let kind = io::Error::from(error).kind();
                self.reading = Half::Broken(kind);
                Err(kind.into())
            }
        })
    }

    /// The next piece of the content or of the tunnel's bytes, as QUIC has it; `None` at its end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => self.poll_piece(cx, usize::MAX),
        }
    }

    pub async fn data(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Option<io::Result<Bytes>>> {
        match self.reading {
            Half::Open => {}
            Half::Ended => return Poll::Ready(None),
            Half::Broken(kind) => return Poll::Ready(Some(Err(kind.into()))),
        }
        for _ in 0..CHUNKS_AT_A_TIME {
            match self.piece(max) {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(self.broke(error)))),
            }
            match ready!(self.poll_chunk(cx)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(self.ended().err().map(|error| Err(self.broke(error)))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From what is ahead.
    fn piece(&mut self, max: usize) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.frames.next(&mut self.ahead, max)? {
            match frame {
                Frame::Data(data) => {
                    if let Some(left) = &mut self.left {
                        *left = left
                            .checked_sub(data.len() as u64)
                            .ok_or(Error::malformed("content longer than content-length"))?;
                    }
                    return Ok(Some(data));
                }
                Frame::Headers(section) => {
                    let limit = self.shared.limits.max_field_section as usize;
                    self.trailers = Some(Box::new(head::decode_trailers(&section, limit)?));
                }
                _ => return Err(Error::connection(Code::H3_FRAME_UNEXPECTED, "frame at the wrong place")),
            }
        }
        Ok(None)
    }

    fn ended(&mut self) -> Result<(), Error> {
        self.frames.end()?;
        if self.left.is_some_and(|left| left > 0) {
            return Err(Error::malformed("content shorter than content-length"));
        }
        self.reading = Half::Ended;
        Ok(())
    }

    #[cfg(test)]
    /// What came behind the content, once that has ended.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    /// Gives up our direction.
    pub fn reset(&mut self, why: Code) {
        let _ended = self.send.reset(code(why));
        self.writing = Half::Broken(io::ErrorKind::ConnectionAborted);
    }

    /// Takes nothing more.
    pub fn stop(&mut self, why: Code) {
        let _ended = self.recv.stop(code(why));
        if self.reading == Half::Open {
            self.reading = Half::Broken(io::ErrorKind::ConnectionAborted);
        }
    }

    /// Gives the stream up when what was sent has had time to arrive: with a reset QUIC forgets what it still has to
    /// send, and a client what it has not read.
    pub async fn cut(self) {
        let on_the_way =
            (self.shared.conn.rtt() * 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
        tokio::time::sleep(on_the_way).await;
        self.abort(Code::H3_REQUEST_CANCELLED);
    }

    pub fn abort(mut self, why: Code) {
        self.reset(why);
        self.stop(why);
    }

    pub(super) fn fail(mut self, error: Error) {
        let _same = self.broke(error);
    }

    fn broke(&mut self, error: Error) -> io::Error {
        self.shared.end(error, &mut self.send, &mut self.recv);
        self.reading = Half::Broken(io::ErrorKind::InvalidData);
        self.writing = Half::Broken(io::ErrorKind::InvalidData);
        broken(error)
    }

    /// Ready when nobody wants the answer any more: the client has given the stream up, or the connection is
    /// lost. Not when it has merely ended its side. To be called by the task that reads.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(self.send.stopped()));
        if let Poll::Ready(result) = stopped.as_mut().poll(cx) {
            self.stopped = None;
            // `Ok(None)`: all of the answer has arrived; there is nothing to be given up.
            if !matches!(result, Ok(None)) {
                self.cancelled |= result.is_ok();
                return Poll::Ready(());
            }
        }
        if self.reading == Half::Open
            && let Poll::Ready(result) = pin!(self.recv.received_reset()).poll(cx)
            && !matches!(result, Ok(None))
        {
            self.cancelled |= result.is_ok();
            self.reading = Half::Broken(io::ErrorKind::ConnectionReset);
        }
        match self.reading {
            Half::Broken(_) => Poll::Ready(()),
            Half::Open | Half::Ended => Poll::Pending,
        }
    }

    #[cfg(test)]
    pub async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    #[cfg(test)]
    /// As [`H3Stream::poll_gone`], without a wait: as far as our own direction can tell.
    pub fn is_gone(&self) -> bool {
        self.send.stopped().now_or_never().is_some_and(|result| !matches!(result, Ok(None)))
    }
}

const INCOMPLETE: Error = Error::stream(Code::H3_REQUEST_INCOMPLETE, "stream ended before a head");

impl Drop for H3Stream {
    fn drop(&mut self) {
        // Otherwise quinn ends it as if all had been said.
        if self.writing == Half::Open {
            let _ended = self.send.reset(code(Code::H3_REQUEST_CANCELLED));
        }
        if self.reading == Half::Open {
            let why = match self.writing {
                Half::Ended => Code::H3_NO_ERROR,
                _ => Code::H3_REQUEST_CANCELLED,
            };
            let _ended = self.recv.stop(code(why));
        }
        if self.cancelled && !self.answered {
            self.shared.cancelled();
        }
        if let Some(session) = &self.session {
            session.end();
        }
    }
}
