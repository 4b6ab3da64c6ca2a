//! SIGTERM drains, a second one stops.

use nix::sys::signal::Signal;
use weir_tests::systems::Embedded;
use weir_tests::until;

#[tokio::test]
async fn sigterm_tells_clients_to_come_back_and_ends_with_0() {
    let mut weir = Embedded::start().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(weir.client().connect().await);
    }
    weir.process.signal(Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.expect_close().await, (3001, "shutdown".to_owned()));
    }
    drop(clients);
    assert_eq!(weir.process.exit().await.code(), Some(0), "{}", weir.process.log());
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_the_drain() {
    let mut weir = Embedded::start_with(&[("node.drain.rate", "1/h"), ("node.drain.timeout", "10m")]).await;
    let _clients =
        (weir.client().connect().await, weir.client().connect().await, weir.client().connect().await);
    weir.process.signal(Signal::SIGTERM);
    let admin = weir.process.admin();
    until("it drains", || async move {
        let ready = weir_tests::http::get(admin, "/ready").await;
        if ready.status == 503 && ready.body.contains("draining") { Ok(()) } else { Err(ready.body) }
    })
    .await;
    assert!(!weir.process.has_ended());
    weir.process.signal(Signal::SIGTERM);
    weir.process.exit().await;
}
