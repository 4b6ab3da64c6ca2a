//! Balancing over thousands of keys.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weir_conf::proxy::Balance as Conf;

const KEYED: [Conf; 2] = [Conf::Hash, Conf::Rendezvous];

fn names(n: usize) -> Vec<String> {
    (1..=n).map(|n| format!("10.0.0.{n}:3000")).collect()
}

fn balance(way: Conf, weights: &[u32]) -> Balance {
    let names = names(weights.len());
    let servers: Vec<_> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
    Balance::new(way, &servers)
}

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    let one =
        |weight: &u32| Candidate { weight: *weight, open: 0, share: 1.0, in_service: true, usable: true };
    weights.iter().map(one).collect()
}

/// Opens a connection for this key.
fn open(balance: &Balance, servers: &mut [Candidate], key: &str, load_factor: f64) -> usize {
    let choice = Choice { key: key.as_bytes(), load_factor, chance: 7 };
    let chosen = balance.choose(&mut Turns::default(), &choice, servers).unwrap();
    servers[chosen].open += 1;
    chosen
}

#[test]
fn skewed_keys_put_no_server_over_its_bound() {
    for (seed, way) in (1..=5).flat_map(|seed| KEYED.map(|way| (seed, way))) {
        let (balance, mut servers) = (balance(way, &[1; 8]), candidates(&[1; 8]));
        let mut rng = StdRng::seed_from_u64(seed);
        // Half of all clients share ten keys.
        let mut key = || match rng.random_bool(0.5) {
            true => format!("hot-{}", rng.random_range(0..10)),
            false => format!("user-{}", rng.random::<u32>()),
        };
        for n in 1..=10_000 {
            open(&balance, &mut servers, &key(), 1.25);
            let most = servers.iter().map(|s| s.open).max().unwrap();
            let bound = (1.25 * f64::from(n) / 8.0).ceil().max(HANDFUL);
            assert!(most as f64 <= bound, "seed {seed}, {way:?}: {most} of {n} on one server, bound {bound}");
        }
        let mut unbounded = candidates(&[1; 8]);
        (0..10_000).for_each(|_| {
            open(&balance, &mut unbounded, &key(), 0.0);
        });
        let most = unbounded.iter().map(|s| s.open).max().unwrap();
        assert!(most > 1_700, "seed {seed}, {way:?}: the keys were not skewed: {most}");
    }
}

#[test]
fn a_handful_of_one_key_stays_together() {
    for way in KEYED {
        let (balance, mut servers) = (balance(way, &[1; 4]), candidates(&[1; 4]));
        let home = open(&balance, &mut servers, "somebody", 1.25);
        (1..10).for_each(|n| assert_eq!(open(&balance, &mut servers, "somebody", 1.25), home, "{n}"));
        assert_ne!(open(&balance, &mut servers, "somebody", 1.25), home);
    }
}

#[test]
fn even_load_leaves_keys_where_they_belong() {
    for (seed, way) in (1..=5).flat_map(|seed| KEYED.map(|way| (seed, way))) {
        let (balance, mut servers) = (balance(way, &[1; 8]), candidates(&[1; 8]));
        let mut rng = StdRng::seed_from_u64(seed);
        let at_home = (0..10_000).filter(|_| {
            let key = format!("user-{}", rng.random::<u64>());
            let home = open(&balance, &mut candidates(&[1; 8]), &key, 0.0);
            open(&balance, &mut servers, &key, 1.25) == home
        });
        let at_home = at_home.count();
        assert!(at_home >= 9_500, "seed {seed}, {way:?}: {at_home} of 10000 on their first choice");
    }
}

#[test]
fn one_server_down_moves_its_share_alone_and_has_it_back() {
    for way in KEYED {
        let balance = balance(way, &[1; 8]);
        let home = |servers: &[Candidate], key: usize| {
            open(&balance, &mut servers.to_vec(), &format!("user-{key}"), 1.25)
        };
        let all = candidates(&[1; 8]);
        let mut without = all.clone();
        (without[3].usable, without[3].in_service) = (false, false);
        let mut moved = [0; 8];
        for key in 0..10_000 {
            let (before, after) = (home(&all, key), home(&without, key));
            assert!(before == 3 || before == after, "{way:?}: key {key} moved from {before} to {after}");
            if before == 3 {
                moved[after] += 1;
            }
        }
        let share: i32 = moved.iter().sum();
        assert!((900..1_700).contains(&share), "{way:?}: {share} keys moved");
        assert!(moved.iter().filter(|n| **n > share / 30).count() == 7, "{way:?}: spread {moved:?}");
    }
}

#[test]
fn weights_are_shares() {
    for (way, tolerance) in
        [(Conf::Hash, 0.15), (Conf::Rendezvous, 0.05), (Conf::Least, 0.01), (Conf::RoundRobin, 0.01)]
    {
        let weights = [1, 2, 5];
        let (balance, mut servers) = (balance(way, &weights), candidates(&weights));
        let mut turns = Turns::default();
        for n in 0..8_000 {
            let key = format!("user-{n}");
            let choice = Choice { key: key.as_bytes(), load_factor: 0.0, chance: n };
            let chosen = balance.choose(&mut turns, &choice, &servers).unwrap();
            servers[chosen].open += 1;
        }
        for (server, weight) in servers.iter().zip(weights) {
            let off = server.open as f64 / (1000.0 * f64::from(weight)) - 1.0;
            assert!(off.abs() <= tolerance, "{way:?}: weight {weight} got {}", server.open);
        }
    }
}

#[test]
fn a_slow_start_grows_and_nobody_goes_back_and_forth() {
    for way in KEYED {
        let balance = balance(way, &[1; 4]);
        let mut servers = candidates(&[1; 4]);
        let mut there = vec![false; 4_000];
        let mut counts = Vec::new();
        for share in [0.1, 0.25, 0.5, 0.75, 1.0] {
            servers[2].share = share;
            for (key, there) in there.iter_mut().enumerate() {
                let now = open(&balance, &mut servers.clone(), &format!("user-{key}"), 0.0) == 2;
                assert!(now || !*there, "{way:?}: key {key} left at {share}");
                *there = now;
            }
            counts.push(there.iter().filter(|there| **there).count());
        }
        let full = counts[4] as f64;
        for (count, share) in counts.iter().zip([0.1, 0.25, 0.5, 0.75]) {
            assert!((*count as f64 / full - share).abs() < 0.06, "{way:?}: {counts:?}");
        }
    }
    // The only one left is taken, slow or not.
    let mut servers = candidates(&[1; 2]);
    (servers[0].usable, servers[1].share) = (false, 0.0001);
    for way in [Conf::Hash, Conf::Rendezvous, Conf::Least, Conf::RoundRobin] {
        let balance = balance(way, &[1; 2]);
        (0..100).for_each(|n| assert_eq!(open(&balance, &mut servers, &format!("user-{n}"), 1.25), 1));
    }
}

#[test]
fn least_does_not_give_everybody_to_one_that_comes_back() {
    let (balance, mut servers) = (balance(Conf::Least, &[1; 4]), candidates(&[1; 4]));
    servers[..3].iter_mut().for_each(|s| s.open = 1_000);
    servers[3].share = 0.1;
    let mut rng = StdRng::seed_from_u64(4);
    for _ in 0..1_000 {
        let choice = Choice { key: b"", load_factor: 0.0, chance: rng.random() };
        let chosen = balance.choose(&mut Turns::default(), &choice, &servers).unwrap();
        servers[chosen].open += 1;
    }
    assert!((60..150).contains(&servers[3].open), "{}", servers[3].open);
}

#[test]
fn ties_are_spread_and_turns_are_smooth() {
    let (least, servers) = (balance(Conf::Least, &[1; 4]), candidates(&[1; 4]));
    let mut rng = StdRng::seed_from_u64(1);
    let mut seen = [0; 4];
    for _ in 0..4_000 {
        let choice = Choice { key: b"", load_factor: 0.0, chance: rng.random() };
        seen[least.choose(&mut Turns::default(), &choice, &servers).unwrap()] += 1;
    }
    assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");

    let (balance, servers) = (balance(Conf::RoundRobin, &[5, 1, 1]), candidates(&[5, 1, 1]));
    let mut turns = Turns::default();
    let choice = Choice { key: b"", load_factor: 0.0, chance: 0 };
    let order: Vec<_> = (0..7).map(|_| balance.choose(&mut turns, &choice, &servers).unwrap()).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
}
