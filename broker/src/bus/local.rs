//! A node's bus when the broker is in the same process: calls go straight to the engine,
//! deliveries come through the router as for everybody else.

use super::outcome::{self, op_call};
use super::{Bus, BusError, Call, Event, Inbox};
use crate::engine::{Attachment, Engine};
use crate::outlet::Outlet;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use weir_core::sync::lock;
use weir_wire::codec;
use weir_wire::envelope::{
    Answer, Control, History, HistoryQuery, Member, Position, PresenceStats, Publish, Published, Question,
    StreamOptions, Survey,
};
use weir_wire::id::NodeId;
use weir_wire::peer::{Bye, FromBroker, Op, Outcome};

/// Room in the inbox that deliveries leave free for resyncs, controls and surveys.
const SLACK: usize = 64;

/// Before what could not be told is told again.
const AGAIN: Duration = Duration::from_millis(200);

pub struct LocalBus {
    /// Taken away when the node's inbox is dropped.
    attachment: Mutex<Option<Arc<Attachment>>>,
    /// What is to be told again should other brokers take this node for gone; nothing without others.
    members: Option<Mutex<HashMap<Key, Member>>>,
}

/// Channel and client.
type Key = (String, String);

impl LocalBus {
    pub(crate) fn attach(
        engine: &Arc<Engine>,
        node: NodeId,
        name: &str,
        inbox_size: usize,
    ) -> Result<(Arc<dyn Bus>, Inbox), BusError> {
        let (events, inbox) = mpsc::channel(inbox_size.max(1) + SLACK);
        let outlet = Arc::new(LocalOutlet {
            events: events.clone(),
            size: inbox_size.max(1),
            engine: Arc::downgrade(engine),
            waits: Arc::default(),
            bus: OnceLock::new(),
        });
        let attachment =
            engine.attach(node, name, outlet.clone()).map_err(|_| BusError::Limit("broker.max_nodes"))?;
        let members = engine.has_others().then(Mutex::default);
        let bus = Arc::new(LocalBus { attachment: Mutex::new(Some(Arc::new(attachment))), members });
        let _set_once = outlet.bus.set(Arc::downgrade(&bus));
        tokio::spawn(detach_when_closed(events, Arc::downgrade(&bus)));
        Ok((bus, Inbox { events: inbox }))
    }

    /// The node of this process is gone: its members leave at once.
    fn detach(&self) {
        let held = lock(&self.attachment).take();
        if let Some(attachment) = held.and_then(Arc::into_inner) {
            attachment.leave();
        }
    }

    fn attachment(&self) -> Option<Arc<Attachment>> {
        lock(&self.attachment).clone()
    }

    async fn op(&self, op: Op) -> Result<Outcome, BusError> {
        if let Some(members) = &self.members {
            note(&mut lock(members), &op);
        }
        match self.attachment() {
            Some(attachment) => outcome::checked(attachment.call(op).await),
            None => Err(BusError::Unavailable("detached")),
        }
    }

    /// Under a later link, until all is told.
    async fn tell_again(self: Arc<Self>) {
        let Some(members) = &self.members else { return };
        let mut keys: Vec<Key> = lock(members).keys().cloned().collect();
        while !keys.is_empty() {
            let Some(attachment) = self.attachment() else { return };
            let again = |key: Key| {
                // While the members are held: a leave comes behind it.
                let all = lock(members);
                let (channel, member) = (key.0.clone(), all.get(&key)?.clone());
                Some((attachment.submit(Op::Join { channel, member }), key))
            };
            let told: Vec<_> = keys.into_iter().filter_map(again).collect();
            // Not held while others answer: the bus may be given up meanwhile.
            drop(attachment);
            keys = Vec::new();
            for (submitted, key) in told {
                if submitted.outcome().await == Outcome::Unavailable {
                    keys.push(key);
                }
            }
            if !keys.is_empty() {
                sleep(AGAIN).await;
            }
        }
        if let Some(attachment) = self.attachment() {
            attachment.told_again();
        }
    }
}

fn note(members: &mut HashMap<Key, Member>, op: &Op) {
    match op {
        Op::Join { channel, member } => {
            members.insert((channel.clone(), member.info.client.clone()), member.clone());
        }
        Op::Leave { channel, client } => {
            members.remove(&(channel.clone(), client.clone()));
        }
        _ => {}
    }
}

/// The node has dropped its inbox.
async fn detach_when_closed(events: mpsc::Sender<Event>, bus: Weak<LocalBus>) {
    events.closed().await;
    if let Some(bus) = bus.upgrade() {
        bus.detach();
    }
}

impl Drop for LocalBus {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Bus for LocalBus {
    op_call!();

    fn is_up(&self) -> bool {
        self.attachment().is_some()
    }
}

struct LocalOutlet {
    events: mpsc::Sender<Event>,
    size: usize,
    engine: Weak<Engine>,
    /// A task waits for room.
    waits: Arc<AtomicBool>,
    bus: OnceLock<Weak<LocalBus>>,
}

impl LocalOutlet {
    fn waiting(&self) -> usize {
        self.events.max_capacity() - self.events.capacity()
    }

    fn wake_when_half_empty(&self) {
        if self.waits.swap(true, Relaxed) {
            return;
        }
        let (events, engine, waits) = (self.events.clone(), self.engine.clone(), self.waits.clone());
        let half = self.size / 2 + SLACK;
        tokio::spawn(async move {
            let room = events.reserve_many(half).await.map(drop);
            waits.store(false, Relaxed);
            if let (Ok(()), Some(engine)) = (room, engine.upgrade()) {
                engine.wake();
            }
        });
    }
}

impl Outlet for LocalOutlet {
    fn offer(&self, frame: &Bytes) -> bool {
        let decoded = codec::next_frame(&mut frame.clone()).ok().flatten();
        let event = match decoded.and_then(|body| codec::decode(&body).ok()) {
            Some(FromBroker::Deliver(delivery)) if self.waiting() < self.size => Event::Deliver(delivery),
            Some(FromBroker::Deliver(_)) => {
                self.wake_when_half_empty();
                return false;
            }
            Some(FromBroker::Control(control)) => Event::Control(control),
            Some(FromBroker::Survey { id, question }) => Event::Survey { id, question },
            // Only these are sent to the router.
            _ => return true,
        };
        self.events.try_send(event).is_ok()
    }

    fn resync(&self, positions: Vec<(String, Option<Position>)>) {
        // There is room for half an inbox, so this fails only when the node is gone.
        let _gone = self.events.try_send(Event::Resync(positions));
    }

    fn has_room(&self) -> bool {
        let room = self.waiting() <= self.size / 2;
        if !room {
            self.wake_when_half_empty();
        }
        room
    }

    fn close(&self, why: Bye) {
        tracing::warn!(reason = why.reason(), "the attachment of this process's node was taken away");
    }

    fn tell_again(&self) {
        let Some(bus) = self.bus.get().and_then(Weak::upgrade) else { return };
        if let Some(attachment) = bus.attachment() {
            attachment.renew();
            tokio::spawn(bus.tell_again());
        }
    }
}
