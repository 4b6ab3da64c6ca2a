//! Publishers: each has one channel, and repeats a publication with its key until it is acknowledged.

use super::keep_alive::{Failed, KeepAlive};
use super::{Log, Target};
use crate::checker::event::{Event, now_ms};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};

/// Of what a channel is told last: a subscriber that has it has all.
pub const END: &str = "end:";
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub struct Plan {
    pub target: Target,
    pub channels: Vec<String>,
    pub per_channel: usize,
    /// Of all together, a second.
    pub rate: f64,
    /// Names of publishers, and so ids and keys, begin with it.
    pub name: String,
    /// Nobody repeats for longer.
    pub give_up: Duration,
    /// Of one attempt.
    pub deadline: Duration,
}

/// Publishes until told to stop, then tells each channel its end.
pub async fn run(plan: &Plan, log: &Log, stop: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let all = plan.channels.len() * plan.per_channel;
    let every = Duration::from_secs_f64(all as f64 / plan.rate);
    for at in 0..all {
        let channel = plan.channels[at % plan.channels.len()].clone();
        let publisher = Publisher::new(plan, at, channel, log.clone());
        let first = every.mul_f64(at as f64 / all as f64);
        tasks.spawn(publisher.publish_often(every, first, stop.clone()));
    }
    tasks.join_all().await;
    end(plan, log).await;
    log.flush();
}

/// The last word of each channel.
async fn end(plan: &Plan, log: &Log) {
    let mut tasks = JoinSet::new();
    for (at, channel) in plan.channels.iter().enumerate() {
        let mut publisher = Publisher::new(plan, at, channel.clone(), log.clone());
        let id = format!("{END}{}:{channel}", plan.name);
        publisher.name += "-end";
        tasks.spawn(async move { publisher.publish(id).await });
    }
    tasks.join_all().await;
}

struct Publisher {
    name: String,
    channel: String,
    ways: Vec<KeepAlive>,
    /// The way that is tried first.
    home: usize,
    give_up: Duration,
    log: Log,
}

impl Publisher {
    fn new(plan: &Plan, at: usize, channel: String, log: Log) -> Publisher {
        let Target { nodes, api_key } = &plan.target;
        let ways = nodes.iter().map(|node| KeepAlive::to(*node, api_key, plan.deadline)).collect();
        let name = format!("{}{at}", plan.name);
        // Those of one channel begin at different nodes.
        let way = at / plan.channels.len() + at;
        Publisher { name, channel, ways, home: way % nodes.len(), give_up: plan.give_up, log }
    }

    async fn publish_often(mut self, every: Duration, first: Duration, stop: watch::Receiver<bool>) {
        let mut ticks = interval_at(tokio::time::Instant::now() + first, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for n in 1_u64.. {
            ticks.tick().await;
            if *stop.borrow() {
                return;
            }
            self.publish(format!("{}:{n}", self.name)).await;
        }
    }

    async fn publish(&mut self, id: String) {
        let begun = Instant::now();
        let ch = self.channel.clone();
        self.log.add(&Event::Pub { t: now_ms(), id: id.clone(), ch, by: self.name.clone() });
        let request = json!({"channel": self.channel, "data": {"id": id}, "idempotency_key": id});
        let mut pause = PAUSE_MIN;
        for way in self.home.. {
            if self.attempt(way % self.ways.len(), &id, &request).await || begun.elapsed() > self.give_up {
                return;
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether that was its end.
    async fn attempt(&mut self, way: usize, id: &str, request: &serde_json::Value) -> bool {
        let answer = self.ways[way].call("publish", request).await;
        let (t, id) = (now_ms(), id.to_owned());
        let (event, over) = match answer {
            Err(Failed::NotSent(why)) => (Event::Nack { t, id, why: why.to_owned() }, false),
            Err(Failed::Unknown(why)) => (Event::Unknown { t, id, why: why.to_owned() }, false),
            Ok(answer) => match (&answer["result"], answer["error"]["code"].as_u64()) {
                // Worth a retry, and whether it was taken is left open.
                (_, Some(100)) => (Event::Unknown { t, id, why: "error 100".to_owned() }, false),
                (_, Some(code)) => (Event::Nack { t, id, why: format!("error {code}") }, true),
                (result, None) => {
                    let ep = result["epoch"].as_str().unwrap_or_default().to_owned();
                    (Event::Ack { t, id, ep, off: result["offset"].as_u64().unwrap_or_default() }, true)
                }
            },
        };
        self.log.add(&event);
        over
    }
}
