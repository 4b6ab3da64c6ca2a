//! Two and three endpoints with one UDP socket, as a process and its successors have it.

use super::Succession;
use super::id::Generator;
use super::tests::{Cert, Echo, Line, SOON, Served, client, conf, connect};
use quinn::{Connection, ConnectionIdGenerator};
use std::net::UdpSocket;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Duration, timeout};

fn succession(of: &Served) -> Succession {
    // As it goes over.
    serde_json::from_str(&serde_json::to_string(&of.identity.succession()).unwrap()).unwrap()
}

/// A successor that serves; the hand-over is not over yet.
fn succeed(before: &Served, cert: &Cert) -> Served {
    let handed = before.endpoint.hand_over().unwrap();
    Served::start(&conf(), cert, Some((handed, succession(before))), Echo::default())
}

fn hand_over(before: &Served, cert: &Cert) -> Served {
    let after = succeed(before, cert);
    before.endpoint.handed_over(true);
    before.endpoint.close();
    after
}

async fn ended(served: &mut Served) {
    timeout(SOON, &mut served.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn open_connections_outlive_a_hand_over_and_new_ones_go_to_the_successor() {
    let cert = Cert::new(0);
    let mut before = Served::start(&conf(), &cert, None, Echo::default());
    let (old_client, new_client) = (client(), client());
    let old = connect(&old_client, cert.client(), before.addr()).await;
    let mut line = Line::open(&old).await;

    let after = succeed(&before, &cert);
    assert_eq!(after.addr(), before.addr());
    // Both read: whoever gets a packet.
    for _ in 0..50 {
        line.round().await;
    }
    before.endpoint.handed_over(true);
    before.endpoint.close();
    for n in 0..50 {
        line.round().await;
        if n % 10 == 0 {
            // Another address, and ids that it has not used yet.
            old_client.rebind(UdpSocket::bind(("127.0.0.1", 0)).unwrap()).unwrap();
        }
    }
    let new = connect(&new_client, cert.client(), before.addr()).await;
    let mut new_line = Line::open(&new).await;
    assert_eq!((before.host.served.load(Relaxed), after.host.served.load(Relaxed)), (1, 1));
    assert!(after.metrics.count("forwarded", "sent") > 50);
    // One client with connections of both: the kernel may hand over their packets in one piece.
    let both = connect(&old_client, cert.client(), before.addr()).await;
    let mut both_line = Line::open(&both).await;
    for _ in 0..20 {
        tokio::join!(line.round(), both_line.round(), new_line.round());
    }
    assert_eq!(after.metrics.count("forwarded", "dropped"), 0);

    old.close(0u32.into(), b"");
    ended(&mut before).await;
    new_line.round().await;
}

#[tokio::test]
async fn a_successor_that_fails_leaves_everything_as_it_was() {
    let cert = Cert::new(0);
    let before = Served::start(&conf(), &cert, None, Echo::default());
    let client = client();
    let old = connect(&client, cert.client(), before.addr()).await;
    let mut line = Line::open(&old).await;
    drop(before.endpoint.hand_over().unwrap());
    line.round().await;
    // One at a time.
    assert_eq!(before.endpoint.hand_over().unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    before.endpoint.handed_over(false);
    line.round().await;
    Line::open(&connect(&client, cert.client(), before.addr()).await).await;
    // And it can be tried again.
    let after = hand_over(&before, &cert);
    line.round().await;
    Line::open(&connect(&client, cert.client(), before.addr()).await).await;
    assert_eq!((before.host.served.load(Relaxed), after.host.served.load(Relaxed)), (2, 1));
}

#[tokio::test]
async fn an_upgrade_during_a_drain_passes_packets_on_from_one_to_the_next() {
    let cert = Cert::new(0);
    let client = client();
    let mut first = Served::start(&conf(), &cert, None, Echo::default());
    let addr = first.addr();
    let of_first: Connection = connect(&client, cert.client(), addr).await;
    let mut first_line = Line::open(&of_first).await;
    let mut second = hand_over(&first, &cert);
    let of_second = connect(&client, cert.client(), addr).await;
    let mut second_line = Line::open(&of_second).await;
    let third = hand_over(&second, &cert);
    let of_third = connect(&client, cert.client(), addr).await;
    let mut third_line = Line::open(&of_third).await;
    for _ in 0..20 {
        tokio::join!(first_line.round(), second_line.round(), third_line.round());
    }
    let served = [&first, &second, &third].map(|served| served.host.served.load(Relaxed));
    assert_eq!(served, [1, 1, 1]);
    of_first.close(0u32.into(), b"");
    ended(&mut first).await;
    second_line.round().await;
    of_second.close(0u32.into(), b"");
    ended(&mut second).await;
    third_line.round().await;

    // Nobody is left for such packets: whoever sends them is told by a reset.
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let id = Generator(second.identity.ids.clone()).generate_cid();
    let key = second.identity.reset_key.clone();
    drop((first, second));
    let packet = [&[0x41], &*id, &[7; 60]].concat();
    let mut reset = [0; 2000];
    let length = loop {
        // quinn sends one reset in 20 ms at most.
        stranger.send_to(&packet, addr).await.unwrap();
        if let Ok(length) = timeout(Duration::from_millis(100), stranger.recv(&mut reset)).await {
            break length.unwrap();
        }
    };
    assert_eq!(reset[length - 16..length], ring::hmac::sign(&key, &id).as_ref()[..16]);
    third_line.round().await;
}

/// Whoever was sent a Retry by the predecessor comes back with an id of its own.
#[tokio::test]
async fn handshakes_under_way_are_finished() {
    let cert = Cert::new(0);
    let strict = weir_conf::proxy::Quic { retry_above: 0, ..conf() };
    let before = Served::start(&strict, &cert, None, Echo::default());
    let clients: Vec<_> = (0..30).map(|_| client()).collect();
    let connecting: Vec<_> = clients
        .iter()
        .map(|client| client.connect_with(cert.client(), before.addr(), "localhost").unwrap())
        .collect();
    before.counted("incoming", "retry", 3).await;
    let after = hand_over(&before, &cert);
    for connecting in connecting {
        let connection = timeout(SOON, connecting).await.unwrap().unwrap();
        Line::open(&connection).await;
    }
    let (old, new) = (before.host.served.load(Relaxed), after.host.served.load(Relaxed));
    assert_eq!(old + new, 30, "{old} and {new}");
}
