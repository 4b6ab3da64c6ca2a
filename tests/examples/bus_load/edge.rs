//! From the API of one node to a WebSocket of another. Both ends are here, so the clock is one.

use crate::pace::{Beat, Latencies, now};
use crate::pair::channel;
use crate::{Options, Orders};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

/// Connections to the API; each has one request under way.
const CONNECTIONS: usize = 16;

struct Measured {
    arrived: RefCell<Latencies>,
    answers: RefCell<Latencies>,
    late: RefCell<Latencies>,
}

pub async fn run(api: &str, key: &str, ws: &str, options: &Options, mut orders: Orders) {
    let (rate, seconds) = (options.number("rate", 2000.0), options.number("seconds", 10.0));
    let (channels, size) = (options.count("channels", 50), options.count("size", 100));
    let measured = Rc::new(Measured {
        arrived: RefCell::default(),
        answers: RefCell::default(),
        late: RefCell::default(),
    });
    let local = LocalSet::new();
    let all = async {
        subscribe(ws, channels, measured.clone()).await;
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(api).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (send, bodies) = mpsc::unbounded_channel();
            tokio::task::spawn_local(post(stream, key.to_owned(), bodies, measured.clone()));
            senders.push(send);
        }
        orders.ready().await;
        let (beat, total, mut sent) = (Beat::new(rate), (rate * seconds) as usize, 0);
        let begun = now();
        while sent < total {
            for _ in 0..beat.next().await.min((total - sent) as u64) {
                sent += 1;
                measured.late.borrow_mut().since(begun + (sent as f64 / rate * 1e9) as u64);
                senders[sent % CONNECTIONS].send((channel(sent % channels), size)).unwrap();
            }
        }
        let done = async {
            while measured.arrived.borrow().count() < total || measured.answers.borrow().count() < total {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _reported = timeout(Duration::from_secs(5), done).await;
        let take = |l: &RefCell<Latencies>| l.borrow_mut().take();
        let (arrived, answers, late) =
            (take(&measured.arrived), take(&measured.answers), take(&measured.late));
        println!("{}", json!({"sent": sent, "arrived": arrived, "answers": answers, "late": late}));
    };
    local.run_until(all).await;
}

/// Publishes one after the other.
async fn post(
    mut stream: TcpStream,
    key: String,
    mut bodies: mpsc::UnboundedReceiver<(String, usize)>,
    measured: Rc<Measured>,
) {
    let mut buffer = Vec::new();
    while let Some((channel, size)) = bodies.recv().await {
        let stamp = now();
        let fill = "x".repeat(size.saturating_sub(32));
        let body = format!(r#"{{"channel":"{channel}","data":{{"t":"{stamp}","x":"{fill}"}}}}"#);
        let length = body.len();
        let request = format!(
            "POST /api/publish HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        buffer.clear();
        loop {
            assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "the node closed");
            if is_whole(&buffer) {
                break;
            }
        }
        let answer = String::from_utf8_lossy(&buffer);
        assert!(answer.contains(r#""offset":"#), "{answer}");
        measured.answers.borrow_mut().since(stamp);
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() == length.unwrap_or(0)
}

/// One client with all channels; its pushes are looked at by a task.
async fn subscribe(ws: &str, channels: usize, measured: Rc<Measured>) {
    let stream = TcpStream::connect(ws).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut socket, _) = client_async(format!("ws://{ws}/connection/websocket"), stream).await.unwrap();
    socket.send(Message::text(r#"{"id":1,"connect":{}}"#)).await.unwrap();
    for number in 0..channels {
        let command = json!({"id": number + 2, "subscribe": {"channel": channel(number)}});
        socket.send(Message::text(command.to_string())).await.unwrap();
    }
    let mut open = channels;
    while open > 0 {
        let text = socket.next().await.unwrap().unwrap().into_text().unwrap();
        assert!(!text.contains("error"), "{text}");
        open -= text.matches("\"subscribe\"").count();
    }
    tokio::task::spawn_local(async move {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else { continue };
            for line in text.lines() {
                match line.split_once(r#""t":""#) {
                    Some((_, rest)) => {
                        let stamp = rest.split('"').next().unwrap().parse().unwrap();
                        measured.arrived.borrow_mut().since(stamp);
                    }
                    None if line == "{}" => socket.send(Message::text("{}")).await.unwrap(),
                    None => {}
                }
            }
        }
    });
}
