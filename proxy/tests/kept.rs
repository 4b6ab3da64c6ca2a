//! Kept connections to servers: what becomes of a request that meets one closing, how long they are kept, and whose
//! they are where a server authenticates the connection.
#![allow(clippy::unwrap_used)]

#[path = "common/front.rs"]
mod common;

use common::{HANGS, front, head, listener};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Answers so many requests on each connection, reads one more, and closes without a word. What it got is noted.
async fn forgetful(answers: usize) -> (SocketAddr, Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) {
    let (listener, addr) = listener().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let connections = Arc::new(AtomicUsize::new(0));
    let (noted, count) = (seen.clone(), connections.clone());
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            let noted = noted.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let Some(text) = read_request(&mut tcp).await else { return };
                    noted.lock().unwrap().push(text.lines().next().unwrap().to_owned());
                    if n >= answers {
                        return;
                    }
                    tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    (addr, seen, connections)
}

/// A head and, as its length says, a body.
async fn read_request(tcp: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tcp.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).unwrap();
    let length =
        text.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    tcp.read_exact(&mut body).await.ok()?;
    Some(text + &String::from_utf8(body).unwrap())
}

/// One request on a kept connection; its status.
async fn ask(client: &mut TcpStream, request: &str) -> u16 {
    client.write_all(request.as_bytes()).await.unwrap();
    let answer = head(client).await;
    let mut body = vec![0; length(&answer)];
    timeout(HANGS, client.read_exact(&mut body)).await.unwrap().unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn length(answer: &str) -> usize {
    let lower = answer.to_lowercase();
    lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0)
}

fn request(method: &str, body: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn what_may_be_sent_twice_is_sent_again_once_and_nothing_else() {
    for (method, body, again) in [
        ("GET", "", true),
        ("PUT", "small", true),
        ("DELETE", "", true),
        ("OPTIONS", "", true),
        ("POST", "", false),
        ("POST", "some", false),
        ("PATCH", "some", false),
    ] {
        let (server, seen, _) = forgetful(1).await;
        let front = front(&[server], |_| {});
        let first = ask(&mut front.connect().await, &request("GET", "")).await;
        let second = ask(&mut front.connect().await, &request(method, body)).await;
        assert_eq!((first, second), (200, if again { 200 } else { 502 }), "{method}");
        let came = seen.lock().unwrap().iter().filter(|line| line.starts_with(method)).count();
        let expected = if again { 2 } else { 1 } + usize::from(method == "GET");
        assert_eq!(came, expected, "{method}: {:?}", seen.lock().unwrap());
        assert_eq!(front.metrics().contains("upstream_resent_total{upstream=\"app\"} 1"), again, "{method}");
        front.drain.stop();
    }
    // A server that closes on each is asked twice, not for ever.
    let (server, seen, _) = forgetful(0).await;
    let front = front(&[server], |_| {});
    assert_eq!(ask(&mut front.connect().await, &request("GET", "")).await, 502);
    assert_eq!(seen.lock().unwrap().len(), 1, "it was no kept connection");
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_found_before_use_for_any_method() {
    let (listener, server) = listener().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                read_request(&mut tcp).await.unwrap();
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(tcp);
                tell.send(()).unwrap();
            });
        }
    });
    let front = front(&[server], |_| {});
    for n in 0..10 {
        assert_eq!(ask(&mut front.connect().await, &request("POST", "data")).await, 200, "{n}");
        told.recv().await.unwrap();
    }
}

#[tokio::test]
async fn connections_are_kept_for_as_long_as_the_conf_says() {
    for (keep, pause, expected) in [(10_000, 50, 1), (30, 200, 3), (0, 0, 3)] {
        let (server, _, connections) = forgetful(usize::MAX).await;
        let front = front(&[server], |conf| {
            conf.upstream.get_mut("app").unwrap().keepalive_timeout = Duration::from_millis(keep);
        });
        for _ in 0..3 {
            assert_eq!(ask(&mut front.connect().await, &request("POST", "data")).await, 200);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        assert_eq!(connections.load(SeqCst), expected, "kept for {keep} ms");
        front.drain.stop();
    }
}

/// As IIS with NTLM: three legs on one connection, and then whatever comes on it is the user's. Says who it takes a
/// request to be from, and how many connections are open.
async fn ntlm_server() -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, addr) = listener().await;
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let count = count.clone();
            count.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let (mut challenged, mut user) = (false, None);
                while let Some(text) = read_request(&mut tcp).await {
                    let public = text.starts_with("GET /public");
                    let said = text.lines().find_map(|line| line.strip_prefix("Authorization: NTLM "));
                    let (status, more) = match (said, &user) {
                        (Some("negotiate"), _) => {
                            challenged = true;
                            (401, "WWW-Authenticate: NTLM challenge\r\n")
                        }
                        (Some(name), _) if challenged => {
                            user = Some(name.to_owned());
                            (200, "")
                        }
                        (None, None) if !public => (401, "WWW-Authenticate: Basic realm=\"a\", NTLM\r\n"),
                        (None, _) => (200, ""),
                        (Some(_), _) => (401, "WWW-Authenticate: NTLM\r\n"),
                    };
                    let body = user.clone().unwrap_or_else(|| "nobody".to_owned());
                    let answer =
                        format!("HTTP/1.1 {status} X\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len());
                    tcp.write_all(answer.as_bytes()).await.unwrap();
                }
                count.fetch_sub(1, SeqCst);
            });
        }
    });
    (addr, open)
}

async fn says(client: &mut TcpStream, path: &str, authorization: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{authorization}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let answer = head(client).await;
    let mut body = vec![0; length(&answer)];
    timeout(HANGS, client.read_exact(&mut body)).await.unwrap().unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn a_connection_that_a_client_has_authenticated_is_nobody_elses() {
    let (server, open) = ntlm_server().await;
    let front = front(&[server], |_| {});
    let mut alice = front.connect().await;
    let mut bob = front.connect().await;
    let nobody = |status| (status, "nobody".to_owned());
    let is = |name: &str| (200, name.to_owned());
    assert_eq!(says(&mut bob, "/public", "").await, nobody(200));
    for (client, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
        assert_eq!(says(client, "/", "").await, nobody(401));
        assert_eq!(says(client, "/", "Authorization: NTLM negotiate\r\n").await, nobody(401));
        assert_eq!(says(client, "/", &format!("Authorization: NTLM {name}\r\n")).await, is(name));
        // From here on the connection speaks for them, and for nobody else.
        for _ in 0..3 {
            assert_eq!(says(client, "/", "").await, is(name));
            assert_eq!(says(&mut front.connect().await, "/", "").await, nobody(401));
            assert_eq!(says(&mut front.connect().await, "/public", "").await, nobody(200));
        }
    }
    assert_eq!(says(&mut alice, "/", "").await, is("alice"));
    // It closes with its client's connection.
    let before = open.load(SeqCst);
    drop(alice);
    drop(bob);
    let closed = async {
        while open.load(SeqCst) > before - 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(2), closed).await.expect("they close with their clients");
}
