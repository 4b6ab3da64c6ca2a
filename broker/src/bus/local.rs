//! A node's bus when the broker is in the same process: calls go straight to the engine,
//! deliveries come through the router as for everybody else.

use super::outcome::{self, op_call};
use super::{Bus, BusError, Call, Event, Inbox};
use crate::engine::{Attachment, Engine};
use crate::outlet::Outlet;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::mpsc;
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

pub struct LocalBus {
    /// Taken away when the node's inbox is dropped.
    attachment: Mutex<Option<Arc<Attachment>>>,
}

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
        });
        let attachment =
            engine.attach(node, name, outlet).map_err(|_| BusError::Limit("broker.max_nodes"))?;
        let bus = Arc::new(LocalBus { attachment: Mutex::new(Some(Arc::new(attachment))) });
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
        match self.attachment() {
            Some(attachment) => outcome::checked(attachment.call(op).await),
            None => Err(BusError::Unavailable("detached")),
        }
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
}
