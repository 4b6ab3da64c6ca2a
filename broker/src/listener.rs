//! Where nodes of other processes connect: accepts, has each prove itself, and serves its link.

mod outlet;
mod session;

use crate::engine::Engine;
use crate::error::BindError;
use crate::link::{FrameReader, HANDSHAKE_DEADLINE, LinkError, write_frame};
use crate::metrics::Cause;
use crate::proof::Transcript;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weir_core::backoff::Backoff;
use weir_core::drain::Drain;
use weir_wire::peer::{Bye, Challenge, FromBroker, FromNode, HELLO_SIZE, Hello, NAME_SIZE, NODE_PROOF};

/// Connections that have not proved themselves yet; over it new ones are closed.
const MAX_UNPROVEN: usize = 64;
/// After an error of accept, such as too many open files.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// For all links to say goodbye.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

pub struct Listener {
    socket: std::net::TcpListener,
    addr: SocketAddr,
}

impl Listener {
    pub fn bind(conf: &weir_conf::broker::Broker) -> Result<Listener, BindError> {
        let addr = conf.listen;
        if conf.secret.is_empty() && !addr.ip().is_loopback() {
            return Err(BindError::SecretNeeded(addr));
        }
        let bound = std::net::TcpListener::bind(addr).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(Listener { addr: socket.local_addr()?, socket })
        });
        bound.map_err(|source| BindError::Listen { addr, source })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves nodes until the drain has begun; then says goodbye to all.
    pub async fn run(self, engine: Arc<Engine>, drain: Drain) {
        let socket = match TcpListener::from_std(self.socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%error, "broker.listen cannot be served"),
        };
        let unproven = Arc::new(Semaphore::new(MAX_UNPROVEN));
        let (mut links, mut rng) = (JoinSet::new(), SmallRng::from_os_rng());
        let mut pause = Backoff::new(ACCEPT_PAUSE.0, ACCEPT_PAUSE.1);
        loop {
            let accepted = tokio::select! {
                () = drain.begun() => break,
                accepted = socket.accept() => accepted,
                Some(_) = links.join_next(), if !links.is_empty() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause.reset();
                    let Ok(permit) = unproven.clone().try_acquire_owned() else {
                        refuse(&engine, "unproven");
                        continue;
                    };
                    let (engine, drain) = (engine.clone(), drain.clone());
                    links.spawn(async move { serve(stream, peer, permit, engine, drain).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on broker.listen");
                    refuse(&engine, "accept");
                    sleep(pause.next(&mut rng)).await;
                }
            }
        }
        drop(socket);
        let all = async { while links.join_next().await.is_some() {} };
        let _the_rest_is_aborted = timeout(STOP_DEADLINE, all).await;
    }
}

fn refuse(engine: &Engine, cause: &'static str) {
    engine.metrics().links_refused.get_or_create(&Cause { cause }).inc();
}

/// A node that proved itself, not yet welcomed.
struct Proven {
    hello: Hello,
    said: Transcript,
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    permit: tokio::sync::OwnedSemaphorePermit,
    engine: Arc<Engine>,
    drain: Drain,
) {
    let _the_link_works_without = stream.set_nodelay(true);
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader::new(reader, HELLO_SIZE);
    let mut who = None;
    let greeted = tokio::select! {
        greeted = timeout(HANDSHAKE_DEADLINE, handshake(&mut reader, &mut writer, &engine, &mut who)) => {
            greeted.unwrap_or(Err(LinkError::Deadline("the handshake")))
        }
        () = drain.begun() => Err(LinkError::Stopping),
    };
    drop(permit);
    match (greeted, who) {
        (Ok(said), Some(hello)) => {
            session::run(Proven { hello, said, reader, writer }, peer, &engine, &drain).await;
        }
        (Err(error), who) => {
            let node = who.as_ref().map(|h| tracing::field::display(h.node));
            let name = who.as_ref().map(|h| h.name.as_str());
            tracing::warn!(%peer, node, name, %error, "a link was refused");
            refuse(&engine, error.cause());
            if let Some(bye) = error.bye() {
                say_bye(&mut writer, bye).await;
            }
        }
        (Ok(_), None) => {}
    }
}

async fn say_bye(writer: &mut OwnedWriteHalf, bye: Bye) {
    // Whoever does not take it has not to be told.
    let _taken = timeout(crate::link::GOODBYE_DEADLINE, write_frame(writer, &FromBroker::Bye(bye))).await;
}

/// Up to the node's proof. `who` is what it calls itself, known before it is proved.
async fn handshake(
    reader: &mut FrameReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    engine: &Engine,
    who: &mut Option<Hello>,
) -> Result<Transcript, LinkError> {
    let FromNode::Hello(hello) = reader.read().await? else { return Err(LinkError::Unexpected("no hello")) };
    if hello.name.len() > NAME_SIZE {
        return Err(LinkError::Unexpected("a name of this length"));
    }
    let secret = engine.conf().secret.reveal();
    let challenge = Challenge { broker: engine.run_id(), nonce: rand::random(), keyed: !secret.is_empty() };
    let said = Transcript::new(&hello, &challenge)?;
    *who = Some(hello);
    write_frame(writer, &FromBroker::Challenge(challenge)).await?;
    match reader.read().await? {
        FromNode::Proof(mac) if said.verify(secret, NODE_PROOF, &mac) => Ok(said),
        FromNode::Proof(_) => Err(LinkError::Secret(
            "the node's secret is wrong or missing (broker.secret, node.broker_secret)",
        )),
        // Why the node goes is in its own log; most often our secret is not its own.
        FromNode::Bye(bye) => Err(LinkError::Bye(bye)),
        _ => Err(LinkError::Unexpected("no proof")),
    }
}
