//! Which host and which address a request claims: what is ambiguous is refused, what is forged is overwritten,
//! and no request reaches a server that its route does not lead to.

use futures_util::future::join_all;
use std::net::Ipv4Addr;
use weir_tests::edge::{Edge, app, upgrade};
use weir_tests::ports::Port;
use weir_tests::process::Spec;
use weir_tests::recorder::{Recorder, Request, exchange, statuses};

/// Two names, two servers: `inner` is what a game wants to reach.
const CONF: &str = r#"
roles = ["proxy"]

[[proxy.route]]
host = "public.test"
to = "public"

[[proxy.route]]
host = "inner.test"
to = "inner"
"#;

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")
}

/// What is sent, the status, and which server saw it.
fn hosts() -> Vec<(String, u16, &'static str)> {
    let host = |host: &str| get("/x", &format!("Host: {host}\r\n"));
    vec![
        (host("public.test"), 200, "public"),
        (host("PUBLIC.test"), 200, "public"),
        (host("public.test:8000"), 200, "public"),
        (host("inner.test"), 200, "inner"),
        (host("other.test"), 404, ""),
        (host("public.test.inner.test"), 404, ""),
        (host("127.0.0.1"), 404, ""),
        (host("[::1]:8000"), 404, ""),
        // None, two, empty, and none that is one.
        (get("/x", ""), 400, ""),
        (get("/x", "Host:\r\n"), 400, ""),
        (get("/x", "Host: \t \r\n"), 400, ""),
        (get("/x", "Host: public.test\r\nHost: inner.test\r\n"), 400, ""),
        (get("/x", "Host: public.test\r\nHost: public.test\r\n"), 400, ""),
        (get("/x", "Host: public.test\r\nhost: inner.test\r\n"), 400, ""),
        (get("/x", "Host: public.test\r\n Host: inner.test\r\n"), 400, ""),
        (get("/x", "Host : inner.test\r\n"), 400, ""),
        (host("public.test, inner.test"), 400, ""),
        (host("public.test inner.test"), 400, ""),
        (host("public.test\tinner.test"), 400, ""),
        (host("public.test@inner.test"), 400, ""),
        (host("user:pass@inner.test"), 400, ""),
        (host("public.test/inner.test"), 400, ""),
        (host("public.test?inner.test"), 400, ""),
        (host("public.test#inner.test"), 400, ""),
        (host("public.test\\inner.test"), 400, ""),
        (host("http://inner.test"), 400, ""),
        (host("public.test%00.inner.test"), 400, ""),
        (host("public.test\0"), 400, ""),
        (host("<script>"), 400, ""),
        (host("b\u{fc}cher.test"), 400, ""),
        (host(&"a".repeat(300)), 400, ""),
        (host("[::1]x"), 400, ""),
        (host("[::1"), 400, ""),
        (host("public.test:80:90"), 400, ""),
        (host("public.test:"), 400, ""),
        (host("public.test:99999"), 400, ""),
        (host("public..test"), 400, ""),
        (host(".public.test"), 400, ""),
    ]
}

/// The same, for targets in all their forms.
fn targets() -> Vec<(String, u16, &'static str)> {
    let target = |target: &str| get(target, "Host: public.test\r\n");
    let ws = |from: &str, to: &str| upgrade("/x").replace(from, to);
    vec![
        // Absolute targets: they must say the same, and never overrule.
        (target("http://public.test/x"), 200, "public"),
        (target("http://PUBLIC.test/x"), 200, "public"),
        (target("http://public.test"), 200, "public"),
        (target("http://public.test?q=1"), 200, "public"),
        (target("http://inner.test/x"), 400, ""),
        (target("http://public.test:81/x"), 400, ""),
        (target("http://user@public.test/x"), 400, ""),
        (target("http://public.test@inner.test/x"), 400, ""),
        (target("ftp://public.test/x"), 400, ""),
        (target("file:///etc/passwd"), 400, ""),
        (target("http:///x"), 400, ""),
        (target("http://"), 400, ""),
        (target("http:/x"), 400, ""),
        (get("http://inner.test/x", ""), 400, ""),
        ("GET http://inner.test/x HTTP/1.0\r\n\r\n".to_owned(), 200, "inner"),
        ("GET http://inner.test/x HTTP/1.0\r\nHost: public.test\r\n\r\n".to_owned(), 400, ""),
        // Two slashes are a path here, and no name.
        (target("//inner.test/x"), 200, "public"),
        (target("/http://inner.test/x"), 200, "public"),
        // Authority and asterisk form.
        (get("inner.test:80", "Host: inner.test:80\r\n").replace("GET", "CONNECT"), 405, ""),
        (get("/x", "Host: public.test\r\n").replace("GET", "CONNECT"), 405, ""),
        (target("inner.test:80"), 400, ""),
        (target("public.test"), 400, ""),
        (target("*"), 400, ""),
        (target("*").replace("GET", "OPTIONS"), 200, "public"),
        (target("*x").replace("GET", "OPTIONS"), 400, ""),
        (target("/x").replace("GET", "TRACE"), 405, ""),
        (target("x"), 400, ""),
        (target("?x"), 400, ""),
        (target("#x"), 400, ""),
        (target("\\x"), 400, ""),
        (target("/x#inner"), 400, ""),
        (target("/x y"), 505, ""),
        (target("/x\ty"), 400, ""),
        (target("/x\u{e9}"), 200, "public"),
        (target("/x?f={\"a\":1}|^`<>"), 200, "public"),
        (target("/x\u{7f}"), 400, ""),
        (target("/public/../inner"), 400, ""),
        (target("/public/%2e%2E/inner"), 400, ""),
        (target("/public/./x"), 400, ""),
        // Line ends in percent signs stay what they are.
        (target("/x%0d%0aHost:%20inner.test?y=%0d%0a"), 200, "public"),
        // And the same for a handshake.
        (ws("Host: a", "Host: public.test\r\nHost: inner.test"), 400, ""),
        (ws("Host: a\r\n", ""), 400, ""),
        (ws("Host: a", "Host: other.test"), 404, ""),
        (ws("/x", "http://inner.test/x").replace("Host: a", "Host: public.test"), 400, ""),
        (ws("/x", "inner.test:80").replace("Host: a", "Host: public.test"), 400, ""),
    ]
}

#[tokio::test]
async fn games_with_hosts_and_targets() {
    let (public, inner) = (Recorder::start(app).await, Recorder::start(app).await);
    let listen = Port::free();
    let servers = |of: &Recorder| format!("[\"{}\"]", of.addr());
    let mut process = Spec::text("proxy", CONF)
        .set("proxy.upstream.public.servers", servers(&public))
        .set("proxy.upstream.inner.servers", servers(&inner))
        .set("proxy.max_connections_per_ip", 0)
        .set("proxy.keepalive_timeout", "500ms")
        .set("proxy.drain.timeout", "1s")
        .start(&[("proxy.listen", &listen)])
        .await;
    let rows = [hosts(), targets()].concat();
    let addr = listen.addr();
    // Each is told from the others by a header of its own.
    let answers = join_all(rows.iter().enumerate().map(|(n, (sent, ..))| {
        let sent = sent.replacen("\r\n", &format!("\r\nX-Row: {n}\r\n"), 1);
        async move { exchange(addr, Ipv4Addr::LOCALHOST, sent.as_bytes()).await }
    }))
    .await;
    process.signal(nix::sys::signal::Signal::SIGTERM);
    process.exit().await;
    public.ended().await;
    inner.ended().await;
    let saw = |server: &Recorder, n: usize| {
        let row = n.to_string();
        server.requests().iter().filter(|r| r.values("x-row") == [row.as_str()]).count()
    };
    let mut wrong = Vec::new();
    for (n, ((sent, status, server), answer)) in rows.iter().zip(&answers).enumerate() {
        let expected = (usize::from(*server == "public"), usize::from(*server == "inner"));
        let (seen, statuses) = ((saw(&public, n), saw(&inner, n)), statuses(answer));
        if statuses != [*status] || seen != expected {
            wrong.push(format!("{sent:?}: {statuses:?}, not {status}; (public, inner) saw {seen:?}"));
        }
    }
    for server in [&public, &inner] {
        assert!(server.connections().iter().all(|c| c.odd.is_empty()), "{:?}", server.connections());
        assert!(server.requests().iter().all(|r| r.values("host").len() == 1 || r.head.contains("HTTP/1.0")));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// What clients say of themselves, in all the ways there are, for a request and for a handshake.
const FORGED: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7, 127.0.0.1\r\nx_forwarded_for: 6.6.6.6\r\n\
    X_Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nforwarded: for=\"[6::6]\";proto=https\r\nX-Real-IP: 6.6.6.6\r\n\
    X_Real_IP: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX_FORWARDED_PROTO: https\r\nX-Forwarded-Host: inner.6.6.6.6\r\n\
    X_Forwarded_Host: inner.6.6.6.6\r\nX-Forwarded-Port: 6666\r\nX-Request-Id: 6666666666666666\r\n\
    X_Request_Id: 6666666666666666\r\nContent_Length: 66\r\nTransfer_Encoding: 6.6.6.6\r\n";

#[tokio::test]
async fn forged_addresses_are_overwritten() {
    let edge = Edge::start(&[("proxy.trusted", "[\"127.0.0.2/32\", \"10.0.0.0/8\"]")], app).await;
    let plain = get("/forged", &format!("Host: a\r\n{FORGED}"));
    // A header of ours that is named a hop-by-hop one would be taken off by the next that obeys it.
    let hop = plain.replace("Connection: close", "Connection: close, X-Forwarded-For, X-Request-Id, Host");
    let ws = upgrade("/forged").replace("Host: a\r\n", &format!("Host: a\r\n{FORGED}"));
    let ws_hop = ws.replace("Connection: Upgrade", "Connection: Upgrade, X-Forwarded-For, X-Real-IP");
    for (sent, status) in [(plain, 200), (hop, 200), (ws, 101), (ws_hop, 101)] {
        assert_eq!(ask(&edge, Ipv4Addr::new(127, 0, 0, 3), &sent).await, status);
    }
    // From a trusted peer the rightmost address that is not trusted counts.
    for (chain, client) in [
        ("9.9.9.9", "9.9.9.9"),
        ("6.6.6.6, 9.9.9.9", "9.9.9.9"),
        ("6.6.6.6, 9.9.9.9, 10.1.2.3", "9.9.9.9"),
        ("6.6.6.6, unknown, 10.1.2.3", "10.1.2.3"),
        ("[2001:db8::9]:443, 10.1.2.3", "2001:db8::9"),
        ("", "127.0.0.2"),
    ] {
        for (name, status) in [(get("/chain", "Host: a\r\n"), 200), (upgrade("/chain"), 101)] {
            let sent = name.replacen(
                "Host: a\r\n",
                &format!("Host: a\r\nX-Forwarded-For: {chain}\r\nX-Want: {client}\r\n"),
                1,
            );
            assert_eq!(ask(&edge, Ipv4Addr::new(127, 0, 0, 2), &sent).await, status);
        }
    }
    let requests: Vec<Request> = edge.finish().await.into_iter().flat_map(|c| c.requests).collect();
    assert_eq!(requests.len(), 4 + 12, "{requests:?}");
    for request in requests {
        let head = &request.head;
        let client = request.values("x-want").first().copied().unwrap_or("127.0.0.3");
        assert_eq!(request.values("x-forwarded-for"), [client], "{head}");
        assert_eq!(request.values("x-request-id").len(), 1, "{head}");
        assert_eq!(request.values("host"), ["a"], "{head}");
        if request.target() == "/forged" {
            assert_eq!(request.values("x-forwarded-proto"), ["http"], "{head}");
            for forged in ["6.6.6.6", "6::6", "7.7.7.7", "https", "6666"] {
                assert!(!head.contains(forged), "{forged}: {head}");
            }
        }
    }
}

/// The status; a tunnel is ended from this side.
async fn ask(edge: &Edge, source: Ipv4Addr, sent: &str) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let mut tcp = socket.connect(edge.addr()).await.unwrap();
    tcp.write_all(sent.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    weir_tests::within("an answer", async {
        while !got.windows(4).any(|w| w == b"\r\n\r\n") {
            assert_ne!(tcp.read_buf(&mut got).await.unwrap(), 0, "no answer");
        }
    })
    .await;
    String::from_utf8_lossy(&got[9..12]).parse().unwrap()
}

/// Where nobody configured the PROXY protocol its bytes are no request, whatever they claim.
#[tokio::test]
async fn the_proxy_protocol_from_strangers_is_no_request() {
    let edge = Edge::start(&[], app).await;
    let get = b"GET /proxied HTTP/1.1\r\nHost: a\r\n\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x06\x06\x06\x06\x7f\0\0\x01\x10\x10\x1f\x90";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let bomb = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff";
    for header in [&b"PROXY TCP4 6.6.6.6 127.0.0.1 4112 8080\r\n"[..], b"PROXY UNKNOWN\r\n", v2, local, bomb]
    {
        let got = edge.send(&[header, get].concat()).await;
        // Its first line's last word stands where the version should.
        assert!(
            matches!(statuses(&got)[..], [400 | 505]),
            "{}: {}",
            header.escape_ascii(),
            got.escape_ascii()
        );
    }
    edge.assert_serves().await;
    let seen = edge.finish().await;
    assert!(seen.iter().flat_map(|c| &c.requests).all(|r| r.target() != "/proxied"), "{seen:?}");
}
