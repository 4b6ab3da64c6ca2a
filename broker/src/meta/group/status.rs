//! What an operator wants to see of the group.

use super::Inner;
use crate::meta::call::{Answer, Ask};
use crate::meta::state::{Broker, ClusterId};
use std::time::Duration;
use tokio::time::Instant;
use weir_wire::id::BrokerId;

#[derive(Clone, Debug)]
pub struct Status {
    pub me: BrokerId,
    pub cluster: Option<ClusterId>,
    pub leader: Option<BrokerId>,
    pub term: u64,
    /// Of the state that this broker knows.
    pub revision: u64,
    pub members: Vec<MemberStatus>,
    /// Whether the leader was asked; otherwise `last_heard` is missing.
    pub complete: bool,
    pub lease_left: Duration,
    /// This broker's part in the group has ended, and why.
    pub stopped: Option<String>,
}

#[derive(Clone, Debug)]
pub struct MemberStatus {
    pub id: BrokerId,
    /// With its state, and whether it votes or learns.
    pub broker: Broker,
    /// How long ago the leader gave it a lease.
    pub last_heard: Option<Duration>,
}

impl Inner {
    pub(super) async fn status(&self, deadline: Instant) -> Status {
        let (meta, leader) = (self.meta(), self.leader());
        let heard = match &leader {
            Some((id, _)) if *id == self.me => Some(self.heard()),
            Some((id, addr)) => match self.ask(Some(*id), addr, Ask::Heard, deadline).await {
                Ok(Ok(Answer::Heard(heard))) => Some(heard),
                _ => None,
            },
            None => None,
        };
        let last_heard = |id: BrokerId| {
            let mut all = heard.iter().flatten();
            all.find(|(other, _)| *other == id).and_then(|(_, ago)| *ago)
        };
        let member = |(id, broker): (&BrokerId, &Broker)| MemberStatus {
            id: *id,
            broker: broker.clone(),
            last_heard: last_heard(*id),
        };
        // Not within the whole: what is borrowed is held to its end, and `stopped` would borrow it again, which
        // waits for ever when the group wants to write in between.
        let term = self.raft.metrics().borrow().current_term;
        Status {
            me: self.me,
            cluster: meta.cluster,
            leader: leader.map(|(id, _)| id),
            term,
            revision: meta.revision,
            members: meta.brokers.iter().map(member).collect(),
            complete: heard.is_some(),
            lease_left: self.lease.left(self.now()),
            stopped: self.stopped(),
        }
    }

    /// Nothing, unless this broker leads.
    pub(super) fn heard(&self) -> Vec<(BrokerId, Option<Duration>)> {
        let (now, leading) = (self.now(), self.leading());
        let Some(leading) = leading.as_ref() else { return Vec::new() };
        let ago = |id: BrokerId| leading.grants.last_heard(id).map(|at| now.saturating_duration_since(at));
        self.meta.borrow().brokers.keys().map(|id| (*id, ago(*id))).collect()
    }
}
