//! One session of WebTransport: a CONNECT stream with capsules, the one stream that the client opens in both
//! directions, and datagrams.
//!
//! ```text
//!   Asked ──(accepted)──► Open ──(close, or its stream dropped)──► Leaving: what was written is sent, then the
//!     │                    │                                         │      close capsule, then the end
//!     └──(refused)─────────┴──(client closes, connection lost)───────┴──► Ended
//! ```

use super::shared::{Shared, code};
mod handles;

pub use handles::WebTransportStream;

use super::{H3Stream, sessions};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use quinn::{RecvStream, SendStream};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;
use weir_core::drain::Busy;
use weir_h3::capsule::{self, Capsule};
use weir_h3::{Code, webtransport};

/// Datagrams that wait to be read. The oldest makes room: newest wins.
const MAX_DATAGRAMS: usize = 32;
/// For the client to acknowledge what was written before a close, and then to end its side.
const LEAVE: Duration = Duration::from_secs(5);

pub struct Session {
    shared: Arc<Shared>,
    id: u64,
    draft02: bool,
    /// To the task of the CONNECT stream: we leave.
    leaving: Notify,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    send: Option<SendStream>,
    recv: Option<RecvStream>,
    ahead: Bytes,
    /// The client has opened its stream: there is no other one.
    attached: bool,
    /// The client has closed it, with this code.
    closed: Option<u32>,
    /// A drain waits for the client to be told of our close.
    telling: Option<Busy>,
    /// What may still be written, where the client counts.
    credit: Option<Credit>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    datagrams: VecDeque<Bytes>,
    listener: Option<Waker>,
}

#[derive(Clone)]
enum State {
    Asked,
    Open,
    Leaving(Option<(u32, String)>),
    Ended,
}

/// Flow control of a session: bytes allowed, and written, from its beginning.
#[derive(Clone, Copy)]
struct Credit {
    allowed: u64,
    written: u64,
}

impl Session {
    pub fn new(shared: Arc<Shared>, id: u64, request: &HeaderMap) -> Arc<Session> {
        Arc::new(Session {
            shared,
            id,
            draft02: webtransport::asks_draft02(request),
            leaving: Notify::new(),
            inner: Mutex::new(Inner {
                state: State::Asked,
                send: None,
                recv: None,
                ahead: Bytes::new(),
                attached: false,
                closed: None,
                telling: None,
                credit: None,
                reader: None,
                writer: None,
                datagrams: VecDeque::new(),
                listener: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the CONNECT.
    pub async fn accept(&self, connect: &mut H3Stream, mut headers: HeaderMap) -> io::Result<()> {
        // They say how far the client counts, and whether it takes datagrams (draft-16, 3.1).
        let settings = timeout(self.shared.limits.head_timeout, self.shared.settings.wait())
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?;
        if settings.has_session_limits() {
            self.lock().credit = Some(Credit { allowed: settings.wt_initial_max_data, written: 0 });
        }
        if self.draft02 {
            webtransport::answer_draft02(&mut headers);
        }
        connect.send_head(StatusCode::OK, &headers, false).await?;
        let mut inner = self.lock();
        match inner.state {
            State::Asked => inner.state = State::Open,
            _ => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        Ok(())
    }

    /// Starts the task of its CONNECT stream.
    pub fn run(session: Arc<Session>, connect: H3Stream) -> WebTransportStream {
        tokio::spawn(session.clone().watch(connect));
        WebTransportStream { session }
    }

    async fn watch(self: Arc<Session>, mut connect: H3Stream) {
        let mut capsules = capsule::Reader::default();
        loop {
            tokio::select! {
                biased;
                () = self.leaving.notified() => {
                    self.leave(&mut connect).await;
                    break;
                }
                data = connect.data() => match data {
                    Some(Ok(data)) => {
                        if self.read(&mut capsules, data, &mut connect) {
                            break;
                        }
                    }
                    // As good as a close with code 0.
                    None => {
                        self.lock().closed.get_or_insert(0);
                        break;
                    }
                    Some(Err(_)) => break,
                }
            }
        }
        self.end();
        let _gone = connect.finish().await;
    }

    /// Whether the session has ended.
    fn read(&self, capsules: &mut capsule::Reader, mut data: Bytes, connect: &mut H3Stream) -> bool {
        loop {
            match capsules.next(&mut data) {
                Ok(None) => return false,
                Ok(Some(Capsule::Close { code, .. })) => {
                    self.lock().closed = Some(code);
                    return true;
                }
                // The client goes when it likes, GOAWAY or not.
                Ok(Some(Capsule::Drain)) => {}
                Ok(Some(Capsule::Datagram(datagram))) => {
                    if !self.datagram(datagram.into()) {
                        self.shared.count("datagram dropped");
                    }
                }
                Ok(Some(Capsule::MaxData(bytes))) => {
                    if !self.lock().allow(bytes) {
                        self.shared.count("limit of a session lowered");
                        connect.reset(Code::WT_FLOW_CONTROL_ERROR);
                        return true;
                    }
                }
                Err(error) => {
                    self.shared.count(error.reason);
                    connect.reset(error.code);
                    return true;
                }
            }
        }
    }

    /// Our close: what was written first, since a client throws away what comes after.
    async fn leave(&self, connect: &mut H3Stream) {
        let send = self.lock().send.take();
        if let Some(mut send) = send {
            // Whoever wrote has often ended it already; either way the last of it is to arrive first.
            let _ended_before = send.finish();
            let _late = timeout(LEAVE, send.stopped()).await;
        }
        let State::Leaving(close) = self.lock().state.clone() else { return };
        let capsule = close.map(|(code, reason)| capsule::close(code, &reason)).unwrap_or_default();
        if connect.send_data(capsule.into(), true).await.is_ok() {
            // It has to end its side, too. To stop it could overtake the capsule.
            let _late = timeout(LEAVE, async { while let Some(Ok(_)) = connect.data().await {} }).await;
        }
    }

    /// Nothing more comes or goes. What the client had opened is reset.
    pub fn end(&self) {
        self.shared.sessions.remove(self.id);
        let mut inner = self.lock();
        inner.state = State::Ended;
        inner.telling = None;
        if let Some(mut send) = inner.send.take() {
            let _ended = send.reset(code(Code::WT_SESSION_GONE));
        }
        if let Some(mut recv) = inner.recv.take() {
            let _ended = recv.stop(code(Code::WT_SESSION_GONE));
        }
        inner.ahead = Bytes::new();
        inner.wake();
    }

    fn begin_leaving(&self, close: Option<(u32, String)>) {
        let mut inner = self.lock();
        if matches!(inner.state, State::Open) {
            inner.state = State::Leaving(close);
            inner.telling = Some(self.shared.drain.busy());
            inner.wake();
            self.leaving.notify_one();
        }
    }

    /// The client's stream; given back if there was one, or the session has ended.
    pub fn attach(
        &self,
        send: SendStream,
        recv: RecvStream,
        ahead: Bytes,
    ) -> Result<(), (SendStream, RecvStream)> {
        let mut inner = self.lock();
        if inner.attached || !matches!(inner.state, State::Asked | State::Open) {
            return Err((send, recv));
        }
        inner.attached = true;
        (inner.send, inner.recv, inner.ahead) = (Some(send), Some(recv), ahead);
        inner.wake();
        Ok(())
    }

    /// Whether it found room without another one going.
    pub fn datagram(&self, payload: Bytes) -> bool {
        let mut inner = self.lock();
        inner.datagrams.push_back(sessions::own(&payload));
        let fits = inner.datagrams.len() <= MAX_DATAGRAMS;
        if !fits {
            inner.datagrams.pop_front();
        }
        if let Some(listener) = inner.listener.take() {
            listener.wake();
        }
        fits
    }
}

impl Inner {
    fn is_live(&self) -> bool {
        matches!(self.state, State::Open)
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take(), self.listener.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// A limit only rises. Of a client that does not count nothing is kept.
    fn allow(&mut self, bytes: u64) -> bool {
        let Some(credit) = &mut self.credit else { return true };
        if bytes <= credit.allowed {
            return false;
        }
        credit.allowed = bytes;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        true
    }
}
