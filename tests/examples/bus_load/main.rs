//! The loads of `tests/benches/bus.py` and `channels.py`. Each prints `ready`, waits for the line `go` on standard
//! input, and then a line of JSON for what it measured.
//!
//!   bus_load publish weir|redis ADDR [rate=2000] [seconds=10] [channels=50] [size=100] [history=1] [every=0]
//!       A bus alone: publishes at that rate, evenly spaced, and waits for each answer (of Weir that it is kept,
//!       of Redis to how many it went). every=1: a line each second.
//!   bus_load receive weir|redis ADDR [channels=50] [history=1]
//!       The other end, in a process of its own: subscribes, and measures from the publish call to the arrival.
//!       `report` prints and forgets what was measured.
//!   bus_load edge API_ADDR KEY WS_ADDR [rate=2000] [seconds=10] [channels=50] [size=100]
//!       Both ends of two nodes: POST /api/publish at one, one WebSocket at the other.
//!   bus_load channels ADDR [count=100000] [first=0] [size=100] [messages=1] [under_way=64]
//!       A node that subscribes to that many channels with history; then `publish`, `unsubscribe`, `end`.
//!
//! Weir is met through the very code that a node uses (`RemoteBus`), Redis by as few system calls as can be.
//! Times are the wall clock's of one machine, nanoseconds since 1970, the first 8 bytes of each payload.

#![allow(clippy::unwrap_used)]

mod channels;
mod edge;
mod pace;
mod pair;
mod redis;
mod weir;

use std::collections::BTreeMap;
use std::io::BufRead;
use tokio::sync::mpsc;

pub struct Options(BTreeMap<String, f64>);

impl Options {
    fn number(&self, name: &str, default: f64) -> f64 {
        self.0.get(name).copied().unwrap_or(default)
    }

    fn count(&self, name: &str, default: usize) -> usize {
        self.number(name, default as f64) as usize
    }

    fn is_on(&self, name: &str, default: bool) -> bool {
        self.number(name, f64::from(u8::from(default))) > 0.0
    }
}

/// The orders of the script that runs this; a closed one ends it.
pub struct Orders(mpsc::Receiver<String>);

impl Orders {
    fn new() -> Orders {
        let (send, lines) = mpsc::channel(8);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if send.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Orders(lines)
    }

    pub async fn next(&mut self) -> String {
        match self.0.recv().await {
            Some(line) => line,
            None => std::process::exit(0),
        }
    }

    /// Says that all is set up, and waits for `go`.
    pub async fn ready(&mut self) {
        println!("ready");
        assert_eq!(self.next().await, "go");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (numbers, words): (Vec<&String>, Vec<&String>) = args.iter().partition(|a| a.contains('='));
    let numbers = numbers.iter().filter_map(|a| a.split_once('='));
    let options = Options(numbers.map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect());
    let words: Vec<&str> = words.iter().map(|w| w.as_str()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let orders = Orders::new();
        match words[..] {
            ["publish", bus, addr] => pair::publish(bus, addr, &options, orders).await,
            ["receive", bus, addr] => pair::receive(bus, addr, &options, orders).await,
            ["edge", api, key, ws] => edge::run(api, key, ws, &options, orders).await,
            ["channels", addr] => channels::run(addr, &options, orders).await,
            _ => panic!("see the head of tests/examples/bus_load/main.rs"),
        }
    });
}
