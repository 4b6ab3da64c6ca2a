//! The operator's listener.

use weir_tests::http::{get, raw};
use weir_tests::ports::Port;
use weir_tests::process::Spec;
use weir_tests::systems::Embedded;
use weir_tests::{conf, unique, until};

#[tokio::test]
async fn health_ready_and_metrics() {
    let weir = Embedded::start().await;
    let admin = weir.process.admin();
    for path in ["/health", "/ready"] {
        assert_eq!(get(admin, path).await.status, 200, "{path}");
    }
    let channel = unique("chat:");
    let mut client = weir.client().connect().await;
    client.subscribe(&channel).await;
    weir.api().publish(&channel, serde_json::json!(1)).await;
    client.publication(&channel).await;

    let metrics = get(admin, "/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(
        metrics.header("content-type").is_some_and(|t| t.contains("openmetrics")),
        "{:?}",
        metrics.headers
    );
    assert!(metrics.body.ends_with("# EOF\n"));
    for name in ["weir_node_connections", "weir_node_subscriptions", "weir_node_handshakes_total"] {
        assert_eq!(weir.process.metric(name, &[]).await, 1.0, "{name}");
    }
    for name in [
        "weir_node_deliveries_total",
        "weir_node_bytes_in_total",
        "weir_node_bytes_out_total",
        "weir_proxy_connections",
        "weir_proxy_handshakes_total",
        "weir_broker_publications_total",
        "weir_broker_deliveries_total",
        "process_resident_memory_bytes",
    ] {
        assert!(weir.process.metric(name, &[]).await > 0.0, "{name} is missing or zero");
    }
    // Counted in ticks of 10 ms: a process this young may have used none.
    assert!(metrics.body.contains("\nprocess_cpu_seconds_total "), "{}", metrics.body);
    drop(client);
    until("the connection is counted out", || async {
        let open = weir.process.metric("weir_node_connections", &[]).await;
        if open < 1.0 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn only_what_there_is_and_only_get() {
    let weir = Embedded::start().await;
    let admin = weir.process.admin();
    assert_eq!(get(admin, "/nothing").await.status, 404);
    let post = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(raw(admin, post).await.status, 405);
    // It is a listener of its own: nothing of it can be had at the public ones.
    for path in ["/metrics", "/ready"] {
        assert_eq!(get(weir.proxy(), path).await.status, 404, "{path} at the proxy");
    }
}

#[tokio::test]
async fn a_node_without_its_broker_is_alive_but_not_ready() {
    let (listen, nowhere) = (Port::free(), Port::free());
    let node = Spec::text("node", conf::node(nowhere.addr())).launch(&[("node.listen", &listen)]);
    until("it is alive", || async {
        let asked = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        match weir_tests::http::try_raw(node.admin(), asked).await {
            Ok(response) if response.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let ready = get(node.admin(), "/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("broker link"), "{ready:?}");
}
