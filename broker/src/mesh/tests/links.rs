//! Links that come to be, break, and come again.

use super::rig::{
    NOWHERE, Relay, Rig, ack, all_up, broker, broker_at, conf, eventually, introduce, pair, soon, ups, within,
};
use crate::mesh::Conf;
use crate::meta::{PeerError, Peers};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;
use weir_wire::id::BrokerId;

async fn ask(from: &Rig, to: Option<BrokerId>, addr: &str, text: &'static str) -> Result<Bytes, PeerError> {
    soon(from.mesh.call(to, addr, Bytes::from_static(text.as_bytes()), within(10_000))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pairs_are_linked_and_answer_over_it() {
    let brokers = [broker(1, conf("secret")), broker(2, conf("secret")), broker(3, conf("secret"))];
    let all: Vec<_> = brokers.iter().collect();
    introduce(&all);
    all_up(&all).await;
    for from in &brokers {
        for to in brokers.iter().filter(|to| to.id != from.id) {
            // The address leads nowhere: it goes over the link.
            let answer = ask(from, Some(to.id), NOWHERE, "hello").await.unwrap();
            assert_eq!(answer, format!("{} hello", from.id));
            assert!(from.mesh.send_replica(to.id, 3, ack(5)));
            to.seen.until("ack", || to.seen.messages.lock().unwrap().contains(&(from.id, 3, 5))).await;
        }
        let status = from.mesh.peers();
        assert_eq!(status.len(), 2);
        for peer in status {
            assert!(peer.up.is_some() && peer.wire == Some(1) && peer.error.is_none(), "{peer:?}");
        }
    }
}

/// Both dial at the same moment. Which of the two links comes first is up to the scheduler; which
/// one stays is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_dial_one_link_is_left() {
    let mut twice = 0;
    for round in 0..30 {
        // Without a head start for either.
        let conf = Conf { redial: (Duration::ZERO, Duration::from_secs(5)), ..conf("") };
        let (a, b) = (broker(1, conf.clone()), broker(2, conf));
        introduce(&[&a, &b]);
        all_up(&[&a, &b]).await;
        let one = |rig: &Rig, to| rig.mesh.shared.link(to).map(|link| link.ends.dialled_by);
        // A link that is being replaced breaks; the one that stays answers both ways.
        soon(async {
            loop {
                let answers =
                    tokio::join!(ask(&a, Some(b.id), NOWHERE, "x"), ask(&b, Some(a.id), NOWHERE, "x"));
                let ends = (one(&a, b.id), one(&b, a.id));
                if answers.0.is_ok() && answers.1.is_ok() && ends.0.is_some() && ends.0 == ends.1 {
                    break;
                }
            }
        })
        .await;
        assert!(ups(&a)[&b.id] <= 2 && ups(&b)[&a.id] <= 2, "round {round}: {:?} {:?}", ups(&a), ups(&b));
        twice += usize::from(ups(&a)[&b.id] == 2 || a.mesh.shared.metrics.refusals("twin") > 0);
    }
    assert!(twice > 0, "they never met");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_back_is_linked_again() {
    let (a, b) = pair(conf("secret")).await;
    let addr = b.addr;
    drop(b);
    a.seen.until("down", || !a.seen.is_up(BrokerId(2))).await;
    assert!(!a.mesh.send_replica(BrokerId(2), 1, ack(1)));
    assert!(matches!(ask(&a, Some(BrokerId(2)), NOWHERE, "x").await, Err(PeerError::Unreachable(_))));
    let b = broker_at(2, 7, conf("secret"), addr);
    a.seen.until("up again", || a.seen.is_up(BrokerId(2))).await;
    assert_eq!(ask(&a, Some(b.id), NOWHERE, "x").await.unwrap(), format!("{} x", a.id));
    let status = a.mesh.peers();
    assert!(status.len() == 1 && status[0].up.is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_in_either_direction_ends_the_link_at_both_ends() {
    for there in [true, false] {
        let (a, b) = (broker(1, conf("secret")), broker(2, conf("secret")));
        let relay = Relay::to(b.addr).await;
        a.mesh.set_members(&[(b.id, relay.addr.to_string())]);
        b.mesh.set_members(&[(a.id, NOWHERE.into())]);
        all_up(&[&a, &b]).await;
        let (side, cut) = (if there { &relay.there } else { &relay.back }, Instant::now());
        side.send_replace(false);
        a.seen.until("a is told", || !a.seen.is_up(b.id)).await;
        b.seen.until("b is told", || !b.seen.is_up(a.id)).await;
        assert!(cut.elapsed() < Duration::from_secs(3), "{:?}", cut.elapsed());
        side.send_replace(true);
        all_up(&[&a, &b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_removed_is_cut_and_refused_until_it_is_one_again() {
    let (a, b) = (broker(1, conf("secret")), broker(2, conf("secret")));
    introduce(&[&a, &b]);
    all_up(&[&a, &b]).await;
    a.mesh.set_members(&[]);
    a.seen.until("cut", || !a.seen.is_up(b.id)).await;
    b.seen.until("cut", || !b.seen.is_up(a.id)).await;
    eventually(|| a.mesh.shared.metrics.refusals("removed") > 0).await;
    assert!(a.mesh.peers().is_empty() && !a.seen.is_up(b.id));
    introduce(&[&a, &b]);
    all_up(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_by_address_need_no_membership_and_find_out_who_is_there() {
    let (a, b) = (broker_at(1, 0, conf("secret"), loopback()), broker(2, conf("secret")));
    let addr = b.addr.to_string();
    assert_eq!(ask(&a, None, &addr, "join").await.unwrap(), format!("{} join", a.id));
    assert_eq!(ask(&a, Some(b.id), &addr, "join").await.unwrap(), format!("{} join", a.id));
    let other = ask(&a, Some(BrokerId(9)), &addr, "x").await;
    assert!(
        matches!(&other, Err(PeerError::Unreachable(why)) if why.contains("another broker")),
        "{other:?}"
    );
    assert!(b.seen.links.lock().unwrap().is_empty(), "no link of members came of it");
    // Its own address is as good as any other.
    assert_eq!(ask(&a, None, &a.addr.to_string(), "me").await.unwrap(), format!("{} me", a.id));
    let nobody = soon(a.mesh.call(None, NOWHERE, Bytes::new(), within(5000))).await;
    assert!(matches!(nobody, Err(PeerError::Unreachable(_))), "{nobody:?}");
    let late = soon(a.mesh.call(None, &addr, Bytes::from_static(b"never"), within(50))).await;
    assert!(matches!(late, Err(PeerError::NoAnswer(_))), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_of_other_clusters_get_no_link() {
    let a = broker_at(1, 7, conf("secret"), loopback());
    let b = broker_at(2, 8, conf("secret"), loopback());
    introduce(&[&a, &b]);
    let refusals = |rig: &Rig, cause| rig.mesh.shared.metrics.refusals(cause);
    eventually(|| refusals(&a, "other_cluster") > 0 && refusals(&b, "other_cluster") > 0).await;
    assert!(ups(&a).is_empty() && ups(&b).is_empty());
    // It may still be asked which cluster it belongs to.
    ask(&a, None, &b.addr.to_string(), "whose").await.unwrap();
    b.mesh.set_cluster(7);
    all_up(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_says_so_at_once() {
    let (a, b) = pair(Conf { dead_after: Duration::from_secs(60), ..conf("secret") }).await;
    let waiting = tokio::spawn({
        let (mesh, to) = (a.mesh.clone(), b.id);
        async move { mesh.call(Some(to), NOWHERE, Bytes::from_static(b"never"), within(60_000)).await }
    });
    b.drain.begin();
    a.seen.until("down", || !a.seen.is_up(b.id)).await;
    let error = soon(waiting).await.unwrap();
    assert!(error.is_err(), "{error:?}");
}

fn loopback() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
