//! A node's bus when the broker is another process: calls are frames on one link, answered by id;
//! what the node holds at the broker (interest and members) is mirrored here and told anew after
//! each connect.
//!
//! While the link is down, calls fail at once, except for those that only change the mirror:
//! `unsubscribe`, `leave` and `join` succeed, and the broker learns of them with the next link.

mod connect;
mod live;
mod metrics;
mod mirror;

use super::outcome::{self, op_call};
use super::{Bus, BusError, Call, Event, Inbox};
use crate::error::BindError;
use crate::link::{Kind, SendQueue};
use crate::tls::Tls;
use bytes::Bytes;
use metrics::Metrics;
use mirror::{Effect, Mirror};
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use weir_core::drain::Drain;
use weir_core::sync::lock;
use weir_wire::codec::{self, CodecError};
use weir_wire::envelope::{
    Answer, Control, History, HistoryQuery, Member, Position, PresenceStats, Publish, Published, Question,
    StreamOptions, Survey,
};
use weir_wire::id::NodeId;
use weir_wire::peer::{FromNode, Op, Outcome};

/// Room in the inbox beyond `node.inbox_size`, for what the broker keeps no count of.
const SLACK: usize = 64;
/// Of that, left free by control and surveys for a resync and changes of the link.
const RESERVED: usize = 16;
/// Bytes of requests that may wait for the link, and calls that may wait for an answer.
const MAX_QUEUED: usize = 16 << 20;
const MAX_PENDING: usize = 64 << 10;

pub struct RemoteBus {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeId,
    name: String,
    tls: Option<Tls>,
    bus_timeout: Duration,
    inbox_size: usize,
    next_id: AtomicU64,
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    /// Set while there is a link on which calls can be made.
    link: Option<Arc<SendQueue>>,
    pending: HashMap<u64, Pending>,
    mirror: Mirror,
}

/// A request without a reply yet.
struct Pending {
    /// `None`: told to the broker without anyone waiting.
    caller: Option<oneshot::Sender<Outcome>>,
    effect: Option<Effect>,
}

impl RemoteBus {
    /// Connects in the background, and again whenever the link breaks; returns at once. Fails if
    /// there are to be certificates that cannot be used. Needs a tokio runtime. Ends when the inbox is dropped or `drain` is stopped.
    pub fn start(
        conf: &weir_conf::node::Node,
        node: NodeId,
        name: &str,
        registry: &mut Registry,
        drain: Drain,
    ) -> Result<(Arc<dyn Bus>, Inbox), BindError> {
        let tls = Tls::of_node(conf)?;
        let (events, inbox) = mpsc::channel(conf.inbox_size.max(1) + SLACK);
        let shared = Arc::new(Shared {
            node,
            name: name.to_owned(),
            tls,
            bus_timeout: conf.bus_timeout,
            inbox_size: conf.inbox_size.max(1),
            next_id: AtomicU64::new(1),
            state: Mutex::default(),
            metrics: Metrics::register(registry),
        });
        tokio::spawn(connect::keep_connected(shared.clone(), conf.clone(), events, drain));
        Ok((Arc::new(RemoteBus { shared }), Inbox { events: inbox }))
    }

    async fn op(&self, op: Op) -> Result<Outcome, BusError> {
        let name = metrics::name(&op);
        let result = self.call(op).await.and_then(outcome::checked);
        self.shared.metrics.call(name, &result);
        result
    }

    async fn call(&self, op: Op) -> Result<Outcome, BusError> {
        let (id, answer) = match self.shared.send(op)? {
            Sent::Mirrored => return Ok(Outcome::Done),
            Sent::Request { id, answer } => (id, answer),
        };
        // Takes the entry away however this ends, also when the caller goes away.
        let _forget = GiveUpOnDrop { shared: &self.shared, id };
        match timeout(self.shared.bus_timeout, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(BusError::Unavailable("the link to the broker broke")),
            Err(_) => Err(BusError::Unavailable("no answer within node.bus_timeout")),
        }
    }
}

impl Bus for RemoteBus {
    op_call!();

    fn is_up(&self) -> bool {
        self.shared.lock().link.is_some()
    }
}

enum Sent {
    /// There is no link; the broker will learn of it with the next.
    Mirrored,
    Request {
        id: u64,
        answer: oneshot::Receiver<Outcome>,
    },
}

struct GiveUpOnDrop<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for GiveUpOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.give_up(self.id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn request(&self, op: Op) -> Result<(u64, Bytes), CodecError> {
        let id = self.next_id.fetch_add(1, Relaxed);
        Ok((id, codec::encode(&FromNode::Request { id, op })?))
    }

    /// Puts a request on its way. Mirror and queue change together, so that their orders agree.
    fn send(&self, op: Op) -> Result<Sent, BusError> {
        let change = mirror::Change::of(&op);
        let (id, frame) = self.request(op).map_err(|error| match error {
            CodecError::TooLong { .. } => BusError::Limit("broker.message_size"),
            error => BusError::Refused(error.to_string()),
        })?;
        let mut state = self.lock();
        let Some(link) = state.link.clone() else {
            return match change.is_some_and(|change| state.mirror.apply_unlinked(change)) {
                true => Ok(Sent::Mirrored),
                false => Err(BusError::Unavailable("no link to the broker")),
            };
        };
        // Giving something up is let through longer: a refusal there would leave it behind.
        let factor = if change.as_ref().is_some_and(mirror::Change::gives_up) { 2 } else { 1 };
        if link.bytes(Kind::Talk) > MAX_QUEUED * factor || state.pending.len() >= MAX_PENDING * factor {
            drop(state);
            self.metrics.queue_refusals.inc();
            return Err(BusError::Unavailable("the queue to the broker is full"));
        }
        let effect = change.and_then(|change| state.mirror.apply(change, id));
        let (caller, answer) = oneshot::channel();
        state.pending.insert(id, Pending { caller: Some(caller), effect });
        link.push(frame, Kind::Talk);
        Ok(Sent::Request { id, answer })
    }

    /// A reply came: mirror first, then the caller.
    fn answered(&self, id: u64, outcome: Outcome) {
        let mut state = self.lock();
        // Its caller gave up.
        let Some(pending) = state.pending.remove(&id) else { return };
        if let Some(effect) = pending.effect
            && let Some(undo) = state.mirror.done(&effect, id, &outcome)
        {
            self.tell(&mut state, undo);
        }
        drop(state);
        if let Some(caller) = pending.caller {
            let _gave_up = caller.send(outcome);
        }
    }

    /// The caller does not wait any longer. The broker may still do what was asked; where that
    /// would leave something behind that nobody knows of, it is asked to undo it.
    fn give_up(&self, id: u64) {
        let mut state = self.lock();
        let Some(Pending { effect: Some(effect), .. }) = state.pending.remove(&id) else { return };
        let Some(undo) = state.mirror.unknown(&effect, id) else { return };
        self.tell(&mut state, undo);
    }

    /// A request that nobody waits for.
    fn tell(&self, state: &mut State, op: Op) {
        let change = mirror::Change::of(&op);
        let (Some(link), Ok((id, frame))) = (state.link.clone(), self.request(op)) else { return };
        let effect = change.and_then(|change| state.mirror.apply(change, id));
        state.pending.insert(id, Pending { caller: None, effect });
        link.push(frame, Kind::Talk);
    }

    /// A proved link: tells all that is mirrored, then lets calls through behind it.
    fn link_up(&self, link: &Arc<SendQueue>) -> Result<(), CodecError> {
        let mut state = self.lock();
        for restore in state.mirror.restores() {
            link.talk(&FromNode::Restore(restore))?;
        }
        link.talk(&FromNode::Restored)?;
        state.link = Some(link.clone());
        for op in state.mirror.untold() {
            self.tell(&mut state, op);
        }
        Ok(())
    }

    /// All that was mirrored when the link began has come to the broker.
    fn restored(&self) {
        self.lock().mirror.restored();
    }

    /// `void`: the broker says that what this node holds was dropped.
    fn link_down(&self, void: bool) {
        let mut state = self.lock();
        state.link = None;
        if void {
            state.mirror.void();
        }
        let pending = std::mem::take(&mut state.pending);
        for (id, pending) in pending.iter().filter_map(|(id, p)| p.effect.as_ref().map(|e| (id, e))) {
            state.mirror.cut(pending, *id);
        }
        drop(state);
        // Callers see that their answer will not come.
        drop(pending);
    }
}
