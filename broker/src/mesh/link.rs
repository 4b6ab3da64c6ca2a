//! One link: what waits for it, and what it waits for.

use super::Conf;
use super::credit::{Credit, Taken, Window};
use super::lanes::Lanes;
use super::metrics::Metrics;
use super::pair::Ends;
use super::pending::Pending;
use crate::link::LinkError;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use weir_core::sync::lock;
use weir_wire::codec::{self, CodecError, Encode};
use weir_wire::envelope::Position;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Deliver, Delivery, Lane, Purpose, Replication, Reply, Talk};
use weir_wire::peer::CHUNK_SIZE;
use weir_wire::replica::{Beat, Message};

/// Group calls without an answer.
const MAX_CALLS: usize = 1024;

/// Who is at the other end, as it proved.
#[derive(Clone, Debug)]
pub struct Who {
    pub id: BrokerId,
    pub name: String,
    pub addr: String,
    /// The highest wire version that both speak.
    pub wire: u16,
}

pub struct Link {
    pub who: Who,
    pub ends: Ends,
    pub purpose: Purpose,
    pub since: Instant,
    pub calls: Pending<Option<Bytes>>,
    pub requests: Pending<Option<Reply>>,
    /// Requests of the other side that are not answered yet.
    pub serving: AtomicUsize,
    pub max_requests: usize,
    window_size: usize,
    next_id: AtomicU64,
    /// In microseconds: the last way there and back, and when it came back, from `since` on.
    rtt: AtomicU64,
    heard: AtomicU64,
    /// The last call, likewise.
    used: AtomicU64,
    state: Mutex<State>,
    ready: Notify,
    closed: Notify,
    pub metrics: Arc<Metrics>,
}

struct State {
    lanes: Lanes,
    window: Window,
    taken: Taken,
    /// A replica message was dropped, and nobody was told yet.
    dropped: bool,
    finished: bool,
    close: Option<LinkError>,
}

/// What may be done again after something was written.
pub struct Written {
    pub trouble: bool,
    /// Nothing more will come.
    pub end: bool,
}

impl Link {
    pub fn new(who: Who, ends: Ends, purpose: Purpose, conf: &Conf, metrics: Arc<Metrics>) -> Arc<Link> {
        let state = State {
            lanes: Lanes::new(conf.bounds.clone()),
            window: Window::new(conf.window),
            taken: Taken::default(),
            dropped: false,
            finished: false,
            close: None,
        };
        Arc::new(Link {
            who,
            ends,
            purpose,
            since: Instant::now(),
            calls: Pending::new(MAX_CALLS),
            requests: Pending::new(conf.max_requests),
            serving: AtomicUsize::new(0),
            max_requests: conf.max_requests,
            window_size: conf.window,
            next_id: AtomicU64::new(1),
            rtt: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            used: AtomicU64::new(0),
            state: Mutex::new(state),
            ready: Notify::new(),
            closed: Notify::new(),
            metrics,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }

    /// False: no room, or the link has ended.
    pub fn push(&self, lane: Lane, data: Bytes, tag: u64) -> bool {
        let mut state = self.lock();
        let pushed = !state.finished && state.lanes.push(lane, data, tag);
        drop(state);
        if pushed {
            self.ready.notify_one();
        } else {
            self.metrics.dropped(lane);
        }
        pushed
    }

    /// For what is bounded otherwise.
    pub fn push_anyway(&self, lane: Lane, data: Bytes) -> bool {
        let mut state = self.lock();
        if state.finished {
            return false;
        }
        state.lanes.push_anyway(lane, data, 0);
        drop(state);
        self.ready.notify_one();
        true
    }

    pub fn talk(&self, talk: &Talk, tag: u64) -> Result<bool, CodecError> {
        Ok(self.push(Lane::Talk, codec::encode_body(talk)?, tag))
    }

    pub fn send_replica(&self, shard: u16, message: Message) -> bool {
        let lane = if matches!(message, Message::Chunk(_)) { Lane::Bulk } else { Lane::Replica };
        self.replicate(lane, &Replication::Message { shard, message })
    }

    pub fn send_beats(&self, beats: Vec<(u16, Beat)>) -> bool {
        self.replicate(Lane::Replica, &Replication::Beats(beats))
    }

    fn replicate(&self, lane: Lane, value: &Replication) -> bool {
        let Some(data) = encoded(value) else { return false };
        let pushed = self.push(lane, data, 0);
        if !pushed {
            self.lock().dropped = true;
            // Where all was written meanwhile, this brings the writer to look.
            self.ready.notify_one();
        }
        pushed
    }

    pub fn deliver(&self, delivery: Delivery) -> bool {
        if self.lock().window.is_behind() {
            self.metrics.dropped(Lane::Deliver);
            return false;
        }
        let Some(data) = encoded(&Deliver::Delivery(delivery)) else { return false };
        let mut state = self.lock();
        if state.finished || state.window.send(data.len()) != Credit::Sent {
            drop(state);
            self.metrics.dropped(Lane::Deliver);
            return false;
        }
        state.lanes.push_anyway(Lane::Deliver, data, 0);
        drop(state);
        self.ready.notify_one();
        true
    }

    pub fn resume(&self) {
        self.lock().window.resume();
    }

    pub fn resync(&self, positions: Vec<(String, Option<Position>)>) {
        self.metrics.resyncs.inc();
        for part in chunks(positions) {
            if let Some(data) = encoded(&part) {
                self.push_anyway(Lane::Deliver, data);
            }
        }
    }

    pub fn wants_resync(&self) -> bool {
        self.lock().window.wants_resync()
    }

    /// The other side took deliveries. False: more than it ever got.
    pub fn peer_took(&self, total: u64) -> bool {
        self.lock().window.taken(total)
    }

    fn took(&self, len: usize) {
        let total = self.lock().taken.add(len, self.window_size);
        self.tell_taken(total);
    }

    pub fn flush_taken(&self) {
        let total = self.lock().taken.untold();
        self.tell_taken(total);
    }

    fn tell_taken(&self, total: Option<u64>) {
        if let Some(data) = total.and_then(|total| encoded(&Talk::Taken(total))) {
            // There is one of them for each part of a window at most.
            self.push_anyway(Lane::Talk, data);
        }
    }

    /// Waits for something to write, and appends it.
    pub async fn next(&self, out: &mut Vec<u8>) -> Written {
        loop {
            {
                let mut state = self.lock();
                let written = state.lanes.fill(out);
                let trouble =
                    state.dropped && state.lanes.has_room(Lane::Replica) && state.lanes.has_room(Lane::Bulk);
                state.dropped &= !trouble;
                let end = state.finished && out.is_empty();
                drop(state);
                self.metrics.sent(&written, out.len());
                if trouble || end || !out.is_empty() {
                    return Written { trouble, end };
                }
            }
            self.ready.notified().await;
        }
    }

    /// From outside; the link's task then ends it.
    pub fn close(&self, why: LinkError) {
        self.lock().close.get_or_insert(why);
        self.closed.notify_one();
    }

    pub async fn closed(&self) -> LinkError {
        loop {
            if let Some(why) = self.lock().close.take() {
                return why;
            }
            self.closed.notified().await;
        }
    }

    /// Nothing more is taken; who waits learns that. A last word goes out.
    pub fn finish(&self, why: Option<&LinkError>) {
        let mut state = self.lock();
        if state.finished {
            return;
        }
        state.finished = true;
        let unsent = state.lanes.clear();
        if let Some(data) = why.and_then(LinkError::bye).and_then(|bye| encoded(&Talk::Bye(bye))) {
            state.lanes.push_anyway(Lane::Talk, data, 0);
        }
        drop(state);
        self.ready.notify_one();
        self.calls.finish(&unsent);
        self.requests.finish(&unsent);
    }

    pub fn is_finished(&self) -> bool {
        self.lock().finished
    }

    pub fn use_now(&self) {
        self.used.store(self.clock(), Relaxed);
    }

    /// How long nobody called.
    pub fn unused(&self) -> Duration {
        Duration::from_micros(self.clock().saturating_sub(self.used.load(Relaxed)))
    }

    pub fn clock(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub fn pong(&self, sent: u64) {
        let now = self.clock();
        let rtt = now.saturating_sub(sent);
        self.rtt.store(rtt, Relaxed);
        self.heard.store(now, Relaxed);
        self.metrics.rtt.observe(Duration::from_micros(rtt).as_secs_f64());
    }

    /// How long no ping was answered.
    pub fn silent(&self) -> Duration {
        Duration::from_micros(self.clock().saturating_sub(self.heard.load(Relaxed)))
    }

    pub fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt.load(Relaxed))
    }

    /// Bytes of deliveries that were not taken yet, and whether a resync is due.
    pub fn window(&self) -> (u64, bool) {
        let state = self.lock();
        (state.window.waiting(), state.window.is_behind())
    }

    pub fn queued(&self) -> [(Lane, usize); Lane::ALL.len()] {
        let state = self.lock();
        Lane::ALL.map(|lane| (lane, state.lanes.bytes(lane)))
    }
}

/// What one delivery takes of the window, until it is dropped.
pub struct Room {
    pub(super) link: Arc<Link>,
    pub(super) len: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.link.took(self.len);
    }
}

/// `None`: an error of ours, larger than any frame. Logged, since nothing else can be done.
pub fn encoded(value: &impl Encode) -> Option<Bytes> {
    codec::encode_body(value)
        .inspect_err(|error| tracing::error!(%error, "something for another broker cannot be sent"))
        .ok()
}

fn chunks(positions: Vec<(String, Option<Position>)>) -> Vec<Deliver> {
    let (mut lists, mut size) = (vec![Vec::new()], 0);
    for entry in positions {
        // Offset, epoch and lengths come to this at most.
        size += entry.0.len() + 32;
        if size > CHUNK_SIZE {
            lists.push(Vec::new());
            size = entry.0.len() + 32;
        }
        if let Some(list) = lists.last_mut() {
            list.push(entry);
        }
    }
    let last = lists.len() - 1;
    let chunk = |(at, positions)| Deliver::Resync { positions, last: at == last };
    lists.into_iter().enumerate().map(chunk).collect()
}
