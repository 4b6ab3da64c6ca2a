//! What one client cannot spend for all: the breaker of a server judges the server.
#![allow(clippy::unwrap_used)]

#[path = "common/front.rs"]
mod common;

use common::{Front, HANGS, SWITCH, front, head, listener};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_millis(600);

/// What a client does to its server.
#[derive(Clone, Copy, Debug)]
struct Kind {
    websocket: bool,
    path: &'static str,
}

const KINDS: [Kind; 8] = [
    Kind { websocket: false, path: "/slow" },
    Kind { websocket: false, path: "/stream" },
    Kind { websocket: false, path: "/stuck" },
    Kind { websocket: false, path: "/closes" },
    Kind { websocket: true, path: "/slow" },
    Kind { websocket: true, path: "/stream" },
    Kind { websocket: true, path: "/stuck" },
    Kind { websocket: true, path: "/closes" },
];

/// Slow, endless or broken as the path asks for; `stopped`: as one that gets no time from its machine.
async fn server(stopped: tokio::sync::watch::Receiver<bool>) -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                loop {
                    let mut text = Vec::new();
                    while !text.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = tcp.read_u8().await else { return };
                        text.push(byte);
                    }
                    if stopped.wait_for(|stopped| !stopped).await.is_err() {
                        return;
                    }
                    let text = String::from_utf8(text).unwrap();
                    let answer: &[u8] = match text.split(' ').nth(1).unwrap() {
                        "/slow" => b"",
                        "/stream" => b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n",
                        "/stuck" => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\nno",
                        "/closes" => return,
                        _ if text.contains("Upgrade: websocket") => SWITCH.as_bytes(),
                        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                    };
                    if tcp.write_all(answer).await.is_err() {
                        return;
                    }
                    if !answer.ends_with(b"\r\n\r\nok") {
                        let _until_it_closes = tcp.read_u8().await;
                        return;
                    }
                }
            });
        }
    });
    addr
}

fn request(kind: Kind) -> String {
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    format!("GET {} HTTP/1.1\r\nHost: a\r\n{}\r\n", kind.path, if kind.websocket { upgrade } else { "" })
}

async fn connect(front: SocketAddr, ip: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.connect(front).await.unwrap()
}

/// The status, or 0.
async fn ask(front: SocketAddr, ip: &str, kind: Kind) -> u16 {
    let mut client = connect(front, ip).await;
    client.write_all(request(kind).as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match timeout(HANGS, client.read_u8()).await.unwrap() {
            Ok(byte) => text.push(byte),
            Err(_) => return 0,
        }
    }
    std::str::from_utf8(&text).unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn breaker(front: &Front) -> String {
    let text = front.metrics();
    let line = text.lines().find(|line| line.starts_with("weir_proxy_breaker_state{"));
    line.map_or_else(|| "0".to_owned(), |line| line.rsplit_once(' ').unwrap().1.to_owned())
}

fn hasty(servers: &[SocketAddr]) -> Arc<Front> {
    Arc::new(front(servers, |conf| {
        conf.handshake_timeout = PATIENCE;
        conf.breaker.failures = 3;
        conf.breaker.open_for = Duration::from_millis(300);
        conf.breaker.open_max = Duration::from_millis(300);
    }))
}

#[tokio::test]
async fn slow_and_endless_answers_to_one_client_take_a_server_from_nobody() {
    let (_running, stopped) = tokio::sync::watch::channel(false);
    let server = server(stopped).await;
    for quiet in [true, false] {
        for kind in KINDS {
            let front = hasty(&[server]);
            let mut greedy: Vec<_> = (0..10)
                .map(|_| {
                    let addr = front.addr;
                    tokio::spawn(async move { ask(addr, "127.0.0.2", kind).await })
                })
                .collect();
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE * 2 {
                if !quiet {
                    for websocket in [true, false] {
                        let status = ask(front.addr, "127.0.0.3", Kind { websocket, path: "/" }).await;
                        assert_eq!(status, if websocket { 101 } else { 200 }, "beside {kind:?}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(
                    breaker(&front),
                    "0",
                    "{kind:?}, {}",
                    if quiet { "alone" } else { "beside others" }
                );
            }
            greedy.drain(..).for_each(|task| task.abort());
            assert_eq!(
                ask(front.addr, "127.0.0.3", Kind { websocket: true, path: "/" }).await,
                101,
                "{kind:?}"
            );
            front.drain.stop();
        }
    }
}

#[tokio::test]
async fn a_stopped_server_is_out_in_time_whoever_asks_and_for_what() {
    for addresses in [&["127.0.0.2"][..], &["127.0.0.2", "127.0.0.3", "127.0.0.4"]] {
        for websocket in [true, false] {
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let front = hasty(&[server(stopped).await]);
            let kind = Kind { websocket, path: "/" };
            assert_eq!(ask(front.addr, addresses[0], kind).await, if websocket { 101 } else { 200 });
            stop.send(true).unwrap();
            let begun = Instant::now();
            let mut crowd = tokio::task::JoinSet::new();
            for n in 0..9 {
                let (addr, ip) = (front.addr, addresses[n % addresses.len()]);
                crowd.spawn(async move { ask(addr, ip, kind).await });
            }
            while breaker(&front) == "0" {
                assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1), "{addresses:?}, {kind:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(begun.elapsed() >= PATIENCE, "too soon: {:?}", begun.elapsed());
            crowd.abort_all();
            // It goes on, and is taken back though the first that try it ask for what is slow.
            stop.send(false).unwrap();
            tokio::time::sleep(Duration::from_millis(310)).await;
            let addr = front.addr;
            let greedy = tokio::spawn(async move {
                loop {
                    let slow = Kind { websocket: true, path: "/slow" };
                    futures_util::future::join_all((0..5).map(|_| ask(addr, "127.0.0.2", slow))).await;
                }
            });
            let back = async {
                while breaker(&front) != "0" {
                    let _refused_or_served = ask(front.addr, "127.0.0.9", kind).await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(HANGS, back).await.unwrap();
            greedy.abort();
            front.drain.stop();
        }
    }
}

#[tokio::test]
async fn clients_that_leave_or_never_end_their_request_say_nothing_of_a_server() {
    let (_running, stopped) = tokio::sync::watch::channel(false);
    let front = hasty(&[server(stopped).await]);
    let mut held = Vec::new();
    for n in 0..20 {
        let ip = format!("127.0.0.{}", 2 + n % 5);
        let mut client = connect(front.addr, &ip).await;
        let body = "POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf";
        client.write_all(body.as_bytes()).await.unwrap();
        held.push(client);
        let mut client = connect(front.addr, &ip).await;
        client.write_all(request(Kind { websocket: n % 2 == 0, path: "/slow" }).as_bytes()).await.unwrap();
        drop(client);
    }
    tokio::time::sleep(PATIENCE * 2).await;
    assert_eq!(breaker(&front), "0");
    assert_eq!(ask(front.addr, "127.0.0.9", Kind { websocket: false, path: "/" }).await, 200);
}

/// The beginning of an event stream that was asked for as a WebSocket reaches the client at once.
#[tokio::test]
async fn a_refusal_is_passed_on_as_it_comes() {
    let (_running, stopped) = tokio::sync::watch::channel(false);
    let front = hasty(&[server(stopped).await]);
    for (path, status, begins) in [("/stream", "200", &b"data: x\n\n"[..]), ("/stuck", "403", b"no")] {
        let mut client = connect(front.addr, "127.0.0.2").await;
        let begun = Instant::now();
        client.write_all(request(Kind { websocket: true, path }).as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let mut bytes = vec![0; begins.len()];
        timeout(HANGS, client.read_exact(&mut bytes)).await.unwrap().unwrap();
        assert!(bytes == begins && begun.elapsed() < PATIENCE, "{path} after {:?}", begun.elapsed());
        // And it ends, in a while.
        let mut rest = Vec::new();
        timeout(HANGS, client.read_to_end(&mut rest)).await.unwrap().unwrap();
    }
}
