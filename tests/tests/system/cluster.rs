//! Three brokers: what is acknowledged outlives any one of them, and with a disk all of them; subscribers get it
//! in order, once.

use nix::sys::signal::Signal;
use std::time::Duration;
use tokio::time::sleep;
use weir_tests::cluster::{Cluster, Load};

/// Of a channel, in a debug build on a busy machine. The release build's figures: tests/benches/kill.py.
const SILENCE_MS: u64 = 8_000;
/// Load between two faults.
const BETWEEN: Duration = Duration::from_millis(500);

#[tokio::test]
async fn any_broker_is_killed_under_load_and_nothing_is_lost_doubled_or_reordered() {
    let mut cluster = Cluster::in_memory().await;
    let load = Load::start(&cluster);
    for n in cluster.brokers() {
        sleep(BETWEEN).await;
        // A machine that stands still for half a second takes copies out of sync: what the last one holds alone dies
        // with it.
        cluster.await_healthy().await;
        cluster.kill_broker(n).await;
        sleep(BETWEEN).await;
        cluster.launch_broker(n);
    }
    cluster.await_healthy().await;
    let verdict = load.finish_right().await;
    assert!(verdict.figures.longest_silence_ms() < SILENCE_MS, "{:#}", verdict.json());
    assert_eq!(verdict.figures.resets, 0, "a subscriber did not recover: {:#}", verdict.json());
}

#[tokio::test]
async fn brokers_that_are_told_to_stop_hand_over_first() {
    let mut cluster = Cluster::in_memory().await;
    let load = Load::start(&cluster);
    for n in cluster.brokers() {
        sleep(BETWEEN).await;
        let log = cluster.stop_broker(n).await;
        assert!(log.contains("what this broker held is in others' hands"), "{log}");
        cluster.launch_broker(n);
        cluster.await_healthy().await;
    }
    let verdict = load.finish_right().await;
    assert!(verdict.figures.longest_silence_ms() < SILENCE_MS, "{:#}", verdict.json());
    assert_eq!(verdict.figures.resets, 0, "a subscriber did not recover: {:#}", verdict.json());
}

#[tokio::test]
async fn nodes_are_killed_under_load_and_their_clients_go_on_elsewhere() {
    let mut cluster = Cluster::alone().await;
    let load = Load::start(&cluster);
    for n in [0, 1, 0] {
        sleep(BETWEEN).await;
        cluster.kill_node(n).await;
        sleep(BETWEEN).await;
        cluster.start_node(n).await;
    }
    sleep(BETWEEN).await;
    let verdict = load.finish_right().await;
    assert_eq!(verdict.figures.resets, 0, "a subscriber did not recover: {:#}", verdict.json());
}

/// It wakes with the word that it leads and owns; its lease is over, and so nobody is told otherwise.
#[tokio::test]
async fn a_broker_that_was_stopped_for_long_does_no_harm_when_it_wakes() {
    let cluster = Cluster::in_memory().await;
    let load = Load::start(&cluster);
    sleep(BETWEEN).await;
    let leader = cluster.leader().await;
    cluster.broker(leader).signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(6)).await;
    cluster.broker(leader).signal(Signal::SIGCONT);
    cluster.await_healthy().await;
    sleep(BETWEEN).await;
    let verdict = load.finish_right().await;
    assert!(verdict.figures.longest_silence_ms() < SILENCE_MS, "{:#}", verdict.json());
}

#[tokio::test]
async fn all_brokers_stop_and_start_again_with_what_is_on_disk() {
    let mut cluster = Cluster::on_disk().await;
    let mut load = Load::start(&cluster);
    sleep(3 * BETWEEN).await;
    load.quiet().await;
    let before = load.histories().await;
    cluster.stop_brokers().await;
    cluster.launch_brokers();
    cluster.await_healthy().await;
    assert_eq!(load.histories().await, before, "epochs and history are as before");
    let verdict = load.finish_right().await;
    assert_eq!(verdict.figures.resets, 0, "a subscriber did not recover: {:#}", verdict.json());
}

#[tokio::test]
async fn all_brokers_are_killed_at_once_and_their_disks_have_what_was_acknowledged() {
    let mut cluster = Cluster::on_disk().await;
    let load = Load::start(&cluster);
    sleep(3 * BETWEEN).await;
    for n in cluster.brokers() {
        cluster.kill_broker(n).await;
    }
    cluster.launch_brokers();
    cluster.await_healthy().await;
    sleep(BETWEEN).await;
    load.finish_right().await;
}

#[tokio::test]
async fn a_broker_whose_disk_was_emptied_comes_back_as_a_new_one_and_is_filled() {
    let mut cluster = Cluster::on_disk().await;
    let load = Load::start(&cluster);
    sleep(BETWEEN).await;
    for n in [1, 0] {
        cluster.await_healthy().await;
        cluster.kill_broker(n).await;
        std::fs::remove_dir_all(cluster.data_dir(n)).expect("it had a disk");
        cluster.launch_broker(n);
        cluster.await_healthy().await;
    }
    // What was on the third alone is on the others by now.
    cluster.kill_broker(2).await;
    sleep(3 * BETWEEN).await;
    cluster.launch_broker(2);
    cluster.await_healthy().await;
    load.finish_right().await;
}
