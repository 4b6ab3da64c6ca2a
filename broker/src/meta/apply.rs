//! Commands on the state. Pure and the same on every broker: no clock, no chance, no conf.

use super::command::{Command, OwnerChange, Promotion, Reason, Refusal, Reply};
use super::state::{Assignment, Broker, BrokerState, ClusterId, Introduction, Meta, Settings};
use weir_wire::id::{BrokerId, ShardEpoch};

/// What one command did.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub reply: Reply,
    pub changes: Vec<OwnerChange>,
}

impl Meta {
    /// Refused commands change nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let mut changes = Vec::new();
        let reply = self.try_apply(command, &mut changes);
        if reply.is_ok() {
            self.revision += 1;
        }
        Outcome { reply, changes }
    }

    /// Who votes is decided by Raft itself; this only makes it visible.
    pub fn set_voters(&mut self, is_voter: impl Fn(BrokerId) -> bool) {
        for (id, broker) in &mut self.brokers {
            broker.voter = is_voter(*id);
        }
        self.revision += 1;
    }

    fn try_apply(&mut self, command: &Command, changes: &mut Vec<OwnerChange>) -> Reply {
        match command {
            Command::Bootstrap { cluster, settings, id, who } => self.bootstrap(*cluster, settings, *id, who),
            Command::Join { cluster, id, who } => self.join(*cluster, *id, who, changes),
            Command::Drain { id } => self.set_state(*id, BrokerState::Draining),
            Command::Leave { id } => self.set_state(*id, BrokerState::Leaving),
            Command::Remove { id, lapsed } => {
                if !lapsed && self.shards.iter().any(|s| s.holds(*id)) {
                    return Err(Refusal::StillHolds(*id));
                }
                self.brokers.remove(id).ok_or(Refusal::NotMember(*id))?;
                self.forget(*id, changes);
                Ok(())
            }
            Command::Promote { shard, version, owner, without, how } => {
                self.promote(*shard, *version, *owner, without, *how, changes)
            }
            Command::Shrink { shard, version, by, without } => self.shrink(*shard, *version, *by, without),
            Command::Grow { shard, version, by, add } => self.grow(*shard, *version, *by, *add),
            Command::Place { shard, version, catching_up, without } => {
                self.place(*shard, *version, catching_up, without)
            }
            Command::HandOver { shard, version, to } => self.hand_over(*shard, *version, *to),
            Command::Move { shard, version, by, to } => self.transfer(*shard, *version, *by, *to, changes),
            Command::Restart { shard, version, by } => {
                let shard = self.shard(*shard, *version)?;
                shard.owned_by(*by)?;
                shard.become_owned_by(*by);
                Ok(())
            }
            Command::GiveUp { shard, version } => {
                let shard = self.shard(*shard, *version)?;
                if shard.given_up {
                    return Err(Refusal::NoChange);
                }
                shard.given_up = true;
                shard.version += 1;
                Ok(())
            }
        }
    }

    fn bootstrap(
        &mut self,
        cluster: ClusterId,
        settings: &Settings,
        id: BrokerId,
        who: &Introduction,
    ) -> Reply {
        if let Some(cluster) = self.cluster {
            return Err(Refusal::AlreadyBootstrapped(cluster));
        }
        if settings.shards == 0 || settings.copies == 0 || settings.lease.is_zero() {
            return Err(Refusal::Settings("shards, copies and lease must be above zero".into()));
        }
        self.cluster = Some(cluster);
        self.settings = settings.clone();
        self.shards = vec![Assignment::default(); settings.shards.into()];
        self.enroll(id, who, true);
        Ok(())
    }

    fn join(
        &mut self,
        cluster: ClusterId,
        id: BrokerId,
        who: &Introduction,
        changes: &mut Vec<OwnerChange>,
    ) -> Reply {
        let ours = self.cluster.ok_or(Refusal::NotBootstrapped)?;
        if ours != cluster {
            return Err(Refusal::OtherCluster { ours, theirs: cluster });
        }
        let replaced = self.replaced_by(id, who);
        self.check_versions(id, who, &replaced)?;
        let voter = self.brokers.get(&id).is_some_and(|b| b.voter);
        for old in replaced {
            self.brokers.remove(&old);
            self.forget(old, changes);
        }
        self.enroll(id, who, voter);
        Ok(())
    }

    /// Whether a broker that introduces itself like this can talk with all the others, and reads what was written since
    /// all members speak a newer version.
    pub fn check_versions(&self, id: BrokerId, who: &Introduction, replaced: &[BrokerId]) -> Reply {
        let others = self.brokers.iter().filter(|(other, _)| **other != id && !replaced.contains(other));
        for (_, other) in others {
            let in_use = self.wire().unwrap_or(0);
            if !other.wire.have_one_in_common(who.wire) || who.wire.max < in_use {
                let (member, ours) = (other.name.clone(), other.wire);
                return Err(Refusal::Wire { member, ours, theirs: who.wire });
            }
        }
        Ok(())
    }

    fn enroll(&mut self, id: BrokerId, who: &Introduction, voter: bool) {
        let joined = self.brokers.get(&id).map(|b| b.joined).unwrap_or_else(|| {
            self.joins += 1;
            self.joins
        });
        let Introduction { name, addr, wire } = who.clone();
        self.brokers.insert(id, Broker { name, addr, wire, state: BrokerState::Active, voter, joined });
    }

    fn set_state(&mut self, id: BrokerId, state: BrokerState) -> Reply {
        let others = self.brokers.iter().any(|(other, b)| *other != id && b.state == BrokerState::Active);
        let broker = self.brokers.get_mut(&id).ok_or(Refusal::NotMember(id))?;
        if state == BrokerState::Leaving && !others {
            return Err(Refusal::LastBroker);
        }
        if broker.state == state {
            return Err(Refusal::NoChange);
        }
        broker.state = state;
        Ok(())
    }

    /// Takes a broker that is no member any more out of all shards. Where it alone was in sync it
    /// stays named, so that nobody is promoted as if nothing were lost.
    fn forget(&mut self, id: BrokerId, changes: &mut Vec<OwnerChange>) {
        for (n, shard) in (0..).zip(&mut self.shards) {
            if !shard.holds(id) && shard.hand_to != Some(id) {
                continue;
            }
            shard.version += 1;
            shard.catching_up.retain(|other| *other != id);
            shard.hand_to = shard.hand_to.filter(|to| *to != id);
            if shard.in_sync.len() > 1 {
                shard.in_sync.retain(|other| *other != id);
            }
            if shard.owner == Some(id) {
                shard.owner = None;
                shard.epoch = next(shard.epoch);
                changes.push(OwnerChange {
                    shard: n,
                    from: Some(id),
                    to: None,
                    reason: Reason::OwnerRemoved,
                });
            }
        }
    }

    /// The shard, if it is still what the command was decided on.
    fn shard(&mut self, number: u16, version: u64) -> Result<&mut Assignment, Refusal> {
        let shard = self.shards.get_mut(usize::from(number)).ok_or(Refusal::NoSuchShard(number))?;
        if shard.version != version { Err(Refusal::Stale { now: shard.version }) } else { Ok(shard) }
    }

    fn promote(
        &mut self,
        number: u16,
        version: u64,
        owner: BrokerId,
        without: &[BrokerId],
        how: Promotion,
        changes: &mut Vec<OwnerChange>,
    ) -> Reply {
        self.member(owner)?;
        let shard = self.shard(number, version)?;
        if shard.owner == Some(owner) || without.contains(&owner) {
            return Err(Refusal::NoChange);
        }
        if shard.in_sync.contains(&owner) {
            shard.in_sync.retain(|id| !without.contains(id));
        } else if shard.in_sync.is_empty() {
            shard.in_sync = vec![owner];
        } else if how == Promotion::Unclean {
            shard.in_sync = vec![owner];
            shard.resets += 1;
        } else {
            return Err(Refusal::NotInSync(owner));
        }
        shard.catching_up.retain(|id| *id != owner);
        shard.given_up = false;
        let from = shard.become_owned_by(owner);
        changes.push(OwnerChange { shard: number, from, to: Some(owner), reason: Reason::Promoted(how) });
        Ok(())
    }

    fn shrink(&mut self, number: u16, version: u64, by: BrokerId, without: &[BrokerId]) -> Reply {
        let shard = self.shard(number, version)?;
        shard.owned_by(by)?;
        shard.drop_copies(without)?;
        shard.version += 1;
        Ok(())
    }

    fn grow(&mut self, number: u16, version: u64, by: BrokerId, add: BrokerId) -> Reply {
        self.member(add)?;
        let shard = self.shard(number, version)?;
        shard.owned_by(by)?;
        let at = shard.catching_up.iter().position(|id| *id == add).ok_or(Refusal::NotCatchingUp(add))?;
        shard.catching_up.remove(at);
        shard.in_sync.push(add);
        shard.version += 1;
        Ok(())
    }

    fn place(&mut self, number: u16, version: u64, catching_up: &[BrokerId], without: &[BrokerId]) -> Reply {
        catching_up.iter().try_for_each(|id| self.member(*id))?;
        let shard = self.shard(number, version)?;
        let before = shard.clone();
        if !without.is_empty() {
            shard.drop_copies(without)?;
        }
        shard.catching_up.clear();
        for id in catching_up {
            if !shard.holds(*id) {
                shard.catching_up.push(*id);
            }
        }
        if *shard == before {
            return Err(Refusal::NoChange);
        }
        shard.version += 1;
        Ok(())
    }

    fn hand_over(&mut self, number: u16, version: u64, to: Option<BrokerId>) -> Reply {
        let shard = self.shard(number, version)?;
        if let Some(to) = to.filter(|to| !shard.in_sync.contains(to)) {
            return Err(Refusal::NotInSync(to));
        }
        if shard.hand_to == to || shard.owner == to {
            return Err(Refusal::NoChange);
        }
        shard.hand_to = to;
        shard.version += 1;
        Ok(())
    }

    fn transfer(
        &mut self,
        number: u16,
        version: u64,
        by: BrokerId,
        to: BrokerId,
        changes: &mut Vec<OwnerChange>,
    ) -> Reply {
        self.member(to)?;
        let shard = self.shard(number, version)?;
        shard.owned_by(by)?;
        if !shard.in_sync.contains(&to) {
            return Err(Refusal::NotInSync(to));
        }
        if to == by {
            return Err(Refusal::NoChange);
        }
        let from = shard.become_owned_by(to);
        changes.push(OwnerChange { shard: number, from, to: Some(to), reason: Reason::HandedOver });
        Ok(())
    }

    fn member(&self, id: BrokerId) -> Reply {
        if self.is_member(id) { Ok(()) } else { Err(Refusal::NotMember(id)) }
    }
}

impl Assignment {
    fn owned_by(&self, id: BrokerId) -> Reply {
        if self.owner == Some(id) { Ok(()) } else { Err(Refusal::NotOwner(id)) }
    }

    fn become_owned_by(&mut self, owner: BrokerId) -> Option<BrokerId> {
        self.epoch = next(self.epoch);
        self.version += 1;
        self.hand_to = None;
        self.owner.replace(owner)
    }

    fn drop_copies(&mut self, without: &[BrokerId]) -> Reply {
        if let Some(id) = without.iter().find(|id| !self.in_sync.contains(id)) {
            return Err(Refusal::NotInSync(*id));
        }
        let stays = |id: &BrokerId| !without.contains(id);
        if without.is_empty() || !self.in_sync.iter().any(stays) || !self.owner.iter().all(stays) {
            return Err(Refusal::NobodyLeft);
        }
        self.in_sync.retain(stays);
        self.hand_to = self.hand_to.filter(stays);
        Ok(())
    }
}

fn next(epoch: ShardEpoch) -> ShardEpoch {
    ShardEpoch(epoch.0 + 1)
}
