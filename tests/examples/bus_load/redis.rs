//! As much of a Redis client as Pub/Sub takes: `PUBLISH` with its answer, `SUBSCRIBE` and what comes.
//! One task, one write for each message, one read for whatever is there.

use crate::pair::Answers;
use crate::weir;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

pub struct Publisher {
    stream: OwnedWriteHalf,
    /// The stamps of those without an answer.
    waiting: Arc<Mutex<VecDeque<u64>>>,
}

impl Publisher {
    pub async fn connect(addr: &str, answers: Arc<Mutex<Answers>>) -> Publisher {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut read, stream) = stream.into_split();
        let waiting: Arc<Mutex<VecDeque<u64>>> = Arc::default();
        let told = waiting.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            // Each answer is `:1\r\n`.
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                for _ in buffer[..count].iter().filter(|b| **b == b'\n') {
                    let stamp = told.lock().unwrap().pop_front().unwrap();
                    answers.lock().unwrap().latencies.since(stamp);
                }
            }
        });
        Publisher { stream, waiting }
    }

    pub fn publish(&mut self, channel: &str, size: usize) {
        let data = weir::publication(String::new(), size, false).data;
        let mut frame =
            format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), data.len())
                .into_bytes();
        frame.extend_from_slice(&data);
        frame.extend_from_slice(b"\r\n");
        self.waiting.lock().unwrap().push_back(weir::stamp(&data));
        assert_eq!(self.stream.try_write(&frame).unwrap(), frame.len(), "the socket is full");
    }
}

pub struct Subscriber {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Subscriber {
    pub async fn connect(addr: &str, channels: &[String]) -> Subscriber {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut frame = format!("*{}\r\n$9\r\nSUBSCRIBE\r\n", channels.len() + 1);
        channels.iter().for_each(|c| frame += &format!("${}\r\n{c}\r\n", c.len()));
        stream.write_all(frame.as_bytes()).await.unwrap();
        let mut subscriber = Subscriber { stream, buffer: Vec::new() };
        let mut open = channels.len();
        while open > 0 {
            // Each is confirmed with a count: `*3`, the word, the channel, `:n`.
            subscriber.fill().await;
            while let Some(used) = after_lines(&subscriber.buffer, 6) {
                subscriber.buffer.drain(..used);
                open -= 1;
            }
        }
        subscriber
    }

    async fn fill(&mut self) {
        self.buffer.reserve(16 << 10);
        assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "Redis closed");
    }

    /// Reads once, and hands out the payload of each whole message.
    pub async fn read(&mut self, mut message: impl FnMut(&[u8])) {
        self.fill().await;
        let mut at = 0;
        // *3, $7, message, $n, channel, $n, then the payload, which may hold anything.
        while let Some(head) = after_lines(&self.buffer[at..], 6) {
            let line = self.buffer[at..at + head - 2].rsplit(|b| *b == b'$').next().unwrap();
            let size: usize = std::str::from_utf8(line).unwrap().parse().unwrap();
            let Some(data) = self.buffer.get(at + head..at + head + size) else { break };
            if self.buffer.len() < at + head + size + 2 {
                break;
            }
            message(data);
            at += head + size + 2;
        }
        self.buffer.drain(..at);
    }
}

/// Where so many lines end.
fn after_lines(bytes: &[u8], count: usize) -> Option<usize> {
    bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(count - 1).map(|(at, _)| at + 1)
}
