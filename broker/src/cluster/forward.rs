//! Calls on their way to the owner of their shard: tried again while there is none, or it changes,
//! until the deadline. Never so that something is done twice: a call that may have been carried out
//! is repeated only if the repeat changes nothing.

mod members;

use super::world::World;
use crate::engine::Submitted;
use crate::mesh::ForwardError;
use members::{Members, Word};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use weir_wire::entry::Call;
use weir_wire::envelope::{Ack, Publish};
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Reply, Request};
use weir_wire::peer::Outcome;

/// Calls under way at once; over it they are refused.
const MAX_WAITING: usize = 32 << 10;
/// Longer than it takes to find another owner.
const DEADLINE: Duration = Duration::from_secs(5);
/// One attempt: an owner that hangs is found out sooner than this.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Without news of another owner.
const AGAIN: Duration = Duration::from_millis(50);
/// A broker that has had no lease for so long is cut off, or there is no majority: waiting longer
/// would only make callers wait.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Forwards {
    waiting: AtomicUsize,
    members: Arc<Members>,
}

/// What became of one attempt.
enum Tried {
    Done(Outcome),
    /// Surely not done.
    NotDone,
    Unknown,
}

impl Forwards {
    pub fn begin(&self, world: &Arc<World>, shard: u16, call: Call) -> Submitted {
        if world.without_lease_for() > PATIENCE {
            return refused(world, call).into();
        }
        if self.waiting.fetch_add(1, Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Relaxed);
            world.metrics.forwards_refused.inc();
            return Outcome::Unavailable.into();
        }
        world.metrics.forwards.inc();
        // On its way before this returns, so that calls arrive in the order in which they were made.
        let to = world.owner(shard).filter(|owner| *owner != world.me);
        let deadline = Instant::now() + DEADLINE;
        let send = || to.map(|to| attempt(world, to, call.clone(), deadline));
        let (word, first) = self.members.begin(&call, send);
        let (answer, later) = oneshot::channel();
        let quick = matches!(&call, Call::Publish(Publish { ack: Ack::None, .. }));
        let world = world.clone();
        tokio::spawn(async move {
            let outcome = carry(&world, shard, call, word.as_ref(), first, deadline).await;
            world.forwards.waiting.fetch_sub(1, Relaxed);
            drop(word);
            let _gave_up = answer.send(outcome);
        });
        match quick {
            true => Outcome::Published(None).into(),
            false => Submitted::Later(later),
        }
    }

    /// This broker owns the call's shard, and takes it up itself.
    pub fn overtake(&self, call: &Call) {
        self.members.overtake(call);
    }
}

/// Whether it may be carried out twice.
fn is_repeatable(call: &Call) -> bool {
    match call {
        Call::Publish(publish) => publish.idempotency_key.is_some(),
        _ => true,
    }
}

/// Where no owner can be reached.
fn refused(world: &World, call: Call) -> Outcome {
    match call {
        Call::Publish(publish) if publish.live_without_owner => {
            world.metrics.lives.inc();
            if let Some(engine) = world.engine() {
                // To those on this side, and without a place in the stream.
                if let Some(mesh) = world.mesh.get().cloned() {
                    let request = Request::Live(publish.clone());
                    tokio::spawn(async move { mesh.fan_out(request, Instant::now() + ATTEMPT).await });
                }
                // A shard is held by the caller.
                tokio::spawn(async move { engine.deliver_live(publish) });
            }
            Outcome::Published(None)
        }
        _ => Outcome::Unavailable,
    }
}

fn attempt(
    world: &World,
    to: BrokerId,
    call: Call,
    deadline: Instant,
) -> impl Future<Output = Result<Reply, ForwardError>> + Send + use<> {
    let until = deadline.min(Instant::now() + ATTEMPT);
    let asked = world.mesh.get().map(|mesh| mesh.forward(to, Request::Call(call), until));
    async move {
        match asked {
            Some(asked) => asked.await,
            None => Err(ForwardError::NotSent(crate::mesh::NotSent::NoLink)),
        }
    }
}

async fn carry(
    world: &Arc<World>,
    shard: u16,
    call: Call,
    word: Option<&Word>,
    first: Option<impl Future<Output = Result<Reply, ForwardError>>>,
    deadline: Instant,
) -> Outcome {
    let mut turns = world.turns.subscribe();
    turns.mark_unchanged();
    let mut tried = match first {
        Some(first) => judge(first.await),
        None => Tried::NotDone,
    };
    loop {
        match tried {
            Tried::Done(outcome) => return outcome,
            Tried::Unknown if !is_repeatable(&call) => return Outcome::Unavailable,
            Tried::Unknown | Tried::NotDone => {}
        }
        if Instant::now() + AGAIN >= deadline || world.without_lease_for() > PATIENCE {
            let surely_not = matches!(tried, Tried::NotDone);
            return if surely_not { refused(world, call) } else { Outcome::Unavailable };
        }
        // Another owner, or a while.
        let _either = timeout(AGAIN, turns.changed()).await;
        turns.mark_unchanged();
        world.metrics.forward_retries.inc();
        tried = match world.owner(shard) {
            Some(owner) if owner == world.me => here(world, call.clone(), word).await,
            Some(owner) => {
                let send = || attempt(world, owner, call.clone(), deadline);
                let sent = match (&call, world.engine()) {
                    // Given up meanwhile: the owner must not be told after it was told of that.
                    (Call::Subscribe { channel, .. }, Some(engine)) => engine.if_wanted(channel, send),
                    _ => again(word, send),
                };
                match sent {
                    Some(attempt) => judge(attempt.await),
                    None => OVERTAKEN,
                }
            }
            None => Tried::NotDone,
        };
    }
}

/// What was said after it holds.
const OVERTAKEN: Tried = Tried::Done(Outcome::Done);

fn again<T>(word: Option<&Word>, send: impl FnOnce() -> T) -> Option<T> {
    match word {
        Some(word) => word.again(send),
        None => Some(send()),
    }
}

/// This broker owns the shard by now.
async fn here(world: &World, call: Call, word: Option<&Word>) -> Tried {
    let Some(engine) = world.engine() else { return Tried::NotDone };
    match engine.try_call(call, || again(word, || ()).is_some()) {
        Some(Ok(submitted)) => match submitted.outcome().await {
            Outcome::Unavailable => Tried::Unknown,
            outcome => Tried::Done(outcome),
        },
        Some(Err(_)) => Tried::NotDone,
        None => OVERTAKEN,
    }
}

fn judge(reply: Result<Reply, ForwardError>) -> Tried {
    match reply {
        Ok(Reply::Outcome(Outcome::Unavailable)) => Tried::Unknown,
        Ok(Reply::Outcome(outcome)) => Tried::Done(outcome),
        Ok(Reply::NotOwner | Reply::Busy) | Err(ForwardError::NotSent(_)) => Tried::NotDone,
        Ok(Reply::Positions(_) | Reply::Void(_)) | Err(ForwardError::Unknown(_)) => Tried::Unknown,
    }
}
