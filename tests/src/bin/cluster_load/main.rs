//! Load for the scripts in `tests/benches` that harm a cluster, and the checker of what came of it.
//!
//!   cluster_load publish LOG nodes=ADDR,ADDR key=API_KEY channels=load:0..50 [rate=500] [per_channel=2] [name=p]
//!           [give_up=60] [deadline=7]
//!       Publishes with idempotency keys, each publication again and again until it is acknowledged. Ends when
//!       standard input does, with a last publication in each channel.
//!   cluster_load look LOG nodes=… key=… channels=… [clients=10] [within=20]
//!       Notes each channel's history, and who is there when that many are.
//!   cluster_load shards channels=… [of=256]
//!       The shard of each channel.
//!   cluster_load check LOG… [epochs_may_end=1] [window=1]
//!       Prints the verdict as JSON; exit code 0 when no promise was broken.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;
use weir_tests::checker::{Checker, Rules};
use weir_tests::load::{Log, Target, look, publisher};

struct Words {
    plain: Vec<String>,
    options: BTreeMap<String, String>,
}

impl Words {
    fn read(words: impl Iterator<Item = String>) -> Words {
        let (mut plain, mut options) = (Vec::new(), BTreeMap::new());
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => {
                    options.insert(key.to_owned(), value.to_owned());
                }
                None => plain.push(word),
            }
        }
        Words { plain, options }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.get(key).map_or(default, |v| v.parse().unwrap_or_else(|e| panic!("{key}={v}: {e}")))
    }

    fn seconds(&self, key: &str, default: f64) -> Duration {
        Duration::from_secs_f64(self.number(key, default))
    }

    fn is_set(&self, key: &str) -> bool {
        self.number(key, 0.0) > 0.0
    }

    /// `load:0..50`: load:0 to load:49.
    fn channels(&self) -> Vec<String> {
        let range = self.get("channels").expect("channels=prefix:0..50");
        let (prefix, numbers) = range.rsplit_once(':').expect("channels=prefix:0..50");
        let (from, to) = numbers.split_once("..").expect("channels=prefix:0..50");
        (from.parse().unwrap()..to.parse::<u32>().unwrap()).map(|n| format!("{prefix}:{n}")).collect()
    }

    fn target(&self) -> Target {
        let nodes =
            self.get("nodes").expect("nodes=ADDR,ADDR").split(',').map(|a| a.parse().unwrap()).collect();
        Target { nodes, api_key: self.get("key").expect("key=API_KEY").to_owned() }
    }
}

fn main() -> ExitCode {
    let words = Words::read(std::env::args().skip(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match words.plain.first().map(String::as_str) {
        Some("publish") => runtime.block_on(publish(&words)),
        Some("look") => return runtime.block_on(look_at(&words)),
        Some("check") => return check(&words),
        Some("shards") => shards(&words),
        other => panic!("{other:?}: publish, look, shards or check"),
    }
    ExitCode::SUCCESS
}

async fn publish(words: &Words) {
    let plan = publisher::Plan {
        target: words.target(),
        channels: words.channels(),
        per_channel: words.number("per_channel", 2.0) as usize,
        rate: words.number("rate", 500.0),
        name: words.get("name").unwrap_or("p").to_owned(),
        give_up: words.seconds("give_up", 60.0),
        deadline: words.seconds("deadline", 7.0),
    };
    let log = Log::create(Path::new(&words.plain[1]));
    let (stop, stopped) = watch::channel(false);
    std::thread::spawn(move || {
        let _ended_or_broken = std::io::stdin().read_to_end(&mut Vec::new());
        stop.send_replace(true);
    });
    publisher::run(&plan, &log, stopped).await;
    println!("{}", json!({"event": "ended"}));
}

async fn look_at(words: &Words) -> ExitCode {
    let log = Log::create(Path::new(&words.plain[1]));
    let within = words.seconds("within", 20.0);
    let clients = words.get("clients").map(|n| n.parse().unwrap());
    match look::look(&words.target(), &words.channels(), clients, within, &log).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn shards(words: &Words) {
    let count = words.number("of", 256.0) as u16;
    let all: BTreeMap<_, _> =
        words.channels().into_iter().map(|c| (c.clone(), weir_wire::entry::shard_of(&c, count))).collect();
    println!("{}", json!(all));
}

fn check(words: &Words) -> ExitCode {
    let rules = Rules { epochs_may_end: words.is_set("epochs_may_end"), window: words.is_set("window") };
    let mut checker = Checker::new(rules);
    for path in &words.plain[1..] {
        if let Err(error) = checker.read(Path::new(path)) {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    }
    let verdict = checker.verdict();
    println!("{:#}", verdict.json());
    if verdict.right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
