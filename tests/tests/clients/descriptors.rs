//! One address with 20 connections of 100 requests each, at a server that never answers, and a tenth of the usual
//! descriptors: everybody else is served, over HTTP/1.1, HTTP/2 and HTTP/3, and so are operators.

use crate::suites::{python_module, suite};
use crate::transports::Tls;
use std::net::Ipv4Addr;
use std::time::Duration;
use weir_tests::edge::upgrade;
use weir_tests::ports::Port;
use weir_tests::process::Spec;
use weir_tests::recorder::{Recorder, Reply, exchange, ok, statuses};
use weir_tests::{http, until};

const DESCRIPTORS: usize = 2_000;

#[tokio::test]
async fn one_address_does_not_take_them_all() {
    let server = Recorder::start(|request| match request.target() {
        "/never" => Reply::Deaf(Vec::new()),
        _ => Reply::Answer(ok("hello")),
    })
    .await;
    let (tls, listen) = (Tls::new(), Port::free());
    let text = format!(
        "roles = [\"proxy\"]\n{}[[proxy.route]]\nto = \"app\"\n[proxy.upstream.app]\nservers = [\"{}\"]\n",
        tls.conf(),
        server.addr()
    );
    // Limits are those that ship.
    let process = Spec::text("proxy", text)
        .descriptors(DESCRIPTORS)
        .set("telemetry.filter", "info,weir_proxy::access=off,pingora=warn")
        .start(&[("proxy.listen", &listen)])
        .await;
    let warning = process.logged("of too few descriptors", |l| l.contains("too few open descriptors")).await;
    for said in ["LimitNOFILE", "proxy.max_connections, proxy.max_requests", "limit=2000"] {
        assert!(warning.contains(said), "{warning}");
    }
    let port = tls.port.addr().port().to_string();
    let mut hogs = python_module(&["hog", "127.0.0.1", &port]);
    let hogging = suite("hog", &mut hogs);
    // Meanwhile operators look, and others come over HTTP/1.1.
    let watch = async {
        loop {
            assert_eq!(http::get(process.admin(), "/health").await.status, 200);
            let asked = b"GET /fast HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let answer = exchange(listen.addr(), Ipv4Addr::new(127, 0, 0, 4), asked).await;
            assert_eq!(statuses(&answer), [200], "{}", String::from_utf8_lossy(&answer));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let output = tokio::select! {
        output = hogging => output,
        () = watch => unreachable!("it watches without end"),
    };
    println!("{output}");
    assert_eq!(output.matches("all served").count(), 4, "{output}");
    let refused = process.metric("weir_proxy_refused_total", &["cause=\"requests_per_ip\""]).await;
    assert!(refused > 3_000.0, "{refused} refused");
    let line = process.logged("who was refused", |l| l.contains("proxy.max_requests_per_ip")).await;
    assert!(line.contains("127.0.0.2") && line.contains("proxy.trusted"), "{line}");
    let lines = process.log().lines().filter(|l| l.contains("max_requests_per_ip")).count();
    assert!(lines < 100, "{lines} lines for {refused} refusals");
    process.logged("how many lines were left out", |l| l.contains("left_out=")).await;
    assert!(!process.log().contains("cannot accept"), "{}", process.log());
    // Handshakes count alike, whatever becomes of them: this server does not know how to answer one.
    let handshake = exchange(listen.addr(), Ipv4Addr::new(127, 0, 0, 4), upgrade("/fast").as_bytes()).await;
    assert_eq!(statuses(&handshake), [200]);
    until("nothing is under way any more", || async {
        let left = process.metric("weir_proxy_requests_under_way", &[]).await;
        if left == 0.0 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}
