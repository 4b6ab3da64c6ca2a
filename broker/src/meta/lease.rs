//! Until when a broker may act on what it was last told, and when it surely no longer does.
//!
//! A broker asks the leader for a lease, and counts it **from before it asked**. The leader grants
//! it only after a quorum has confirmed that it still leads, asked **after** the request came in,
//! and counts from then: later than the holder does. A new leader knows nothing of what was
//! granted before, but the voters that elected it confirmed nobody since; a full lease after it
//! began to lead, all of that has run out.
//!
//! A grant tells how far the leader's state was. A broker that was away may still believe in an
//! old assignment: its lease counts only when it has applied at least as much.
//!
//! Clocks are monotonic and may run at different speeds, up to the drift. A machine that is put to
//! sleep as a whole may stop its clock: against that helps only that in-sync members refuse an
//! older shard epoch.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weir_wire::id::BrokerId;

/// For a LAN. An owner that dies is replaced after what is left of its lease, the drift and one
/// step of the leader: 0.6 to 0.95 s. If it led the group too, there is the election before:
/// 0.55 to 0.95 s until a new leader, then a full lease and drift: 1.5 to 1.9 s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A lease is renewed this often: three attempts can fail before it runs out.
    pub renew: Duration,
    /// How long the leader takes to confirm that it leads, at most. openraft sends heartbeats
    /// every 1.5 of these. Longer than the way between brokers and back.
    pub heartbeat: Duration,
    /// openraft lets `election_max` pass after the last heartbeat, then a time drawn from
    /// `election_min` to `election_max`, before a voter asks for votes.
    pub election_min: Duration,
    pub election_max: Duration,
    /// The leader looks this often whether there is something to decide.
    pub step: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        let ms = Duration::from_millis;
        Timing {
            renew: ms(200),
            heartbeat: ms(130),
            election_min: ms(200),
            election_max: ms(350),
            step: ms(50),
        }
    }
}

impl Timing {
    /// Whether leases of this length can be kept up.
    pub fn check(&self, lease: Duration) -> Result<(), String> {
        if lease < self.renew * 3 {
            return Err(format!("a lease of {lease:?} is less than three times {:?}", self.renew));
        }
        if lease < self.heartbeat * 3 {
            return Err(format!("a lease of {lease:?} is less than three times {:?}", self.heartbeat));
        }
        Ok(())
    }
}

/// What the leader waits beyond a lease: clocks up to a tenth apart in speed.
pub fn drift(lease: Duration) -> Duration {
    lease / 10
}

/// The holder's side. Pure.
#[derive(Debug, Default)]
pub struct Holder {
    until: Option<Instant>,
    /// Granted, but the state is not as new as the grant says: (revision, until).
    waiting: Option<(u64, Instant)>,
}

impl Holder {
    /// `asked` is when the request was made, before it was sent.
    pub fn granted(&mut self, asked: Instant, lease: Duration, revision: u64, applied: u64) {
        self.waiting = Some((revision, asked + lease));
        self.applied(applied);
    }

    /// The local state is now this new.
    pub fn applied(&mut self, applied: u64) {
        if let Some((revision, until)) = self.waiting
            && applied >= revision
        {
            self.until = self.until.max(Some(until));
            self.waiting = None;
        }
    }

    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// The holder's lease for the layers above: one load to ask.
#[derive(Debug)]
pub struct Lease {
    base: Instant,
    /// Nanoseconds after `base`; 0: none yet; [`ENDED`].
    until: AtomicU64,
}

/// Given back: nothing extends it any more.
const ENDED: u64 = u64::MAX;

impl Lease {
    pub fn new(base: Instant) -> Lease {
        Lease { base, until: AtomicU64::new(0) }
    }

    /// Whether this broker may act as an owner. To be asked again right before an
    /// acknowledgement or a delivery leaves.
    pub fn holds(&self, now: Instant) -> bool {
        self.until() > Some(now)
    }

    /// When it runs out, or ran out.
    pub fn until(&self) -> Option<Instant> {
        let nanos = self.until.load(Ordering::Acquire);
        (nanos > 0 && nanos < ENDED).then(|| self.base + Duration::from_nanos(nanos))
    }

    pub fn left(&self, now: Instant) -> Duration {
        self.until().map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    pub(super) fn extend(&self, until: Instant) {
        let nanos = until.saturating_duration_since(self.base).as_nanos();
        self.until.fetch_max(u64::try_from(nanos).unwrap_or(0), Ordering::Release);
    }

    /// This broker will not act any more.
    pub(super) fn end(&self) {
        self.until.store(ENDED, Ordering::Release);
    }
}

/// What the leader knows of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Asked for a lease not long ago.
    Alive,
    /// Not heard of yet, and the leader is new: it may hold a lease of before.
    Unknown,
    /// Surely without a lease since then.
    Lapsed(Instant),
}

/// The leader's side: one table for one term. Pure.
#[derive(Debug)]
pub struct Grants {
    since: Instant,
    lease: Duration,
    last: BTreeMap<BrokerId, Instant>,
    /// Something is being taken from them; until that is decided they get no lease.
    condemned: BTreeMap<BrokerId, u32>,
}

impl Grants {
    /// `since`: not before this broker began to lead.
    pub fn new(since: Instant, lease: Duration) -> Grants {
        Grants { since, lease, last: BTreeMap::new(), condemned: BTreeMap::new() }
    }

    /// After the confirmation. `false`: not now.
    pub fn grant(&mut self, id: BrokerId, now: Instant) -> bool {
        let allowed = !self.condemned.contains_key(&id);
        if allowed {
            self.last.insert(id, now);
        }
        allowed
    }

    pub fn standing(&self, id: BrokerId, now: Instant) -> Standing {
        let from = self.last.get(&id).copied().unwrap_or(self.since);
        let ends = from + self.lease + drift(self.lease);
        if now > ends {
            Standing::Lapsed(ends)
        } else if self.last.contains_key(&id) {
            Standing::Alive
        } else {
            Standing::Unknown
        }
    }

    /// Before a command that takes something from a broker is proposed. `false`, and nothing is
    /// done, if it may still act.
    pub fn condemn(&mut self, id: BrokerId, now: Instant) -> bool {
        let lapsed = matches!(self.standing(id, now), Standing::Lapsed(_));
        if lapsed {
            *self.condemned.entry(id).or_insert(0) += 1;
        }
        lapsed
    }

    /// After that command was applied, or can no longer be.
    pub fn absolve(&mut self, id: BrokerId) {
        if let Some(count) = self.condemned.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.condemned.remove(&id);
            }
        }
    }

    pub fn last_heard(&self, id: BrokerId) -> Option<Instant> {
        self.last.get(&id).copied()
    }

    /// Brokers that are no longer members.
    pub fn retain(&mut self, is_member: impl Fn(BrokerId) -> bool) {
        self.last.retain(|id, _| is_member(*id));
    }
}
