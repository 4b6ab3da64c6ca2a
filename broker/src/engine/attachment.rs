//! What an attached node can do.

use super::slots::Held;
use super::{Engine, Submitted};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use weir_wire::entry::Call;
use weir_wire::envelope::{Control, Question};
use weir_wire::peer::{Bye, Op, Outcome, Restore};

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

impl Attachment {
    pub(super) fn new(engine: Arc<Engine>, held: Arc<Held>) -> Attachment {
        Attachment { engine, held, leave: false }
    }

    pub async fn call(&self, op: Op) -> Outcome {
        match op {
            Op::Survey(question) => self.survey(question).await,
            op => self.submit(op).outcome().await,
        }
    }

    /// All but a survey, in the order of these calls. With one broker it is done on return.
    pub fn submit(&self, op: Op) -> Submitted {
        let (engine, slot) = (&self.engine, self.held.slot);
        let call = match op {
            Op::Publish(publish) => return engine.publish(publish),
            Op::Subscribe { channel, stream } => return engine.subscribe(&self.held, channel, stream),
            Op::Unsubscribe { channel } => {
                engine.unsubscribe(slot, &channel);
                self.held.remove_interest(&channel);
                return Outcome::Done.into();
            }
            Op::Control(control) => return self.control(control),
            Op::Answer { survey, answer } => {
                engine.surveys.answer(survey, self.held.node, answer);
                return Outcome::Done.into();
            }
            Op::Survey(_) => return Outcome::Refused("a survey has to be awaited".into()).into(),
            Op::History { channel, query, stream } => Call::History { channel, query, stream },
            Op::HistoryRemove { channel } => Call::HistoryRemove { channel },
            Op::Join { channel, member } => {
                Call::Join { channel, holder: self.held.holder(), member, quiet: false }
            }
            Op::Leave { channel, client } => Call::Leave { channel, holder: self.held.holder(), client },
            Op::Presence { channel } => Call::Presence { channel },
            Op::PresenceStats { channel } => Call::PresenceStats { channel },
        };
        engine.call(call)
    }

    fn control(&self, control: Control) -> Submitted {
        self.engine.cluster.control(&control);
        self.engine.control_here(control)
    }

    async fn survey(&self, question: Question) -> Outcome {
        let elsewhere = self.engine.cluster.survey(&question);
        let (here, elsewhere) = tokio::join!(self.engine.survey_here(question), elsewhere);
        match here {
            Ok(mut survey) => {
                survey.answers.extend(elsewhere.answers);
                survey.missing.extend(elsewhere.missing);
                Outcome::Survey(survey)
            }
            Err(outcome) => outcome,
        }
    }

    /// Interest and members from before a break of the link. Nothing is announced, unless the
    /// members were announced as gone because the node was away for longer than its lease, or taken for it.
    pub fn restore(&self, restore: Restore) {
        for (channel, _) in restore.interest {
            self.engine.restore_interest(&self.held, &channel);
        }
        let (holder, quiet) = (self.held.holder(), !(self.held.was_expired || restore.void));
        let join = |(channel, member)| self.engine.call(Call::Join { channel, holder, member, quiet });
        let joins: Vec<Submitted> = restore.members.into_iter().map(join).collect();
        let outlet = self.held.outlet.clone();
        tokio::spawn(async move {
            for join in joins {
                if join.outcome().await == Outcome::Unavailable {
                    // Its owner could not be told: the node has to tell again, here or elsewhere.
                    return outlet.close(Bye::Timeout);
                }
            }
        });
    }

    /// What this node tells from now on is of a later link, as if it had come anew.
    pub fn renew(&self) {
        self.engine.slots.renew(&self.held);
    }

    /// All is told again under a later link: what is of earlier ones, and was not told, is gone.
    pub fn told_again(&self) {
        self.engine.members_gone(self.held.holder());
    }

    /// All is restored: members that were not told again are gone, and the receiving task sends
    /// this node the positions of all its interest.
    pub fn resync(&self) {
        self.engine.members_gone(self.held.holder());
        self.held.lost.store(true, Relaxed);
        self.engine.any_lost.store(true, Relaxed);
        self.engine.wake();
    }

    /// The node stops: its members leave at once.
    pub fn leave(mut self) {
        self.leave = true;
    }
}
