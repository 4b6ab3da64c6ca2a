//! Publishes at a steady pace, by the HTTP API or as a client, and keeps what was acknowledged.

use super::client;
use super::dial::{self, Dialer};
use super::run::Shared;
use super::socket::Socket;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// `{"n":…,"t":…,"p":""}` with the largest numbers.
pub const MIN_SIZE: usize = 60;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Outcome {
    pub published: u64,
    /// Not acknowledged, by cause.
    pub refused: BTreeMap<String, u64>,
    /// Due by the schedule, but not sent before the time was over.
    pub behind: u64,
    pub acknowledged_us: Vec<u64>,
}

impl Outcome {
    fn merge(&mut self, other: Outcome) {
        self.published += other.published;
        self.behind += other.behind;
        self.acknowledged_us.extend(other.acknowledged_us);
        for (cause, n) in other.refused {
            *self.refused.entry(cause).or_default() += n;
        }
    }
}

pub async fn run(shared: &Arc<Shared>) -> Result<Outcome, String> {
    let args = &shared.args;
    if args.rate == 0.0 {
        tokio::time::sleep(args.duration).await;
        return Ok(Outcome::default());
    }
    let count = args.publishers.min(args.channels);
    let mut publishers = Vec::with_capacity(count);
    for _ in 0..count {
        publishers.push(match &args.api {
            Some(base) => Link::Api(Api::connect(base, &args.api_key).await?),
            None => Link::Client(Box::new(ClientLink::connect(shared).await?)),
        });
    }
    let tasks = publishers.into_iter().enumerate().map(|(i, link)| publish_share(shared, link, i, count));
    let mut total = Outcome::default();
    for outcome in futures_util::future::join_all(tasks).await {
        total.merge(outcome?);
    }
    Ok(total)
}

/// One publisher's channels: those whose number modulo `count` is its own.
async fn publish_share(shared: &Shared, mut link: Link, own: usize, count: usize) -> Result<Outcome, String> {
    let args = &shared.args;
    let channels: Vec<usize> = (own..args.channels).step_by(count).collect();
    let names: Vec<String> = channels.iter().map(|c| shared.channel_name(*c)).collect();
    let gap = Duration::from_secs_f64(count as f64 / args.rate);
    let begun = Instant::now();
    let end = begun + args.duration;
    let mut outcome = Outcome::default();
    for i in 0_usize.. {
        let due = begun + gap.mul_f64(i as f64);
        if due >= end {
            break;
        }
        if Instant::now() >= end {
            outcome.behind += ((end - due).as_secs_f64() / gap.as_secs_f64()).ceil() as u64;
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let (channel, name) = (channels[i % channels.len()], &names[i % channels.len()]);
        let top = &shared.tops[channel];
        let n = top.count.load(Relaxed) + 1;
        let sent = shared.elapsed_us();
        let data = stamp(n, sent, args.size);
        let result = tokio::time::timeout(CALL_TIMEOUT, link.publish(name, &data)).await;
        match result.unwrap_or_else(|_| Err("no answer within 10 s".into())) {
            Ok(offset) => {
                top.count.store(n, Relaxed);
                if let Some(offset) = offset {
                    top.offset.store(offset, Relaxed);
                }
                outcome.published += 1;
                outcome.acknowledged_us.push(shared.elapsed_us() - sent);
            }
            Err(cause) => *outcome.refused.entry(cause).or_default() += 1,
        }
    }
    Ok(outcome)
}

fn stamp(n: u64, t: u64, size: usize) -> String {
    let head = format!("{{\"n\":{n},\"t\":{t},\"p\":\"");
    let padding = size.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "x".repeat(padding))
}

enum Link {
    Api(Api),
    Client(Box<ClientLink>),
}

impl Link {
    /// The offset, where the channel keeps history and the way of publishing tells it.
    async fn publish(&mut self, channel: &str, data: &str) -> Result<Option<u64>, String> {
        match self {
            Link::Api(api) => api.publish(channel, data).await,
            Link::Client(client) => client.publish(channel, data).await,
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    id: u64,
    result: Option<Published>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    push: Option<ClientPush<'a>>,
}

#[derive(Deserialize)]
struct Published {
    offset: Option<u64>,
}

#[derive(Deserialize)]
struct ClientPush<'a> {
    #[serde(borrow, rename = "pub")]
    publication: Option<ClientPub<'a>>,
}

#[derive(Deserialize)]
struct ClientPub<'a> {
    offset: Option<u64>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

struct Api {
    sender: SendRequest<Full<Bytes>>,
    uri: String,
    host: String,
    key: String,
}

impl Api {
    async fn connect(base: &str, key: &str) -> Result<Api, String> {
        let uri: http::Uri = base.parse().map_err(|e| format!("--api {base}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("--api {base}: no host"))?;
        let addr = dial::resolve(host, uri.port_u16().unwrap_or(80)).await?;
        let stream = dial::open(addr, None).await.map_err(|e| format!("--api {base}: {e}"))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let path = format!("{}/publish", uri.path().trim_end_matches('/'));
        Ok(Api { sender, uri: path, host: host.to_owned(), key: key.to_owned() })
    }

    async fn publish(&mut self, channel: &str, data: &str) -> Result<Option<u64>, String> {
        let body = format!("{{\"channel\":{channel:?},\"data\":{data}}}");
        let request = http::Request::post(&self.uri)
            .header("host", &self.host)
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .body(Full::from(body))
            .map_err(|e| e.to_string())?;
        self.sender.ready().await.map_err(|e| e.to_string())?;
        let response = self.sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        if !status.is_success() {
            return Err(format!("HTTP {}", status.as_u16()));
        }
        let answer: Answer<'_> = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        match (answer.error, answer.result) {
            (Some(error), _) => Err(error.to_string()),
            (None, Some(published)) => Ok(published.offset),
            (None, None) => Err("neither result nor error".into()),
        }
    }
}

/// A client that subscribes to what it publishes: its own deliveries tell it the offsets.
struct ClientLink {
    socket: Socket,
    /// Holds the connection that the socket is a stream of.
    _dialer: Dialer,
    next_id: u64,
    subscribed: Vec<String>,
}

impl ClientLink {
    async fn connect(shared: &Shared) -> Result<ClientLink, String> {
        let args = &shared.args;
        let dialer = Dialer::new(args)?;
        let mut socket = dialer.open(0, None).await?;
        socket.send(client::connect_command(&args.token)).await?;
        let mut link = ClientLink { socket, _dialer: dialer, next_id: 2, subscribed: Vec::new() };
        link.await_reply(1, None).await?;
        Ok(link)
    }

    async fn publish(&mut self, channel: &str, data: &str) -> Result<Option<u64>, String> {
        if !self.subscribed.iter().any(|c| c == channel) {
            let id = self.send("subscribe", &format!("{{\"channel\":{channel:?}}}")).await?;
            self.await_reply(id, None).await?;
            self.subscribed.push(channel.to_owned());
        }
        let id = self.send("publish", &format!("{{\"channel\":{channel:?},\"data\":{data}}}")).await?;
        self.await_reply(id, Some(data)).await
    }

    async fn send(&mut self, method: &str, params: &str) -> Result<u64, String> {
        let id = self.next_id;
        self.next_id += 1;
        let frame = format!("{{\"id\":{id},{method:?}:{params}}}");
        self.socket.send(frame).await?;
        Ok(id)
    }

    /// Waits for the reply with this id and, where `data` was published, for its own delivery.
    async fn await_reply(&mut self, id: u64, data: Option<&str>) -> Result<Option<u64>, String> {
        let (mut replied, mut delivered) = (false, data.is_none().then_some(None));
        loop {
            if let (true, Some(offset)) = (replied, delivered) {
                return Ok(offset);
            }
            let text = self.socket.next().await?;
            for line in text.split('\n').filter(|l| !l.is_empty()) {
                if line == "{}" {
                    self.socket.send("{}".into()).await?;
                    continue;
                }
                let answer: Answer<'_> = serde_json::from_str(line).map_err(|e| e.to_string())?;
                if answer.id == id {
                    if let Some(error) = answer.error {
                        return Err(error.to_string());
                    }
                    replied = true;
                }
                if let Some(publication) = answer.push.and_then(|p| p.publication)
                    && publication.data.map(RawValue::get) == data
                {
                    delivered = Some(publication.offset);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_has_the_size_asked_for_and_reads_back() {
        for (n, t) in [(1, 0), (u64::MAX, u64::MAX)] {
            let text = stamp(n, t, 128);
            assert_eq!(text.len(), 128);
            let back: client::Stamp = serde_json::from_str(&text).unwrap();
            assert_eq!((back.n, back.t), (n, t));
        }
        assert!(stamp(u64::MAX, u64::MAX, 0).len() <= MIN_SIZE);
    }
}
