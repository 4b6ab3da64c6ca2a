//! The socket below a QUIC endpoint: it knows of predecessors and a successor that have the same UDP
//! socket, and sorts packets by the process that they are for.
//!
//! ```text
//!            a successor is given the socket        it serves
//!   Udp ───────────────────────────────────► Both ───────────► Feed
//!    ▲                                         │
//!    └─────────────────────────────────────────┘ it failed
//! ```
//!
//! In `Both` two processes read from one queue, so each gets packets of the other: the successor passes
//! ours on, and we drop what is the successor's. Left to quinn it would be answered by a stateless reset,
//! with the key that both have. In all states packets of predecessors are passed on to the one before us.
//! A process whose predecessors are gone, and without a successor, looks at no packet here.

use super::feed::{self, Feed};
use super::id::Ids;
use super::identity::Identity;
use super::metrics::Metrics;
use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::runtime::Handle;

/// Batches of nothing but others' packets, before quinn gets a turn.
const ROUNDS: usize = 16;

pub struct Socket {
    udp: Arc<dyn AsyncUdpSocket>,
    ids: Arc<Ids>,
    source: ArcSwap<Source>,
    predecessors: Option<Predecessors>,
    /// Whoever waits for packets, to be told of another source.
    reader: AtomicWaker,
    runtime: Handle,
    metrics: Metrics,
}

enum Source {
    Udp,
    Both(Arc<Feed>),
    Feed(Arc<Feed>),
}

struct Predecessors {
    ids: Vec<Ids>,
    feed: UnixDatagram,
    gone: AtomicBool,
}

/// What is done with a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ours,
    Before,
    /// The successor's.
    Stray,
}

impl Socket {
    /// In the context of the runtime that is to serve it. `feed` leads to the predecessor.
    pub fn new(
        udp: UdpSocket,
        feed: Option<UnixDatagram>,
        identity: &Identity,
        metrics: Metrics,
    ) -> io::Result<Socket> {
        let predecessors = feed.map(|feed| {
            feed.set_nonblocking(true)?;
            let ids = identity.predecessors.iter().cloned().filter_map(Ids::new).collect();
            Ok::<_, io::Error>(Predecessors { ids, feed, gone: AtomicBool::new(false) })
        });
        Ok(Socket {
            udp: TokioRuntime.wrap_udp_socket(udp)?,
            ids: identity.ids.clone(),
            source: ArcSwap::from_pointee(Source::Udp),
            predecessors: predecessors.transpose()?,
            reader: AtomicWaker::new(),
            runtime: Handle::try_current().map_err(io::Error::other)?,
            metrics,
        })
    }

    /// A successor is about to read the UDP socket, too: this is the end that it gets.
    pub fn share(&self) -> io::Result<UnixDatagram> {
        if !matches!(**self.source.load(), Source::Udp) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it was handed over already"));
        }
        let (ours, theirs) = feed::pair()?;
        let _on = self.runtime.enter();
        self.read_from(Source::Both(Arc::new(Feed::new(ours)?)));
        Ok(theirs)
    }

    /// It serves, or it does not.
    pub fn shared(&self, serves: bool) {
        if let Source::Both(feed) = &**self.source.load() {
            self.read_from(if serves { Source::Feed(feed.clone()) } else { Source::Udp });
        }
    }

    /// Whether packets come from a successor alone.
    pub fn is_fed(&self) -> bool {
        matches!(**self.source.load(), Source::Feed(_))
    }

    fn read_from(&self, source: Source) {
        self.source.store(Arc::new(source));
        self.reader.wake();
    }

    fn fate(&self, packet: &[u8], shared: bool) -> Fate {
        let before = |predecessors: &Predecessors| predecessors.ids.iter().any(|ids| ids.is_for(packet));
        match self.predecessors.as_ref().filter(|p| !p.gone.load(Relaxed)).is_some_and(before) {
            true => Fate::Before,
            false if shared && self.ids.is_for_another(packet) => Fate::Stray,
            false => Fate::Ours,
        }
    }

    /// Leaves what is ours at the front of `bufs`, and says how many of them that is.
    fn sort(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta], count: usize, shared: bool) -> usize {
        let idle = self.predecessors.as_ref().is_none_or(|p| p.gone.load(Relaxed));
        if idle && !shared {
            return count;
        }
        let mut kept = 0;
        for at in 0..count {
            self.sift(&mut bufs[at], &mut meta[at], shared);
            if meta[at].len > 0 {
                bufs.swap(kept, at);
                meta.swap(kept, at);
                kept += 1;
            }
        }
        kept
    }

    /// One buffer may hold many packets, of several connections of one client.
    fn sift(&self, buf: &mut [u8], meta: &mut RecvMeta, shared: bool) {
        let (length, stride) = (meta.len.min(buf.len()), meta.stride.max(1));
        let (mut kept, mut at) = (0, 0);
        while at < length {
            let end_of = |at: usize| (at + stride).min(length);
            let fate = self.fate(&buf[at..end_of(at)], shared);
            let mut end = end_of(at);
            while end < length && self.fate(&buf[end..end_of(end)], shared) == fate {
                end = end_of(end);
            }
            let packets = (end - at).div_ceil(stride);
            let taken = match fate {
                Fate::Ours => false,
                Fate::Before => self.pass_on(meta, &buf[at..end], packets),
                Fate::Stray => {
                    self.metrics.forwarded("stray", packets);
                    true
                }
            };
            if !taken {
                buf.copy_within(at..end, kept);
                kept += end - at;
            }
            at = end;
        }
        meta.len = kept;
    }

    /// `false`: there is nobody any more. quinn tells their clients by a stateless reset.
    fn pass_on(&self, meta: &RecvMeta, packets: &[u8], count: usize) -> bool {
        let Some(predecessors) = &self.predecessors else { return false };
        match feed::send(&predecessors.feed, meta, packets) {
            Ok(()) => self.metrics.forwarded("sent", count),
            Err(error) if is_gone(error.kind()) => {
                if !predecessors.gone.swap(true, Relaxed) {
                    tracing::info!(
                        "the predecessor has ended: packets of its QUIC connections are not passed on"
                    );
                }
                return false;
            }
            Err(_full) => self.metrics.forwarded("dropped", count),
        }
        true
    }
}

fn is_gone(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(kind, BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected)
}

impl Source {
    fn feed(&self) -> Option<&Feed> {
        match self {
            Source::Udp => None,
            Source::Both(feed) | Source::Feed(feed) => Some(feed),
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.udp.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.udp.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.reader.register(cx.waker());
        let source = self.source.load();
        for _ in 0..ROUNDS {
            let fed = source.feed().map_or(Poll::Pending, |feed| feed.poll_recv(cx, bufs, meta));
            let (count, from_udp) = match (fed, &**source) {
                (Poll::Ready(Ok(count)), _) => (count, false),
                // The successor's end is closed: nothing more comes that way.
                (Poll::Ready(Err(_)), _) => (0, false),
                (Poll::Pending, Source::Feed(_)) => return Poll::Pending,
                (Poll::Pending, _) => (ready!(self.udp.poll_recv(cx, bufs, meta))?, true),
            };
            let shared = from_udp && matches!(**source, Source::Both(_));
            let ours = self.sort(bufs, meta, count, shared);
            if ours > 0 {
                return Poll::Ready(Ok(ours));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("udp", &self.udp).finish_non_exhaustive()
    }
}
