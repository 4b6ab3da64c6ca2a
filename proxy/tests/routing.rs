//! Routes over real sockets: which requests are whose, what is changed on the way, and that a client
//! finds its server again.
#![allow(clippy::unwrap_used)]

mod common;

use common::{HANGS, field, front, head, listener, server, server_on, status};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::timeout;

#[tokio::test]
async fn routes_answer_and_redirect_by_themselves() {
    let front = front(
        &[server().await],
        r#"
[proxy.upstream.app]
servers = APP
[[proxy.route]]
path_exact = "/robots.txt"
answer = { status = 200, body = "no\n", content_type = "text/x", headers = { "X-Ip" = "{client_ip}" } }
[[proxy.route]]
path_exact = "/empty"
answer = { status = 204 }
[[proxy.route]]
path = "/old"
redirect = { to = "https://{host}/new{path_rest}{query}", status = 308 }
[[proxy.route]]
path = "/ws"
websocket = false
answer = { status = 426 }
[[proxy.route]]
method = "DELETE"
answer = { status = 405 }
[[proxy.route]]
header = { name = "X-Forwarded-Proto", value = "https" }
answer = { status = 418 }
[[proxy.route]]
path_regex = "/(ws|refuse|any)(/.*)?"
to = "app"
"#,
    );
    let got = front.ask("GET /robots.txt", "").await;
    assert!(status(&got) == "200" && got.ends_with("\r\n\r\nno\n"), "{got}");
    assert_eq!((field(&got, "content-type"), field(&got, "x-ip")), (Some("text/x"), Some("127.0.0.1")));
    let got = front.ask("HEAD /robots.txt", "").await;
    assert!(got.ends_with("\r\n\r\n") && field(&got, "content-length") == Some("3"), "{got}");
    let got = front.ask("GET /empty", "").await;
    assert!(status(&got) == "204" && field(&got, "content-length").is_none(), "{got}");
    let got = front.ask("GET /old//evil.example?q=1", "").await;
    assert_eq!((status(&got), field(&got, "location")), ("308", Some("https://a/new/evil.example?q=1")));
    assert_eq!(status(&front.upgrade("/old/x", "").await.0), "308");
    assert_eq!(status(&front.ask("GET /ws", "").await), "426");
    assert_eq!(status(&front.upgrade("/ws", "").await.0), "101");
    assert_eq!(status(&front.ask("DELETE /any", "").await), "405");
    // Forged: this peer is not trusted, and servers would not see it either.
    assert_eq!(status(&front.ask("GET /any", "X-Forwarded-Proto: https\r\n").await), "200");
    assert_eq!(status(&front.ask("GET /none", "").await), "404");
}

#[tokio::test]
async fn no_spelling_of_a_path_walks_around_its_route() {
    let front = front(
        &[server().await],
        r#"
[proxy.upstream.app]
servers = APP
[[proxy.route]]
path = "/admin"
answer = { status = 403 }
[[proxy.route]]
path_regex = '/(?i:internal)/.*'
answer = { status = 403 }
[[proxy.route]]
to = "app"
"#,
    );
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/%61dmin",
        "/adm%69n/x",
        "//admin",
        "/admin%2Fx",
        "/admin;a=b/x",
        "/;a/admin",
        "/\\admin",
        "/%2fadmin",
        "/%5Cadmin\\x",
        "/internal/x",
        "/INTERNAL/a%0ab",
        "/internal//",
        "http://a//admin",
    ] {
        assert_eq!(status(&front.ask(&format!("GET {path}"), "").await), "403", "{path}");
        assert_eq!(status(&front.upgrade(path, "").await.0), "403", "{path}");
    }
    for path in [
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/x/..;/admin",
        "/x/..%2fadmin",
        "/x%2f..%2fadmin",
        "/x/..\\admin",
        "/./admin",
        "/%2e/admin",
        "/admin%00",
        "/x/%zz/../admin",
        "/..%3b/admin",
    ] {
        assert_eq!(status(&front.ask(&format!("GET {path}"), "").await), "400", "{path}");
        assert_eq!(status(&front.upgrade(path, "").await.0), "400", "{path}");
    }
    for path in ["/administrator", "/x/admin", "/Admin", "/a%2Fb//c;d?/../e"] {
        let got = front.ask(&format!("GET {path}"), "").await;
        assert!(
            status(&got) == "200" && got.contains(&format!("GET {path} HTTP/1.1\r\n")),
            "as it was sent: {got}"
        );
    }
}

#[tokio::test]
async fn paths_and_headers_are_changed_for_handshakes_and_requests_alike() {
    let front = front(
        &[server().await],
        r#"
forwarded = true
[proxy.upstream.app]
servers = APP
[[proxy.route]]
path = "/v1"
to = "app"
strip_prefix = true
host_header = "app.internal"
[proxy.route.request_headers]
remove = ["X-Debug"]
set = { "X-Tier" = "edge {client_ip} {host}" }
add = { "X-More" = "2" }
[proxy.route.response_headers]
remove = ["X-Powered-By"]
set = { "X-Frame-Options" = "DENY" }
add = { "X-Server" = "edge" }
[[proxy.route]]
path = "/own"
to = "app"
host_header = "upstream"
"#,
    );
    let fields =
        "X-Debug: 1\r\nX-Tier: forged\r\nX-More: 1\r\nX-Forwarded-Host: forged\r\nForwarded: for=6.6.6.6\r\n";
    let plain = front.ask("GET /v1/x?q=%2F", fields).await;
    let (answer, mut tunnel) = front.upgrade("/v1/x?q=%2F", fields).await;
    let seen = head(&mut tunnel).await;
    for (answer, seen) in [(&plain, plain.split_once("\r\n\r\n").unwrap().1), (&answer, &seen)] {
        assert!(seen.starts_with("GET /x?q=%2F HTTP/1.1\r\n"), "{seen}");
        for line in [
            "Host: app.internal",
            "X-Forwarded-Host: a",
            "X-Tier: edge 127.0.0.1 a",
            "X-More: 1",
            "X-More: 2",
            "Forwarded: for=127.0.0.1;host=\"a\";proto=http",
        ] {
            assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line}: {seen}");
        }
        assert!(!seen.contains("X-Debug") && !seen.contains("forged") && !seen.contains("6.6.6.6"), "{seen}");
        let answer = answer.to_ascii_lowercase();
        assert_eq!(field(&answer, "x-frame-options"), Some("deny"), "{answer}");
        assert!(!answer.split("\r\n\r\n").next().unwrap().contains("x-powered-by"), "{answer}");
        assert!(answer.contains("x-server: edge\r\n"), "{answer}");
    }
    let (refused, _) = front.upgrade("/v1/refuse", "").await;
    assert_eq!((status(&refused), field(&refused, "x-frame-options")), ("403", Some("DENY")));
    assert_eq!(field(&refused, "x-powered-by"), None);
    let plain = front.ask("GET /own", "").await;
    let (_, mut tunnel) = front.upgrade("/own", "").await;
    for seen in [plain, head(&mut tunnel).await] {
        assert!(seen.contains("Host: 127.0.0.1:") && seen.contains("X-Forwarded-Host: a\r\n"), "{seen}");
    }
}

const AFFINE: &str = r#"
affinity_secret = "thirty-two characters and more of them"
[proxy.upstream.app]
servers = APP
[[proxy.route]]
to = "app"
sticky = { by = "affinity", name = "srv" }
"#;

fn cookie(answer: &str) -> Option<String> {
    field(answer, "set-cookie").map(|set| set.split(';').next().unwrap().to_owned())
}

#[tokio::test]
async fn an_affinity_cookie_leads_to_its_server_and_back_to_it() {
    let (mut addrs, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (listener, addr) = listener().await;
        addrs.push(addr);
        servers.push(server_on(listener));
    }
    let front = front(&addrs, AFFINE);
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        let got = front.ask("GET /", "").await;
        assert!(cookie(&got).is_some(), "{got}");
        seen.insert(field(&got, "x-server").unwrap().to_owned());
    }
    let (first, _) = front.upgrade("/ws", "Cookie: srv=forged\r\n").await;
    let set = field(&first, "set-cookie").unwrap();
    assert!(set.contains("; HttpOnly; SameSite=Lax; Max-Age=86400"), "{set}");
    let home = field(&first, "x-server").unwrap();
    assert!(!first.split("X-Server").next().unwrap().contains(home), "its name is not shown: {first}");
    let fields = format!("Cookie: x=1; {}\r\n", cookie(&first).unwrap());
    for _ in 0..10 {
        let (again, _) = front.upgrade("/ws", &fields).await;
        let plain = front.ask("GET /", &fields).await;
        for got in [&again, &plain] {
            assert_eq!((field(got, "x-server"), cookie(got)), (Some(home), None), "{got}");
        }
    }

    // Away: to another one, always the same, and the cookie stays as it is.
    let at = addrs.iter().position(|addr| addr.port().to_string() == home).unwrap();
    servers[at].abort();
    let _aborted = (&mut servers[at]).await;
    let mut others = BTreeSet::new();
    for got in [front.upgrade("/ws", &fields).await.0, front.ask("GET /", &fields).await] {
        assert_eq!(cookie(&got), None, "{got}");
        others.insert(field(&got, "x-server").unwrap().to_owned());
    }
    assert!(others.len() == 1 && !others.contains(home), "{others:?}");

    // And back.
    servers[at] = server_on(TcpListener::bind(addrs[at]).await.unwrap());
    assert_eq!(field(&front.upgrade("/ws", &fields).await.0, "x-server"), Some(home));
    assert_eq!(field(&front.ask("GET /", &fields).await, "x-server"), Some(home));
}

#[tokio::test]
async fn a_cookie_names_the_server_that_was_reached() {
    let dead: Vec<SocketAddr> = vec![listener().await.1, listener().await.1];
    let servers = [dead[0], server().await, dead[1]];
    let front = front(&servers, AFFINE);
    for _ in 0..10 {
        for got in [front.upgrade("/ws", "").await.0, front.ask("GET /", "").await] {
            let fields = format!("Cookie: {}\r\n", cookie(&got).unwrap());
            let again = front.ask("GET /", &fields).await;
            assert_eq!((status(&again), cookie(&again)), ("200", None), "{again}");
        }
    }
}

#[tokio::test]
async fn segments_of_the_path_keep_a_room_together() {
    let servers = [server().await, server().await, server().await];
    let front = front(
        &servers,
        r#"
[proxy.upstream.app]
servers = APP
[[proxy.route]]
to = "app"
sticky = { by = "path", segment = 2 }
"#,
    );
    let mut used = BTreeSet::new();
    for room in 0..20 {
        let first = front.ask(&format!("GET /rooms/{room}/a"), "").await;
        let (second, _) = front.upgrade(&format!("//rooms/{room};x/b"), "").await;
        assert_eq!(field(&first, "x-server"), field(&second, "x-server"), "room {room}");
        used.insert(field(&first, "x-server").unwrap().to_owned());
    }
    assert!(used.len() > 1, "{used:?}");
}

#[tokio::test]
async fn limits_of_a_route_are_its_own() {
    let (_silent, addr) = listener().await;
    let front = front(
        &[addr],
        r#"
handshake_timeout = "1h"
read_timeout = "1h"
[proxy.upstream.app]
servers = APP
[[proxy.route]]
name = "small"
path = "/small"
to = "app"
max_body_size = 10
read_timeout = "50ms"
handshake_timeout = "50ms"
"#,
    );
    let ask = |line: &'static str, fields: &'static str, body: &'static str| {
        let request = format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n{body}");
        let front = &front;
        async move { front.raw(&request).await }
    };
    let chunks = "8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n";
    for (fields, body, expected) in [
        ("Content-Length: 11\r\n", "12345678901", "413"),
        ("Transfer-Encoding: chunked\r\n", chunks, "413"),
        ("Content-Length: 10\r\n", "1234567890", "504"),
    ] {
        let got = ask("POST /small", fields, body).await;
        assert_eq!(status(&got), expected, "{fields}: {got}");
    }
    assert_eq!(status(&front.upgrade("/small", "").await.0), "504");
    let metrics = front.metrics();
    for line in [
        "weir_proxy_route_requests_total{route=\"small\",class=\"4xx\",transport=\"h1\"} 2",
        "weir_proxy_route_requests_total{route=\"small\",class=\"5xx\",transport=\"h1\"} 1",
        "weir_proxy_route_handshakes_total{route=\"small\",outcome=\"handshake_timeout\",transport=\"h1\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn accepted_handshakes_are_timed_by_route() {
    let front = front(
        &[server().await],
        "[proxy.upstream.app]\nservers = APP\n[[proxy.route]]\npath = \"/ws\"\nto = \"app\"\n",
    );
    for _ in 0..3 {
        assert_eq!(status(&front.upgrade("/ws", "").await.0), "101");
    }
    // It is counted right after the answer was written.
    let counted = async {
        while !front
            .metrics()
            .contains("weir_proxy_handshake_seconds_count{route=\"route[0]\",upstream=\"app\"} 3")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANGS, counted).await.unwrap();
}
