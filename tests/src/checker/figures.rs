//! How available it was: silences, and how soon after a mark a channel was served again.

use super::event::Event;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Acknowledgements that were on their way when something was killed come in this time.
const ON_ITS_WAY_MS: u64 = 20;

#[derive(Default)]
pub struct Figures {
    /// A subscriber was told that it did not recover.
    pub resets: u64,
    delivered: u64,
    /// Came without an offset to somebody, and has one besides.
    pub live_and_kept: u64,
    live: u64,
    live_acks: u64,
    attempts: u64,
    failed: BTreeMap<String, u64>,
    channel_of: HashMap<String, String>,
    /// When each channel's publications were acknowledged.
    acks: BTreeMap<String, Vec<u64>>,
    marks: Vec<(u64, String, Vec<String>)>,
}

impl Figures {
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Pub { id, ch, .. } => {
                self.channel_of.insert(id.clone(), ch.clone());
            }
            Event::Ack { t, id, off, .. } => {
                self.attempts += 1;
                self.live_acks += u64::from(*off == 0);
                if let Some(channel) = self.channel_of.get(id) {
                    match self.acks.get_mut(channel) {
                        Some(acks) => acks.push(*t),
                        None => {
                            self.acks.insert(channel.clone(), vec![*t]);
                        }
                    }
                }
            }
            Event::Nack { why, .. } | Event::Unknown { why, .. } => {
                self.attempts += 1;
                *self.failed.entry(why.clone()).or_default() += 1;
            }
            Event::Msg { .. } => self.delivered += 1,
            Event::Mark { t, what, chs } => self.marks.push((*t, what.clone(), chs.clone())),
            Event::Sub { .. } | Event::Gone { .. } | Event::Hist { .. } | Event::Presence { .. } => {}
        }
    }

    /// All is in. Several publishers of a channel may have logs of their own, which were read one after the other.
    pub fn complete(&mut self) {
        self.acks.values_mut().for_each(|acks| acks.sort_unstable());
    }

    /// A place of its own for a message without offset.
    pub fn next_live(&mut self) -> u64 {
        self.live += 1;
        self.live
    }

    /// The longest time without an acknowledgement, of all channels.
    pub fn longest_silence_ms(&self) -> u64 {
        self.silences().into_iter().map(|(_, ms)| ms).max().unwrap_or_default()
    }

    fn silences(&self) -> Vec<(&str, u64)> {
        let longest =
            |acks: &Vec<u64>| acks.windows(2).map(|w| w[1].saturating_sub(w[0])).max().unwrap_or_default();
        self.acks.iter().map(|(channel, acks)| (channel.as_str(), longest(acks))).collect()
    }

    /// For each channel of each such mark: milliseconds until it was served again.
    pub fn first_acks(&self, what: &str) -> Vec<u64> {
        let mut all = Vec::new();
        for (t, _, channels) in self.marks.iter().filter(|(_, w, _)| w == what) {
            let since = t + ON_ITS_WAY_MS;
            let first = |acks: &Vec<u64>| acks.get(acks.partition_point(|at| *at < since)).map(|at| at - t);
            all.extend(channels.iter().filter_map(|channel| self.acks.get(channel).and_then(first)));
        }
        all.sort_unstable();
        all
    }

    pub fn json(&self) -> Value {
        let mut silences = self.silences();
        silences.sort_by_key(|(_, ms)| std::cmp::Reverse(*ms));
        let mut first_acks = serde_json::Map::new();
        for (_, what, _) in &self.marks {
            let all = self.first_acks(what);
            let at = |share: usize| all.get((all.len() * share / 100).min(all.len().saturating_sub(1)));
            first_acks.insert(
                what.clone(),
                json!({"count": all.len(), "p50": at(50), "p99": at(99), "max": all.last()}),
            );
        }
        json!({
            "delivered": self.delivered, "without_offset": self.live, "without_and_with_offset": self.live_and_kept, "acked_without_offset": self.live_acks, "resets": self.resets,
            "attempts": self.attempts, "failed_attempts": self.failed,
            "longest_silence_ms": silences.iter().take(5).collect::<Vec<_>>(), "first_ack_ms": first_acks,
        })
    }
}
