//! The state that all brokers of a cluster share. Changed only by `apply`, and the same everywhere.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use weir_wire::id::{BrokerId, ShardEpoch};

/// Drawn at bootstrap. Brokers of different clusters refuse each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// The same for all brokers, from bootstrap on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// A channel's shard is its hash modulo this: another number would move nearly all channels.
    /// 256 gives seven brokers 36 each, enough for an even share; more only makes more marks,
    /// batches and assignments to look after.
    pub shards: u16,
    /// How many brokers should hold a shard, the owner among them.
    pub copies: u8,
    /// How long a broker may act on what it was last told. One for all, because a new leader
    /// waits out what the one before it may have granted.
    pub lease: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { shards: 256, copies: 2, lease: Duration::from_millis(800) }
    }
}

/// The wire versions that a broker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub min: u16,
    pub max: u16,
}

impl Versions {
    pub fn have_one_in_common(self, other: Versions) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// What a broker says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// From conf, the same after a restart: placement goes by it.
    pub name: String,
    /// Where other brokers reach it.
    pub addr: String,
    pub wire: Versions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokerState {
    Active,
    /// Will be back soon with what it holds: gives up ownership, stays a replica.
    Draining,
    /// Gives up everything, and is removed when it has.
    Leaving,
}

/// One incarnation of a broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    pub name: String,
    pub addr: String,
    pub wire: Versions,
    pub state: BrokerState,
    /// Votes in the group; otherwise it only learns.
    pub voter: bool,
    /// The how many-th to join.
    pub joined: u64,
}

/// Who holds a shard. Without duplicates: `owner` is one of `in_sync`; nobody is in both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Rises with each change of the owner, and when the owner starts anew.
    pub epoch: ShardEpoch,
    /// Rises with each change.
    pub version: u64,
    pub owner: Option<BrokerId>,
    /// Who has everything that was acknowledged. May name a broker that is gone for good, where
    /// nobody else has it.
    pub in_sync: Vec<BrokerId>,
    /// Who is being brought up to date by the owner.
    pub catching_up: Vec<BrokerId>,
    /// Whom the owner should hand the shard to.
    pub hand_to: Option<BrokerId>,
    /// The operator does not want to wait for those in sync any longer.
    pub given_up: bool,
    /// How often an owner began without what was acknowledged before. One that sees it rise
    /// begins new epochs for the streams.
    pub resets: u64,
}

impl Assignment {
    pub fn holds(&self, id: BrokerId) -> bool {
        self.in_sync.contains(&id) || self.catching_up.contains(&id)
    }
}

/// How many of the members should vote. Two would be stuck as soon as either is away.
pub fn voters_wanted(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub shards: usize,
    /// As the state says. An owner that died is found out when its lease has run out.
    pub without_owner: usize,
    pub short_of_copies: usize,
    pub moving: usize,
    pub voters: usize,
    pub voters_wanted: usize,
}

impl Health {
    /// Any one broker may fail now without harm (as far as there are enough of them).
    pub fn is_good(&self) -> bool {
        let all = self.shards > 0 && self.without_owner == 0 && self.short_of_copies == 0;
        all && self.voters == self.voters_wanted
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// `None` before bootstrap, or before this broker has joined.
    pub cluster: Option<ClusterId>,
    pub settings: Settings,
    pub brokers: BTreeMap<BrokerId, Broker>,
    pub shards: Vec<Assignment>,
    /// Rises with each change of any of it.
    pub revision: u64,
    pub(super) joins: u64,
}

impl Meta {
    pub fn is_member(&self, id: BrokerId) -> bool {
        self.brokers.contains_key(&id)
    }

    /// For log lines: the name, or the id of one that is gone.
    pub fn name(&self, id: BrokerId) -> String {
        self.brokers.get(&id).map_or_else(|| id.to_string(), |b| b.name.clone())
    }

    /// Incarnations that a broker which introduces itself like this replaces.
    pub fn replaced_by(&self, id: BrokerId, who: &Introduction) -> Vec<BrokerId> {
        let same = |b: &Broker| b.name == who.name || b.addr == who.addr;
        self.brokers.iter().filter(|(other, b)| **other != id && same(b)).map(|(other, _)| *other).collect()
    }

    /// The highest wire version that all members speak.
    pub fn wire(&self) -> Option<u16> {
        self.brokers.values().map(|b| b.wire.max).min()
    }

    /// How it stands with the shards, for operators and for whoever waits until all is well.
    pub fn health(&self) -> Health {
        let stays = |b: &&Broker| b.state != BrokerState::Leaving;
        let members = self.brokers.values().filter(stays).count();
        let copies = usize::from(self.settings.copies).min(members);
        let count = |what: &dyn Fn(&Assignment) -> bool| self.shards.iter().filter(|s| what(s)).count();
        Health {
            shards: self.shards.len(),
            without_owner: count(&|s| s.owner.is_none()),
            short_of_copies: count(&|s| s.in_sync.iter().filter(|id| self.is_member(**id)).count() < copies),
            moving: count(&|s| !s.catching_up.is_empty() || s.hand_to.is_some()),
            voters: self.brokers.values().filter(|b| b.voter).count(),
            voters_wanted: voters_wanted(members),
        }
    }

    /// What must always be true; the text says what is not.
    pub fn check(&self) -> Result<(), String> {
        for (n, shard) in self.shards.iter().enumerate() {
            if let Some(owner) = shard.owner {
                if !shard.in_sync.contains(&owner) {
                    return Err(format!("shard {n}: owner {owner} is not in sync"));
                }
                if !self.is_member(owner) {
                    return Err(format!("shard {n}: owner {owner} is no member"));
                }
            }
            let mut all: Vec<_> = shard.in_sync.iter().chain(&shard.catching_up).collect();
            let len = all.len();
            all.sort();
            all.dedup();
            if all.len() != len {
                return Err(format!("shard {n}: a broker is listed twice"));
            }
            if shard.catching_up.iter().any(|id| !self.is_member(*id)) {
                return Err(format!("shard {n}: somebody catches up who is no member"));
            }
        }
        Ok(())
    }
}
