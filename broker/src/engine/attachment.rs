//! What an attached node can do.

use super::Engine;
use super::slots::Held;
use crate::shard::Refusal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use weir_wire::codec;
use weir_wire::envelope::{Control, Question, Survey};
use weir_wire::peer::{FromBroker, HISTORY_CHUNK_SIZE, Op, Outcome, Restore};

/// A node's hold on its place. Dropped: its interest ends, its members stay for `node_lease`.
pub struct Attachment {
    engine: Arc<Engine>,
    held: Arc<Held>,
    leave: bool,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.engine.detach(self.held.slot, self.held.node, self.leave);
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Outcome {
        Outcome::Limit(match refusal {
            Refusal::MaxChannels => "broker.max_channels".into(),
            Refusal::TooLarge => "broker.message_size".into(),
        })
    }
}

impl Attachment {
    pub(super) fn new(engine: Arc<Engine>, held: Arc<Held>) -> Attachment {
        Attachment { engine, held, leave: false }
    }

    /// Only a survey waits; everything else is done when this is first polled.
    pub async fn call(&self, op: Op) -> Outcome {
        match op {
            Op::Survey(question) => self.survey(question).await,
            op => self.call_now(op).unwrap_or_else(Outcome::from),
        }
    }

    fn call_now(&self, op: Op) -> Result<Outcome, Refusal> {
        let (engine, slot, node) = (&self.engine, self.held.slot, self.held.node);
        Ok(match op {
            Op::Publish(publish) => Outcome::Published(engine.publish(publish)?),
            Op::Subscribe { channel, stream } => {
                let now = engine.now();
                let position = engine.with(&channel, |s| {
                    let (position, new) = s.subscribe(now, slot, &channel, stream)?;
                    // Noted while the shard is held: a detach in between must find it.
                    if let Some(name) = new {
                        self.held.add_interest(name);
                    }
                    Ok::<_, Refusal>(position)
                })?;
                Outcome::Subscribed(position)
            }
            Op::Unsubscribe { channel } => {
                engine.with(&channel, |s| s.unsubscribe(slot, &channel));
                self.held.remove_interest(&channel);
                Outcome::Done
            }
            Op::History { channel, query, stream } => {
                let (history, more) = engine.history(&channel, &query, &stream, HISTORY_CHUNK_SIZE)?;
                Outcome::History { history, more }
            }
            Op::HistoryRemove { channel } => {
                let now = engine.now().at;
                engine.with(&channel, |s| s.history_remove(now, &channel));
                Outcome::Done
            }
            Op::Join { channel, member } => {
                engine.with(&channel, |s| {
                    s.join(self.held.holder(), &channel, member, false, &mut |slots, f| {
                        engine.deliver(slots, f)
                    });
                });
                Outcome::Done
            }
            Op::Leave { channel, client } => {
                engine.with(&channel, |s| {
                    s.leave(node, &channel, &client, &mut |slots, f| engine.deliver(slots, f));
                });
                Outcome::Done
            }
            Op::Presence { channel } => Outcome::Members(engine.with(&channel, |s| s.members(&channel))),
            Op::PresenceStats { channel } => Outcome::Stats(engine.with(&channel, |s| s.stats(&channel))),
            Op::Control(control) => self.control(control),
            Op::Answer { survey, answer } => {
                engine.surveys.answer(survey, node, answer);
                Outcome::Done
            }
            Op::Survey(_) => Outcome::Refused("a survey has to be awaited".into()),
        })
    }

    fn control(&self, control: Control) -> Outcome {
        match codec::encode(&FromBroker::Control(control)) {
            Ok(frame) => {
                self.engine.to_all(frame);
                Outcome::Done
            }
            Err(_) => Refusal::TooLarge.into(),
        }
    }

    async fn survey(&self, question: Question) -> Outcome {
        let nodes = self.engine.slots.all().iter().map(|h| h.node).collect();
        let Some((id, complete)) = self.engine.surveys.begin(nodes) else {
            return Outcome::Limit("too many surveys at once".into());
        };
        // Ends the survey also where the caller gives up waiting.
        let ending = EndOnDrop { engine: &self.engine, id };
        match codec::encode(&FromBroker::Survey { id, question }) {
            Ok(frame) => self.engine.to_all(frame),
            Err(_) => return Refusal::TooLarge.into(),
        }
        let _missing_ones_are_named =
            tokio::time::timeout(self.engine.conf.survey_timeout, complete.notified()).await;
        Outcome::Survey(ending.end())
    }

    /// Interest and members from before a break of the link. Nothing is announced, unless the
    /// members were announced as gone because the node was away for longer than its lease.
    pub fn restore(&self, restore: Restore) {
        for (channel, stream) in restore.interest {
            if let Err(refusal) = self.call_now(Op::Subscribe { channel, stream }) {
                tracing::warn!(node = %self.held.node, ?refusal, "interest could not be restored");
            }
        }
        let (engine, holder, quiet) = (&self.engine, self.held.holder(), !self.held.was_expired);
        for (channel, member) in restore.members {
            engine.with(&channel, |s| {
                s.join(holder, &channel, member, quiet, &mut |slots, f| engine.deliver(slots, f));
            });
        }
    }

    /// All is restored: members that were not told again are gone, and the receiving task sends
    /// this node the positions of all its interest.
    pub fn resync(&self) {
        self.engine.remove_members_before(self.held.holder());
        self.held.lost.store(true, Relaxed);
        self.engine.any_lost.store(true, Relaxed);
        self.engine.wake();
    }

    /// The node stops: its members leave at once.
    pub fn leave(mut self) {
        self.leave = true;
    }
}

struct EndOnDrop<'a> {
    engine: &'a Engine,
    id: u64,
}

impl EndOnDrop<'_> {
    fn end(&self) -> Survey {
        self.engine.surveys.end(self.id)
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let _ended_before = self.engine.surveys.end(self.id);
    }
}
