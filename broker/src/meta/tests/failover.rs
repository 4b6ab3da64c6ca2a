//! How long a shard is without an owner that acts.

use super::harness::*;
use crate::meta::state::Meta;
use tokio::time::Instant;
use weir_wire::id::BrokerId;

/// From a kill until all shards of the killed broker have an owner that knows it and holds its
/// lease; in milliseconds.
async fn kill_one(seed: u64, names: &[&str], kill_leader: bool) -> (u128, u128) {
    let net = Net::new(seed);
    let mut nodes = cluster(&net, names, 16).await;
    tokio::time::sleep(ms(seed * 37 % 400)).await;
    let leads = leader(&nodes).await;
    let victim = if kill_leader { leads } else { (leads + 1) % nodes.len() };
    let node = nodes.remove(victim);
    let dead = node.id();
    let owned: Vec<u16> =
        (0..).zip(&node.meta().shards).filter(|(_, s)| s.owner == Some(dead)).map(|(n, _)| n).collect();
    assert!(!owned.is_empty());
    let killed = Instant::now();
    node.kill(&net);
    let acted = |meta: &Meta, id: BrokerId, shard: u16| meta.shards[usize::from(shard)].owner == Some(id);
    let mut without_lease = 0;
    while killed.elapsed() < ms(10_000) {
        without_lease += u128::from(nodes.iter().any(|n| !n.group.lease().holds(n.group.now())));
        let taken = |shard: &u16| {
            nodes.iter().any(|n| acted(&n.meta(), n.id(), *shard) && n.acts_on(*shard, &n.meta()))
        };
        if owned.iter().all(taken) {
            return (killed.elapsed().as_millis(), without_lease);
        }
        tokio::time::sleep(ms(1)).await;
    }
    panic!("seed {seed}: shards without owner after 10 s: {:#?}", nodes[0].meta());
}

fn report(what: &str, mut times: Vec<u128>) -> (u128, u128) {
    times.sort();
    let (p50, max) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: p50 {p50} ms, max {max} ms over {} seeds", times.len());
    (p50, max)
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_dies_is_replaced_within_its_lease_and_a_step() {
    let (mut times, mut pauses) = (Vec::new(), Vec::new());
    for seed in 0..30 {
        let (time, pause) = kill_one(seed, &["a", "b", "c"], false).await;
        times.push(time);
        pauses.push(pause);
    }
    let (p50, max) = report("owner killed", times);
    assert!(p50 <= 1000 && max <= 1500, "p50 {p50} ms, max {max} ms");
    assert_eq!(report("others without a lease meanwhile", pauses).1, 0);
}

#[tokio::test(start_paused = true)]
async fn so_is_one_that_led_the_group_after_an_election() {
    let (mut times, mut pauses) = (Vec::new(), Vec::new());
    for seed in 0..30 {
        let (time, pause) = kill_one(seed, &["a", "b", "c"], true).await;
        times.push(time);
        pauses.push(pause);
    }
    let (p50, max) = report("owner and leader killed", times);
    report("others without a lease meanwhile", pauses);
    assert!(max <= 3000, "p50 {p50} ms, max {max} ms");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_whole_again_soon_after_a_killed_broker_is_back() {
    let mut times = Vec::new();
    for seed in 0..5 {
        let net = Net::new(seed);
        let mut nodes = cluster(&net, &["a", "b", "c"], 256).await;
        let victim = nodes.remove(seed as usize % 3);
        let name = victim.name.clone();
        victim.kill(&net);
        let started = Instant::now();
        let back = Start::named(&name).start(&net).await;
        back.group.join(&["a".into(), "b".into(), "c".into()]).await.unwrap();
        back.until("whole", 30_000, |m| m.health().is_good() && m.brokers.len() == 3).await;
        times.push(started.elapsed().as_millis());
    }
    let (_, max) = report("all 256 shards in sync again after a restart without state", times);
    assert!(max <= 10_000, "{max} ms");
}

/// `cargo test -p weir-broker --lib meta -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as it says: the same on the real clock"]
async fn on_the_real_clock() {
    for (what, kill_leader) in [("owner killed", false), ("owner and leader killed", true)] {
        let mut times = Vec::new();
        for seed in 0..10 {
            times.push(kill_one(seed, &["a", "b", "c"], kill_leader).await.0);
        }
        report(what, times);
    }
}
