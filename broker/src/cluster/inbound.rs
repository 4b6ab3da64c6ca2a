//! What other brokers send. Called by the task that reads a link: nothing here waits.

use super::world::World;
use crate::engine::{NotDone, Submitted};
use crate::mesh::{Handler, ReplyTo, Room, Served};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use weir_wire::entry::Call;
use weir_wire::envelope::Position;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Delivery, Reply, Request};
use weir_wire::peer::Outcome;
use weir_wire::replica::{Beat, Message};

impl Handler for World {
    fn group_call(&self, _: BrokerId, request: Bytes) -> Served {
        let group = self.group.clone();
        Box::pin(async move { group.serve(request).await })
    }

    fn link(&self, peer: BrokerId, up: bool) {
        let Some(engine) = self.engine() else { return };
        engine.linked(peer, up);
        if up {
            // It has forgotten what was wanted of it.
            (0..crate::engine::SHARDS)
                .filter(|shard| self.owner(*shard) == Some(peer))
                .for_each(|shard| self.interests.mark(shard));
        }
        self.turns.send_modify(|turn| *turn += 1);
    }

    fn replica(&self, from: BrokerId, shard: u16, message: Message) {
        if let Some(engine) = self.engine() {
            engine.receive_from(from, shard, message);
        }
    }

    fn beats(&self, from: BrokerId, beats: Vec<(u16, Beat)>) {
        if let Some(engine) = self.engine() {
            for (shard, beat) in beats {
                engine.receive_from(from, shard, Message::Beat(beat));
            }
        }
    }

    fn trouble(&self, peer: BrokerId) {
        if let Some(engine) = self.engine() {
            engine.linked(peer, true);
        }
    }

    fn request(&self, from: BrokerId, request: Request, deadline: Instant, reply: ReplyTo) {
        let Some(engine) = self.engine() else { return };
        match request {
            Request::Call(call) => self.call(from, call, deadline, reply),
            Request::Interest { shard, wanted } => {
                reply.send(match engine.interest_of(from, shard, wanted) {
                    Ok(positions) => Reply::Positions(positions),
                    Err(not) => not_done(not),
                });
            }
            Request::Control(control) => {
                // Its sender knows nothing better to do with a failure than we do.
                let _delivered_or_counted = engine.control_here(control);
                reply.send(Reply::Outcome(Outcome::Done));
            }
            Request::Survey(question) => {
                tokio::spawn(async move {
                    if let Ok(survey) = timeout_at(deadline, engine.survey_here(question)).await {
                        reply.send(Reply::Outcome(survey.map_or_else(|refused| refused, Outcome::Survey)));
                    }
                });
            }
            Request::MembersGone(before) => {
                self.nodes.void(before, Instant::now());
                engine.drop_members(before);
                reply.send(Reply::Outcome(Outcome::Done));
            }
            Request::Nodes(nodes) => {
                engine.heard_of(&nodes);
                reply.send(Reply::Void(self.nodes.told(from, &nodes, Instant::now())));
            }
            Request::Live(publish) => {
                engine.deliver_live(publish);
                reply.send(Reply::Outcome(Outcome::Done));
            }
        }
    }

    fn delivered(&self, _: BrokerId, delivery: Delivery, room: Room) {
        let Some(engine) = self.engine() else { return };
        if delivery.epoch < self.epoch(delivery.shard) {
            // Of an owner that was replaced. If it was committed, the new one delivers it.
            self.metrics.stale.inc();
            return;
        }
        engine.delivered(&delivery.channel, &delivery.frame);
        drop(room);
    }

    fn resynced(&self, _: BrokerId, positions: Vec<(String, Option<Position>)>, _: bool) {
        if let Some(engine) = self.engine() {
            engine.resync_channels(positions);
        }
    }

    fn behind(&self, peer: BrokerId) {
        let (Some(engine), Some(mesh)) = (self.engine(), self.mesh.get().cloned()) else { return };
        // All channels that it wants: too much for the task that reads its link.
        tokio::task::spawn_blocking(move || {
            mesh.resume(peer);
            mesh.resync(peer, engine.positions_for(peer));
        });
    }
}

impl World {
    fn call(&self, from: BrokerId, call: Call, deadline: Instant, reply: ReplyTo) {
        let Some(engine) = self.engine() else { return };
        if let Call::Join { holder, .. } = &call {
            // Sooner than its broker's next telling: what was joined must not be swept as of nobody's.
            self.nodes.heard(from, *holder, Instant::now());
        }
        match engine.forwarded(from, call) {
            Ok(Submitted::Now(outcome)) => reply.send(Reply::Outcome(outcome)),
            Ok(later) => {
                tokio::spawn(async move {
                    // Too late: whoever asked does not wait any more.
                    if let Ok(outcome) = timeout_at(deadline, later.outcome()).await {
                        reply.send(Reply::Outcome(outcome));
                    }
                });
            }
            Err(not) => reply.send(not_done(not)),
        }
    }
}

fn not_done(not: NotDone) -> Reply {
    match not {
        NotDone::NotOwner => Reply::NotOwner,
        NotDone::NotServing => Reply::Busy,
    }
}
