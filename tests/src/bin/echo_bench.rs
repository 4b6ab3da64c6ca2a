//! The two ends of the proxy bench, as lean as can be: a WebSocket echo server, and a client side
//! that keeps one message under way on each of its connections, or just holds them open.
//! Driven by `tests/benches/proxy.py`; prints one line of JSON.
//!
//!   echo_bench server 127.0.0.1:9901
//!   echo_bench load 127.0.0.1:9902 CONNECTIONS SECONDS SIZE    after a second of warming up
//!   echo_bench paced 127.0.0.1:9902 CONNECTIONS SECONDS SIZE RATE    so many messages a second; their latency
//!   echo_bench hold 127.0.0.1:9902 CONNECTIONS                 until standard input ends

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args[i].parse::<usize>().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match args[0].as_str() {
            "server" => server(&args[1]).await,
            "load" => load(&args[1], number(2), number(3), number(4)).await,
            "paced" => paced(&args[1], number(2), number(3), number(4), number(5)).await,
            "hold" => hold(&args[1], number(2)).await,
            other => panic!("{other}: server, load, paced or hold"),
        }
    });
}

async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "closed in the handshake");
    }
    String::from_utf8(bytes).unwrap()
}

async fn server(addr: &str) {
    let listener = TcpListener::bind(addr).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::task::spawn_local(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let request = head(&mut stream).await;
    let key = request.lines().find_map(|l| {
        let (name, value) = l.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    });
    let accept = derive_accept_key(key.unwrap().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        // One message at a time is under way, so a whole frame is all there is.
        let (header, size) = loop {
            match stream.read_buf(&mut buffer).await {
                Ok(1..) => {}
                _ => return,
            }
            if let Some((header, size)) = frame(&buffer)
                && buffer.len() >= header + 4 + size
            {
                break (header, size);
            }
        };
        let mask: [u8; 4] = buffer[header..header + 4].try_into().unwrap();
        let mut out = buffer[..header].to_vec();
        out[1] &= 0x7f;
        out.extend(buffer[header + 4..header + 4 + size].iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

/// Length of a frame's header without its mask, and of its payload.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? & 0x7f {
        126 => Some((4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)))),
        n => Some((2, usize::from(n))),
    }
}

async fn connect(addr: &str, index: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let source = std::net::Ipv4Addr::from_bits(0x7f20_0001 + index as u32 / 100);
    socket.bind((source, 0).into()).unwrap();
    let mut stream = socket.connect(addr.parse().unwrap()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!(
        "GET /echo HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream
}

/// A masked message of this size, and the length of what comes back.
fn message(size: usize) -> (Rc<[u8]>, usize) {
    let mut message = vec![0x82];
    match size {
        0..126 => message.push(0x80 | size as u8),
        _ => {
            message.push(0x80 | 126);
            message.extend_from_slice(&(size as u16).to_be_bytes());
        }
    }
    let answer = message.len() + size;
    message.extend_from_slice(&[1, 2, 3, 4]);
    message.extend(std::iter::repeat_n(b'x', size));
    (message.into(), answer)
}

async fn load(addr: &str, connections: usize, seconds: usize, size: usize) {
    let (message, answer) = message(size);
    let counted = Rc::new(Cell::new(0_u64));
    for index in 0..connections {
        let mut stream = connect(addr, index).await;
        let (message, counted) = (message.clone(), counted.clone());
        tokio::task::spawn_local(async move {
            let mut answer = vec![0; answer];
            loop {
                stream.write_all(&message).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                counted.set(counted.get() + 1);
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (begun, before) = (Instant::now(), counted.get());
    println!("start");
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let messages = counted.get() - before;
    println!("{{\"messages\":{messages},\"seconds\":{}}}", begun.elapsed().as_secs_f64());
}

/// Each connection has its times to send; a message that must wait for the one before counts from its time.
async fn paced(addr: &str, connections: usize, seconds: usize, size: usize, rate: usize) {
    let (message, answer) = message(size);
    let took = Rc::new(RefCell::new(Vec::<Duration>::new()));
    let gap = Duration::from_secs_f64(connections as f64 / rate as f64);
    let begun = tokio::time::Instant::now() + Duration::from_secs(1);
    for index in 0..connections {
        let mut stream = connect(addr, index).await;
        let (message, took) = (message.clone(), took.clone());
        let mut next = begun + gap.mul_f64(index as f64 / connections as f64);
        tokio::task::spawn_local(async move {
            let mut answer = vec![0; answer];
            loop {
                tokio::time::sleep_until(next).await;
                // Timers are as coarse as a millisecond: that much is not the proxy's.
                let start = tokio::time::Instant::now().min(next + Duration::from_millis(1));
                stream.write_all(&message).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                took.borrow_mut().push(start.elapsed());
                next += gap;
            }
        });
    }
    tokio::time::sleep_until(begun + Duration::from_secs(1)).await;
    took.borrow_mut().clear();
    println!("start");
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let mut took = took.take();
    took.sort();
    let us =
        |share: usize| took.get(took.len() * share / 1000).or(took.last()).map(|d| d.as_secs_f64() * 1e6);
    println!(
        "{{\"messages\":{},\"p50\":{:?},\"p99\":{:?}}}",
        took.len(),
        us(500).unwrap_or(0.0),
        us(990).unwrap_or(0.0)
    );
}

async fn hold(addr: &str, connections: usize) {
    let mut held = Vec::with_capacity(connections);
    let begun = Instant::now();
    for index in 0..connections {
        held.push(connect(addr, index).await);
    }
    println!("{{\"connections\":{connections},\"seconds\":{}}}", begun.elapsed().as_secs_f64());
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await.unwrap().unwrap();
}
