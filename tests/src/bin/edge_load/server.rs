//! The server: echoes, answers handshakes at its own pace, and counts what it was offered.

use crate::{Failed, field, head, now, say};
use serde_json::json;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, sleep_until};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// What a server saw; lines tell what has changed in a tenth of a second.
#[derive(Default)]
struct Counts {
    offered: Cell<u64>,
    accepted: Cell<u64>,
    open: Cell<i64>,
    slot: Cell<Option<tokio::time::Instant>>,
}

pub async fn run(addr: SocketAddr, rate: Option<f64>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    let listener: TcpListener = socket.listen(4096).unwrap();
    let counts = Rc::new(Counts::default());
    let gap = rate.map(|r| Duration::from_secs_f64(1.0 / r));
    let seen = counts.clone();
    spawn_local(async move {
        let mut before = (0, 0);
        loop {
            sleep(Duration::from_millis(100 - now() % 100)).await;
            let (offered, accepted) = (seen.offered.get(), seen.accepted.get());
            say(&json!({
                "t": now(), "offered": offered - before.0, "accepted": accepted - before.1, "open": seen.open.get()
            }));
            before = (offered, accepted);
        }
    });
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let counts = counts.clone();
        spawn_local(async move {
            let _closed = serve(stream, &counts, gap).await;
        });
    }
}

async fn serve(mut stream: TcpStream, counts: &Counts, gap: Option<Duration>) -> Result<(), Failed> {
    stream.set_nodelay(true)?;
    let (request, _) = head(&mut stream).await?;
    counts.offered.set(counts.offered.get() + 1);
    if let Some(gap) = gap {
        let now = tokio::time::Instant::now();
        let slot = counts.slot.get().map_or(now, |s| s.max(now));
        counts.slot.set(Some(slot + gap));
        sleep_until(slot).await;
    }
    let accept = derive_accept_key(field(&request, "sec-websocket-key").unwrap_or_default().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    counts.accepted.set(counts.accepted.get() + 1);
    counts.open.set(counts.open.get() + 1);
    let end = echo(&mut stream).await;
    counts.open.set(counts.open.get() - 1);
    end
}

/// Small masked frames only, which is what the crowd sends.
async fn echo(stream: &mut TcpStream) -> Result<(), Failed> {
    let mut bytes = Vec::new();
    loop {
        while bytes.len() >= 6 && bytes.len() >= 6 + usize::from(bytes[1] & 0x7f) {
            let frame: Vec<u8> = bytes.drain(..6 + usize::from(bytes[1] & 0x7f)).collect();
            let mut out = vec![frame[0], frame[1] & 0x7f];
            out.extend(frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(b, m)| b ^ m));
            stream.write_all(&out).await?;
            if frame[0] & 0x0f == 8 {
                return Ok(());
            }
        }
        stream.readable().await?;
        let mut scratch = [0; 512];
        match stream.try_read(&mut scratch) {
            Ok(0) => return Ok(()),
            Ok(n) => bytes.extend_from_slice(&scratch[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
}
