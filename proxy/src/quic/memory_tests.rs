//! What an idle connection holds, roughly. Run by hand; the clients are a process of their own:
//!
//! `cargo test -p weir-proxy --lib quic::memory_tests::an_idle_connection -- --ignored --nocapture`

use super::tests::{Cert, Echo, Line, Served, client, client_tls, conf, connect};
use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::time::{Duration, sleep};

const CLIENTS: i64 = 1000;
const ADDR: &str = "WEIR_TEST_ADDR";
const CERT: &str = "WEIR_TEST_CERT";

fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

#[tokio::test]
#[ignore = "a measurement"]
async fn an_idle_connection() {
    let cert = Cert::new(0);
    let served = Served::start(&conf(), &cert, None, Echo::default());
    let run = |n: i64| {
        Command::new(std::env::current_exe().unwrap())
            .args(["quic::memory_tests::clients", "--exact", "--ignored"])
            .env(ADDR, format!("{} {n}", served.addr()))
            .env(CERT, cert.der.iter().map(|b| format!("{b:02x}")).collect::<String>())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let there = |n: i64| {
        let metrics = &served.metrics;
        async move {
            while metrics.connections.get() != n {
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    // What is taken once, and what the allocator keeps.
    let mut few = run(20);
    there(20).await;
    let before = resident();
    let mut many = run(CLIENTS);
    there(20 + CLIENTS).await;
    for wait in [1, 5, 20] {
        sleep(Duration::from_secs(wait)).await;
        let each = (resident() - before) / CLIENTS;
        println!("after {wait} s more: {each} B a connection with one open stream");
    }
    for child in [&mut few, &mut many] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

/// The other process: opens one stream on each connection, and stays until its input ends.
#[tokio::test]
#[ignore = "run by the measurement"]
async fn clients() {
    let Ok(to) = std::env::var(ADDR) else { return };
    let (addr, count) = to.split_once(' ').unwrap();
    let der = std::env::var(CERT).unwrap();
    let der: Vec<u8> =
        (0..der.len()).step_by(2).map(|at| u8::from_str_radix(&der[at..at + 2], 16).unwrap()).collect();
    let tls = client_tls(CertificateDer::from(der));
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let client = client();
    let mut open = Vec::new();
    for _ in 0..count.parse().unwrap() {
        let connection = connect(&client, config.clone(), addr.parse().unwrap()).await;
        let line = Line::open(&connection).await;
        open.push((connection, line));
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await.unwrap().unwrap();
}
