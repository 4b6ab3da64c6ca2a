//! The task that takes what comes out of the router and hands it to the outlets; it also
//! supervises the router and sends the resyncs.

use super::slots::Held;
use super::{Engine, Slot, Turn};
use crate::router::{Item, Receiver};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use weir_core::drain::Drain;
use weir_wire::entry::shard_of;
use weir_wire::envelope::Position;
use weir_wire::topic;

/// Between two tries to build a router anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Until the drain is stopped.
    pub async fn receive(self: Arc<Self>, mut receiver: Receiver, drain: Drain) {
        let mut stopped = pin!(drain.stopped());
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
                () = &mut stopped => return,
            }
            if self.any_lost.swap(false, Relaxed) {
                self.resync_those_with_room().await;
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

    async fn resync_those_with_room(&self) {
        let mut turn = Turn::begin();
        for held in self.slots.all().into_iter().filter(|h| h.is_lost()) {
            if !held.outlet.has_room() {
                // The outlet wakes us when it has; the mark makes us look again then.
                self.any_lost.store(true, Relaxed);
                continue;
            }
            // The mark goes first: what is dropped from here on sets it again.
            held.lost.store(false, Relaxed);
            let interest = held.interest();
            let (mut positions, mut elsewhere) = (Vec::with_capacity(interest.len()), BTreeSet::new());
            for channel in interest {
                match self.position(&channel) {
                    Ok(position) => positions.push((channel.to_string(), position)),
                    Err(shard) => drop(elsewhere.insert(shard)),
                }
                turn.may_end().await;
            }
            held.outlet.resync(positions);
            // Their owners are asked, and the answers follow as resyncs of their own.
            elsewhere.into_iter().for_each(|shard| self.cluster.recheck(shard));
        }
    }

    /// Where a channel's stream stands; `Err`: this broker does not serve its shard.
    pub(super) fn position(&self, channel: &str) -> Result<Option<Position>, u16> {
        let number = shard_of(channel, self.shards.len() as u16);
        self.with(number, |shard, moment| match shard.may_serve(moment) {
            true => Ok(shard.state.position(channel)),
            false => Err(number),
        })
    }
}
