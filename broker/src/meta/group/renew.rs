//! Keeps this broker's lease: asks whoever leads, again and again. When it cannot, the lease runs
//! out by itself, and the layers above stop.

use super::{Inner, Renewal};
use crate::meta::call::{Answer, Ask, No};
use crate::meta::lease::Holder;
use crate::meta::state::Meta;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use weir_wire::id::BrokerId;

pub async fn run(inner: Arc<Inner>) {
    let (mut holder, mut meta) = (Holder::default(), inner.meta.clone());
    let (mut metrics, mut followed) = (inner.raft.metrics(), inner.followed.subscribe());
    // The revision of the first grant, until the state is as new.
    let mut first = None;
    loop {
        let next = Instant::now() + inner.conf.timing.renew;
        let known = meta.borrow_and_update().clone();
        let leader = metrics.borrow_and_update().current_leader;
        if known.is_member(inner.me) {
            // Counted from here: whatever happens on the way, the leader counts from later.
            let asked = inner.now();
            let deadline = Instant::now() + known.settings.lease / 2;
            match ask(&inner, deadline).await {
                Some(Answer::Granted { lease, revision }) => {
                    let lease = lease.min(known.settings.lease);
                    first.get_or_insert(revision);
                    holder.granted(asked, lease, revision, 0);
                }
                Some(Answer::No(no)) => tracing::debug!(%no, "no lease for now"),
                _ => {}
            }
        }
        // What is applied meanwhile may be what a grant waits for; and a new leader is asked at once,
        // since without one the lease has nearly run out.
        loop {
            let now = meta.borrow_and_update().clone();
            register(&inner, first, &now);
            holder.applied(now.revision.min(*followed.borrow_and_update()));
            publish(&inner, &holder);
            if now.is_member(inner.me) != known.is_member(inner.me) {
                break;
            }
            tokio::select! {
                changed = meta.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = followed.changed() => {}
                changed = metrics.changed() => {
                    let now = metrics.borrow_and_update().current_leader;
                    if changed.is_err() {
                        return;
                    }
                    if now.is_some() && now != leader {
                        break;
                    }
                }
                () = sleep_until(next) => break,
            }
        }
    }
}

fn register(inner: &Inner, first: Option<u64>, meta: &Arc<Meta>) {
    if first.is_some_and(|revision| meta.revision >= revision) && inner.registered.borrow().is_none() {
        inner.registered.send_replace(Some(meta.clone()));
    }
}

fn publish(inner: &Inner, holder: &Holder) {
    if let Some(until) = holder.until() {
        inner.lease.extend(until);
    }
}

async fn ask(inner: &Inner, deadline: Instant) -> Option<Answer> {
    match inner.leader()? {
        (id, _) if id == inner.me => timeout_at(deadline, inner.renew(inner.me)).await.ok(),
        (id, addr) => match inner.ask(Some(id), &addr, Ask::Renew, deadline).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(no)) => Some(Answer::No(no)),
            Err(error) => {
                tracing::debug!(%error, leader = %id, "no lease for now");
                None
            }
        },
    }
}

impl Inner {
    /// The leader's answer to one that asks for its lease.
    pub(super) async fn renew(&self, id: BrokerId) -> Answer {
        if self.term().is_none() {
            return Answer::No(No::NotLeader(self.leader()));
        }
        let (answer, result) = oneshot::channel();
        if self.renewals.try_send(Renewal { id, answer }).is_err() {
            return Answer::No(No::Later("too many ask for a lease".into()));
        }
        result.await.unwrap_or_else(|_| Answer::No(No::Stopped("it is stopping".into())))
    }
}
