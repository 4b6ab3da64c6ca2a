//! From addresses to a proved link, again and again: each address has its breaker, and between
//! rounds there is a backoff with jitter.

use super::{Event, Shared, live};
use crate::link::{FrameReader, HANDSHAKE_DEADLINE, LinkError, write_frame};
use crate::proof::Transcript;
use crate::socket::{self, ReadSide, WriteSide};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout, timeout_at};
use weir_conf::node::Node;
use weir_core::backoff::Backoff;
use weir_core::breaker::{Breaker, Settings};
use weir_core::drain::Drain;
use weir_wire::codec::MAX_FRAME;
use weir_wire::peer::{
    BROKER_PROOF, Bye, FromBroker, FromNode, HELLO_SIZE, Hello, NAME_SIZE, NODE_PROOF, Welcome,
};

/// Those that make this node speak TLS.
const TLS_KEYS: &str = "node.broker_tls_cert, broker_tls_key and broker_tls_ca";
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const BREAKER: Settings = Settings {
    failures: 3,
    ratio: None,
    open_for: Duration::from_secs(1),
    open_max: Duration::from_secs(5),
    probe_timeout: Duration::from_secs(5),
    probes: 1,
};

/// A broker that proved itself as far as it has to.
pub(super) struct Proven {
    pub welcome: Welcome,
    pub reader: FrameReader<ReadSide>,
    pub writer: WriteSide,
}

/// Until the inbox is dropped or the drain is stopped.
pub(super) async fn keep_connected(shared: Arc<Shared>, conf: Node, events: Sender<Event>, drain: Drain) {
    if conf.brokers.is_empty() {
        tracing::error!("node.brokers is empty and there is no broker in this process");
    }
    let ended = async {
        tokio::select! {
            () = events.closed() => {}
            () = drain.stopped() => {}
        }
    };
    let mut ended = std::pin::pin!(ended);
    let mut link = Connector::new(&conf);
    loop {
        let connected = tokio::select! {
            connected = link.next(&shared, &conf) => connected,
            () = &mut ended => return,
        };
        let error = live::run(&shared, connected, &events, ended.as_mut()).await;
        if matches!(error, LinkError::Stopping) {
            return;
        }
        shared.metrics.failure(error.cause());
        tracing::warn!(node = %shared.node, name = shared.name, %error, "the link to the broker ended");
        if error.is_void() {
            link.stay();
        }
        tokio::select! {
            // A node that does not read its inbox has no use for a link either.
            _gone = events.send(Event::Link(false)) => {}
            () = &mut ended => return,
        }
        // Many nodes lose their broker at the same time.
        tokio::select! {
            () = link.pause() => {}
            () = &mut ended => return,
        }
    }
}

struct Connector {
    targets: Vec<(String, Breaker)>,
    next: usize,
    backoff: Backoff,
    rng: SmallRng,
    /// When the last link came to be: one that ends at once is no success.
    linked: Option<Instant>,
    last_error: String,
}

impl Connector {
    fn new(conf: &Node) -> Connector {
        let mut rng = SmallRng::from_os_rng();
        Connector {
            targets: conf.brokers.iter().map(|b| (b.clone(), Breaker::new(BREAKER))).collect(),
            next: rng.random_range(0..conf.brokers.len().max(1)),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            rng,
            linked: None,
            last_error: String::new(),
        }
    }

    /// The next link is to the same broker, if it can be.
    fn stay(&mut self) {
        self.next += self.targets.len().saturating_sub(1);
    }

    async fn pause(&mut self) {
        if self.linked.take().is_some_and(|at| at.elapsed() > BACKOFF.1) {
            self.backoff.reset();
        }
        sleep(self.backoff.next(&mut self.rng)).await;
    }

    /// The next link, however long it takes.
    async fn next(&mut self, shared: &Shared, conf: &Node) -> Proven {
        loop {
            for _ in 0..self.targets.len() {
                let at = self.next % self.targets.len();
                let (address, breaker) = &mut self.targets[at];
                // Also when this link ends: a broker that hangs accepts connections and answers nothing.
                self.next = at + 1;
                if let Ok(by) = breaker.allow(Instant::now()).leave() {
                    match connect(address, shared, conf).await {
                        Ok(proven) => {
                            breaker.success(Instant::now(), by);
                            tracing::info!(node = %shared.node, name = shared.name, address, "linked to the broker");
                            self.linked = Some(Instant::now());
                            self.last_error.clear();
                            shared.metrics.links.inc();
                            return proven;
                        }
                        Err(error) => {
                            breaker.failure(Instant::now(), by);
                            let address = address.clone();
                            self.failed(shared, &address, &error);
                        }
                    }
                }
            }
            self.pause().await;
        }
    }

    /// Says the same thing once.
    fn failed(&mut self, shared: &Shared, address: &str, error: &LinkError) {
        shared.metrics.failure(error.cause());
        let text = error.to_string();
        if text == self.last_error {
            tracing::debug!(node = %shared.node, address, %error, "still no link to the broker");
        } else {
            tracing::warn!(node = %shared.node, name = shared.name, address, %error, "no link to the broker");
            self.last_error = text;
        }
    }
}

async fn connect(address: &str, shared: &Shared, conf: &Node) -> Result<Proven, LinkError> {
    let stream = timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await;
    let stream =
        stream.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"))??;
    let _the_link_works_without = stream.set_nodelay(true);
    let deadline = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
    let (reader, mut writer) = socket::connected(stream, address, shared.tls.as_ref(), deadline).await?;
    let mut reader = FrameReader::new(reader, HELLO_SIZE);
    let shaken = timeout_at(deadline, handshake(&mut reader, &mut writer, shared, conf)).await;
    match shaken.unwrap_or(Err(LinkError::Deadline("the handshake"))) {
        Ok(welcome) => {
            reader.set_limit(MAX_FRAME);
            Ok(Proven { welcome, reader, writer })
        }
        Err(error) => {
            if let Some(bye) = error.bye() {
                // So that the broker's log tells it too.
                let bye = FromNode::Bye(bye);
                let _taken = timeout(crate::link::GOODBYE_DEADLINE, write_frame(&mut writer, &bye)).await;
            }
            Err(error)
        }
    }
}

async fn handshake(
    reader: &mut FrameReader<ReadSide>,
    writer: &mut WriteSide,
    shared: &Shared,
    conf: &Node,
) -> Result<Welcome, LinkError> {
    let secret = conf.broker_secret.reveal();
    let hello = Hello {
        node: shared.node,
        name: shortened(&shared.name).to_owned(),
        nonce: rand::random(),
        inbox: u32::try_from(shared.inbox_size).unwrap_or(u32::MAX),
    };
    write_frame(writer, &FromNode::Hello(hello.clone())).await?;
    let challenge = match reader.read_first(TLS_KEYS).await? {
        FromBroker::Challenge(challenge) => challenge,
        FromBroker::Bye(bye) => return Err(LinkError::Bye(bye)),
        _ => return Err(LinkError::Unexpected("no challenge")),
    };
    match (challenge.keyed, secret.is_empty()) {
        (false, false) => {
            return Err(LinkError::Secret("node.broker_secret is set, but the broker has no broker.secret"));
        }
        (true, true) => {
            return Err(LinkError::Secret("the broker asks for a secret, and node.broker_secret is unset"));
        }
        _ => {}
    }
    let said = Transcript::new(&hello, &challenge)?;
    write_frame(writer, &FromNode::Proof(said.prove(secret, NODE_PROOF))).await?;
    match reader.read().await? {
        FromBroker::Welcome(welcome) if said.verify(secret, BROKER_PROOF, &welcome.mac) => Ok(welcome),
        FromBroker::Welcome(_) => Err(LinkError::Secret("the broker did not prove that it has our secret")),
        FromBroker::Bye(Bye::Full) => Err(LinkError::Full),
        FromBroker::Bye(bye) => Err(LinkError::Bye(bye)),
        _ => Err(LinkError::Unexpected("no welcome")),
    }
}

fn shortened(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_SIZE)]
}
