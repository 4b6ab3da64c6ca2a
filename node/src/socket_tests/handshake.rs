//! Who gets a WebSocket, and what everybody else is told.

use super::*;

const GOOD: &[(&str, &str)] = &[
    ("Host", "weir.test"),
    ("Upgrade", "websocket"),
    ("Connection", "keep-alive, Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

fn request(line: &str, change: &[(&str, Option<&str>)]) -> String {
    let mut out = format!("{line}\r\n");
    for (name, value) in GOOD {
        if change.iter().all(|(n, _)| n != name) {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in change {
        if let Some(value) = value {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    out + "\r\n"
}

#[tokio::test]
async fn handshakes_that_are_none() {
    let server = Server::start(|c| c.handshake_timeout = Duration::from_millis(500));
    let get = "GET /connection/websocket HTTP/1.1";
    type Case<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)], u16);
    let cases: &[Case<'_>] = &[
        ("POST /connection/websocket HTTP/1.1", &[("Content-Length", Some("0"))], 400),
        ("GET /connection/websocket HTTP/1.0", &[], 400),
        (get, &[("Upgrade", None)], 400),
        (get, &[("Upgrade", Some("h2c"))], 400),
        (get, &[("Upgrade", Some("websocket")), ("Upgrade", Some("websocket"))], 400),
        (get, &[("Connection", Some("close"))], 400),
        (get, &[("Sec-WebSocket-Key", None)], 400),
        (get, &[("Sec-WebSocket-Key", Some("short"))], 400),
        (get, &[("Sec-WebSocket-Version", None)], 426),
        (get, &[("Sec-WebSocket-Version", Some("8"))], 426),
        (
            "GET /connection/uni_websocket HTTP/1.1",
            &[("Sec-WebSocket-Protocol", Some("centrifuge-protobuf"))],
            400,
        ),
        (get, &[("Origin", Some("https://evil.test"))], 403),
        ("GET /connection/other HTTP/1.1", &[], 404),
        ("GET /metrics HTTP/1.1", &[("Connection", Some("close"))], 404),
    ];
    for (line, change, status) in cases {
        let (got, head, _) = server.raw(&request(line, change)).await;
        assert_eq!(got, *status, "{line} {change:?}: {head}");
        if *status == 426 {
            assert!(head.to_lowercase().contains("sec-websocket-version: 13"), "{head}");
        }
    }
    let long = request(get, &[("X-Long", Some(&"x".repeat(17_000)))]);
    assert_eq!(server.raw(&long).await.0, 431);
    // A head that drips: hyper ends it at the deadline.
    let (status, ..) = server.raw("GET / HTTP/1.1\r\nHost").await;
    assert!(matches!(status, 0 | 408), "{status}");
    assert_eq!(server.metric("weir_node_handshakes_total"), 12.0);
    assert_eq!(server.health.connections(), 0);
}

#[tokio::test]
async fn subprotocols_origins_and_probes() {
    let server = Server::start(|c| c.allowed_origins = vec!["https://*.app.test".into()]);
    let url = "/connection/websocket?cf_protocol_version=v2";
    let json = [
        ("sec-websocket-protocol", "centrifuge-json, centrifuge-protobuf"),
        ("origin", "https://a.app.test"),
    ];
    assert!(server.open_with(url, &json).await.is_ok(), "the echo is checked by tungstenite");
    assert!(server.open_with(url, &[("origin", "https://b.test")]).await.is_err());
    let close = "Host: x\r\nConnection: close\r\n\r\n";
    let (status, _, body) = server.raw(&format!("GET /connection/init HTTP/1.1\r\n{close}")).await;
    assert_eq!((status, body.as_str()), (200, "{}"));
    let (status, head, _) = server.raw(&format!("GET / HTTP/1.1\r\n{close}")).await;
    assert!(status == 200 && head.contains("text/html"), "{head}");
    let (_, _, body) = server.raw(&format!("GET /demo/stats HTTP/1.1\r\n{close}")).await;
    assert!(serde_json::from_str::<Value>(&body).unwrap()["uptime_s"].is_u64(), "{body}");
    let off = Server::start(|c| (c.demo_page, c.uni_websocket) = (false, false));
    for path in ["/", "/demo/stats", "/connection/uni_websocket"] {
        assert_eq!(off.raw(&format!("GET {path} HTTP/1.1\r\n{close}")).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn there_is_room_for_so_many() {
    let status = |result: Result<Client, tokio_tungstenite::tungstenite::Error>| match result {
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            assert!(response.headers().contains_key("retry-after"));
            response.status().as_u16()
        }
        other => panic!("{:?}", other.err()),
    };
    let url = "/connection/websocket";
    let node = Server::start(|c| c.max_connections = 1);
    let first = node.client("").await;
    assert_eq!(status(node.open_with(url, &[]).await), 503);
    drop(first);
    while node.health.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.client("").await;

    let address = Server::start(|c| c.max_connections_per_ip = 1);
    let behind = |ip| [("x-forwarded-for", ip)];
    let _a = address.open_with(url, &behind("1.1.1.1")).await.unwrap();
    let _b = address.open_with(url, &behind("2.2.2.2")).await.unwrap();
    assert_eq!(status(address.open_with(url, &behind("1.1.1.1")).await), 429);

    let user = Server::start(|c| c.max_connections_per_user = 1);
    let _first = user.client("ann").await;
    user.client("bob").await;
    let mut second = user.open(url).await;
    second.say(json!({"id": 1, "connect": {"token": token(SECRET, &json!({"sub": "ann"}))}})).await;
    assert_eq!(second.close_code().await, 3504);
}

/// When all places are taken, the first one of those that have not said `connect` goes, if it has had its time.
#[tokio::test]
async fn who_does_not_connect_gives_way() {
    let node = Server::start(|c| {
        c.max_connections = 3;
        c.stale_timeout = Duration::from_secs(600);
    });
    let connected = node.client("").await;
    let url = "/connection/websocket";
    let mut first = node.open(url).await;
    let mut second = node.open(url).await;
    assert!(node.open_with(url, &[]).await.is_err(), "somebody went at once");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut third = node.open(url).await;
    assert_eq!(first.close_code().await, 3502);
    third.say(json!({"id": 1, "connect": {}})).await;
    third.hear().await;
    // Nobody else had to go.
    second.say(json!({"id": 1, "connect": {}})).await;
    second.hear().await;
    drop(connected);
}
