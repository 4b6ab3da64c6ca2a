//! Clients that go from address to address.

use super::tests::{Cert, Echo, Line, SOON, Served, client, conf, connect};
use std::net::UdpSocket;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::timeout;
use weir_core::sync::lock;

#[tokio::test]
async fn a_client_that_moves_a_hundred_times_loses_nothing() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    let client = client();
    let connection = connect(&client, cert.client(), served.addr()).await;
    let mut line = Line::open(&connection).await;
    for n in 0..100 {
        client.rebind(UdpSocket::bind(("127.0.0.1", 0)).unwrap()).unwrap();
        line.round().await;
        if n % 10 == 0 {
            Line::open(&connection).await;
        }
    }
    assert_eq!(served.metrics.connections.get(), 1);
    served.counted("migrations", "seen", 1).await;
    // The same host to every limit.
    assert_eq!(served.metrics.count("migrations", "followed"), 0);
}

#[tokio::test]
async fn the_place_of_an_address_goes_along() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    served.host.max_per_ip.store(1, Relaxed);
    lock(&served.host.denied).push("127.0.0.9".parse().unwrap());
    let (moving, staying) = (client(), client());
    let connection = connect(&moving, cert.client(), served.addr()).await;
    let mut line = Line::open(&connection).await;
    moving.rebind(UdpSocket::bind(("127.0.0.2", 0)).unwrap()).unwrap();
    line.round().await;
    served.counted("migrations", "followed", 1).await;
    // Its first address has room for another, and its new one has not.
    let second = connect(&staying, cert.client(), served.addr()).await;
    Line::open(&second).await;
    staying.rebind(UdpSocket::bind(("127.0.0.2", 0)).unwrap()).unwrap();
    let closed = async {
        let (mut send, _receive) = second.open_bi().await.unwrap();
        while send.write_all(b"here").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        second.closed().await
    };
    let closed = timeout(SOON, closed).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { panic!("{closed}") };
    assert_eq!(close.error_code, super::seats::EXCESSIVE_LOAD);
    assert_eq!(served.metrics.count("migrations", "denied"), 1);
    line.round().await;
    // Nor is it let in where nobody is.
    moving.rebind(UdpSocket::bind(("127.0.0.9", 0)).unwrap()).unwrap();
    line.round().await;
    served.counted("migrations", "denied", 2).await;
    assert!(matches!(connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));
}

#[tokio::test]
async fn without_migration_nobody_goes_on_from_elsewhere() {
    let cert = Cert::new(0);
    let stay = weir_conf::proxy::Quic {
        migration: false,
        idle_timeout: std::time::Duration::from_secs(1),
        keep_alive: std::time::Duration::ZERO,
        ..conf()
    };
    let served = Served::start(&stay, &cert, None, Echo::default());
    let client = client();
    let connection = connect(&client, cert.client(), served.addr()).await;
    Line::open(&connection).await;
    client.rebind(UdpSocket::bind(("127.0.0.1", 0)).unwrap()).unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(b"here").await.unwrap();
    let closed = timeout(SOON, connection.closed()).await.unwrap();
    // On whichever side that is first; a server that has forgotten it says so.
    assert!(matches!(closed, quinn::ConnectionError::TimedOut | quinn::ConnectionError::Reset), "{closed}");
}

#[tokio::test]
async fn the_places_of_streams_go_along() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    served.host.max_per_ip.store(3, Relaxed);
    served.host.count_streams.store(true, Relaxed);
    let (moving, staying) = (client(), client());
    let connection = connect(&moving, cert.client(), served.addr()).await;
    let mut lines = [Line::open(&connection).await, Line::open(&connection).await];
    staying.connect_with(cert.client(), served.addr(), "localhost").unwrap().await.unwrap_err();
    moving.rebind(UdpSocket::bind(("127.0.0.2", 0)).unwrap()).unwrap();
    lines[0].round().await;
    served.counted("migrations", "followed", 1).await;
    // All three are gone from there, and are here.
    let mut three = Vec::new();
    for n in 1..=3 {
        three.push(connect(&staying, cert.client(), served.addr()).await);
        served.counted("handshakes", "done", 1 + n).await;
    }
    staying.connect_with(cert.client(), served.addr(), "localhost").unwrap().await.unwrap_err();
    let there = quinn::Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap();
    there.connect_with(cert.client(), served.addr(), "localhost").unwrap().await.unwrap_err();
    lines[1].round().await;
    drop(lines);
    connection.close(0u32.into(), b"");
    while served.metrics.connections.get() > 3 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Line::open(&connect(&there, cert.client(), served.addr()).await).await;
}
