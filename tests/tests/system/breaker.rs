//! Servers that fail are left alone; who asks meanwhile is told at once.

use std::time::{Duration, Instant};
use weir_tests::client::Open;
use weir_tests::echo::{self, EchoServer};
use weir_tests::ports::Port;
use weir_tests::process::{Process, Spec};
use weir_tests::{conf, http, until};

async fn proxy(listen: &Port, servers: &[std::net::SocketAddr]) -> Process {
    Spec::text("proxy", conf::proxy("app", servers))
        .set("proxy.handshake_rate", "0/s")
        .set("proxy.breaker.failures", 2)
        .set("proxy.breaker.open_for", "500ms")
        .set("proxy.breaker.open_max", "1s")
        .start(&[("proxy.listen", listen)])
        .await
}

#[tokio::test]
async fn all_servers_down_is_503_at_once_and_they_come_back() {
    let (ports, addrs) = echo::ports(2);
    let listen = Port::free();
    let process = proxy(&listen, &addrs).await;
    let ask = || Open::to(listen.addr()).target("/ws");
    for _ in 0..5 {
        let start = Instant::now();
        let refusal = ask().try_open().await.err().expect("nobody is there to let it in");
        assert_eq!(refusal.status(), 503);
        let wait = refusal.headers().get("retry-after").expect("Retry-After").to_str().unwrap();
        assert!(wait.parse::<u64>().unwrap() >= 1, "{wait}");
        assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
    }
    let page = http::get(listen.addr(), "/page").await;
    assert_eq!(page.status, 503);
    assert!(page.header("retry-after").is_some(), "{page:?}");
    assert!(process.metric("weir_proxy_upstream_connect_failures_total", &[]).await >= 2.0);

    let _servers = (EchoServer::start(&ports[0], "a").await, EchoServer::start(&ports[1], "b").await);
    until("the servers are tried again", || async {
        let mut client = ask().try_open().await.map_err(|r| r.status().to_string())?;
        client.expect("the server's name", |m| m.get("server").is_some()).await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn one_server_down_costs_no_client_anything() {
    let (ports, addrs) = echo::ports(3);
    let _up = (EchoServer::start(&ports[0], "a").await, EchoServer::start(&ports[2], "c").await);
    let listen = Port::free();
    let process = proxy(&listen, &addrs).await;
    for key in 0..60 {
        let mut client = Open::to(listen.addr()).target(&format!("/ws?key=k{key}")).open().await;
        client.expect("the server's name", |m| m.get("server").is_some()).await;
    }
    let down = format!("server=\"{}\"", ports[1]);
    assert!(process.metric("weir_proxy_upstream_connect_failures_total", &[&down]).await >= 2.0);
    assert!(process.metric("weir_proxy_breaker_state", &[&down]).await >= 1.0, "its breaker is closed");
    let up = format!("server=\"{}\"", ports[0]);
    assert!(
        process.metric("weir_proxy_breaker_state", &[&up]).await < 1.0,
        "a sound server's breaker is open"
    );
}

/// It takes connections and never answers: each client that meets it is told within the deadline (its request was
/// sent, so it is not sent again elsewhere), until the breaker spares the others.
#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time_then_left_alone() {
    let (ports, addrs) = echo::ports(2);
    let _up = EchoServer::start(&ports[0], "up").await;
    let hung = tokio::net::TcpListener::bind(addrs[1]).await.unwrap();
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hung.accept().await {
            held.push(stream);
        }
    });
    let listen = Port::free();
    let _proxy = Spec::text("proxy", conf::proxy("app", &addrs))
        .set("proxy.handshake_rate", "0/s")
        .set("proxy.handshake_timeout", "300ms")
        .set("proxy.breaker.failures", 3)
        .set("proxy.breaker.open_for", "30s")
        .set("proxy.breaker.open_max", "30s")
        .start(&[("proxy.listen", &listen)])
        .await;
    let (mut late, mut served) = (0, 0);
    for n in 0..60 {
        let start = Instant::now();
        match Open::to(listen.addr()).target(&format!("/?key={n}")).try_open().await {
            Ok(_) => served += 1,
            Err(refused) => {
                late += 1;
                assert!(matches!(refused.status().as_u16(), 502 | 504), "{refused:?}");
                assert!(start.elapsed() >= Duration::from_millis(300), "given up early");
            }
        }
        assert!(start.elapsed() < Duration::from_secs(5), "client {n} waited {:?}", start.elapsed());
    }
    assert_eq!((late, served), (3, 57), "clients that met the server that hangs, and others");
    holding.abort();
}

/// All defaults, two servers: one address asks for slow and endless URLs on every path, and nobody else's request
/// fails; a server that is stopped is out in time, whoever asks for what. The script is the measurement, too.
#[tokio::test]
async fn one_client_takes_no_server_from_others() {
    let script = conf::repo().join("tests/benches/spend.py");
    let mut command = tokio::process::Command::new("python3");
    command.arg(script).arg("--weir").arg(weir_tests::process::binary()).args(["--seconds", "10", "--quick"]);
    let done = tokio::time::timeout(Duration::from_secs(240), command.kill_on_drop(true).output()).await;
    let done = done.expect("it ends").expect("python3 runs");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("all held"), "{said}");
}
