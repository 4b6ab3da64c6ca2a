//! A subscriber that does as the published SDKs do: recovers from where it was, at whichever node is up, and
//! believes what it is told.

use super::{Log, Target};
use crate::checker::event::{Event, now_ms};
use crate::client::PATH;
use crate::conf;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const PAUSE: Duration = Duration::from_millis(50);
/// For the handshake, and for each answer.
const DEADLINE: Duration = Duration::from_secs(8);

/// Nodes of these tests ping more often than that.
const SILENCE: Duration = Duration::from_secs(10);

pub struct Subscriber {
    name: String,
    channel: String,
    target: Target,
    log: Log,
    /// Says how far it is: the last id.
    last: watch::Sender<String>,
    /// Epoch and offset.
    at: Option<(String, u64)>,
}

impl Subscriber {
    pub fn new(name: &str, channel: &str, target: &Target, log: &Log) -> Subscriber {
        let (name, channel) = (name.to_owned(), channel.to_owned());
        let (target, log) = (target.clone(), log.clone());
        Subscriber { name, channel, target, log, last: watch::Sender::new(String::new()), at: None }
    }

    pub fn last(&self) -> watch::Receiver<String> {
        self.last.subscribe()
    }

    /// Until its task is aborted.
    pub async fn run(mut self) {
        for turn in rand::random_range(0..self.target.nodes.len()).. {
            let node = self.target.nodes[turn % self.target.nodes.len()];
            if let Ok(Some(link)) = timeout(DEADLINE, Link::open(node)).await {
                let _ended = self.follow(link).await;
            }
            sleep(PAUSE).await;
        }
    }

    /// To the connection's end.
    async fn follow(&mut self, mut link: Link) -> Option<()> {
        let token = conf::jwt(&json!({"sub": self.name}));
        link.send(&json!({"id": 1, "connect": {"token": token}})).await?;
        timeout(DEADLINE, self.answer(&mut link, 1)).await.ok()??.get("connect")?;
        for id in 2_u32.. {
            self.subscribe(&mut link, id).await?;
            self.listen(&mut link).await?;
        }
        None
    }

    /// `None`: refused for now; another node may know better.
    async fn subscribe(&mut self, link: &mut Link, id: u32) -> Option<()> {
        let mut request = json!({"channel": self.channel});
        if let Some((epoch, offset)) = &self.at {
            request = json!({"channel": self.channel, "recover": true, "epoch": epoch, "offset": offset});
        }
        link.send(&json!({"id": id, "subscribe": request})).await?;
        let mut answer = timeout(DEADLINE, self.answer(link, id)).await.ok()??;
        let told = answer.get_mut("subscribe")?.take();
        let (ep, off) = (told["epoch"].as_str()?.to_owned(), told["offset"].as_u64().unwrap_or_default());
        let (was, recovered) = (told["was_recovering"] == true, told["recovered"] == true);
        let (t, c, ch) = (now_ms(), self.name.clone(), self.channel.clone());
        self.log.add(&Event::Sub { t, c, ch, ep: ep.clone(), off, was, recovered });
        self.at = Some((ep, off));
        for publication in told["publications"].as_array().into_iter().flatten() {
            self.got(publication);
        }
        Some(())
    }

    /// Until the server says that its place is lost.
    async fn listen(&mut self, link: &mut Link) -> Option<()> {
        loop {
            let message = link.next().await?;
            if message["push"].get("unsubscribe").is_some() {
                return Some(());
            }
            self.push(&message);
        }
    }

    async fn answer(&mut self, link: &mut Link, id: u32) -> Option<Value> {
        loop {
            let message = link.next().await?;
            if message["id"] == id {
                return Some(message);
            }
            self.push(&message);
        }
    }

    fn push(&mut self, message: &Value) {
        if let Some(publication) = message["push"].get("pub") {
            self.got(publication);
        }
    }

    fn got(&mut self, publication: &Value) {
        let off = publication["offset"].as_u64().unwrap_or_default();
        let id = publication["data"]["id"].as_str().unwrap_or_default().to_owned();
        if let Some((_, at)) = &mut self.at
            && off > 0
        {
            *at = off;
        }
        self.log.add(&Event::Msg {
            t: now_ms(),
            c: self.name.clone(),
            ch: self.channel.clone(),
            off,
            id: id.clone(),
        });
        self.last.send_replace(id);
    }
}

struct Link {
    ws: WebSocketStream<TcpStream>,
    waiting: VecDeque<Value>,
}

impl Link {
    async fn open(node: SocketAddr) -> Option<Link> {
        let stream = TcpStream::connect(node).await.ok()?;
        let (ws, _) = client_async(format!("ws://{node}{PATH}"), stream).await.ok()?;
        Some(Link { ws, waiting: VecDeque::new() })
    }

    async fn send(&mut self, message: &Value) -> Option<()> {
        timeout(DEADLINE, self.ws.send(Message::text(message.to_string()))).await.ok()?.ok()
    }

    /// Pings are answered. `None`: the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            match self.waiting.pop_front() {
                Some(ping) if ping == json!({}) => self.send(&ping).await?,
                Some(message) => return Some(message),
                None => {
                    let frame = timeout(SILENCE, self.ws.next()).await.ok()??.ok()?;
                    let Message::Text(text) = frame else { continue };
                    self.waiting
                        .extend(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
                }
            }
        }
    }
}
