//! What both ends of a link between node and broker share: reading frames, the queue of frames to
//! be written, and the loop that writes them in batches.

use crate::socket::ReadSide;
use crate::tls;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use weir_core::sync::lock;
use weir_core::unproven::Gone;
use weir_wire::codec::{self, CodecError, Decode, Encode};
use weir_wire::peer::Bye;

/// From accepted or connected to proved.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);
/// For what still waits, and a last word, when a link is closed.
pub const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);
/// Frames are written together up to this size.
const BATCH: usize = 64 << 10;

/// Why a link ended, or never came to be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Io(io::Error),
    #[error("{0}")]
    Codec(#[from] CodecError),
    #[error("closed by the other side")]
    Closed,
    #[error("{0} took too long")]
    Deadline(&'static str),
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    #[error("nothing could be written for {0:?}")]
    Stuck(Duration),
    #[error("the other side says: {}", .0.reason())]
    Bye(Bye),
    #[error("{} is not expected here", .0)]
    Unexpected(&'static str),
    #[error("{0}")]
    Secret(&'static str),
    /// The other side's certificate or ours is no good, or only one of the two speaks TLS.
    #[error("{0}")]
    Tls(String),
    /// Where it is not expected.
    #[error("the other side speaks TLS, and here it is off ({} are unset)", .0)]
    SpeaksTls(&'static str),
    #[error("broker.max_nodes reached")]
    Full,
    #[error("the inbox is full although the broker keeps count of it")]
    InboxFull,
    /// Before it had proved who it is.
    #[error("its place was needed by another connection")]
    Displaced,
    #[error("this process stops")]
    Stopping,
    #[error("a newer link of the same node took over")]
    Replaced,
    /// Told to another broker.
    #[error("{}", .0.reason())]
    Refused(Bye),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        match tls::trouble(&error) {
            Some(trouble) => LinkError::Tls(trouble),
            // TLS that ended without a word.
            None if error.kind() == io::ErrorKind::UnexpectedEof => LinkError::Closed,
            None => LinkError::Io(error),
        }
    }
}

impl From<Gone> for LinkError {
    fn from(gone: Gone) -> LinkError {
        match gone {
            Gone::Left => LinkError::Closed,
            Gone::Silent => LinkError::Deadline("the first byte"),
            Gone::Taken => LinkError::Displaced,
        }
    }
}

impl LinkError {
    /// A metric's label.
    pub fn cause(&self) -> &'static str {
        match self {
            LinkError::Io(_) => "io",
            LinkError::Codec(CodecError::Version(_)) => "version",
            LinkError::Codec(_) | LinkError::Unexpected(_) => "protocol",
            LinkError::Closed => "closed",
            LinkError::Deadline(_) | LinkError::Silent(_) | LinkError::Stuck(_) => "timeout",
            LinkError::Bye(Bye::Secret) | LinkError::Secret(_) => "secret",
            LinkError::Tls(_) | LinkError::SpeaksTls(_) => "tls",
            LinkError::Bye(Bye::Twin) | LinkError::Refused(Bye::Twin) => "twin",
            LinkError::Refused(Bye::OtherCluster) => "other_cluster",
            LinkError::Refused(Bye::OtherBroker) => "other_broker",
            LinkError::Refused(Bye::Versions) => "version",
            LinkError::Refused(Bye::Removed) => "removed",
            LinkError::Refused(_) => "refused",
            LinkError::Bye(Bye::Void) => "void",
            LinkError::Bye(_) => "bye",
            LinkError::Full => "max_nodes",
            LinkError::InboxFull => "inbox_full",
            LinkError::Displaced => "displaced",
            LinkError::Stopping => "stopping",
            LinkError::Replaced => "replaced",
        }
    }

    /// The broker says that what this node holds was dropped.
    pub fn is_void(&self) -> bool {
        matches!(self, LinkError::Bye(Bye::Void))
    }

    /// What the other side is told, if anything.
    pub fn bye(&self) -> Option<Bye> {
        match self {
            // To one that speaks TLS any bytes that are none say enough.
            LinkError::Codec(_) | LinkError::Unexpected(_) | LinkError::SpeaksTls(_) => Some(Bye::Protocol),
            LinkError::Deadline(_) | LinkError::Silent(_) | LinkError::Stuck(_) => Some(Bye::Timeout),
            LinkError::Secret(_) => Some(Bye::Secret),
            LinkError::Full => Some(Bye::Full),
            LinkError::Stopping => Some(Bye::Stopping),
            LinkError::Replaced => Some(Bye::Replaced),
            LinkError::Refused(bye) => Some(*bye),
            LinkError::Io(_)
            | LinkError::Tls(_)
            | LinkError::Closed
            | LinkError::Bye(_)
            | LinkError::Displaced
            | LinkError::InboxFull => None,
        }
    }
}

/// Frames out of a byte stream. Memory grows with what came, not with what was announced.
pub struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    limit: usize,
    /// Read at once.
    chunk: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(io: R, limit: usize) -> FrameReader<R> {
        FrameReader { io, buffer: BytesMut::new(), limit, chunk: 16 << 10 }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// For links with much traffic, once they are proved.
    pub fn set_chunk(&mut self, chunk: usize) {
        self.chunk = chunk;
    }

    /// The next frame. Dropped before it is done, nothing is lost.
    pub async fn read<T: Decode>(&mut self) -> Result<T, LinkError> {
        Ok(codec::decode(&self.read_body().await?)?)
    }

    /// The next frame's body. Dropped before it is done, nothing is lost.
    pub async fn read_body(&mut self) -> Result<BytesMut, LinkError> {
        loop {
            if let Some(body) = codec::take_frame(&mut self.buffer, self.limit)? {
                return Ok(body);
            }
            self.buffer.reserve(self.chunk);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }
}

impl FrameReader<ReadSide> {
    /// What the other side says first: TLS on a plain link is told apart from other nonsense.
    /// `unset` are the keys that would make it a TLS link.
    pub async fn read_first<T: Decode>(&mut self, unset: &'static str) -> Result<T, LinkError> {
        match self.read().await {
            Err(LinkError::Codec(_)) if self.io.is_plain() && is_tls_record(&self.buffer) => {
                Err(LinkError::SpeaksTls(unset))
            }
            read => read,
        }
    }
}

/// A hello or an alert, of any version.
fn is_tls_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}

/// Writes one frame outside of any queue, as the handshake does.
pub async fn write_frame(io: &mut (impl AsyncWrite + Unpin), value: &impl Encode) -> Result<(), LinkError> {
    io.write_all(&codec::encode(value)?).await?;
    Ok(io.flush().await?)
}

/// Frames of either kind are counted apart, so that many of one never keep out the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// May be refused: whoever offers it knows what to do then.
    Delivery = 0,
    /// Requests, replies, and what keeps the link alive.
    Talk = 1,
}

/// Frames on their way to the writer. Its bounds are kept by those who push.
#[derive(Default)]
pub struct SendQueue {
    inner: Mutex<Queue>,
    ready: Notify,
    taken: Notify,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Bytes, Kind)>,
    bytes: [usize; 2],
    finished: bool,
}

impl SendQueue {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.inner)
    }

    /// False after the end.
    pub fn push(&self, frame: Bytes, kind: Kind) -> bool {
        let mut queue = self.lock();
        if queue.finished {
            return false;
        }
        queue.bytes[kind as usize] += frame.len();
        queue.frames.push_back((frame, kind));
        drop(queue);
        self.ready.notify_one();
        true
    }

    /// Encodes and pushes; a value that cannot be encoded is an error of ours.
    pub fn talk(&self, value: &impl Encode) -> Result<(), CodecError> {
        self.push(codec::encode(value)?, Kind::Talk);
        Ok(())
    }

    pub fn bytes(&self, kind: Kind) -> usize {
        self.lock().bytes[kind as usize]
    }

    /// Waits until less than `bytes` of this kind are waiting.
    pub async fn below(&self, kind: Kind, bytes: usize) {
        while self.bytes(kind) >= bytes {
            self.taken.notified().await;
        }
    }

    /// A last word: what waits is still written (without deliveries), nothing more is taken.
    pub fn finish(&self, last: Option<Bytes>) {
        let mut queue = self.lock();
        if queue.finished {
            return;
        }
        queue.finished = true;
        queue.frames.retain(|(_, kind)| *kind == Kind::Talk);
        queue.bytes[Kind::Delivery as usize] = 0;
        if let Some(frame) = last {
            queue.bytes[Kind::Talk as usize] += frame.len();
            queue.frames.push_back((frame, Kind::Talk));
        }
        drop(queue);
        self.ready.notify_one();
        self.taken.notify_one();
    }

    pub fn is_finished(&self) -> bool {
        self.lock().finished
    }

    /// The next bytes to write; `None`: all is written and no more will come.
    async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut queue = self.lock();
                if let Some(batch) = queue.batch() {
                    drop(queue);
                    self.taken.notify_one();
                    return Some(batch);
                }
                if queue.finished {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }
}

impl Queue {
    fn batch(&mut self) -> Option<Bytes> {
        let first = self.pop()?;
        let fits =
            |batch: usize, next: Option<&(Bytes, Kind)>| next.is_some_and(|(f, _)| batch + f.len() <= BATCH);
        if !fits(first.len(), self.frames.front()) {
            return Some(first);
        }
        let mut batch = BytesMut::with_capacity(BATCH.min(first.len() + self.bytes[0] + self.bytes[1]));
        batch.extend_from_slice(&first);
        while fits(batch.len(), self.frames.front())
            && let Some(frame) = self.pop()
        {
            batch.extend_from_slice(&frame);
        }
        Some(batch.freeze())
    }

    fn pop(&mut self) -> Option<Bytes> {
        let (frame, kind) = self.frames.pop_front()?;
        self.bytes[kind as usize] -= frame.len();
        Some(frame)
    }
}

/// Writes until the queue is finished. A heartbeat goes out when nothing else did for a quarter
/// of `lease`; without any progress for `lease` it gives up. `taken` is called after each batch.
pub async fn write_loop(
    mut io: impl AsyncWrite + Unpin,
    queue: &SendQueue,
    heartbeat: Bytes,
    lease: Duration,
    taken: impl Fn(),
) -> Result<(), LinkError> {
    let mut wrote = Instant::now();
    let mut quiet = pin!(sleep_until(wrote + lease / 4));
    loop {
        let mut batch = tokio::select! {
            biased;
            next = queue.next() => match next {
                Some(batch) => batch,
                None => return Ok(io.shutdown().await?),
            },
            () = quiet.as_mut() => {
                // Set when it fires, not with each batch: that would cost as much as the batch.
                let due = wrote + lease / 4;
                if Instant::now() < due {
                    quiet.as_mut().reset(due);
                    continue;
                }
                heartbeat.clone()
            }
        };
        while !batch.is_empty() {
            let written = timeout(lease, io.write(&batch)).await.map_err(|_| LinkError::Stuck(lease))??;
            if written == 0 {
                return Err(LinkError::Closed);
            }
            let _written = batch.split_to(written);
        }
        // TLS may still hold the end of it.
        timeout(lease, io.flush()).await.map_err(|_| LinkError::Stuck(lease))??;
        wrote = Instant::now();
        taken();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_small_frames_together_and_a_large_one_alone() {
        let queue = SendQueue::default();
        for (byte, len) in [(1u8, 10), (2, 20), (3, BATCH * 2), (4, 5)] {
            assert!(queue.push(vec![byte; len].into(), Kind::Talk));
        }
        queue.push(vec![5; 7].into(), Kind::Delivery);
        assert_eq!((queue.bytes(Kind::Talk), queue.bytes(Kind::Delivery)), (35 + BATCH * 2, 7));
        assert_eq!(queue.next().await.unwrap().len(), 30);
        assert_eq!(queue.next().await.unwrap().len(), BATCH * 2);
        queue.finish(Some(Bytes::from_static(b"bye")));
        assert!(!queue.push(Bytes::from_static(b"late"), Kind::Talk));
        assert_eq!(queue.next().await.unwrap(), &[&[4u8; 5][..], b"bye"].concat()[..]);
        assert_eq!((queue.next().await, queue.bytes(Kind::Talk), queue.bytes(Kind::Delivery)), (None, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_link_has_heartbeats_and_a_stuck_one_ends() {
        let (ours, theirs) = tokio::io::duplex(8);
        let (queue, lease) = (SendQueue::default(), Duration::from_secs(4));
        let start = tokio::time::Instant::now();
        // Two heartbeats of four bytes fit into the pipe; nobody reads.
        let end = write_loop(ours, &queue, Bytes::from_static(b"beat"), lease, || ()).await;
        assert!(matches!(end, Err(LinkError::Stuck(_))), "{end:?}");
        assert_eq!(start.elapsed(), Duration::from_secs(3) + lease);
        drop(theirs);
    }
}
