//! The sessions of WebTransport on one connection, and what comes for them before they are known: QUIC's
//! streams and datagrams overtake each other.

use super::session::Session;
use super::shared::{Shared, abort};
use bytes::Bytes;
use http::HeaderMap;
use quinn::{RecvStream, SendStream};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use weir_h3::{Code, Error};

/// Streams that wait for their session's request, each until its `head_timeout`. More are refused.
const MAX_WAITING: usize = 16;
/// Datagrams kept for sessions that are not known yet. The oldest makes room.
const MAX_EARLY: usize = 16;
/// Ids of sessions that have ended are remembered, so that streams which come late do not wait for them.
const MAX_ENDED: usize = 32;

pub struct Sessions {
    max: usize,
    inner: Mutex<Inner>,
    /// A session has begun.
    came: Notify,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<u64, Arc<Session>>,
    waiting: usize,
    early: VecDeque<(u64, Bytes)>,
    ended: VecDeque<u64>,
}

/// A session's id is that of a stream that a client opened in both directions.
pub fn check(id: u64) -> Result<(), Error> {
    if id.is_multiple_of(4) {
        Ok(())
    } else {
        Err(Error::connection(Code::H3_ID_ERROR, "wrong id of a session"))
    }
}

/// For what is kept: a payload as it came holds on to all that the socket gave with it, some 64 KiB.
pub fn own(payload: &[u8]) -> Bytes {
    Bytes::copy_from_slice(payload)
}

impl Sessions {
    pub fn new(max: usize) -> Sessions {
        Sessions { max, inner: Mutex::default(), came: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().by_id.is_empty()
    }

    /// A client asks for one. `None`: there are enough.
    pub fn begin(&self, shared: &Arc<Shared>, id: u64, request: &HeaderMap) -> Option<Arc<Session>> {
        let mut inner = self.lock();
        if inner.by_id.len() >= self.max {
            return None;
        }
        let session = Session::new(shared.clone(), id, request);
        let early = std::mem::take(&mut inner.early);
        for (of, datagram) in early {
            if of == id {
                session.datagram(datagram);
            } else {
                inner.early.push_back((of, datagram));
            }
        }
        inner.by_id.insert(id, session.clone());
        drop(inner);
        self.came.notify_waiters();
        Some(session)
    }

    pub fn remove(&self, id: u64) {
        let mut inner = self.lock();
        if inner.by_id.remove(&id).is_some() {
            inner.ended.push_back(id);
            if inner.ended.len() > MAX_ENDED {
                inner.ended.pop_front();
            }
        }
    }

    /// The connection is gone.
    pub fn close(&self) {
        let sessions: Vec<_> = self.lock().by_id.drain().map(|(_, session)| session).collect();
        sessions.iter().for_each(|session| session.end());
    }

    /// Whether all are kept that were.
    pub fn datagram(&self, id: u64, payload: Bytes) -> bool {
        let mut inner = self.lock();
        if let Some(session) = inner.by_id.get(&id) {
            return session.datagram(payload);
        }
        inner.early.push_back((id, own(&payload)));
        let fits = inner.early.len() <= MAX_EARLY;
        if !fits {
            inner.early.pop_front();
        }
        fits
    }

    /// A stream of a session: its first one becomes the session's, others are refused.
    pub async fn stream(
        &self,
        shared: &Shared,
        id: u64,
        (send, recv, ahead): (SendStream, RecvStream, Bytes),
        deadline: Instant,
    ) {
        if let Err(error) = check(id) {
            return shared.fail(error);
        }
        let session = self.find(id, deadline).await;
        let refused = match session {
            Some(session) => session.attach(send, recv, ahead).err(),
            None => Some((send, recv)),
        };
        if let Some((mut send, mut recv)) = refused {
            shared.count("stream of a session refused");
            abort(Code::WT_BUFFERED_STREAM_REJECTED, &mut send, &mut recv);
        }
    }

    /// Waits for the session's request: it may come after its streams.
    async fn find(&self, id: u64, deadline: Instant) -> Option<Arc<Session>> {
        {
            let mut inner = self.lock();
            if let Some(session) = inner.by_id.get(&id) {
                return Some(session.clone());
            }
            if inner.waiting >= MAX_WAITING || self.max == 0 || inner.ended.contains(&id) {
                return None;
            }
            inner.waiting += 1;
        }
        let found = timeout_at(deadline, async {
            loop {
                let came = self.came.notified();
                if let Some(session) = self.lock().by_id.get(&id) {
                    return session.clone();
                }
                came.await;
            }
        })
        .await;
        self.lock().waiting -= 1;
        found.ok()
    }
}
