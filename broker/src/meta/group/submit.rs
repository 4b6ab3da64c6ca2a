//! Commands on their way to whoever leads.

use super::{Inner, PeerError};
use crate::meta::call::{Answer, Ask, No};
use crate::meta::command::{Command, Reply};
use tokio::time::{Instant, timeout_at};

/// What became of submitted commands, where there is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing was changed.
    #[error("nobody leads the brokers, or it cannot be reached")]
    NoLeader,
    /// It may have happened, or may still. The watched state will tell.
    #[error("it is not known whether that happened")]
    Unknown,
    #[error("this broker is not a member (any more)")]
    NotMember,
    #[error("this broker's part in the group has stopped: {0}")]
    Stopped(String),
}

impl Inner {
    pub(super) async fn submit(
        &self,
        commands: Vec<Command>,
        deadline: Instant,
    ) -> Result<Vec<Reply>, SubmitError> {
        loop {
            if let Some(why) = self.stopped() {
                return Err(SubmitError::Stopped(why));
            }
            let answer = match self.leader() {
                Some((id, _)) if id == self.me => {
                    let outcome = timeout_at(deadline, self.propose_for(commands.clone())).await;
                    outcome.unwrap_or(Err(No::Unknown))
                }
                Some((id, addr)) => {
                    let asked = self.ask(Some(id), &addr, Ask::Submit(commands.clone()), deadline).await;
                    match asked {
                        Ok(Ok(Answer::Done(response))) => Ok(response),
                        Ok(Ok(_)) => Err(No::Unknown),
                        Ok(Err(no)) => Err(no),
                        Err(PeerError::Unreachable(_)) => Err(No::NotLeader(None)),
                        Err(PeerError::NoAnswer(_)) => Err(No::Unknown),
                    }
                }
                None => Err(No::NotLeader(None)),
            };
            match answer {
                Ok(response) => return Ok(response.replies),
                Err(No::Unknown) => return Err(SubmitError::Unknown),
                Err(No::NotMember | No::OtherCluster(_)) => return Err(SubmitError::NotMember),
                Err(No::Stopped(why)) => return Err(SubmitError::Stopped(why)),
                Err(_) => {}
            }
            let again = Instant::now() + self.conf.timing.step;
            if again >= deadline {
                return Err(SubmitError::NoLeader);
            }
            tokio::time::sleep_until(again).await;
        }
    }
}
