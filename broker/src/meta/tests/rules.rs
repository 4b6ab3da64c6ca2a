//! The state machine: what it refuses, and what stays true whatever it is told.

use crate::meta::command::{Command, Promotion, Refusal};
use crate::meta::state::{Assignment, ClusterId, Introduction, Meta, Settings, Versions};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use weir_wire::id::BrokerId;

pub const CLUSTER: ClusterId = ClusterId(7);

pub fn who(name: &str) -> Introduction {
    Introduction { name: name.into(), addr: name.into(), wire: Versions { min: 1, max: 1 } }
}

pub fn join(id: u64, name: &str) -> Command {
    Command::Join { cluster: CLUSTER, id: BrokerId(id), who: who(name) }
}

/// Brokers 1 to `brokers`, called b1 and so on.
pub fn meta(brokers: u64, settings: Settings) -> Meta {
    let mut meta = Meta::default();
    let first = Command::Bootstrap { cluster: CLUSTER, settings, id: BrokerId(1), who: who("b1") };
    meta.apply(&first).reply.unwrap();
    for id in 2..=brokers {
        meta.apply(&join(id, &format!("b{id}"))).reply.unwrap();
    }
    meta
}

fn some(rng: &mut SmallRng, most: usize) -> Vec<BrokerId> {
    let mut ids: Vec<_> =
        (0..rng.random_range(0..=most)).map(|_| BrokerId(rng.random_range(1..=6))).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn any_command(rng: &mut SmallRng, meta: &Meta) -> Command {
    let shard = rng.random_range(0..=meta.shards.len() as u16);
    let now = meta.shards.get(usize::from(shard)).cloned().unwrap_or_default();
    let version = now.version.saturating_sub(u64::from(rng.random_ratio(1, 10)));
    let id = BrokerId(rng.random_range(1..=6));
    // Mostly by who may, so that something happens.
    let by = if rng.random_ratio(4, 5) { now.owner.unwrap_or(id) } else { id };
    let held = now.in_sync.choose(rng).copied().unwrap_or(id);
    match rng.random_range(0..13) {
        0 => join(id.0, &format!("b{}", if rng.random_ratio(1, 4) { 1 } else { id.0 })),
        1 => Command::Leave { id },
        2 => Command::Remove { id, lapsed: rng.random() },
        3 | 4 => {
            let all = [Promotion::First, Promotion::Lapsed, Promotion::Gone, Promotion::Unclean];
            let how = *all.choose(rng).unwrap();
            let owner = if how == Promotion::Lapsed { held } else { id };
            Command::Promote { shard, version, owner, without: some(rng, 2), how }
        }
        5 => Command::Shrink { shard, version, by, without: some(rng, 2) },
        6 => Command::Grow { shard, version, by, add: now.catching_up.choose(rng).copied().unwrap_or(id) },
        7 | 8 => Command::Place { shard, version, catching_up: some(rng, 3), without: some(rng, 1) },
        9 => Command::HandOver { shard, version, to: rng.random_ratio(3, 4).then_some(held) },
        10 => Command::Move { shard, version, by, to: held },
        11 => Command::Restart { shard, version, by },
        _ => Command::GiveUp { shard, version },
    }
}

fn check_step(before: &Assignment, after: &Assignment, command: &Command, seed: u64) {
    let context = || format!("seed {seed}: {command:?}: {before:?} -> {after:?}");
    assert_eq!(before != after, after.version > before.version, "version: {}", context());
    let restarted = matches!(command, Command::Restart { .. }) && before != after;
    assert_eq!(before.owner != after.owner || restarted, after.epoch > before.epoch, "epoch: {}", context());
    assert!(before.in_sync.is_empty() || !after.in_sync.is_empty(), "sync: {}", context());
    let clean = |id| before.in_sync.is_empty() || before.in_sync.contains(&id);
    if let Some(owner) = after.owner.filter(|_| before.owner != after.owner) {
        assert!(clean(owner) || after.resets == before.resets + 1, "unclean: {}", context());
    }
    let grown = after.in_sync.iter().any(|id| !before.in_sync.contains(id));
    let may_grow = matches!(command, Command::Grow { .. } | Command::Promote { .. });
    assert!(!grown || may_grow, "grown: {}", context());
}

#[test]
fn whatever_it_is_told_the_invariants_hold_and_refusals_change_nothing() {
    let (mut done, mut refused) = (0, 0);
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut meta = meta(4, Settings { shards: 4, ..Settings::default() });
        let mut twin = meta.clone();
        for _ in 0..800 {
            let command = any_command(&mut rng, &meta);
            let before = meta.clone();
            let outcome = meta.apply(&command);
            if outcome.reply.is_err() {
                refused += 1;
                assert_eq!(meta, before, "seed {seed}: {command:?}");
            } else {
                done += 1;
            }
            assert_eq!(meta.check(), Ok(()), "seed {seed}: {command:?}");
            for (old, new) in before.shards.iter().zip(&meta.shards) {
                check_step(old, new, &command, seed);
            }
            let owners = |m: &Meta| m.shards.iter().map(|s| s.owner).collect::<Vec<_>>();
            assert_eq!(owners(&before) != owners(&meta), !outcome.changes.is_empty(), "seed {seed}");
            // As another broker gets it: the command as text, or a snapshot.
            let text = serde_json::to_string(&command).unwrap();
            twin.apply(&serde_json::from_str(&text).unwrap());
        }
        assert_eq!(meta, twin, "seed {seed}");
        let text = serde_json::to_string(&meta).unwrap();
        assert_eq!(meta, serde_json::from_str(&text).unwrap(), "seed {seed}");
    }
    assert!(done > 5_000 && refused > 5_000, "{done} done, {refused} refused");
}

fn promote(version: u64, owner: u64, how: Promotion) -> Command {
    Command::Promote { shard: 0, version, owner: BrokerId(owner), without: vec![], how }
}

#[test]
fn a_lost_shard_begins_anew_only_when_told_so() {
    let mut meta = meta(3, Settings { shards: 1, ..Settings::default() });
    meta.apply(&promote(0, 1, Promotion::First)).reply.unwrap();
    // Broker 1 is back without its state: nobody has what was acknowledged.
    let outcome = meta.apply(&join(11, "b1"));
    assert_eq!((outcome.reply, outcome.changes.len()), (Ok(()), 1));
    assert!(!meta.is_member(BrokerId(1)));
    let shard = meta.shards[0].clone();
    assert_eq!((shard.owner, &shard.in_sync[..]), (None, &[BrokerId(1)][..]));
    let clean = meta.apply(&promote(shard.version, 11, Promotion::Gone));
    assert_eq!(clean.reply, Err(Refusal::NotInSync(BrokerId(11))));
    meta.apply(&promote(shard.version, 11, Promotion::Unclean)).reply.unwrap();
    assert_eq!((meta.shards[0].resets, &meta.shards[0].in_sync[..]), (1, &[BrokerId(11)][..]));
}

#[test]
fn a_decision_on_an_old_state_is_refused() {
    let mut meta = meta(3, Settings { shards: 1, ..Settings::default() });
    meta.apply(&promote(0, 1, Promotion::First)).reply.unwrap();
    assert_eq!(meta.apply(&promote(0, 2, Promotion::First)).reply, Err(Refusal::Stale { now: 1 }));
    let by = BrokerId(1);
    let place = Command::Place { shard: 0, version: 1, catching_up: vec![BrokerId(2)], without: vec![] };
    meta.apply(&place).reply.unwrap();
    meta.apply(&Command::Grow { shard: 0, version: 2, by, add: BrokerId(2) }).reply.unwrap();
    let take = Command::Move { shard: 0, version: 3, by: BrokerId(2), to: BrokerId(2) };
    assert_eq!(meta.apply(&take).reply, Err(Refusal::NotOwner(BrokerId(2))), "only the owner hands over");
    let empty = Command::Shrink { shard: 0, version: 3, by, without: vec![by] };
    assert_eq!(meta.apply(&empty).reply, Err(Refusal::NobodyLeft));
}

#[test]
fn a_version_that_all_speak_is_not_gone_back_from() {
    let mut meta = meta(2, Settings::default());
    let at = |max, id: u64| Command::Join {
        cluster: CLUSTER,
        id: BrokerId(id),
        who: Introduction { wire: Versions { min: 1, max }, ..who(&format!("b{id}")) },
    };
    // One after the other is upgraded, and may go back until the last one is.
    for (max, id) in [(2, 1), (1, 1), (2, 1), (1, 3), (2, 2), (2, 3)] {
        assert!(meta.apply(&at(max, id)).reply.is_ok(), "{id} at {max}");
    }
    assert_eq!(meta.wire(), Some(2));
    for id in [1, 4] {
        assert!(matches!(meta.apply(&at(1, id)).reply, Err(Refusal::Wire { .. })), "{id}");
    }
    assert!(meta.apply(&at(3, 4)).reply.is_ok());
}

#[test]
fn strangers_are_refused() {
    let mut meta = meta(2, Settings::default());
    let theirs = ClusterId(8);
    let other = Command::Join { cluster: theirs, id: BrokerId(3), who: who("b3") };
    assert_eq!(meta.apply(&other).reply, Err(Refusal::OtherCluster { ours: CLUSTER, theirs }));
    let mut new = who("b3");
    new.wire = Versions { min: 2, max: 3 };
    let join = Command::Join { cluster: CLUSTER, id: BrokerId(3), who: new };
    assert!(matches!(meta.apply(&join).reply, Err(Refusal::Wire { .. })));
    let again = Command::Bootstrap {
        cluster: theirs,
        settings: Settings::default(),
        id: BrokerId(3),
        who: who("b3"),
    };
    assert_eq!(meta.apply(&again).reply, Err(Refusal::AlreadyBootstrapped(CLUSTER)));
}
