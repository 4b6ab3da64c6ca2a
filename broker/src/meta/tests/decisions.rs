//! Leases, voters and the controller, as pure structs on an invented clock.

use super::rules::{join, meta};
use crate::meta::command::Command;
use crate::meta::controller::{Controller, Plan, Policy};
use crate::meta::lease::{Grants, Holder, Standing, drift};
use crate::meta::state::{Meta, Settings};
use crate::meta::voters::voters;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use weir_wire::id::BrokerId;

const LEASE: Duration = Duration::from_millis(800);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_grant_counts_only_on_a_state_that_is_as_new() {
    let (t, mut holder) = (Instant::now(), Holder::default());
    holder.granted(t, LEASE, 5, 4);
    assert_eq!(holder.until(), None, "it may still believe that it owns what it lost");
    holder.applied(5);
    assert_eq!(holder.until(), Some(t + LEASE));
    holder.granted(t - ms(100), LEASE, 5, 5);
    assert_eq!(holder.until(), Some(t + LEASE), "an older answer takes nothing away");
}

#[test]
fn what_is_being_taken_from_a_broker_bars_it_until_that_is_decided() {
    let (t, id) = (Instant::now(), BrokerId(1));
    let mut grants = Grants::new(t, LEASE);
    assert_eq!(grants.standing(id, t), Standing::Unknown);
    assert!(!grants.condemn(id, t + LEASE), "a leader before may have granted one");
    assert!(grants.grant(id, t + ms(300)));
    let end = t + ms(300) + LEASE + drift(LEASE);
    assert!(!grants.condemn(id, end));
    assert!(grants.condemn(id, end + ms(1)) && grants.condemn(id, end + ms(1)));
    assert!(!grants.grant(id, end + ms(2)));
    grants.absolve(id);
    assert!(!grants.grant(id, end + ms(3)), "another decision is still open");
    grants.absolve(id);
    assert!(grants.grant(id, end + ms(4)));
}

/// Holder and leader with clocks of different speed, requests and answers of any duration: the
/// leader never takes a lease for run out that the holder still counts.
#[test]
fn the_leader_always_waits_longer_than_the_holder_counts() {
    for seed in 0..2000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let base = Instant::now();
        let mut speed = || 1.0 + rng.random_range(-0.045..0.045);
        let (holder_speed, leader_speed) = (speed(), speed());
        let on = |real: Duration, speed: f64| base + real.mul_f64(speed);
        let (mut holder, mut grants) = (Holder::default(), Grants::new(base, LEASE));
        let mut real = ms(10);
        for _ in 0..20 {
            real += ms(rng.random_range(0..500));
            let asked = on(real, holder_speed);
            real += ms(rng.random_range(0..400));
            if !grants.grant(BrokerId(1), on(real, leader_speed)) {
                continue;
            }
            real += ms(rng.random_range(0..400));
            holder.granted(asked, LEASE, 0, 0);
            for after in 0..200 {
                let at = real + ms(after * 10);
                let lapsed =
                    matches!(grants.standing(BrokerId(1), on(at, leader_speed)), Standing::Lapsed(_));
                let holds = holder.until() > Some(on(at, holder_speed));
                assert!(!(lapsed && holds), "seed {seed}, {at:?}");
            }
        }
    }
}

fn ids(ids: &[u64]) -> BTreeSet<BrokerId> {
    ids.iter().map(|id| BrokerId(*id)).collect()
}

#[test]
fn one_three_or_five_vote_and_the_dead_are_replaced() {
    let t = Instant::now();
    let (forget, later) = (ms(30_000), t + ms(60_000));
    // members, voters, alive, expected
    type Case = (u64, &'static [u64], &'static [u64], Option<&'static [u64]>);
    let cases: [Case; 9] = [
        (1, &[1], &[1], None),
        (2, &[1], &[1, 2], None),
        (3, &[1], &[1, 2, 3], Some(&[1, 2, 3])),
        (3, &[1], &[1, 2], None),
        (4, &[1, 2, 3], &[1, 2, 3, 4], None),
        (5, &[1, 2, 3], &[1, 2, 3, 4, 5], Some(&[1, 2, 3, 4, 5])),
        (4, &[1, 2, 3], &[1, 2, 4], Some(&[1, 2, 4])),
        (3, &[1, 2, 3], &[1, 2], None),
        // 9 is an incarnation of before, no member any more.
        (3, &[1, 2, 9], &[1, 2, 3], Some(&[1, 2, 3])),
    ];
    for (members, current, alive, expected) in cases {
        let meta = meta(members, Settings::default());
        let mut grants = Grants::new(t, LEASE);
        alive.iter().for_each(|id| assert!(grants.grant(BrokerId(*id), later)));
        let chosen = voters(&meta, &ids(current), &grants, BrokerId(1), forget, later);
        assert_eq!(chosen, expected.map(ids), "{members} members, {current:?} vote, {alive:?} alive");
    }
}

#[test]
fn the_leader_keeps_its_vote_when_fewer_are_needed() {
    let t = Instant::now();
    let mut meta = meta(3, Settings::default());
    let mut grants = Grants::new(t, LEASE);
    (1..=3).for_each(|id| assert!(grants.grant(BrokerId(id), t)));
    meta.apply(&Command::Leave { id: BrokerId(1) }).reply.unwrap();
    let chosen = voters(&meta, &ids(&[1, 2, 3]), &grants, BrokerId(3), ms(30_000), t);
    assert_eq!(chosen, Some(ids(&[3])));
}

/// A cluster without a network: the leader decides, the brokers that are up renew and do what
/// owners do.
struct World {
    meta: Meta,
    grants: Grants,
    controller: Controller,
    now: Instant,
    up: BTreeSet<BrokerId>,
    moves: usize,
}

impl World {
    fn new(brokers: u64, policy: Policy) -> World {
        let now = Instant::now();
        let meta = meta(brokers, Settings { shards: 48, ..Settings::default() });
        let (moves, controller) = (policy.moves, Controller::new(policy));
        let up = (1..=brokers).map(BrokerId).collect();
        World { meta, grants: Grants::new(now, LEASE), controller, now, up, moves }
    }

    fn step(&mut self, seed: u64) -> Plan {
        self.now += ms(50);
        for id in &self.up {
            self.grants.grant(*id, self.now);
        }
        let plan = self.controller.decide(&self.meta, &self.grants, self.now);
        for command in &plan.commands {
            if let Command::Promote { shard, owner, .. } = command {
                let before = self.meta.shards[usize::from(*shard)].owner;
                assert!(before.is_none_or(|id| !self.up.contains(&id)), "seed {seed}: {command:?}");
                assert_eq!(self.grants.standing(*owner, self.now), Standing::Alive, "seed {seed}");
            }
            let outcome = self.meta.apply(command);
            assert_eq!(outcome.reply, Ok(()), "seed {seed}: {command:?}");
        }
        let moving = self.meta.shards.iter().filter(|s| s.hand_to.is_some()).count();
        let owner_goes = self.meta.brokers.values().any(|b| b.state != crate::meta::BrokerState::Active);
        assert!(moving <= self.moves || owner_goes, "seed {seed}: {moving} move at once");
        plan
    }

    fn owners(&mut self) {
        for shard in 0..self.meta.shards.len() as u16 {
            let now = self.meta.shards[usize::from(shard)].clone();
            let Some(by) = now.owner.filter(|id| self.up.contains(id)) else { continue };
            let version = now.version;
            let without: Vec<_> = now.in_sync.iter().copied().filter(|id| !self.up.contains(id)).collect();
            let add = now.catching_up.iter().find(|id| self.up.contains(id));
            let command = match (without.is_empty(), now.hand_to, add) {
                (false, ..) => Command::Shrink { shard, version, by, without },
                (_, Some(to), _) => Command::Move { shard, version, by, to },
                (.., Some(add)) => Command::Grow { shard, version, by, add: *add },
                _ => continue,
            };
            self.meta.apply(&command).reply.unwrap();
        }
    }

    /// Steps until nothing is left to decide.
    fn settle(&mut self, seed: u64) -> usize {
        for n in 0..2000 {
            let plan = self.step(seed);
            let before = self.meta.revision;
            self.owners();
            let all = self.meta.shards.iter().all(|s| s.owner.is_some_and(|id| self.up.contains(&id)));
            if plan.commands.is_empty() && self.meta.revision == before && all {
                return n;
            }
        }
        panic!("seed {seed}: never settles: {:#?}", self.meta);
    }

    fn most_and_least_owned(&self) -> (usize, usize) {
        let owned = |id: &BrokerId| self.meta.shards.iter().filter(|s| s.owner == Some(*id)).count();
        let counts: Vec<_> = self.meta.brokers.keys().filter(|id| self.up.contains(id)).map(owned).collect();
        (*counts.iter().max().unwrap(), *counts.iter().min().unwrap())
    }
}

#[test]
fn a_newcomer_gets_its_share_gently_and_one_that_leaves_gives_it_back() {
    let mut world = World::new(3, Policy::default());
    world.settle(0);
    let resets = |w: &World| w.meta.shards.iter().map(|s| s.resets).sum::<u64>();
    assert_eq!(resets(&world), 0);
    world.meta.apply(&join(4, "b4")).reply.unwrap();
    world.up.insert(BrokerId(4));
    let steps = world.settle(1);
    let (most, least) = world.most_and_least_owned();
    assert!(most <= 13 && least >= 7, "48 shards on four: {least} to {most}");
    assert!(steps < 200, "{steps} steps");
    world.meta.apply(&Command::Leave { id: BrokerId(2) }).reply.unwrap();
    world.settle(2);
    assert!(!world.meta.is_member(BrokerId(2)), "it went when it held nothing any more");
    assert!(world.meta.shards.iter().all(|s| s.in_sync.len() == 2 && s.resets == 0));
}

#[test]
fn a_shard_without_anybody_in_sync_waits_as_long_as_it_was_told() {
    for (unclean_after, comes) in [(None, false), (Some(ms(5_000)), true)] {
        let mut world = World::new(3, Policy { unclean_after, ..Policy::default() });
        world.settle(0);
        world.up = ids(&[3]);
        let lost: Vec<_> = (0..)
            .zip(&world.meta.shards)
            .filter(|(_, s)| !s.in_sync.contains(&BrokerId(3)))
            .map(|(n, _)| n)
            .collect();
        assert!(!lost.is_empty());
        for _ in 0..110 {
            world.step(0);
            world.owners();
        }
        let of = |w: &World, n: usize| (w.meta.shards[n].owner, w.meta.shards[n].resets);
        for n in &lost {
            assert_eq!(of(&world, *n).1, 0, "5 s are not over since the lease");
        }
        for _ in 0..100 {
            world.step(0);
            world.owners();
        }
        for n in &lost {
            let expected = if comes { (Some(BrokerId(3)), 1) } else { (world.meta.shards[*n].owner, 0) };
            assert_eq!(of(&world, *n), expected);
        }
        if !comes {
            let (shard, version) = (lost[0] as u16, world.meta.shards[lost[0]].version);
            world.meta.apply(&Command::GiveUp { shard, version }).reply.unwrap();
            world.step(0);
            assert_eq!(of(&world, lost[0]), (Some(BrokerId(3)), 1), "an operator may decide otherwise");
        }
    }
}

/// Brokers come and go at random; nothing is lost as long as not all that are in sync are away at
/// once, and when it is quiet everything settles, evenly.
#[test]
fn after_any_storm_it_settles() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let unclean_after = rng.random_ratio(1, 2).then_some(ms(3_000));
        let mut world = World::new(5, Policy { unclean_after, forget_after: ms(4_000), ..Policy::default() });
        let mut next_id = 10;
        for _ in 0..300 {
            world.step(seed);
            world.owners();
            let id = BrokerId(rng.random_range(1..=5));
            match rng.random_range(0..60) {
                0 => _ = world.up.remove(&id),
                1 => world.up.extend(world.meta.brokers.keys().filter(|_| rng.random())),
                2 if !world.up.contains(&id) && world.meta.is_member(id) => {
                    // Back without its state, once the lease is over.
                    if matches!(world.grants.standing(id, world.now), Standing::Lapsed(_)) {
                        let name = world.meta.name(id);
                        next_id += 1;
                        world.meta.apply(&join(next_id, &name)).reply.unwrap();
                        world.up.insert(BrokerId(next_id));
                    }
                }
                _ => {}
            }
            assert_eq!(world.meta.check(), Ok(()), "seed {seed}");
        }
        world.up = world.meta.brokers.keys().copied().collect();
        // With `never`, what was lost with a broker's memory waits for the operator.
        for shard in 0..world.meta.shards.len() as u16 {
            let version = world.meta.shards[usize::from(shard)].version;
            let _ = world.meta.apply(&Command::GiveUp { shard, version });
        }
        world.settle(seed);
        let (most, least) = world.most_and_least_owned();
        assert!(world.meta.shards.iter().all(|s| s.in_sync.len() == 2), "seed {seed}");
        assert!(most <= 11 && least >= 5, "seed {seed}: 48 on 5: {least} to {most}");
    }
}
