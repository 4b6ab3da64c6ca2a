//! What the leader decides: from the state and from what it knows of the brokers' leases to
//! commands. Pure: asked at each step, remembers only the wanted placement.
//!
//! In this order: somebody to own each shard; enough copies; then, gently, everything where the
//! placement wants it. A shard never loses a copy before the one that replaces it is in sync.

use super::command::{Command, Promotion};
use super::lease::{Grants, Standing};
use super::placement::{self, Placement};
use super::state::{Assignment, Broker, BrokerState, Meta};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use weir_wire::id::BrokerId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A shard whose brokers in sync are all away for so long begins anew with another; `None`:
    /// it waits for them.
    pub unclean_after: Option<Duration>,
    /// A broker that is away for so long has its shards placed elsewhere, and its vote given to
    /// another. It stays a member.
    pub forget_after: Duration,
    /// Shards that get missing copies at the same time.
    pub repairs: usize,
    /// Shards that move for balance at the same time.
    pub moves: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        let (unclean_after, forget_after) = (Some(Duration::from_secs(30)), Duration::from_secs(30));
        Policy { unclean_after, forget_after, repairs: 64, moves: 8 }
    }
}

/// What is to be proposed together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub commands: Vec<Command>,
    /// From whom they take something: their leases have run out and must not be granted again
    /// until the commands are decided.
    pub condemned: BTreeSet<BrokerId>,
}

#[derive(Debug)]
pub struct Controller {
    policy: Policy,
    wanted: Placement,
    wanted_for: (u16, u8, Vec<(BrokerId, String)>),
}

/// One step's view.
struct View<'a> {
    meta: &'a Meta,
    policy: &'a Policy,
    standing: BTreeMap<BrokerId, Standing>,
    now: Instant,
}

impl View<'_> {
    fn standing(&self, id: BrokerId) -> Option<Standing> {
        self.standing.get(&id).copied()
    }

    fn alive(&self, id: BrokerId) -> bool {
        self.standing(id) == Some(Standing::Alive)
    }

    fn state(&self, id: BrokerId) -> Option<BrokerState> {
        self.meta.brokers.get(&id).map(|b| b.state)
    }

    /// Alive, and to remain: may be given something.
    fn serves(&self, id: BrokerId) -> bool {
        self.alive(id) && self.state(id) == Some(BrokerState::Active)
    }

    /// Holds copies, but will not be the one to hold them.
    fn leaves(&self, id: BrokerId) -> bool {
        matches!(self.state(id), None | Some(BrokerState::Leaving))
    }

    fn lapsed_since(&self, id: BrokerId) -> Option<Instant> {
        match self.standing(id) {
            Some(Standing::Lapsed(since)) => Some(since),
            _ => None,
        }
    }

    fn forgotten(&self, id: BrokerId) -> bool {
        let long = |since| self.now.saturating_duration_since(since) >= self.policy.forget_after;
        self.lapsed_since(id).is_some_and(long)
    }
}

impl Controller {
    pub fn new(policy: Policy) -> Controller {
        Controller { policy, wanted: Vec::new(), wanted_for: (0, 0, Vec::new()) }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn decide(&mut self, meta: &Meta, grants: &Grants, now: Instant) -> Plan {
        let standing = meta.brokers.keys().map(|id| (*id, grants.standing(*id, now))).collect();
        let policy = self.policy.clone();
        let view = View { meta, policy: &policy, standing, now };
        self.want(&view);
        let mut plan = Plan::default();
        let mut budget = Budget::new(&view, &policy);
        for (n, shard) in (0..).zip(&meta.shards) {
            let wanted = self.wanted.get(usize::from(n)).map_or(&[][..], Vec::as_slice);
            match shard.owner {
                Some(owner) if view.lapsed_since(owner).is_none() => {
                    plan.commands.extend(look_after(&view, n, shard, owner, wanted, &mut budget));
                }
                _ => plan.promote(&view, n, shard, wanted),
            }
        }
        let gone = |(id, b): &(&BrokerId, &Broker)| {
            b.state == BrokerState::Leaving && !meta.shards.iter().any(|s| s.holds(**id))
        };
        let left = meta.brokers.iter().filter(gone);
        plan.commands.extend(left.map(|(id, _)| Command::Remove { id: *id, lapsed: false }));
        plan
    }

    /// Brings the wanted placement up to date with who is there to hold shards.
    fn want(&mut self, view: &View) {
        let holds = |(id, b): &(&BrokerId, &Broker)| b.state != BrokerState::Leaving && !view.forgotten(**id);
        let brokers = view.meta.brokers.iter().filter(holds).map(|(id, b)| (*id, b.name.clone())).collect();
        let wanted_for = (view.meta.shards.len() as u16, view.meta.settings.copies, brokers);
        if self.wanted_for != wanted_for {
            let (shards, copies, brokers) = &wanted_for;
            let names: Vec<_> = brokers.iter().map(|(id, name)| (*id, name.as_str())).collect();
            self.wanted = placement::place(*shards, *copies, &names);
            self.wanted_for = wanted_for;
        }
    }
}

impl Plan {
    /// A shard without an owner that may still act.
    fn promote(&mut self, view: &View, n: u16, shard: &Assignment, wanted: &[BrokerId]) {
        let Some((owner, how)) = successor(view, n, shard, wanted) else { return };
        let lapsed = |id: &&BrokerId| **id != owner && !view.alive(**id) && view.lapsed_since(**id).is_some();
        // Those that are surely away would only hold up the first acknowledgement.
        let without: Vec<_> = shard.in_sync.iter().filter(lapsed).copied().collect();
        self.condemned.extend(shard.owner);
        self.condemned.extend(without.iter().filter(|id| view.meta.is_member(**id)));
        self.commands.push(Command::Promote { shard: n, version: shard.version, owner, without, how });
    }
}

/// Who comes next; `None`: wait.
fn successor(view: &View, n: u16, shard: &Assignment, wanted: &[BrokerId]) -> Option<(BrokerId, Promotion)> {
    let all = view.meta.brokers.len();
    // If nobody else is there, anybody; not the same one for all shards.
    let anybody = view.meta.brokers.keys().cycle().skip(usize::from(n) % all.max(1)).take(all);
    let in_order = shard.hand_to.iter().chain(wanted).chain(&shard.in_sync).chain(anybody);
    let candidates: Vec<_> = in_order.copied().filter(|id| view.alive(*id)).collect();
    let pick = |may: &dyn Fn(BrokerId) -> bool| {
        let stays = candidates.iter().find(|id| may(**id) && view.serves(**id));
        stays.or_else(|| candidates.iter().find(|id| may(**id))).copied()
    };
    if shard.in_sync.is_empty() {
        return pick(&|_| true).map(|id| (id, Promotion::First));
    }
    let how = if shard.owner.is_some() { Promotion::Lapsed } else { Promotion::Gone };
    if let Some(id) = pick(&|id| shard.in_sync.contains(&id)) {
        return Some((id, how));
    }
    lost(view, shard).then(|| pick(&|_| true)).flatten().map(|id| (id, Promotion::Unclean))
}

/// Whether what was acknowledged has to be given up.
fn lost(view: &View, shard: &Assignment) -> bool {
    // A member is there and has it, or may: not yet known.
    let away = |id: &BrokerId| !view.meta.is_member(*id) || view.lapsed_since(*id).is_some();
    if !shard.in_sync.iter().all(away) {
        return false;
    }
    if shard.given_up {
        return true;
    }
    let Some(patience) = view.policy.unclean_after else { return false };
    // Who is no member any more took its memory along: there is nothing to wait for.
    let last = shard.in_sync.iter().filter_map(|id| view.lapsed_since(*id)).max();
    last.is_none_or(|since| view.now.saturating_duration_since(since) >= patience)
}

/// How much may be under way at once.
struct Budget {
    repairs: usize,
    moves: usize,
}

impl Budget {
    fn new(view: &View, policy: &Policy) -> Budget {
        let busy = |s: &&Assignment| s.catching_up.iter().any(|id| view.alive(*id));
        let catching_up = view.meta.shards.iter().filter(busy).count();
        let moving = view.meta.shards.iter().filter(|s| s.hand_to.is_some()).count();
        Budget {
            repairs: policy.repairs.saturating_sub(catching_up),
            moves: policy.moves.saturating_sub(catching_up + moving),
        }
    }

    fn take(budget: &mut usize) -> bool {
        let some = *budget > 0;
        *budget -= usize::from(some);
        some
    }
}

/// A shard whose owner may act: at most one command at a time.
fn look_after(
    view: &View,
    n: u16,
    shard: &Assignment,
    owner: BrokerId,
    wanted: &[BrokerId],
    budget: &mut Budget,
) -> Option<Command> {
    let (version, copies) = (shard.version, wanted.len());
    let place = |catching_up: Vec<BrokerId>, without: Vec<BrokerId>| {
        Some(Command::Place { shard: n, version, catching_up, without })
    };
    let useful = |id: &BrokerId| wanted.contains(id) && !view.leaves(*id);
    let catching_up: Vec<_> = shard.catching_up.iter().copied().filter(useful).collect();
    if catching_up != shard.catching_up {
        return place(catching_up, Vec::new());
    }
    let missing: Vec<_> = wanted.iter().copied().filter(|id| !shard.holds(*id) && view.alive(*id)).collect();
    if !missing.is_empty() {
        let healthy = shard.in_sync.iter().filter(|id| !view.leaves(**id) && view.alive(**id)).count();
        let leaving = shard.in_sync.iter().any(|id| view.leaves(*id));
        let urgent = healthy < copies || leaving;
        if Budget::take(if urgent { &mut budget.repairs } else { &mut budget.moves }) {
            return place([catching_up, missing].concat(), Vec::new());
        }
        return None;
    }
    if let Some(command) = hand_over(view, n, shard, owner, wanted, budget) {
        return Some(command);
    }
    let in_place = wanted.iter().all(|id| shard.in_sync.contains(id));
    let surplus: Vec<_> =
        shard.in_sync.iter().copied().filter(|id| !wanted.contains(id) && *id != owner).collect();
    if in_place && !surplus.is_empty() && shard.hand_to.is_none() {
        return place(catching_up, surplus);
    }
    None
}

/// Whether the owner should give the shard to somebody else in sync.
fn hand_over(
    view: &View,
    n: u16,
    shard: &Assignment,
    owner: BrokerId,
    wanted: &[BrokerId],
    budget: &mut Budget,
) -> Option<Command> {
    let version = shard.version;
    if let Some(to) = shard.hand_to {
        return (!view.serves(to)).then_some(Command::HandOver { shard: n, version, to: None });
    }
    let ready = |id: &&BrokerId| **id != owner && shard.in_sync.contains(*id) && view.serves(**id);
    if view.state(owner) != Some(BrokerState::Active) {
        // It is about to stop: whoever is ready, at once.
        let to = wanted.iter().chain(&shard.in_sync).find(ready).copied()?;
        return Some(Command::HandOver { shard: n, version, to: Some(to) });
    }
    let to = wanted.first().filter(ready).copied()?;
    Budget::take(&mut budget.moves).then_some(Command::HandOver { shard: n, version, to: Some(to) })
}
