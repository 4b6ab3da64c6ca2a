//! The proxy over real sockets: what a client and a server see of it.
#![allow(clippy::unwrap_used)]

#[path = "common/front.rs"]
mod front;

use front::{
    HANGS, SWITCH, UPGRADE, answers, exactly, front, front_with, head, listener, nowhere, rest, server,
};

use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use weir_conf::proxy::Proxy as Conf;
use weir_core::accept::{Acceptor, Request};
use weir_proxy::LocalNode;

#[tokio::test]
async fn three_hundred_upgrades_one_after_the_other_all_hold() {
    let front = front(&[server().await], |_| {});
    for n in 0..300 {
        let mut client = front.open().await;
        for word in [b"hello", b"again"] {
            client.write_all(word).await.unwrap();
            assert_eq!(exactly(&mut client, 5).await, word, "{n}");
        }
    }
}

#[tokio::test]
async fn plain_requests_keep_the_connection_and_an_upgrade_may_follow() {
    let front = front(&[server().await], |_| {});
    let mut client = front.connect().await;
    let plain = "POST /p HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nX-Request-Id: forged\r\n\
        Content-Length: 5\r\n\r\nBODY!";
    for _ in 0..2 {
        client.write_all(plain.as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let length = answer.to_ascii_lowercase();
        let length = length.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        let seen = String::from_utf8(exactly(&mut client, length.parse().unwrap()).await).unwrap();
        assert!(seen.ends_with("BODY!") && seen.contains("X-Forwarded-For: 127.0.0.1\r\n"), "{seen}");
        assert!(!seen.contains("6.6.6.6") && !seen.contains("forged"), "{seen}");
        assert!(seen.contains("X-Forwarded-Proto: http\r\n") && seen.contains("X-Request-Id: "), "{seen}");
    }
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
    client.write_all(b"ping").await.unwrap();
    assert_eq!(exactly(&mut client, 4).await, b"ping");
}

#[tokio::test]
async fn what_a_tunnelled_client_forges_is_overwritten() {
    let (listener, addr) = listener().await;
    let front = front(&[addr], |_| {});
    let mut client = front.connect().await;
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let seen = head(&mut listener.accept().await.unwrap().0).await;
    assert!(seen.contains("X-Forwarded-For: 127.0.0.1\r\n") && seen.contains("X-Forwarded-Proto: http\r\n"));
    assert!(!seen.contains("6.6.6.6") && !seen.contains("forged"), "{seen}");
}

#[tokio::test]
async fn a_false_switch_is_502_and_nothing_after_the_request_leaks() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    ] {
        let (addr, leaked) = answers(answer).await;
        let front = front(&[addr], |_| {});
        let got = front.ask(&format!("{UPGRADE}GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(got.starts_with("HTTP/1.1 502 ") && !got.contains(" 101 "), "{got}");
        assert_eq!(leaked.await.unwrap(), "");
    }
}

#[tokio::test]
async fn an_ordinary_answer_is_passed_on_and_the_connection_ends() {
    let (addr, leaked) = answers("HTTP/1.1 403 Forbidden\r\nX-Why: no\r\nContent-Length: 2\r\n\r\nno").await;
    let front = front(&[addr], |_| {});
    let got = front.ask(&format!("{UPGRADE}GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 403 ") && got.ends_with("\r\n\r\nno"), "{got}");
    assert!(got.contains("X-Why: no\r\n") && got.contains("Connection: close\r\n"), "{got}");
    assert_eq!(leaked.await.unwrap(), "");
}

#[tokio::test]
async fn a_silent_server_is_504_and_early_bytes_wait_for_the_switch() {
    let (_silent, addr) = listener().await;
    let impatient = front(&[addr], |c| c.handshake_timeout = Duration::from_millis(50));
    assert!(impatient.ask(UPGRADE).await.starts_with("HTTP/1.1 504 "));
    let (listener, addr) = listener().await;
    let front = front(&[addr], |_| {});
    let mut client = front.connect().await;
    client.write_all(format!("{UPGRADE}early").as_bytes()).await.unwrap();
    let (mut tcp, _) = listener.accept().await.unwrap();
    head(&mut tcp).await;
    let silent = timeout(Duration::from_millis(200), tcp.read_u8()).await;
    assert!(silent.is_err(), "sent before the switch");
    tcp.write_all(format!("{SWITCH}first").as_bytes()).await.unwrap();
    assert_eq!(exactly(&mut tcp, 5).await, b"early");
    head(&mut client).await;
    assert_eq!(exactly(&mut client, 5).await, b"first");
}

#[tokio::test]
async fn bad_heads_get_their_status() {
    let front = front(&[nowhere().await], |c| {
        c.head_timeout = Duration::from_millis(100);
        c.head_size = 1024;
    });
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n", 408),
        (large.as_str(), 431),
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n", 404),
        (&UPGRADE.replace("Host: a", "Host: elsewhere"), 404),
    ] {
        let got = front.ask(request).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {got}");
    }
}

#[tokio::test]
async fn limits_answer_with_a_time_to_come_back() {
    let server = server().await;
    let rate = |c: &mut Conf| {
        c.handshake_rate = Some(weir_conf::units::Rate { per_second: 0.01 });
        c.handshake_burst = 1;
    };
    for (limit, status) in [
        (Box::new(rate) as Box<dyn FnOnce(&mut Conf)>, 429),
        (Box::new(|c: &mut Conf| c.max_connections_per_ip = 1), 503),
        (Box::new(|c: &mut Conf| c.max_connections = 1), 503),
    ] {
        let front = front(&[server], limit);
        let _first = front.open().await;
        let got = front.ask(UPGRADE).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        assert!(got.contains("Retry-After: "), "{got}");
    }
}

#[tokio::test]
async fn a_dead_server_is_passed_over_for_both_kinds_of_request() {
    let servers = [nowhere().await, server().await, nowhere().await];
    let front = front(&servers, |c| c.connect_tries = 3);
    for _ in 0..10 {
        let _open = front.open().await;
        let got = front.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
    }
}

#[tokio::test]
async fn the_breaker_opens_and_lets_a_returning_server_in() {
    let addr = nowhere().await;
    let front = front(&[addr], |c| {
        c.breaker.failures = 2;
        c.breaker.open_for = Duration::from_millis(300);
        c.breaker.open_max = Duration::from_millis(300);
    });
    for _ in 0..3 {
        let got = front.ask(UPGRADE).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("Retry-After: "), "{got}");
    }
    // There again, and still not asked: the breaker is open.
    let listener = TcpListener::bind(addr).await.unwrap();
    assert!(front.ask(UPGRADE).await.starts_with("HTTP/1.1 503 "));
    let probed = async {
        loop {
            let mut client = front.connect().await;
            client.write_all(UPGRADE.as_bytes()).await.unwrap();
            if head(&mut client).await.starts_with("HTTP/1.1 101 ") {
                return;
            }
        }
    };
    let serve = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        head(&mut tcp).await;
        tcp.write_all(SWITCH.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = probed => {}
        () = serve => {}
        () = tokio::time::sleep(HANGS) => panic!("never let in"),
    }
}

#[tokio::test]
async fn a_drain_waits_for_handshakes_under_way() {
    let (listener, addr) = listener().await;
    let front = front(&[addr], |_| {});
    let mut client = front.connect().await;
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let (mut tcp, _) = listener.accept().await.unwrap();
    head(&mut tcp).await;
    front.drain.begin();
    while TcpStream::connect(front.addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    tcp.write_all(SWITCH.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
    drop((client, tcp));
    timeout(HANGS, front.ended).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_ends_tunnels_at_once() {
    let front = front(&[server().await], |c| c.drain.timeout = Duration::from_secs(3600));
    let mut client = front.open().await;
    front.drain.stop();
    // A Close frame with 1012, and no waiting for an answer.
    assert_eq!(exactly(&mut client, 4).await, [0x88, 2, 0x03, 0xf4]);
    assert_eq!(rest(&mut client).await, "");
    timeout(HANGS, front.ended).await.unwrap().unwrap().unwrap();
}

/// Accepts, and echoes on the client's own socket.
struct Echo(tokio::runtime::Handle);

impl Acceptor for Echo {
    fn accept(&self, request: Request) {
        self.0.spawn(async move {
            let permit = request.permit;
            assert_eq!(request.client.to_string(), "127.0.0.1");
            let mut headers = http::HeaderMap::new();
            headers.insert("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".parse().unwrap());
            let stream = request.exchange.accept(headers).await.unwrap();
            let Ok((mut tcp, ahead)) = stream.into_tcp() else { panic!("no socket") };
            tcp.write_all(&ahead).await.unwrap();
            let (mut read, mut write) = tcp.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            drop(permit);
        });
    }
}

#[tokio::test]
async fn the_node_of_this_process_gets_the_socket_itself() {
    let acceptor = Arc::new(Echo(tokio::runtime::Handle::current()));
    let node = LocalNode { acceptor, addr: server().await };
    let front = front_with(&[], Some(node), |_| {});
    let mut client = front.connect().await;
    client.write_all(format!("{UPGRADE}early").as_bytes()).await.unwrap();
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("Upgrade: websocket\r\n"), "{answer}");
    assert_eq!(exactly(&mut client, 5).await, b"early");
    client.write_all(b"later").await.unwrap();
    assert_eq!(exactly(&mut client, 5).await, b"later");
    let got = front.ask("GET /api HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("GET /api HTTP/1.1"), "{got}");
    drop(client);
    front.drain.begin();
    timeout(HANGS, front.ended).await.unwrap().unwrap().unwrap();
}
