//! A broker gives up what it owns, or all that it holds: it says so until it has come true.

use super::{Group, SubmitError};
use crate::meta::Meta;
use crate::meta::command::{Command, Refusal};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use weir_wire::id::BrokerId;

/// One that leaves asks again whether it has.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// One of them: whoever leads may hang.
const ATTEMPT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaveError {
    #[error("cannot leave: {0}")]
    Refused(Refusal),
    #[error("cannot leave: {0}")]
    Submit(SubmitError),
    #[error("some shards could not be handed over in time")]
    StillHolds,
}

impl Group {
    /// Gives up what this broker holds, and the membership. Ends when the cluster has let it go.
    pub async fn leave(&self, deadline: Instant) -> Result<(), LeaveError> {
        let gone = |meta: &Meta, me| !meta.is_member(me);
        self.give_up(Command::Leave { id: self.id() }, deadline, gone).await?;
        self.inner.lease.end();
        Ok(())
    }

    async fn give_up(
        &self,
        command: Command,
        deadline: Instant,
        done: impl Fn(&Meta, BrokerId) -> bool,
    ) -> Result<(), LeaveError> {
        let (mut meta, me) = (self.watch(), self.id());
        loop {
            match self.submit(vec![command.clone()], deadline.min(Instant::now() + ATTEMPT)).await {
                // The others close their links to one that is gone: the state that says so may not come.
                Err(SubmitError::NotMember) => return Ok(()),
                // Who gives up its vote may lead no more before it has its own answer. Saying it again changes
                // nothing where it was heard.
                Err(SubmitError::Unknown | SubmitError::NoLeader) if Instant::now() < deadline => {}
                Err(error) => return Err(LeaveError::Submit(error)),
                Ok(replies) => match replies.into_iter().next() {
                    Some(Err(Refusal::NotMember(_))) => return Ok(()),
                    Some(Err(refusal)) if refusal != Refusal::NoChange => {
                        return Err(LeaveError::Refused(refusal));
                    }
                    _ => {}
                },
            }
            let look = deadline.min(Instant::now() + ASK_AGAIN);
            match timeout_at(look, meta.wait_for(|meta| done(meta, me))).await {
                Ok(_) => return Ok(()),
                Err(_) if look < deadline => {}
                Err(_) => return Err(LeaveError::StillHolds),
            }
        }
    }

    /// Gives up ownership before a restart, and stays a member: for a broker that comes back with
    /// what it holds. Ends when it owns nothing; [`Group::join`] after the restart ends it.
    pub async fn drain(&self, deadline: Instant) -> Result<(), LeaveError> {
        self.give_up(Command::Drain { id: self.id() }, deadline, |meta, me| {
            meta.shards.iter().all(|s| s.owner != Some(me))
        })
        .await
    }
}
