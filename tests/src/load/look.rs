//! What is left at the end: each channel's history, whole, and who is there.

use super::keep_alive::KeepAlive;
use super::{Log, Target};
use crate::checker::event::{Event, now_ms};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const PAGE: u64 = 200;
const PAUSE: Duration = Duration::from_millis(50);

/// For presence to become right: those of a node that died are there until its lease is over.
const CONVERGES: Duration = Duration::from_secs(15);

/// Asks one node after the other; an error when nobody had an answer in this time. `clients`: how many must be on
/// each channel, where presence is looked at.
pub async fn look(
    target: &Target,
    channels: &[String],
    clients: Option<usize>,
    within: Duration,
    log: &Log,
) -> Result<(), String> {
    let mut asker = Asker::new(target, within);
    let begun = Instant::now();
    for channel in channels {
        log.add(&asker.history(channel).await?);
        let Some(clients) = clients else { continue };
        let mut users = asker.presence(channel).await?;
        while users.len() != clients && begun.elapsed() < CONVERGES {
            sleep(PAUSE).await;
            users = asker.presence(channel).await?;
        }
        log.add(&Event::Presence { t: now_ms(), ch: channel.clone(), users });
    }
    log.flush();
    Ok(())
}

pub struct Asker {
    ways: Vec<KeepAlive>,
    way: usize,
    within: Duration,
}

impl Asker {
    pub fn new(target: &Target, within: Duration) -> Asker {
        let way = |addr: &std::net::SocketAddr| KeepAlive::to(*addr, &target.api_key, Duration::from_secs(7));
        Asker { ways: target.nodes.iter().map(way).collect(), way: 0, within }
    }

    async fn ask(&mut self, method: &str, request: &Value) -> Result<Value, String> {
        let begun = Instant::now();
        loop {
            let answer = self.ways[self.way].call(method, request).await;
            let last = match answer {
                Ok(answer) if answer.get("result").is_some() => return Ok(answer["result"].clone()),
                Ok(answer) => answer.to_string(),
                Err(failed) => format!("{failed:?}"),
            };
            if begun.elapsed() > self.within {
                return Err(format!("{method} {request}: {last}"));
            }
            self.way = (self.way + 1) % self.ways.len();
            sleep(PAUSE).await;
        }
    }

    async fn history(&mut self, channel: &str) -> Result<Event, String> {
        let mut pubs = Vec::new();
        let mut since = Value::Null;
        loop {
            let mut request = json!({"channel": channel, "limit": PAGE});
            if !since.is_null() {
                request["since"] = since;
            }
            let page = self.ask("history", &request).await?;
            let (ep, off) =
                (page["epoch"].as_str().unwrap_or_default(), page["offset"].as_u64().unwrap_or_default());
            let of = |p: &Value| {
                (
                    p["offset"].as_u64().unwrap_or_default(),
                    p["data"]["id"].as_str().unwrap_or_default().to_owned(),
                )
            };
            let new: Vec<_> = page["publications"].as_array().into_iter().flatten().map(of).collect();
            let full = new.len() as u64 == PAGE;
            pubs.extend(new);
            if !full {
                return Ok(Event::Hist { t: now_ms(), ch: channel.to_owned(), ep: ep.to_owned(), off, pubs });
            }
            since = json!({"epoch": ep, "offset": pubs.last().map(|(offset, _)| *offset)});
        }
    }

    /// Users, one for each of their clients.
    pub async fn presence(&mut self, channel: &str) -> Result<Vec<String>, String> {
        let answer = self.ask("presence", &json!({"channel": channel})).await?;
        let clients = answer["presence"].as_object().into_iter().flatten();
        Ok(clients.map(|(_, info)| info["user"].as_str().unwrap_or_default().to_owned()).collect())
    }
}
