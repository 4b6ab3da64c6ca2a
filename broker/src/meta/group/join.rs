//! Into a cluster: a new one, or one that is there.

use super::Inner;
use crate::meta::call::{Answer, Ask, No};
use crate::meta::command::{Command, Refusal};
use crate::meta::state::{BrokerState, ClusterId, Settings};
use futures_util::future::join_all;
use openraft::BasicNode;
use openraft::error::{InitializeError, RaftError};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use weir_core::backoff::Backoff;

/// What trying again would not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("this broker belongs to cluster {ours}, but {seed} to {theirs}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId, seed: String },
    #[error("the seeds belong to different clusters: {0} and {1}")]
    SeedsDisagree(ClusterId, ClusterId),
    #[error("the cluster refuses this broker: {0}")]
    Refused(Refusal),
    #[error("the new cluster did not come about in time")]
    Bootstrap,
    #[error("this broker's part in the group has stopped: {0}")]
    Stopped(String),
}

/// One seed's answer is awaited so long.
const ANSWER: Duration = Duration::from_secs(1);
/// After the leader has said yes, until the state is here.
const ARRIVAL: Duration = Duration::from_secs(5);
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// What the seeds said, in one round.
#[derive(Default)]
struct Round {
    /// In a cluster: where to ask.
    members: BTreeMap<String, ClusterId>,
    /// In none. With their names, if they would make one.
    none: Vec<Option<String>>,
    silent: usize,
}

impl Inner {
    pub(super) async fn enter(
        &self,
        seeds: &[String],
        bootstrap: Option<Settings>,
    ) -> Result<ClusterId, JoinError> {
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        loop {
            if let Some(cluster) = self.is_in() {
                return Ok(cluster);
            }
            if let Some(why) = self.stopped() {
                return Err(JoinError::Stopped(why));
            }
            let round = self.ask_around(seeds).await?;
            if !round.members.is_empty() {
                for addr in round.members.keys() {
                    if self.join_at(addr).await? {
                        break;
                    }
                }
            } else if let Some(settings) = &bootstrap
                && self.may_bootstrap(&round)
            {
                return self.bootstrap(settings.clone(), Instant::now() + ARRIVAL).await;
            } else if round.silent > 0 {
                tracing::info!(silent = round.silent, "seeds do not answer; waiting for a cluster");
            }
            let wait = pause.next(&mut rand::rng());
            if self.is_in().is_none() {
                sleep(wait).await;
            }
        }
    }

    /// The cluster, if all others know this broker as it is now.
    fn is_in(&self) -> Option<ClusterId> {
        let (meta, who) = (self.meta.borrow(), &self.conf.who);
        let known = meta.brokers.get(&self.me)?;
        let same = known.name == who.name && known.addr == who.addr && known.wire == who.wire;
        meta.cluster.filter(|_| same && known.state == BrokerState::Active)
    }

    async fn ask_around(&self, seeds: &[String]) -> Result<Round, JoinError> {
        let meta = self.meta();
        let known = meta.brokers.iter().filter(|(id, _)| **id != self.me).map(|(_, b)| b.addr.clone());
        let mut addrs: Vec<_> = seeds.iter().cloned().chain(known).collect();
        addrs.sort();
        addrs.dedup();
        // Alone with a state of before: it is for itself to say that it is back.
        if meta.is_member(self.me) {
            addrs.push(self.conf.who.addr.clone());
        }
        let deadline = Instant::now() + ANSWER;
        let asked = addrs.iter().map(|addr| self.ask(None, addr, Ask::Hello, deadline));
        let mut round = Round::default();
        for (addr, answer) in addrs.iter().zip(join_all(asked).await) {
            match answer {
                Ok(Ok(Answer::Hello { id, cluster: Some(cluster), .. })) => {
                    if id != self.me || meta.is_member(self.me) {
                        round.members.insert(addr.clone(), cluster);
                    }
                }
                Ok(Ok(Answer::Hello { id, name, would_bootstrap, .. })) => {
                    if id != self.me {
                        round.none.push(would_bootstrap.then_some(name));
                    }
                }
                Ok(Err(No::OtherCluster(theirs))) => {
                    let Some(ours) = meta.cluster else { continue };
                    return Err(JoinError::OtherCluster { ours, theirs, seed: addr.clone() });
                }
                _ => round.silent += 1,
            }
        }
        let mut clusters = round.members.values();
        if let Some(one) = clusters.next()
            && let Some(other) = clusters.find(|other| *other != one)
        {
            return Err(JoinError::SeedsDisagree(*one, *other));
        }
        Ok(round)
    }

    /// Most seeds, counting this broker, are in no cluster; and none with a smaller name is about
    /// to make one as well.
    fn may_bootstrap(&self, round: &Round) -> bool {
        let (none, all) = (round.none.len() + 1, round.none.len() + round.silent + 1);
        let first = round.none.iter().flatten().all(|name| self.conf.who.name < *name);
        none * 2 > all && first && self.meta.borrow().cluster.is_none()
    }

    /// Whether this broker is a member now.
    async fn join_at(&self, addr: &str) -> Result<bool, JoinError> {
        let (mut addr, mut to) = (addr.to_owned(), None);
        // The seed, whom it takes for the leader, and once more if that has just changed.
        for _ in 0..3 {
            let deadline = Instant::now() + ARRIVAL;
            let answer = self.ask(to, &addr, Ask::Join(self.conf.who.clone()), deadline).await;
            match answer {
                Ok(Ok(Answer::Joined(cluster))) => {
                    tracing::info!(%cluster, "this broker has joined");
                    return Ok(self.arrive().await);
                }
                Ok(Err(No::NotLeader(Some((id, at))))) => (to, addr) = (Some(id), at),
                Ok(Err(No::Refused(refusal))) => return Err(JoinError::Refused(refusal)),
                Ok(Err(No::OtherCluster(theirs))) => {
                    let Some(ours) = self.meta().cluster else { return Ok(false) };
                    return Err(JoinError::OtherCluster { ours, theirs, seed: addr });
                }
                Ok(Err(no)) => {
                    tracing::info!(at = addr, %no, "cannot join yet");
                    return Ok(false);
                }
                Ok(Ok(_)) => return Ok(false),
                Err(error) => {
                    tracing::info!(at = addr, %error, "cannot join yet");
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Until the state that says so is here.
    async fn arrive(&self) -> bool {
        let mut meta = self.meta.clone();
        timeout(ARRIVAL, meta.wait_for(|meta| meta.is_member(self.me))).await.is_ok()
    }

    pub(super) async fn bootstrap(
        &self,
        settings: Settings,
        deadline: Instant,
    ) -> Result<ClusterId, JoinError> {
        if let Err(why) = self.conf.timing.check(settings.lease) {
            return Err(JoinError::Refused(Refusal::Settings(why)));
        }
        let who = self.conf.who.clone();
        let first = BTreeMap::from([(self.me.0, BasicNode { addr: who.addr.clone() })]);
        match self.raft.initialize(first).await {
            Ok(()) => {}
            // Begun before, and not finished.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(JoinError::Stopped(error.to_string())),
        }
        let cluster = ClusterId(rand::random());
        let command = Command::Bootstrap { cluster, settings, id: self.me, who };
        while Instant::now() < deadline {
            match self.propose(None, vec![command.clone()]).await {
                Ok(response) => match response.replies.into_iter().next() {
                    Some(Ok(())) => {
                        tracing::info!(%cluster, "a new cluster");
                        return Ok(cluster);
                    }
                    Some(Err(refusal)) => return Err(JoinError::Refused(refusal)),
                    None => {}
                },
                Err(No::Stopped(why)) => return Err(JoinError::Stopped(why)),
                Err(_) => {}
            }
            sleep(self.conf.timing.step).await;
        }
        Err(JoinError::Bootstrap)
    }
}
