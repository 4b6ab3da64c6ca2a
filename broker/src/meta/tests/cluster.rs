//! Coming together, falling apart, going and returning.

use super::harness::*;
use crate::meta::command::Command;
use crate::meta::command::Refusal;
use crate::meta::group::{JoinError, SubmitError};
use crate::meta::{Meta, Versions};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

fn seeds(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn three_vote_and_a_fourth_learns_and_owns_shards() {
    let net = Net::new(1);
    let nodes = cluster(&net, &["a", "b", "c", "d"], 32).await;
    let meta = nodes[3].meta();
    let fourth = &meta.brokers[&nodes[3].id()];
    assert!(!fourth.voter && meta.shards.iter().any(|s| s.owner == Some(nodes[3].id())));
    let status = nodes[3].group.status(within(500)).await;
    assert!(status.complete && status.leader.is_some() && status.term > 0 && !status.lease_left.is_zero());
    assert_eq!(status.members.len(), 4);
    assert!(status.members.iter().all(|m| m.last_heard.is_some_and(|ago| ago < ms(800))), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn five_go_on_without_two() {
    let net = Net::new(2);
    let mut nodes = cluster(&net, &["a", "b", "c", "d", "e"], 32).await;
    let leads = leader(&nodes).await;
    nodes.remove(leads).kill(&net);
    nodes.remove(0).kill(&net);
    for node in &nodes {
        let mine = |n: &Node| n.group.lease().holds(n.group.now());
        let id = nodes.iter().map(Node::id).collect::<Vec<_>>();
        node.until("taken over", 60_000, |m| {
            m.shards.iter().all(|s| s.owner.is_some_and(|o| id.contains(&o)) && s.catching_up.is_empty())
        })
        .await;
        assert!(mine(node));
    }
}

#[tokio::test(start_paused = true)]
async fn a_minority_changes_nothing_and_stops_to_act() {
    let net = Net::new(3);
    let nodes = cluster(&net, &["a", "b", "c"], 32).await;
    let checker = check_owners(&nodes, 3);
    let alone = &nodes[leader(&nodes).await];
    let others: Vec<_> = nodes.iter().filter(|n| n.name != alone.name).collect();
    net.isolate(&alone.name, &[&others[0].name, &others[1].name]);
    let before = alone.meta();
    let command = Command::Leave { id: others[0].id() };
    let answer = alone.group.submit(vec![command.clone()], within(300)).await;
    assert_eq!(answer, Err(SubmitError::Unknown), "it still thinks that it leads");
    sleep(ms(600)).await;
    assert!(!alone.group.lease().holds(alone.group.now()), "it cannot renew");
    let answer = alone.group.submit(vec![command], within(2000)).await;
    assert_eq!(answer, Err(SubmitError::NoLeader));
    others[0].until("without it", 5000, |m| m.shards.iter().all(|s| s.owner != Some(alone.id()))).await;
    assert_eq!(alone.meta(), before);
    net.heal();
    let owns = |m: &Meta, id| m.shards.iter().any(|s| s.owner == Some(id));
    let whole = |m: &Meta| settled(m, 3) && owns(m, alone.id());
    let back = others[0].until("settled with it", 60_000, whole).await;
    assert!(back.shards.iter().all(|s| s.resets == 0));
    assert!(
        back.brokers.values().all(|b| b.state == crate::meta::BrokerState::Active),
        "nothing of it came through"
    );
    assert!(!checker.is_finished());
    checker.abort();
}

#[tokio::test(start_paused = true)]
async fn one_that_returns_without_its_state_is_another_and_takes_the_place() {
    let net = Net::new(4);
    let mut nodes = cluster(&net, &["a", "b", "c"], 32).await;
    let victim = leader(&nodes).await;
    let (old, name) = (nodes[victim].id(), nodes[victim].name.clone());
    nodes.remove(victim).kill(&net);
    let new = Start::named(&name).start(&net).await;
    // All brokers list all, themselves too.
    timeout(ms(10_000), new.group.join(&seeds(&["a", "b", "c"]))).await.unwrap().unwrap();
    assert_ne!(new.id(), old);
    let meta = new.until("settled", 20_000, |m| settled(m, 3) && count_voters(m) == 3).await;
    new.until("where it was", 20_000, |m| m.shards.iter().any(|s| s.owner == Some(new.id()))).await;
    assert!(!meta.is_member(old) && meta.brokers[&new.id()].voter);
    assert!(meta.shards.iter().all(|s| s.resets == 0), "the others had everything");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_alive_is_not_taken_over() {
    let net = Net::new(5);
    let nodes = cluster(&net, &["a", "b", "c"], 8).await;
    let mut twin = Start::named("b2").start(&net).await;
    twin.kill(&net);
    // Same name, other address.
    let who = Start { name: "b", ..Start::named("b") };
    let shadow = Net::new(6);
    twin = who.start(&shadow).await;
    let seeds = seeds(&["a"]);
    // Its network has nobody: it waits, and does not fail.
    assert!(timeout(ms(5000), twin.group.join(&seeds)).await.is_err());
    let intruder = nodes[0].group.submit(
        vec![Command::Join {
            cluster: nodes[0].meta().cluster.unwrap(),
            id: twin.id(),
            who: super::rules::who("b"),
        }],
        within(1000),
    );
    assert_eq!(intruder.await, Ok(vec![Err(Refusal::LeaderOnly)]));
    assert!(nodes[0].meta().is_member(nodes[1].id()));
}

#[tokio::test(start_paused = true)]
async fn leaving_hands_over_first() {
    for leaver_leads in [false, true] {
        let net = Net::new(7);
        let mut nodes = cluster(&net, &["a", "b", "c", "d"], 32).await;
        let checker = check_owners(&nodes, 7);
        let leads = leader(&nodes).await;
        let leaver = nodes.remove(if leaver_leads { leads } else { (leads + 1) % 4 });
        leaver.group.leave(within(20_000)).await.unwrap();
        assert!(!leaver.group.lease().holds(leaver.group.now()));
        let meta = nodes[0].until("settled", 20_000, |m| settled(m, 3) && count_voters(m) == 3).await;
        assert!(!meta.is_member(leaver.id()) && meta.shards.iter().all(|s| s.resets == 0));
        assert!(!checker.is_finished());
        checker.abort();
        leaver.stop(&net).await;
        // It is a stranger from now on, and may come again.
        let again = Start::named("d2").start(&net).await;
        timeout(ms(20_000), again.group.join(&seeds(&["a", "b", "c", "d"]))).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_one_cannot_leave() {
    let net = Net::new(8);
    let nodes = cluster(&net, &["a"], 4).await;
    let left = nodes[0].group.leave(within(1000)).await;
    assert_eq!(left, Err(crate::meta::group::leave::LeaveError::Refused(Refusal::LastBroker)));
}

#[tokio::test(start_paused = true)]
async fn a_rolling_restart_with_disks_keeps_members_and_copies() {
    let net = Net::new(9);
    let names = ["a", "b", "c"];
    let disks: Vec<Arc<Disk>> = names.iter().map(|_| Arc::default()).collect();
    let mut nodes = Vec::new();
    let with_disk =
        |n: usize| Start { store: disks[n].clone(), snapshot_after: 100, ..Start::named(names[n]) };
    for n in 0..3 {
        let node = with_disk(n).start(&net).await;
        match n {
            0 => node.group.bootstrap(settings(16), within(5000)).await.unwrap(),
            _ => node.group.join(&seeds(&["a"])).await.unwrap(),
        };
        nodes.push(node);
    }
    let meta = nodes[2].until("settled", 20_000, |m| settled(m, 3) && count_voters(m) == 3).await;
    let ids: Vec<_> = nodes.iter().map(Node::id).collect();
    for n in 0..3 {
        nodes[n].group.drain(within(10_000)).await.unwrap();
        let node = nodes.remove(n);
        node.stop(&net).await;
        sleep(ms(2000)).await;
        let back = with_disk(n).start(&net).await;
        timeout(ms(10_000), back.group.join(&seeds(&names))).await.unwrap().unwrap();
        assert_eq!(back.id(), ids[n], "with its state it is the same broker");
        nodes.insert(n, back);
        nodes[n].until("settled", 30_000, |m| settled(m, 3) && count_voters(m) == 3).await;
    }
    // And all at once.
    for node in nodes.drain(..) {
        node.kill(&net);
    }
    sleep(ms(3000)).await;
    for n in 0..3 {
        nodes.push(with_disk(n).start(&net).await);
    }
    for node in &nodes {
        let after = node.until("settled", 20_000, |m| settled(m, 3)).await;
        assert_eq!((after.cluster, after.brokers.len()), (meta.cluster, 3));
        assert!(after.shards.iter().all(|s| s.resets == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn brokers_of_another_cluster_or_with_another_wire_are_refused() {
    let net = Net::new(10);
    let disk: Arc<Disk> = Arc::default();
    let other = Start { store: disk, ..Start::named("x") }.start(&net).await;
    let ours = other.group.bootstrap(settings(4), within(5000)).await.unwrap();
    let nodes = cluster(&net, &["a"], 4).await;
    // Its address changed, so it asks around, and is led to the wrong ones.
    let theirs = nodes[0].meta().cluster.unwrap();
    other.group.drain(within(100)).await.unwrap_err();
    let joined = timeout(ms(5000), other.group.join(&seeds(&["a"]))).await.unwrap();
    assert_eq!(joined, Err(JoinError::OtherCluster { ours, theirs, seed: "a".into() }));
    let new = Start { wire: Versions { min: 2, max: 2 }, ..Start::named("n") }.start(&net).await;
    let joined = timeout(ms(5000), new.group.join(&seeds(&["a"]))).await.unwrap();
    assert!(matches!(joined, Err(JoinError::Refused(Refusal::Wire { .. }))), "{joined:?}");
}

#[tokio::test(start_paused = true)]
async fn one_of_three_makes_the_cluster_and_never_a_second_one() {
    let net = Net::new(11);
    let all = seeds(&["a", "b", "c"]);
    let mut nodes = Vec::new();
    let mut entering = Vec::new();
    for name in ["a", "b", "c"] {
        let node = Start::named(name).start(&net).await;
        let (group, all) = (node.group.clone(), all.clone());
        entering.push(tokio::spawn(async move {
            match name {
                "a" => group.join_or_bootstrap(&all, settings(8)).await,
                _ => group.join(&all).await,
            }
        }));
        nodes.push(node);
        sleep(ms(700)).await;
    }
    for one in entering {
        timeout(ms(20_000), one).await.unwrap().unwrap().unwrap();
    }
    let meta = nodes[2].until("settled", 20_000, |m| settled(m, 3) && count_voters(m) == 3).await;
    // `a` returns without its state, and is told to bootstrap; it is cut off from the others at first.
    nodes.remove(0).kill(&net);
    let again = Start::named("a").start(&net).await;
    net.isolate("a", &["b", "c"]);
    let group = again.group.clone();
    let entering = tokio::spawn(async move { group.join_or_bootstrap(&all, settings(8)).await });
    sleep(ms(10_000)).await;
    assert!(!entering.is_finished() && again.meta().cluster.is_none());
    net.heal();
    let cluster = timeout(ms(20_000), entering).await.unwrap().unwrap().unwrap();
    assert_eq!(Some(cluster), meta.cluster);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_gets_the_state_though_the_log_is_cut_off() {
    let net = Net::new(12);
    let first = Start { snapshot_after: 50, ..Start::named("a") }.start(&net).await;
    first.group.bootstrap(settings(8), within(5000)).await.unwrap();
    first.until("owned", 5000, |m| m.shards.iter().all(|s| s.owner.is_some())).await;
    for _ in 0..300 {
        // Any entry counts, refused or not.
        let command = Command::GiveUp { shard: 0, version: u64::MAX };
        first.group.submit(vec![command], within(1000)).await.unwrap();
    }
    let second = Start::named("b").start(&net).await;
    timeout(ms(10_000), second.group.join(&seeds(&["a"]))).await.unwrap().unwrap();
    second.until("settled", 10_000, |m| settled(m, 2)).await;
}

/// One owner is heard by the leader alone. When that dies, the others elect one of theirs while
/// the owner still counts its lease.
#[tokio::test(start_paused = true)]
async fn a_new_leader_waits_out_what_the_old_one_granted() {
    for seed in 200..210 {
        let net = Net::new(seed);
        let mut nodes = cluster(&net, &["a", "b", "c", "d", "e"], 16).await;
        let checker = check_owners(&nodes, seed);
        let leads = leader(&nodes).await;
        let old = nodes.remove(leads);
        let (owner, others) = nodes.split_first().unwrap();
        let names: Vec<_> = others.iter().map(|n| n.name.as_str()).collect();
        net.isolate(&owner.name, &names);
        sleep(ms(1000 + seed % 10 * 20)).await;
        assert!(owner.group.lease().holds(owner.group.now()), "seed {seed}: by the old leader");
        old.kill(&net);
        let taken =
            |m: &Meta| m.shards.iter().all(|s| s.owner.is_some_and(|id| others.iter().any(|n| n.id() == id)));
        others[0].until("taken over", 60_000, taken).await;
        assert!(!checker.is_finished(), "seed {seed}: {:?}", checker.await);
        checker.abort();
        nodes.into_iter().for_each(|n| n.kill(&net));
    }
}

/// Cuts, losses, slow ways, kills and returns at random, on clocks of different speed: nobody ever
/// acts on a shard that somebody else acts on, and in the end all is well.
#[tokio::test(start_paused = true)]
async fn a_shard_never_has_two_owners_that_act() {
    for seed in 100..112 {
        let net = Net::new(seed);
        let names = ["a", "b", "c"];
        let speeds = [0.96, 1.0, 1.04];
        let mut nodes = Vec::new();
        for (n, name) in names.iter().enumerate() {
            let speed = speeds[(n + seed as usize) % 3];
            let node = Start { speed, ..Start::named(name) }.start(&net).await;
            match n {
                0 => node.group.bootstrap(settings(8), within(5000)).await.unwrap(),
                _ => node.group.join(&seeds(&["a"])).await.unwrap(),
            };
            nodes.push(node);
        }
        nodes[0].until("settled", 30_000, |m| settled(m, 3) && count_voters(m) == 3).await;
        let checker = check_owners(&nodes, seed);
        for _ in 0..25 {
            let (what, x, y, pause) = {
                let mut rng = net.rng.lock().unwrap();
                let x = rng.random_range(0..3);
                (rng.random_range(0..6), x, (x + rng.random_range(1..3)) % 3, rng.random_range(50..2500))
            };
            match what {
                0 => net.cut(names[x], names[y]),
                1 => net.isolate(names[x], &[names[y]]),
                2 => net.isolate(names[x], &[names[(x + 1) % 3], names[(x + 2) % 3]]),
                3 => *net.loss.lock().unwrap() = 0.05,
                4 => *net.delay.lock().unwrap() = ms(50),
                _ => {
                    net.heal();
                    *net.loss.lock().unwrap() = 0.0;
                    *net.delay.lock().unwrap() = ms(1);
                }
            }
            sleep(Duration::from_millis(pause)).await;
        }
        net.heal();
        *net.loss.lock().unwrap() = 0.0;
        *net.delay.lock().unwrap() = ms(1);
        let meta = nodes[0].until("settled", 60_000, |m| settled(m, 3)).await;
        assert!(!checker.is_finished(), "seed {seed}: {:?}", checker.await);
        checker.abort();
        assert_eq!(meta.check(), Ok(()), "seed {seed}");
        nodes.into_iter().for_each(|n| n.kill(&net));
    }
}
