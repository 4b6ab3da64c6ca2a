//! One client of the bench: connects, subscribes, counts what arrives.

use super::dial::{Dialer, source_of};
use super::run::{Phase, Shared};
use super::socket::Socket;
use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client is there for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Normal,
    /// Stops reading once subscribed.
    Stalled,
    /// Reads, but never answers a ping.
    Mute,
}

/// What the clients of one thread saw together.
pub struct Stats {
    pub deliveries: u64,
    pub bytes: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub latency: Histogram<u64>,
    pub connect: Histogram<u64>,
    /// Normal clients that were dropped, by cause.
    pub dropped: BTreeMap<String, u64>,
    pub stalled: BTreeMap<String, u64>,
    pub mute: BTreeMap<String, u64>,
    pub failed_to_connect: BTreeMap<String, u64>,
}

impl Stats {
    pub fn new() -> Stats {
        // Microseconds; auto-resizing, so that nothing is out of range.
        let histogram = || {
            let mut h = Histogram::new(3).unwrap_or_else(|_| unreachable!("3 digits are valid"));
            h.auto(true);
            h
        };
        Stats {
            deliveries: 0,
            bytes: 0,
            lost: 0,
            duplicated: 0,
            latency: histogram(),
            connect: histogram(),
            dropped: BTreeMap::new(),
            stalled: BTreeMap::new(),
            mute: BTreeMap::new(),
            failed_to_connect: BTreeMap::new(),
        }
    }

    pub fn merge(&mut self, other: Stats) {
        self.deliveries += other.deliveries;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        let _same_precision = self.latency.add(other.latency);
        let _same_precision = self.connect.add(other.connect);
        for (into, from) in [
            (&mut self.dropped, other.dropped),
            (&mut self.stalled, other.stalled),
            (&mut self.mute, other.mute),
            (&mut self.failed_to_connect, other.failed_to_connect),
        ] {
            for (cause, n) in from {
                *into.entry(cause).or_default() += n;
            }
        }
    }
}

/// A reply or push, as much of it as the bench looks at.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(default)]
    id: u32,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
    subscribe: Option<Subscribed>,
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, default)]
    channel: Cow<'a, str>,
    #[serde(borrow, rename = "pub")]
    publication: Option<Pub<'a>>,
    #[serde(borrow)]
    unsubscribe: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Pub<'a> {
    #[serde(default)]
    offset: u64,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// What the publishers put into each publication.
#[derive(Deserialize)]
pub struct Stamp {
    /// Counts the publications of this run in this channel, from 1.
    pub n: u64,
    /// Microseconds since the run began.
    pub t: u64,
}

#[derive(Deserialize, Default)]
struct Subscribed {
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    epoch: String,
}

/// How far this client is in one channel.
struct Progress {
    channel: usize,
    name: String,
    subscribed: bool,
    /// Offsets count (the channel has history), or else the publishers' own numbers.
    by_offset: bool,
    last: u64,
}

pub struct Client {
    pub index: usize,
    pub kind: Kind,
    pub shared: Arc<Shared>,
    pub stats: Rc<RefCell<Stats>>,
    pub dialer: Rc<Dialer>,
}

impl Client {
    /// Lives until the run is over or the connection is.
    pub async fn run(self) {
        let begun = self.shared.elapsed_us();
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_and_subscribe()).await;
        let connected = connected.unwrap_or_else(|_| Err("no answer within 30 s".into()));
        let (mut socket, mut progress) = match connected {
            Ok(connected) => connected,
            Err(cause) => {
                *self.stats.borrow_mut().failed_to_connect.entry(cause).or_default() += 1;
                self.shared.failed.fetch_add(1, Relaxed);
                return;
            }
        };
        let took = self.shared.elapsed_us() - begun;
        let _in_range = self.stats.borrow_mut().connect.record(took);
        self.shared.ready.fetch_add(1, Relaxed);
        let mut phase = self.shared.phase.subscribe();
        if self.kind == Kind::Stalled {
            let _ended = phase.wait_for(|p| *p >= Phase::Settling).await;
        }
        let cause = self.receive(&mut socket, &mut progress, &mut phase).await;
        self.account(cause, &progress);
    }

    async fn connect_and_subscribe(&self) -> Result<(Socket, Vec<Progress>), String> {
        let args = &self.shared.args;
        let source = (!args.one_source).then(|| source_of(self.index));
        let mut socket = self.dialer.open(self.index % args.urls.len(), source).await?;
        let names: Vec<usize> = (0..args.subscriptions.min(args.channels))
            .map(|k| (self.index * args.subscriptions + k) % args.channels)
            .collect();
        let mut frame = connect_command(&args.token);
        let mut progress = Vec::with_capacity(names.len());
        for (k, channel) in names.into_iter().enumerate() {
            let name = self.shared.channel_name(channel);
            frame.push_str(&format!("\n{{\"id\":{},\"subscribe\":{{\"channel\":{name:?}}}}}", k + 2));
            progress.push(Progress { channel, name, subscribed: false, by_offset: false, last: 0 });
        }
        socket.send(frame).await?;
        while !progress.iter().all(|p| p.subscribed) {
            let text = socket.next().await?;
            for line in text.split('\n').filter(|l| !l.is_empty()) {
                self.on_reply(line, &mut progress)?;
            }
        }
        Ok((socket, progress))
    }

    fn on_reply(&self, line: &str, progress: &mut [Progress]) -> Result<(), String> {
        let incoming: Incoming<'_> = serde_json::from_str(line).map_err(|e| format!("bad reply: {e}"))?;
        if let Some(error) = incoming.error {
            return Err(format!("error reply {error}"));
        }
        if let Some(push) = &incoming.push {
            self.on_push(push, progress);
        } else if incoming.id >= 2
            && let Some(p) = progress.get_mut(incoming.id as usize - 2)
        {
            let result = incoming.subscribe.unwrap_or_default();
            p.subscribed = true;
            p.by_offset = !result.epoch.is_empty();
            p.last = result.offset;
        }
        Ok(())
    }

    /// Counts publications until the run is over (`None`) or the connection ends (its cause).
    async fn receive(
        &self,
        socket: &mut Socket,
        progress: &mut [Progress],
        phase: &mut tokio::sync::watch::Receiver<Phase>,
    ) -> Option<String> {
        loop {
            let message = tokio::select! {
                biased;
                message = socket.next() => message,
                over = phase.wait_for(|p| *p == Phase::Over) => {
                    drop(over);
                    socket.leave();
                    return None;
                }
            };
            let text = match message {
                Ok(text) => text,
                Err(cause) => return Some(cause),
            };
            self.stats.borrow_mut().bytes += text.len() as u64;
            for line in text.split('\n').filter(|l| !l.is_empty()) {
                if line == "{}" {
                    if self.kind == Kind::Normal
                        && let Err(cause) = socket.send("{}".into()).await
                    {
                        return Some(cause);
                    }
                    continue;
                }
                let Ok(incoming) = serde_json::from_str::<Incoming<'_>>(line) else {
                    return Some("not JSON".into());
                };
                let Some(push) = incoming.push else { continue };
                if let Some(why) = push.unsubscribe {
                    return Some(format!("unsubscribed {why}"));
                }
                self.on_push(&push, progress);
            }
        }
    }

    fn on_push(&self, push: &Push<'_>, progress: &mut [Progress]) {
        let Some(publication) = &push.publication else { return };
        let Some(p) = progress.iter_mut().find(|p| p.name == push.channel) else { return };
        // Someone else's message in the channel: it has an offset, but no stamp of ours.
        let stamp = serde_json::from_str::<Stamp>(publication.data.get()).ok();
        let number = match (p.by_offset, &stamp) {
            (true, _) => publication.offset,
            (false, Some(stamp)) => stamp.n,
            (false, None) => return,
        };
        let mut stats = self.stats.borrow_mut();
        if number <= p.last {
            stats.duplicated += 1;
            return;
        }
        if self.kind == Kind::Normal {
            stats.lost += number - p.last - 1;
            stats.deliveries += 1;
            if let Some(stamp) = stamp {
                let _in_range = stats.latency.record(self.shared.elapsed_us().saturating_sub(stamp.t));
            }
        }
        p.last = number;
        if self.kind == Kind::Normal {
            self.shared.delivered.fetch_add(1, Relaxed);
        }
    }

    /// Whoever was there to the end should have everything.
    fn account(&self, cause: Option<String>, progress: &[Progress]) {
        let mut stats = self.stats.borrow_mut();
        let fates = match self.kind {
            Kind::Normal => &mut stats.dropped,
            Kind::Stalled => &mut stats.stalled,
            Kind::Mute => &mut stats.mute,
        };
        match (cause, self.kind) {
            (Some(cause), _) => *fates.entry(cause).or_default() += 1,
            (None, Kind::Normal) => {
                for p in progress {
                    stats.lost += self.shared.tops[p.channel].last(p.by_offset).saturating_sub(p.last);
                }
            }
            (None, _) => *fates.entry("still connected".into()).or_default() += 1,
        }
    }
}

pub fn connect_command(token: &str) -> String {
    match token.is_empty() {
        true => r#"{"id":1,"connect":{"name":"bench"}}"#.into(),
        false => format!(r#"{{"id":1,"connect":{{"name":"bench","token":{token:?}}}}}"#),
    }
}
