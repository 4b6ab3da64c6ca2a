//! The task that takes what comes out of the router and hands it to the outlets; it also
//! supervises the router and sends the resyncs.

use super::slots::Held;
use super::{Engine, lock};
use crate::router::{Item, Receiver};
use crate::shard::Slot;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use weir_core::drain::Drain;
use weir_wire::topic;

/// Between two tries to build a router anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Until the drain is stopped.
    pub async fn receive(self: Arc<Self>, mut receiver: Receiver, drain: Drain) {
        loop {
            tokio::select! {
                item = receiver.next() => match item {
                    Ok(Item::Frame { topic, payload }) => self.received(&topic, &payload),
                    Ok(Item::Gap) => {
                        self.router.forget_in_flight();
                        self.lose_all("router_gap");
                    }
                    Err(error) => {
                        tracing::error!(%error, "building a new router");
                        let Some(rebuilt) = self.rebuild(&drain).await else { return };
                        receiver = rebuilt;
                    }
                },
                () = self.wake.notified() => {}
                () = drain.stopped() => return,
            }
            if self.any_lost.swap(false, Relaxed) {
                self.resync_those_with_room();
            }
        }
    }

    async fn rebuild(self: &Arc<Self>, drain: &Drain) -> Option<Receiver> {
        while !drain.has_stopped() {
            self.metrics.router_rebuilds.inc();
            let engine = self.clone();
            match tokio::task::spawn_blocking(move || engine.router.rebuild()).await {
                Ok(Ok(receiver)) => {
                    for slot in self.slots.draining() {
                        self.slots.drained(slot);
                    }
                    self.lose_all("router_rebuilt");
                    return Some(receiver);
                }
                Ok(Err(error)) => tracing::error!(%error, "no router"),
                Err(error) => tracing::error!(%error, "no router"),
            }
            tokio::time::sleep(REBUILD_PAUSE).await;
        }
        None
    }

    fn received(&self, topic: &Bytes, payload: &Bytes) {
        self.router.received(payload.len());
        match topic::slot(topic) {
            Some(slot) if payload.is_empty() => self.slots.drained(Slot(slot)),
            Some(slot) => {
                if let Some(held) = self.slots.get(Slot(slot)) {
                    self.offer(&held, payload);
                }
            }
            // Control: it has no place in any stream, so even a node that waits for its resync gets it.
            None => {
                for held in self.slots.all() {
                    if !held.outlet.offer(payload) {
                        self.metrics.control_dropped.inc();
                    }
                }
            }
        }
    }

    fn offer(&self, held: &Held, frame: &Bytes) {
        if held.is_lost() {
            self.metrics.dropped("lost");
        } else if held.outlet.offer(frame) {
            self.metrics.deliveries.inc();
            self.metrics.bytes_out.inc_by(frame.len() as u64);
        } else {
            self.mark_lost(held, "inbox_full");
        }
    }

    fn lose_all(&self, cause: &'static str) {
        for held in self.slots.all() {
            self.mark_lost(&held, cause);
        }
    }

    fn resync_those_with_room(&self) {
        for held in self.slots.all().into_iter().filter(|h| h.is_lost()) {
            if !held.outlet.has_room() {
                // The outlet wakes us when it has; the mark makes us look again then.
                self.any_lost.store(true, Relaxed);
                continue;
            }
            // The mark goes first: what is dropped from here on sets it again.
            held.lost.store(false, Relaxed);
            let positions = held.interest().into_iter().map(|channel| {
                let position = lock(self.shard(&channel)).position(&channel);
                (channel.to_string(), position)
            });
            held.outlet.resync(positions.collect());
        }
    }
}
