//! What a broker does while it leads the group.

use super::{Inner, Renewal};
use crate::meta::call::{Answer, No};
use crate::meta::command::{Command, Refusal};
use crate::meta::controller::Controller;
use crate::meta::lease::Grants;
use crate::meta::raft::{Request, Response, Term};
use crate::meta::state::{Introduction, Meta};
use crate::meta::voters::voters;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use weir_wire::id::BrokerId;

/// A new leader tries this long at a time to have its first entry applied.
const CONFIRM: Duration = Duration::from_secs(1);

/// One term of leading.
pub struct Leading {
    term: Term,
    pub grants: Grants,
    controller: Controller,
}

pub async fn run(inner: Arc<Inner>) {
    let mut metrics = inner.raft.metrics();
    loop {
        metrics.borrow_and_update();
        if let Some(term) = inner.term() {
            // Not before it began to lead: what others granted until then runs out after it.
            let since = inner.now();
            tracing::info!(term = term.number, "this broker leads the brokers");
            lead(&inner, term, since).await;
            *inner.leading() = None;
            tracing::info!(term = term.number, "this broker does not lead the brokers any more");
        } else if metrics.changed().await.is_err() {
            return;
        }
    }
}

async fn lead(inner: &Arc<Inner>, term: Term, since: Instant) {
    // All that was decided in terms before is applied after this.
    while !matches!(timeout(CONFIRM, inner.raft.ensure_linearizable()).await, Ok(Ok(_))) {
        if inner.term() != Some(term) {
            return;
        }
        sleep(inner.conf.timing.step).await;
    }
    let mut meta = inner.meta.clone();
    let mut change: Option<JoinHandle<()>> = None;
    while inner.term() == Some(term) {
        let now = meta.borrow_and_update().clone();
        if now.cluster.is_some() {
            inner.leading().get_or_insert_with(|| Leading {
                term,
                grants: Grants::new(since, now.settings.lease),
                controller: Controller::new(inner.conf.policy.clone()),
            });
            if !step(inner, term, &now).await {
                break;
            }
            if change.as_ref().is_none_or(JoinHandle::is_finished) {
                change = members(inner, &now).map(|change| tokio::spawn(alter(inner.clone(), change)));
            }
        }
        tokio::select! {
            _ = meta.changed() => {}
            () = sleep(inner.conf.timing.step) => {}
        }
    }
    if let Some(change) = change {
        change.abort();
    }
}

/// Decides, proposes, and waits for the outcome. `false`: no longer the leader.
async fn step(inner: &Inner, term: Term, meta: &Meta) -> bool {
    let plan = {
        let (now, mut leading) = (inner.now(), inner.leading());
        let Some(leading) = leading.as_mut() else { return false };
        let Leading { grants, controller, .. } = leading;
        grants.retain(|id| meta.is_member(id));
        let plan = controller.decide(meta, grants, now);
        let lapsed = plan.condemned.iter().all(|id| grants.condemn(*id, now));
        debug_assert!(lapsed, "the controller takes only from those whose lease ran out");
        if !lapsed {
            return false;
        }
        plan
    };
    if plan.commands.is_empty() {
        return true;
    }
    let commands = plan.commands.clone();
    let outcome = tokio::select! {
        outcome = inner.propose(Some(term), commands) => outcome,
        () = replaced(inner, term) => return false,
    };
    let Ok(response) = outcome else {
        // It may still be applied: nobody in `condemned` gets a lease from this table again.
        return false;
    };
    for (command, reply) in plan.commands.iter().zip(&response.replies) {
        if let Err(refusal) = reply {
            tracing::debug!(?command, %refusal, "decided on a state that had changed");
        }
    }
    if let Some(leading) = inner.leading().as_mut() {
        plan.condemned.iter().for_each(|id| leading.grants.absolve(*id));
    }
    true
}

/// Ends when this term is over.
async fn replaced(inner: &Inner, term: Term) {
    let mut metrics = inner.raft.metrics();
    while inner.term() == Some(term) && metrics.changed().await.is_ok() {}
}

enum Change {
    Add(BrokerId, String),
    Vote(BTreeSet<BrokerId>),
    Drop(BTreeSet<u64>),
}

/// What Raft's membership lacks to be what the state says; one step at a time.
fn members(inner: &Inner, meta: &Meta) -> Option<Change> {
    let metrics = inner.raft.metrics();
    let raft = metrics.borrow().membership_config.membership().clone();
    let nodes: BTreeMap<u64, &BasicNode> = raft.nodes().map(|(id, node)| (*id, node)).collect();
    if let Some((id, new)) = meta.brokers.iter().find(|(id, _)| !nodes.contains_key(&id.0)) {
        return Some(Change::Add(*id, new.addr.clone()));
    }
    let current: BTreeSet<_> = raft.voter_ids().map(BrokerId).collect();
    let chosen = {
        let leading = inner.leading();
        let leading = leading.as_ref()?;
        let forget_after = leading.controller.policy().forget_after;
        voters(meta, &current, &leading.grants, inner.me, forget_after, inner.now())
    };
    if let Some(chosen) = chosen {
        return Some(Change::Vote(chosen));
    }
    if raft.get_joint_config().len() > 1 {
        // A leader before did not come to the second step.
        let last = raft.get_joint_config().last()?;
        return Some(Change::Vote(last.iter().copied().map(BrokerId).collect()));
    }
    let gone = |id: &u64| !meta.is_member(BrokerId(*id)) && !current.contains(&BrokerId(*id));
    let gone: BTreeSet<_> = nodes.keys().copied().filter(gone).collect();
    (!gone.is_empty()).then_some(Change::Drop(gone))
}

async fn alter(inner: Arc<Inner>, change: Change) {
    let raft = &inner.raft;
    let result = match change {
        Change::Add(id, addr) => raft.add_learner(id.0, BasicNode { addr }, false).await,
        Change::Vote(ids) => {
            let names: Vec<_> = ids.iter().map(|id| inner.meta().name(*id)).collect();
            tracing::info!(voters = ?names, "who votes among the brokers changes");
            raft.change_membership(ids.iter().map(|id| id.0).collect::<BTreeSet<_>>(), true).await
        }
        Change::Drop(ids) => raft.change_membership(ChangeMembers::RemoveNodes(ids), true).await,
    };
    if let Err(error) = result {
        // Another one is under way, or this broker does not lead any more. Seen again at the next step.
        tracing::debug!(%error, "the members of the group were not changed");
    }
}

/// Grants leases. One confirmation serves all who had asked before it began.
pub async fn confirm(inner: Arc<Inner>, mut waiting: mpsc::Receiver<Renewal>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, super::RENEWALS).await > 0 {
        let patience = inner.meta().settings.lease / 2;
        let confirmed = timeout(patience, inner.raft.ensure_linearizable()).await;
        let refused = match confirmed {
            Ok(Ok(_)) => None,
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_)))) => {
                Some(No::NotLeader(inner.leader().filter(|(id, _)| *id != inner.me)))
            }
            Ok(Err(RaftError::Fatal(fatal))) => Some(No::Stopped(fatal.to_string())),
            Ok(Err(_)) | Err(_) => Some(No::Later("no majority of the brokers answers".into())),
        };
        for renewal in batch.drain(..) {
            let answer = match &refused {
                Some(no) => Answer::No(no.clone()),
                None => inner.grant(renewal.id),
            };
            // Who does not wait any more will ask again.
            let _ = renewal.answer.send(answer);
        }
    }
}

impl Inner {
    /// After a confirmation that was asked for after the request came in.
    fn grant(&self, id: BrokerId) -> Answer {
        let mut leading = self.leading();
        // Read while the table is held: nothing can be taken from `id` in between.
        let meta = self.meta();
        if !meta.is_member(id) {
            return Answer::No(No::NotMember);
        }
        let Some(leading) = leading.as_mut() else {
            return Answer::No(No::Later("the leader is new".into()));
        };
        if leading.grants.grant(id, self.now()) {
            Answer::Granted { lease: meta.settings.lease, revision: meta.revision }
        } else {
            Answer::No(No::Later("it is being replaced".into()))
        }
    }

    pub(super) async fn propose(
        &self,
        decided_in: Option<Term>,
        commands: Vec<Command>,
    ) -> Result<Response, No> {
        if self.term().is_none() {
            return Err(No::NotLeader(self.leader()));
        }
        match self.raft.client_write(Request { decided_in, commands }).await {
            Ok(response) => Ok(response.data),
            // Even so it may have been written, and be committed by the next leader.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(No::Unknown),
            Err(error) => Err(No::Stopped(error.to_string())),
        }
    }

    /// A leader without a majority would only pile up what it cannot commit. Its own lease tells.
    fn has_majority(&self) -> Result<(), No> {
        if self.term().is_none() {
            Err(No::NotLeader(self.leader()))
        } else if !self.lease.holds(self.now()) {
            Err(No::Later("no majority of the brokers answers".into()))
        } else {
            Ok(())
        }
    }

    /// On behalf of somebody. What only the leader can know is refused, and so is what has ways
    /// of its own; the rest goes on together.
    pub(super) async fn propose_for(&self, commands: Vec<Command>) -> Result<Response, No> {
        self.has_majority()?;
        let own = |c: &Command| {
            c.is_for_leader_only() || matches!(c, Command::Join { .. } | Command::Bootstrap { .. })
        };
        if !commands.iter().any(own) {
            return self.propose(None, commands).await;
        }
        let refused: Vec<bool> = commands.iter().map(own).collect();
        let rest: Vec<_> = commands.into_iter().filter(|c| !own(c)).collect();
        let mut response = self.propose(None, rest).await?;
        let mut replies = std::mem::take(&mut response.replies).into_iter();
        let next = |refused| if refused { Some(Err(Refusal::LeaderOnly)) } else { replies.next() };
        response.replies = refused.into_iter().filter_map(next).collect();
        Ok(response)
    }

    /// Lets a broker in. Who had its name or address before goes, once its lease has run out.
    pub(super) async fn admit(&self, id: BrokerId, who: Introduction) -> Answer {
        let Some(term) = self.term() else { return Answer::No(No::NotLeader(self.leader())) };
        // A leader that was on its way out when all stopped comes in itself by this: it has no lease before.
        if let Err(no) = self.has_majority()
            && !matches!(timeout(CONFIRM, self.raft.ensure_linearizable()).await, Ok(Ok(_)))
        {
            return Answer::No(no);
        }
        let meta = self.meta();
        let Some(cluster) = meta.cluster else {
            return Answer::No(No::Later("there is no cluster yet".into()));
        };
        let replaced = meta.replaced_by(id, &who);
        if let Err(refusal) = meta.check_versions(id, &who, &replaced) {
            return Answer::No(No::Refused(refusal));
        }
        if let Some(old) = self.condemn(&replaced, term) {
            return Answer::No(No::Later(Refusal::StillAlive(old).to_string()));
        }
        let outcome = self.propose(Some(term), vec![Command::Join { cluster, id, who }]).await;
        let answer = match outcome {
            Ok(response) => match response.replies.into_iter().next() {
                Some(Err(Refusal::OldLeader)) | None => Answer::No(No::Later("the leader is new".into())),
                Some(Err(refusal)) => Answer::No(No::Refused(refusal)),
                Some(Ok(())) => Answer::Joined(cluster),
            },
            Err(no) => return Answer::No(no),
        };
        self.absolve(&replaced, term);
        answer
    }

    /// All of them, or the one that may still act.
    fn condemn(&self, ids: &[BrokerId], term: Term) -> Option<BrokerId> {
        let (now, mut leading) = (self.now(), self.leading());
        let Some(leading) = leading.as_mut().filter(|l| l.term == term) else { return ids.first().copied() };
        for (n, id) in ids.iter().enumerate() {
            if !leading.grants.condemn(*id, now) {
                ids[..n].iter().for_each(|id| leading.grants.absolve(*id));
                return Some(*id);
            }
        }
        None
    }

    fn absolve(&self, ids: &[BrokerId], term: Term) {
        if let Some(leading) = self.leading().as_mut().filter(|l| l.term == term) {
            ids.iter().for_each(|id| leading.grants.absolve(*id));
        }
    }
}
