//! Admission over real sockets: who is let in, what the others are told, and what a server gets to see.
#![allow(clippy::unwrap_used)]

#[path = "../common/front.rs"]
mod front;

use front::{Front, HANGS, SWITCH, UPGRADE, exactly, front, head, listener, rest, server};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_conf::proxy::{Admission, ForwardedHeader, Proxy as Conf, ProxyProtocol, Token, TokenPlace};
use weir_conf::units::{Cidr, Rate, Secret};

const SECRET: &str = "a secret of thirty-two characters or more";

fn range(addr: &str, prefix: u8) -> Cidr {
    Cidr { addr: addr.parse().unwrap(), prefix }
}

fn loopback(c: &mut Conf) {
    c.trusted = vec![range("127.0.0.0", 8)];
}

/// With these header lines in place of the forged ones.
fn upgrade(fields: &str) -> String {
    UPGRADE.replace("X-Forwarded-For: 6.6.6.6\r\nX-Request-Id: forged\r\n", fields)
}

fn token(claims: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode("{\"alg\":\"HS256\"}"), URL_SAFE_NO_PAD.encode(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = ring::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn good_token() -> String {
    token("{\"sub\":\"ann\",\"exp\":4102444800}")
}

fn with_token(c: &mut Conf) {
    let token = Token {
        hmac_secret: Secret::new(SECRET.into()),
        from: vec![
            TokenPlace::Authorization,
            TokenPlace::Query("token".into()),
            TokenPlace::Subprotocol("bearer.".into()),
        ],
        claims: [("sub".to_owned(), "X-Auth-Subject".to_owned())].into(),
        ..Token::default()
    };
    c.token.insert("app".into(), token);
    c.route[0].gate.token = Some("app".into());
}

/// What the one server gets of a request that the proxy lets in.
async fn seen(listener: &TcpListener, front: &Front, request: &str) -> String {
    let mut client = front.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut tcp, _) = timeout(HANGS, listener.accept()).await.unwrap().unwrap();
    let seen = head(&mut tcp).await;
    tcp.write_all(SWITCH.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
    seen
}

#[tokio::test]
async fn without_a_good_token_nothing_reaches_the_server() {
    let (listener, addr) = listener().await;
    let front = front(&[addr], with_token);
    let forged = token("{\"sub\":\"root\",\"exp\":4102444800}").replace('.', "x.");
    let mut bodies = Vec::new();
    for fields in [
        String::new(),
        format!("Authorization: Bearer {forged}\r\n"),
        format!("Authorization: Bearer {}\r\n", token("{\"sub\":\"ann\",\"exp\":1}")),
        format!("Authorization: Bearer {}\r\n", token("{\"sub\":\"ann\"}")),
        "X-Auth-Subject: root\r\n".to_owned(),
    ] {
        for request in
            [upgrade(&fields), format!("GET /p HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n")]
        {
            let got = front.ask(&request).await;
            assert!(
                got.starts_with("HTTP/1.1 401 ") && got.contains("Www-Authenticate: Bearer\r\n"),
                "{got}"
            );
            bodies.push(got);
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "one wording");
    assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "asked the server");
}

#[tokio::test]
async fn claims_reach_the_server_and_neither_forgeries_nor_tokens_in_queries_do() {
    let (listener, addr) = listener().await;
    let front = front(&[addr], with_token);
    let token = good_token();
    let forged = "X-Auth-Subject: root\r\nX_Auth_Subject: root\r\nx-auth-SUBJECT: root\r\n";
    for request in [
        upgrade(&format!("{forged}Authorization: Bearer {token}\r\nConnection: X-Auth-Subject\r\n")),
        upgrade(forged).replace("/ws", &format!("/ws?x=1&token={token}")),
        upgrade(&format!("{forged}Sec-WebSocket-Protocol: chat, bearer.{token}\r\n")),
    ] {
        let seen = seen(&listener, &front, &request).await;
        assert!(seen.contains("X-Auth-Subject: ann\r\n") && !seen.contains("root"), "{seen}");
        if !request.contains("Authorization") {
            assert!(!seen.contains(&token), "{seen}");
        }
    }
}

#[tokio::test]
async fn a_route_without_a_token_passes_no_forged_claim_on_either() {
    let (listener, addr) = listener().await;
    let front = front(&[addr], |c| {
        with_token(c);
        c.route[0].gate.token = None;
    });
    let seen = seen(&listener, &front, &upgrade("X-Auth-Subject: root\r\n")).await;
    assert!(!seen.contains("root"), "{seen}");
}

#[tokio::test]
async fn origins_off_the_list_do_not_reach_the_server() {
    let (listener, addr) = listener().await;
    let front = front(&[addr], |c| c.route[0].gate.origins = vec!["https://*.example.com".into()]);
    for origin in ["https://evil.net", "null", "https://a.example.com.evil.net"] {
        let got = front.ask(&upgrade(&format!("Origin: {origin}\r\n"))).await;
        assert!(got.starts_with("HTTP/1.1 403 "), "{origin}: {got}");
    }
    assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "asked the server");
    for fields in ["Origin: https://a.example.com\r\n", ""] {
        seen(&listener, &front, &upgrade(fields)).await;
    }
}

#[tokio::test]
async fn lists_of_addresses_hold_at_accept_behind_a_trusted_peer_and_by_route() {
    let server = server().await;
    let denied = front(&[server], |c| c.deny = vec![range("127.0.0.1", 32)]);
    assert!(rest(&mut denied.connect().await).await.starts_with("HTTP/1.1 403 "), "before a byte is sent");
    let behind = front(&[server], |c| {
        loopback(c);
        c.deny = vec![range("203.0.113.0", 24)];
    });
    let plain = |client: &str| {
        format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n")
    };
    assert!(behind.ask(&plain("203.0.113.9")).await.starts_with("HTTP/1.1 403 "));
    assert!(behind.ask(&plain("198.51.100.1")).await.starts_with("HTTP/1.1 200 "));
    let by_route = front(&[server], |c| {
        loopback(c);
        c.route[0].gate.allow = vec![range("198.51.100.0", 24)];
    });
    assert!(by_route.ask(&plain("203.0.113.9")).await.starts_with("HTTP/1.1 403 "));
    assert!(by_route.ask(&plain("198.51.100.1")).await.starts_with("HTTP/1.1 200 "));
}

/// A header of version 2.
fn v2(client: &str) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    let IpAddr::V4(ip) = client.parse().unwrap() else { panic!("no IPv4") };
    bytes.extend(ip.octets());
    bytes.extend([127, 0, 0, 1, 0, 1, 0, 2]);
    bytes
}

#[tokio::test]
async fn the_proxy_protocol_names_the_peer_and_its_word_on_others_does_not_count() {
    let (listener, addr) = listener().await;
    for mode in [ProxyProtocol::Optional, ProxyProtocol::Required] {
        let front = front(&[addr], |c| {
            loopback(c);
            c.proxy_protocol = mode;
        });
        for header in [b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n".to_vec(), v2("203.0.113.9")] {
            // At every cut: in two writes.
            for cut in [1, header.len() / 2, header.len()] {
                let mut client = front.connect().await;
                client.set_nodelay(true).unwrap();
                client.write_all(&header[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                client.write_all(&header[cut..]).await.unwrap();
                client.write_all(UPGRADE.as_bytes()).await.unwrap();
                let (mut tcp, _) = timeout(HANGS, listener.accept()).await.unwrap().unwrap();
                let seen = head(&mut tcp).await;
                assert!(
                    seen.contains("X-Forwarded-For: 203.0.113.9\r\n") && !seen.contains("6.6.6.6"),
                    "{seen}"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_proxy_protocol_from_strangers_is_a_bad_request_and_garbage_is_closed() {
    let server = server().await;
    let strangers = front(&[server], |c| c.proxy_protocol = ProxyProtocol::Required);
    let v1 = "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert!(strangers.ask(v1).await.starts_with("HTTP/1.1 400 "));
    let mut client = strangers.connect().await;
    client.write_all(&v2("203.0.113.9")).await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
    let front = front(&[server], |c| {
        loopback(c);
        c.proxy_protocol = ProxyProtocol::Required;
    });
    for garbage in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PROXY TCP4 x\r\n", "PROXY "] {
        let start = Instant::now();
        let mut client = front.connect().await;
        client.write_all(garbage.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let _reset_or_closed = timeout(HANGS, client.read_to_end(&mut got)).await.unwrap();
        assert!(got.is_empty() && start.elapsed() < Duration::from_secs(5), "{garbage:?}");
    }
    // The peer itself asks: a health check.
    let mut client = front.connect().await;
    client
        .write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200 "));
    let optional = self::front(&[server], |c| {
        loopback(c);
        c.proxy_protocol = ProxyProtocol::Optional;
    });
    assert!(
        optional
            .ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200 ")
    );
}

#[tokio::test]
async fn forwarded_is_believed_from_trusted_peers_and_written_anew() {
    let (listener, addr) = listener().await;
    let fields =
        "Forwarded: for=6.6.6.6, for=\"203.0.113.9:99\";proto=https\r\nX-Forwarded-For: 198.51.100.1\r\n";
    let stranger = front(&[addr], |c| c.forwarded_header = ForwardedHeader::Forwarded);
    let got = seen(&listener, &stranger, &upgrade(fields)).await;
    assert!(got.contains("X-Forwarded-For: 127.0.0.1\r\n") && !got.contains("\r\nForwarded:"), "{got}");
    let trusted = front(&[addr], |c| {
        loopback(c);
        c.forwarded_header = ForwardedHeader::Forwarded;
    });
    let got = seen(&listener, &trusted, &upgrade(fields)).await;
    assert!(
        got.contains("X-Forwarded-For: 203.0.113.9\r\nX-")
            || got.contains("X-Forwarded-For: 203.0.113.9\r\n"),
        "{got}"
    );
    assert!(got.contains("\r\nForwarded: for=203.0.113.9;proto=https\r\n"), "{got}");
    assert!(got.contains("X-Forwarded-Proto: https\r\n") && !got.contains("6.6.6.6"), "{got}");
    let by_default = front(&[addr], loopback);
    let got = seen(&listener, &by_default, &upgrade(fields)).await;
    assert!(got.contains("X-Forwarded-For: 198.51.100.1\r\n") && !got.contains("\r\nForwarded:"), "{got}");
}

async fn connect_from(source: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    socket.connect(to).await
}

#[tokio::test]
async fn a_flood_from_one_address_does_not_hurt_a_neighbour() {
    let front = front(&[server().await], |c| c.max_connections_per_ip = 20);
    let addr = front.addr;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut tcp = connect_from("127.0.0.2", addr).await.unwrap();
        tcp.write_all(UPGRADE.as_bytes()).await.unwrap();
        assert!(head(&mut tcp).await.starts_with("HTTP/1.1 101 "));
        held.push(tcp);
    }
    // 3,000 over the limit, 100 at a time; each stays until it is closed.
    let mut flood = JoinSet::new();
    for _ in 0..100 {
        flood.spawn(async move {
            for _ in 0..30 {
                let Ok(mut tcp) = connect_from("127.0.0.2", addr).await else { continue };
                let mut got = Vec::new();
                let _closed_or_reset = timeout(HANGS, tcp.read_to_end(&mut got)).await.unwrap();
                let text = String::from_utf8_lossy(&got);
                assert!(got.is_empty() || text.starts_with("HTTP/1.1 503 "), "{text}");
            }
        });
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        let mut neighbour = front.open().await;
        neighbour.write_all(b"hello").await.unwrap();
        assert_eq!(exactly(&mut neighbour, 5).await, b"hello");
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(5), "a neighbour waited {slowest:?}");
    while let Some(done) = flood.join_next().await {
        done.unwrap();
    }
    drop(held);
    // Once they have gone, their address is let in again.
    let again = async {
        loop {
            let mut tcp = connect_from("127.0.0.2", addr).await.unwrap();
            let mut first = [0; 12];
            if tcp.write_all(UPGRADE.as_bytes()).await.is_ok()
                && tcp.read_exact(&mut first).await.is_ok()
                && &first == b"HTTP/1.1 101"
            {
                return;
            }
        }
    };
    timeout(HANGS, again).await.unwrap();
}

#[tokio::test]
async fn the_budget_paces_handshakes_and_tells_the_rest_when_to_come() {
    let rate = 50.0;
    let front = front(&[server().await], |c| {
        c.admission = Admission {
            rate: Some(Rate { per_second: rate }),
            burst: 10,
            max_handshakes: 0,
            max_share_per_ip: 0.5,
            wait: Duration::from_millis(200),
        };
    });
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..100 {
        let mut client = front.connect().await;
        all.spawn(async move {
            client.write_all(UPGRADE.as_bytes()).await.unwrap();
            let answer = head(&mut client).await;
            let told =
                answer.split("Retry-After: ").nth(1).map(|rest| rest.split('\r').next().unwrap().parse());
            (
                answer.split(' ').nth(1).unwrap().to_owned(),
                told.map(|told: Result<u64, _>| told.unwrap()),
                client,
            )
        });
    }
    let answers = all.join_all().await;
    let took = start.elapsed().as_secs_f64();
    let let_in = answers.iter().filter(|(status, ..)| status == "101").count();
    let refused: Vec<u64> =
        answers.iter().filter(|(status, ..)| status == "503").map(|a| a.1.unwrap()).collect();
    assert_eq!(let_in + refused.len(), 100);
    // The burst, what came while all were asking, and what could wait.
    let most = 10.0 + (took + 0.2) * rate + 1.0;
    assert!(let_in >= 20 && let_in as f64 <= most, "{let_in} let in within {took} s");
    assert!(refused.iter().all(|seconds| (1..=5).contains(seconds)), "{refused:?}");
    assert!(refused.iter().any(|seconds| *seconds > 1), "not all in the same second: {refused:?}");
}

#[tokio::test]
async fn each_refusal_is_counted_by_its_cause() {
    let (silent, addr) = listener().await;
    let front = front(&[addr], |c| {
        with_token(c);
        loopback(c);
        c.proxy_protocol = ProxyProtocol::Optional;
        c.deny = vec![range("203.0.113.0", 24)];
        c.route[0].gate.origins = vec!["https://a".into()];
        c.route[0].limits.request_rate = Some(Rate { per_second: 0.001 });
        c.route[0].limits.request_burst = 1;
    });
    let from = |client: &str, fields: &str| upgrade(&format!("X-Forwarded-For: {client}\r\n{fields}"));
    for _ in 0..2 {
        front.ask(&from("203.0.113.9", "")).await;
        front.ask(&from("1.1.1.1", "Origin: https://b\r\n")).await;
    }
    for fields in ["", "Authorization: Bearer x\r\n", "Authorization: Bearer x.y.z\r\n"] {
        front.ask(&from("1.1.1.1", fields)).await;
    }
    let mut garbage = front.connect().await;
    garbage.write_all(b"PROXY TCP9\r\n").await.unwrap();
    let _closed_or_reset = timeout(HANGS, garbage.read(&mut [0])).await.unwrap();
    let plain = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", good_token());
    let _first_is_never_answered = {
        let mut client = front.connect().await;
        client.write_all(plain.as_bytes()).await.unwrap();
        let (tcp, _) = timeout(HANGS, silent.accept()).await.unwrap().unwrap();
        (client, tcp)
    };
    assert!(front.ask(&plain).await.starts_with("HTTP/1.1 429 "));
    for (line, count) in [
        ("refused_total{cause=\"denied\"}", 2),
        ("refused_total{cause=\"origin\"}", 2),
        ("refused_total{cause=\"token\"}", 3),
        ("refused_total{cause=\"request_rate\"}", 1),
        ("refused_total{cause=\"proxy_protocol\"}", 1),
        ("tokens_total{outcome=\"missing\"}", 1),
        ("tokens_total{outcome=\"malformed\"}", 2),
        ("tokens_total{outcome=\"good\"}", 2),
        ("handshakes_total{outcome=\"origin\",transport=\"h1\"}", 2),
    ] {
        let text = front.metrics();
        assert!(text.contains(&format!("weir_proxy_{line} {count}\n")), "{line} {count} in\n{text}");
    }
}

#[tokio::test]
async fn a_tunnel_ends_with_its_token_where_the_conf_says_so() {
    let front = front(&[server().await], |c| {
        with_token(c);
        if let Some(token) = c.token.get_mut("app") {
            (token.close_at_expiry, token.leeway) = (true, Duration::ZERO);
        }
    });
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let exp = since_epoch.as_secs() + 2;
    let start = Instant::now();
    let mut client = front.connect().await;
    let fields =
        format!("Authorization: Bearer {}\r\n", token(&format!("{{\"sub\":\"ann\",\"exp\":{exp}}}")));
    client.write_all(upgrade(&fields).as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
    let mut end = Vec::new();
    timeout(HANGS, client.read_to_end(&mut end)).await.unwrap().unwrap();
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(end[..1], [0x88], "a close frame");
    assert_eq!(u16::from_be_bytes([end[2], end[3]]), 1008);
    assert!(front.metrics().contains("tunnel_ends_total{cause=\"token_expired\",transport=\"h1\"} 1\n"));
}

#[tokio::test]
async fn a_claim_keeps_a_client_on_one_server() {
    let (one, two) = (listener().await, listener().await);
    let front = front(&[one.1, two.1], |c| {
        with_token(c);
        c.route[0].sticky = weir_conf::proxy::Sticky::Claim("sub".into());
    });
    let mut homes = Vec::new();
    for user in 0..40 {
        let token = token(&format!("{{\"sub\":\"user {user}\",\"exp\":4102444800}}"));
        let mut of_user = Vec::new();
        for _ in 0..2 {
            let mut client = front.connect().await;
            client
                .write_all(upgrade(&format!("Authorization: Bearer {token}\r\n")).as_bytes())
                .await
                .unwrap();
            let first = tokio::select! {
                accepted = one.0.accept() => { drop(accepted.unwrap()); true }
                accepted = two.0.accept() => { drop(accepted.unwrap()); false }
            };
            of_user.push(first);
        }
        assert!(of_user.iter().all(|home| *home == of_user[0]), "{user} moved: {of_user:?}");
        homes.push(of_user[0]);
    }
    assert!(homes.contains(&true) && homes.contains(&false), "all on one server: {homes:?}");
}
