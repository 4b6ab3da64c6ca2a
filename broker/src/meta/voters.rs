//! Which brokers vote in the group: one, three or five. Pure.
//!
//! The others learn, and can own shards all the same.

use super::lease::{Grants, Standing};
use super::state::{Broker, BrokerState, Meta, voters_wanted};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use weir_wire::id::BrokerId;

/// Who should vote, when `current` do. `None`: leave it as it is. Voters keep their vote while they are members and
/// are not away for long; a vote goes only to somebody who is alive.
pub fn voters(
    meta: &Meta,
    current: &BTreeSet<BrokerId>,
    grants: &Grants,
    leader: BrokerId,
    forget_after: Duration,
    now: Instant,
) -> Option<BTreeSet<BrokerId>> {
    let stays = |b: &Broker| b.state != BrokerState::Leaving;
    let members = meta.brokers.values().filter(|b| stays(b)).count();
    let size = voters_wanted(members);
    let alive = |id: BrokerId| grants.standing(id, now) == Standing::Alive;
    let forgotten = |id: BrokerId| match grants.standing(id, now) {
        Standing::Lapsed(since) => now.saturating_duration_since(since) >= forget_after,
        _ => false,
    };
    // The leader first, since without a vote it would have to stop; then voters, then spares.
    let mut ranked: Vec<_> = meta.brokers.iter().filter(|(_, b)| stays(b)).collect();
    ranked.retain(|(id, _)| current.contains(id) || alive(**id));
    ranked.sort_by_key(|(id, b)| {
        let rank = match (**id == leader, current.contains(id), forgotten(**id)) {
            (true, ..) => 0,
            (_, true, false) => 1,
            (_, false, _) => 2,
            (_, true, true) => 3,
        };
        (rank, b.joined)
    });
    let chosen: BTreeSet<_> = ranked.iter().take(size).map(|(id, _)| **id).collect();
    (chosen.len() == size && chosen != *current).then_some(chosen)
}
