//! Brokers with a mesh and no more, a relay that can be cut one way, and a handler that notes all.

use crate::engine::Engine;
use crate::listener::Listener;
use crate::mesh::{Conf, Handler, Identity, Mesh, ReplyTo, Room, Served};
use crate::meta::Versions;
use crate::metrics::Metrics;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use weir_conf::units::Secret;
use weir_core::drain::Drain;
use weir_wire::envelope::Position;
use weir_wire::id::{BrokerId, ShardEpoch};
use weir_wire::mesh::{Delivery, Reply, Request};
use weir_wire::peer::Outcome;
use weir_wire::replica::{Ack, Beat, Message, Place};

/// Far above what anything here takes; only a hang gets there.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future).await.expect("hangs")
}

/// For what no handler is told of.
pub async fn eventually(holds: impl Fn() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[derive(Default)]
pub struct Recorder {
    pub links: Mutex<Vec<(BrokerId, bool)>>,
    pub messages: Mutex<Vec<(BrokerId, u16, u64)>>,
    pub count: AtomicU64,
    pub bytes: AtomicU64,
    pub beats: AtomicU64,
    pub trouble: AtomicU64,
    pub behind: AtomicU64,
    pub resyncs: Mutex<Vec<(usize, bool)>>,
    /// Kept while `hold` is set: their credit is not given back.
    pub rooms: Mutex<Vec<Room>>,
    pub hold: AtomicBool,
    pub delivered: Mutex<Vec<String>>,
    /// Requests that are not answered.
    pub unanswered: Mutex<Vec<ReplyTo>>,
    pub requests: Mutex<Vec<Request>>,
    changed: Notify,
}

impl Recorder {
    /// Waits until something holds that a call to the handler brings about.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if holds() {
                    return;
                }
                changed.await;
            }
        };
        if timeout(Duration::from_secs(30), wait).await.is_err() {
            panic!("{what}: links {:?}", self.links.lock().unwrap());
        }
    }

    /// By the last word on each.
    pub fn is_up(&self, peer: BrokerId) -> bool {
        let links = self.links.lock().unwrap();
        links.iter().rev().find(|(id, _)| *id == peer).is_some_and(|(_, up)| *up)
    }

    fn change(&self) {
        self.changed.notify_waiters();
    }
}

impl Handler for Recorder {
    fn group_call(&self, from: BrokerId, request: Bytes) -> Served {
        Box::pin(async move {
            if request == b"never"[..] {
                std::future::pending::<()>().await;
            }
            [format!("{from} ").as_bytes(), &request].concat().into()
        })
    }

    fn link(&self, peer: BrokerId, up: bool) {
        let mut links = self.links.lock().unwrap();
        let before = links.iter().rev().find(|(id, _)| *id == peer).is_some_and(|(_, up)| *up);
        assert_ne!(before, up, "{peer}: said twice");
        links.push((peer, up));
        drop(links);
        self.change();
    }

    fn replica(&self, from: BrokerId, shard: u16, message: Message) {
        let note = match message {
            Message::Ack(ack) => ack.matched,
            Message::Chunk(chunk) => {
                self.bytes.fetch_add(chunk.data.len() as u64, SeqCst);
                chunk.offset
            }
            Message::Append(append) => append.entries.len() as u64,
            _ => 0,
        };
        if shard != u16::MAX {
            self.messages.lock().unwrap().push((from, shard, note));
        }
        self.count.fetch_add(1, SeqCst);
        self.change();
    }

    fn beats(&self, _: BrokerId, beats: Vec<(u16, Beat)>) {
        self.beats.fetch_add(beats.len() as u64, SeqCst);
        self.change();
    }

    fn trouble(&self, _: BrokerId) {
        self.trouble.fetch_add(1, SeqCst);
        self.change();
    }

    fn request(&self, _: BrokerId, request: Request, _: Instant, reply: ReplyTo) {
        let silent = matches!(&request, Request::Call(weir_wire::entry::Call::Unsubscribe { channel }) if channel == "never");
        self.requests.lock().unwrap().push(request);
        match silent {
            true => self.unanswered.lock().unwrap().push(reply),
            false => reply.send(Reply::Outcome(Outcome::Done)),
        }
        self.change();
    }

    fn delivered(&self, _: BrokerId, delivery: Delivery, room: Room) {
        self.delivered.lock().unwrap().push(delivery.channel);
        if self.hold.load(SeqCst) {
            self.rooms.lock().unwrap().push(room);
        }
        self.change();
    }

    fn resynced(&self, _: BrokerId, positions: Vec<(String, Option<Position>)>, last: bool) {
        self.resyncs.lock().unwrap().push((positions.len(), last));
        self.change();
    }

    fn behind(&self, _: BrokerId) {
        self.behind.fetch_add(1, SeqCst);
        self.change();
    }
}

pub struct Rig {
    pub id: BrokerId,
    pub addr: SocketAddr,
    pub mesh: Mesh,
    pub seen: Arc<Recorder>,
    listener: AbortHandle,
    /// Of its listener.
    pub metrics: Metrics,
    pub drain: Drain,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

pub fn conf(secret: &str) -> Conf {
    Conf { dead_after: Duration::from_millis(800), ..Conf::new(Secret::new(secret.into())) }
}

pub fn broker(id: u64, conf: Conf) -> Rig {
    broker_at(id, 7, conf, "127.0.0.1:0".parse().unwrap())
}

pub fn broker_at(id: u64, cluster: u64, conf: Conf, listen: SocketAddr) -> Rig {
    let broker = weir_conf::broker::Broker {
        listen,
        secret: conf.secret.clone(),
        max_nodes: 1,
        message_size: 1 << 20,
        history_memory: 1 << 20,
        max_channels: 10,
        node_lease: Duration::from_secs(10),
        survey_timeout: Duration::from_secs(1),
        ..weir_conf::Config::default().broker
    };
    let listener = Listener::bind(&broker, conf.tls.clone()).unwrap();
    let addr = listener.local_addr();
    let metrics = Metrics::register(&mut Registry::default());
    let (engine, _receiver) = Engine::new(broker, &[], metrics.clone()).unwrap();
    let identity = Identity {
        id: BrokerId(id),
        cluster,
        name: format!("b{id}"),
        addr: addr.to_string(),
        wire: Versions { min: 1, max: 1 },
    };
    let (seen, drain) = (Arc::new(Recorder::default()), Drain::new());
    let mesh = Mesh::start(conf, identity, seen.clone(), &mut Registry::default(), drain.clone());
    let run = listener.run(engine, Some(mesh.clone()), drain.clone());
    let listener = tokio::spawn(run).abort_handle();
    Rig { id: BrokerId(id), addr, mesh, seen, listener, metrics, drain }
}

/// Every one knows every one.
pub fn introduce(brokers: &[&Rig]) {
    let members: Vec<_> = brokers.iter().map(|b| (b.id, b.addr.to_string())).collect();
    for broker in brokers {
        broker.mesh.set_members(&members);
    }
}

pub async fn all_up(brokers: &[&Rig]) {
    for broker in brokers {
        for other in brokers.iter().filter(|other| other.id != broker.id) {
            let what = format!("{} to {}", broker.id, other.id);
            broker.seen.until(&what, || broker.seen.is_up(other.id)).await;
        }
    }
}

/// Where nobody listens.
pub const NOWHERE: &str = "127.0.0.1:1";

/// A pair of brokers with a link that the first one made.
pub async fn pair(conf: Conf) -> (Rig, Rig) {
    let (a, b) = (broker(1, conf.clone()), broker(2, conf));
    a.mesh.set_members(&[(b.id, b.addr.to_string())]);
    b.mesh.set_members(&[(a.id, NOWHERE.into())]);
    all_up(&[&a, &b]).await;
    (a, b)
}

pub fn ack(n: u64) -> Message {
    let place = Place { epoch: ShardEpoch(1), index: n };
    Message::Ack(Ack { epoch: ShardEpoch(1), session: 1, matched: n, durable: n, last: place, gap: false })
}

/// Passes bytes on, each way for itself.
pub struct Relay {
    pub addr: SocketAddr,
    /// From who dialled to the target, and back: false stops it without a word.
    pub there: watch::Sender<bool>,
    pub back: watch::Sender<bool>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Relay {
        Relay::slow(target, None).await
    }

    /// With so many bytes per second each way, and little that waits in it.
    pub async fn slow(target: SocketAddr, rate: Option<usize>) -> Relay {
        let socket = TcpSocket::new_v4().unwrap();
        if rate.is_some() {
            socket.set_recv_buffer_size(64 << 10).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let socket = socket.listen(16).unwrap();
        let addr = socket.local_addr().unwrap();
        let (there, there_on) = watch::channel(true);
        let (back, back_on) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let Ok(onward) = TcpStream::connect(target).await else { continue };
                let (a, b) = (stream.into_split(), onward.into_split());
                tokio::spawn(pass(a.0, b.1, there_on.clone(), rate));
                tokio::spawn(pass(b.0, a.1, back_on.clone(), rate));
            }
        });
        Relay { addr, there, back }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut on: watch::Receiver<bool>,
    rate: Option<usize>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // What a cut holds back is gone with the connection.
        if on.wait_for(|on| *on).await.is_err() || read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if let Some(rate) = rate {
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
        }
    }
}

/// How often each broker was said to be up.
pub fn ups(rig: &Rig) -> BTreeMap<BrokerId, usize> {
    let mut ups = BTreeMap::new();
    for (id, _) in rig.seen.links.lock().unwrap().iter().filter(|(_, up)| *up) {
        *ups.entry(*id).or_default() += 1;
    }
    ups
}
