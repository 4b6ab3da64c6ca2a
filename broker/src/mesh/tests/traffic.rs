//! What goes over a link, and what becomes of it when there is too much or the link breaks.

use super::figures::chunk;
use super::rig::{NOWHERE, Relay, Rig, ack, all_up, broker, conf, eventually, pair, soon, within};
use crate::mesh::lanes::Bounds;
use crate::mesh::{Conf, ForwardError, NotSent, Unknown};
use crate::meta::Peers;
use bytes::Bytes;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use weir_wire::entry::Call;
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::mesh::{Delivery, Reply, Request};
use weir_wire::peer::Outcome;

fn op(channel: impl Into<String>) -> Request {
    Request::Call(Call::Unsubscribe { channel: channel.into() })
}

fn delivery(channel: impl Into<String>, len: usize) -> Delivery {
    let frame = Bytes::from(vec![7; len]);
    Delivery { shard: 1, epoch: ShardEpoch(1), channel: channel.into(), frame }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_arrive_in_the_order_in_which_they_were_made() {
    let (a, b) = pair(conf("")).await;
    let asked: Vec<_> = (0..500).map(|n| a.mesh.forward(b.id, op(n.to_string()), within(10_000))).collect();
    for answer in soon(futures_util::future::join_all(asked)).await {
        assert_eq!(answer, Ok(Reply::Outcome(Outcome::Done)));
    }
    let seen: Vec<_> = b.seen.requests.lock().unwrap().clone();
    assert_eq!(seen, (0..500).map(|n| op(n.to_string())).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_answered_is_told_from_what_was_not_sent() {
    let (a, b) = pair(Conf { max_requests: 3, ..conf("") }).await;
    let not_sent = |why| Err(ForwardError::NotSent(why));
    let unknown = |why| Err(ForwardError::Unknown(why));
    let nobody = a.mesh.forward(BrokerId(9), op("x"), within(1000)).await;
    assert_eq!(nobody, not_sent(NotSent::NoLink));
    assert_eq!(soon(a.mesh.forward(b.id, op("never"), within(30))).await, unknown(Unknown::Deadline));
    let dropped = a.mesh.forward(b.id, op("never"), within(20_000));
    b.seen.until("asked", || b.seen.unanswered.lock().unwrap().len() == 2).await;
    b.seen.unanswered.lock().unwrap().clear();
    assert_eq!(soon(dropped).await, unknown(Unknown::Unanswered));
    let waiting: Vec<_> = (0..3).map(|_| a.mesh.forward(b.id, op("never"), within(20_000))).collect();
    assert_eq!(soon(a.mesh.forward(b.id, op("x"), within(20_000))).await, not_sent(NotSent::Full));
    b.seen.until("asked", || b.seen.unanswered.lock().unwrap().len() == 3).await;
    b.drain.begin();
    for answer in soon(futures_util::future::join_all(waiting)).await {
        assert_eq!(answer, unknown(Unknown::Broke));
    }
}

/// The other side reads nothing: of what still waits here when the link ends, it is known that it
/// was never sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_never_left_is_not_sent_when_the_link_breaks() {
    let (a, b) = (broker(1, conf("")), broker(2, conf("")));
    let relay = Relay::to(b.addr).await;
    a.mesh.set_members(&[(b.id, relay.addr.to_string())]);
    all_up(&[&a, &b]).await;
    relay.there.send_replace(false);
    // More than all the buffers on the way hold.
    for n in 0..1000 {
        a.mesh.send_replica(b.id, u16::MAX, chunk(n, Bytes::from(vec![0; 60 << 10])));
    }
    let first = a.mesh.forward(b.id, op("first"), within(20_000));
    let large = Call::Unsubscribe { channel: "x".repeat(8 << 20) };
    let large = a.mesh.forward(b.id, Request::Call(large), within(20_000));
    let last = a.mesh.forward(b.id, op("last"), within(20_000));
    let answers = soon(async { (first.await, large.await, last.await) }).await;
    let not_sent = Err(ForwardError::NotSent(NotSent::Broke));
    assert!(answers.0.is_err() && answers.1 == not_sent && answers.2 == not_sent, "{answers:?}");
    assert!(!b.seen.requests.lock().unwrap().contains(&op("last")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fan_out_says_whom_it_did_not_reach() {
    let brokers = [broker(1, conf("")), broker(2, conf(""))];
    let [a, b] = &brokers;
    let gone = BrokerId(3);
    let members = [(a.id, a.addr.to_string()), (b.id, b.addr.to_string()), (gone, "127.0.0.1:1".into())];
    a.mesh.set_members(&members);
    a.seen.until("up", || a.seen.is_up(b.id)).await;
    let answers = soon(a.mesh.fan_out(op("all"), within(10_000))).await;
    let none = Err(ForwardError::NotSent(NotSent::NoLink));
    assert_eq!(answers, [(b.id, Ok(Reply::Outcome(Outcome::Done))), (gone, none)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_messages_over_the_bound_are_dropped_and_that_is_told_once_there_is_room() {
    let small = Conf { bounds: Bounds([1 << 20; 6]), ..conf("") };
    let (a, b) = (broker(1, small.clone()), broker(2, small));
    let relay = Relay::to(b.addr).await;
    a.mesh.set_members(&[(b.id, relay.addr.to_string())]);
    all_up(&[&a, &b]).await;
    relay.there.send_replace(false);
    let mut sent = 0;
    while a.mesh.send_replica(b.id, u16::MAX, chunk(sent, Bytes::from(vec![0; 60 << 10]))) {
        sent += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(a.seen.trouble.load(SeqCst), 0, "no room yet");
    assert!(a.mesh.send_replica(b.id, 1, ack(1)), "the other lane has room");
    relay.there.send_replace(true);
    a.seen.until("told", || a.seen.trouble.load(SeqCst) == 1).await;
    b.seen.until("all others came", || b.seen.count.load(SeqCst) == sent + 1).await;
    assert!(a.mesh.send_replica(b.id, 1, ack(2)));
}

async fn resynced(from: &Rig, to: &Rig, channels: usize, times: usize) {
    from.mesh.resume(to.id);
    from.mesh.resync(to.id, (0..channels).map(|n| (format!("channel-{n}"), None)).collect());
    let lasts = |r: &Rig| r.seen.resyncs.lock().unwrap().iter().filter(|(_, last)| *last).count();
    to.seen.until("resynced", || lasts(to) == times).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_no_deliveries_gets_a_resync_in_their_place() {
    let (a, b) = pair(Conf { window: 100_000, ..conf("") }).await;
    a.seen.until("a new link", || a.seen.behind.load(SeqCst) >= 1).await;
    assert!(!a.mesh.deliver(b.id, delivery("early", 10)), "a resync comes first");
    resynced(&a, &b, 20_000, 1).await;
    let behind = a.seen.behind.load(SeqCst);
    b.seen.hold.store(true, SeqCst);
    let sent = (0..1000).take_while(|n| a.mesh.deliver(b.id, delivery(format!("{n}"), 1000))).count();
    assert!((90..100).contains(&sent), "{sent}");
    assert!(!a.mesh.deliver(b.id, delivery("later", 0)), "nothing goes out after a loss");
    b.seen.until("all of them", || b.seen.rooms.lock().unwrap().len() == sent).await;
    assert_eq!(a.seen.behind.load(SeqCst), behind, "no room yet");
    b.seen.hold.store(false, SeqCst);
    b.seen.rooms.lock().unwrap().clear();
    a.seen.until("room", || a.seen.behind.load(SeqCst) == behind + 1).await;
    resynced(&a, &b, 3, 2).await;
    assert!(a.mesh.deliver(b.id, delivery("after", 10)));
    b.seen.until("after", || b.seen.delivered.lock().unwrap().last().is_some_and(|c| c == "after")).await;
    let seen = b.seen.delivered.lock().unwrap().clone();
    let wanted = (0..sent).map(|n| n.to_string()).chain(["after".to_string()]);
    assert_eq!(seen, wanted.collect::<Vec<_>>());
    let positions: usize = b.seen.resyncs.lock().unwrap().iter().map(|(n, _)| n).sum();
    assert_eq!(positions, 20_003);
}

/// Credit comes back in pieces: far more than a window goes through in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_lasts_for_ever_where_deliveries_are_taken() {
    let (a, b) = pair(Conf { window: 50_000, ..conf("") }).await;
    a.seen.until("a new link", || a.seen.behind.load(SeqCst) >= 1).await;
    resynced(&a, &b, 0, 1).await;
    for n in 0..50usize {
        for _ in 0..20 {
            assert!(a.mesh.deliver(b.id, delivery(n.to_string(), 1000)), "{n}");
        }
        b.seen.until("taken", || b.seen.delivered.lock().unwrap().len() == (n + 1) * 20).await;
        // An eighth of the window may be untold.
        eventually(|| a.mesh.peers()[0].untaken <= 50_000 / 8).await;
    }
}

/// 100 MB of pieces of states over a way of 40 MB/s: the group's calls are answered well within a
/// lease, requests and appends too, and nobody takes the link for dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_in_time_while_large_states_are_under_way() {
    let (a, b) = (broker(1, conf("secret")), broker(2, conf("secret")));
    let relay = Relay::slow(b.addr, Some(40 << 20)).await;
    a.mesh.set_members(&[(b.id, relay.addr.to_string())]);
    all_up(&[&a, &b]).await;
    let (piece, total) = (256 << 10, 100 << 20);
    let flood = tokio::spawn({
        let (mesh, to, data) = (a.mesh.clone(), b.id, Bytes::from(vec![1; piece]));
        async move {
            for n in 0..total / piece {
                while !mesh.send_replica(to, u16::MAX, chunk(n as u64, data.clone())) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    let (mut slowest, mut rounds) = ([Duration::ZERO; 2], 0);
    while b.seen.bytes.load(SeqCst) < total as u64 {
        let start = Instant::now();
        let call = a.mesh.call(Some(b.id), NOWHERE, Bytes::from_static(b"renew"), within(800));
        soon(call).await.unwrap();
        let called = start.elapsed();
        assert!(a.mesh.send_replica(b.id, 1, ack(rounds)));
        soon(a.mesh.forward(b.id, op("x"), within(800))).await.unwrap();
        slowest = [slowest[0].max(called), slowest[1].max(start.elapsed() - called)];
        rounds += 1;
    }
    soon(flood).await.unwrap();
    println!("{rounds} rounds; the slowest call took {:?}, the slowest request {:?}", slowest[0], slowest[1]);
    assert!(rounds >= 10 && slowest[0] < Duration::from_millis(700), "{rounds}: {slowest:?}");
    assert_eq!(super::rig::ups(&a)[&b.id], 1, "one link all the time");
}
