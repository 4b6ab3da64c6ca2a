//! Where nodes and brokers of other processes connect: accepts, has each node prove itself, and
//! serves its link. A broker's hello goes on to the mesh.

mod known;
mod outlet;
mod session;

use crate::engine::Engine;
use crate::error::BindError;
use crate::link::{FrameReader, HANDSHAKE_DEADLINE, LinkError, write_frame};
use crate::mesh::{Mesh, Opened};
use crate::metrics::Cause;
use crate::proof::Transcript;
use crate::socket::{self, ReadSide, WriteSide};
use crate::tls::Tls;
pub(crate) use known::Known;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use weir_core::backoff::Backoff;
use weir_core::drain::Drain;
use weir_core::limited;
use weir_core::net::listen;
use weir_core::unproven::{Place, Room, Unproven};
use weir_wire::mesh::Opening;
use weir_wire::peer::{Bye, Challenge, FromBroker, FromNode, HELLO_SIZE, Hello, NAME_SIZE, NODE_PROOF};

/// Connections that have not proved themselves yet: of strangers, and of addresses that one proved itself from, or
/// that stand in the conf. A newcomer takes the place of who has the least to show for itself.
const STRANGERS: Room = Room { total: 256, per_address: 128, time: Duration::ZERO };
const KNOWN: Room = STRANGERS;
/// For the first byte: whoever has connected has nothing to wait for.
const FIRST_BYTE: Duration = Duration::from_secs(2);
/// After an error of accept, such as too many open files.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Those that make this a TLS listener.
pub const TLS_KEYS: &str = "broker.tls_cert, tls_key and tls_ca";
/// For all links to say goodbye.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

pub struct Listener {
    socket: std::net::TcpListener,
    addr: SocketAddr,
    tls: Option<Tls>,
    known: Known,
}

impl Listener {
    /// With `tls`, for whoever has a certificate; it is what the mesh dials with, too.
    pub fn bind(conf: &weir_conf::broker::Broker, tls: Option<Tls>) -> Result<Listener, BindError> {
        let addr = conf.listen;
        if conf.secret.is_empty() && tls.is_none() && !addr.ip().is_loopback() {
            return Err(BindError::SecretNeeded(addr));
        }
        let bound = listen(addr, None).and_then(|socket| {
            Ok(Listener { addr: socket.local_addr()?, socket, tls, known: Known::new(&conf.peers) })
        });
        bound.map_err(|source| BindError::Listen { addr, source })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves nodes, and brokers if there is a mesh, until the drain has begun; then says goodbye
    /// to all.
    pub async fn run(self, engine: Arc<Engine>, mesh: Option<Mesh>, drain: Drain) {
        let socket = match TcpListener::from_std(self.socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%error, "broker.listen cannot be served"),
        };
        let places = Unproven::new(Room::within_reserve(STRANGERS), Room::within_reserve(KNOWN));
        let host = Host { engine, mesh, tls: self.tls, known: Arc::new(self.known), drain };
        let mut looking = JoinSet::new();
        looking.spawn(known::look_up(host.known.clone()));
        let (mut links, mut rng) = (JoinSet::new(), SmallRng::from_os_rng());
        let mut pause = Backoff::new(ACCEPT_PAUSE.0, ACCEPT_PAUSE.1);
        loop {
            let accepted = tokio::select! {
                () = host.drain.begun() => break,
                accepted = socket.accept() => accepted,
                Some(_) = links.join_next(), if !links.is_empty() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause.reset();
                    let known = host.known.contains(peer.ip());
                    // There is always somebody who goes.
                    let Ok((place, _another_one_went)) = places.enter(peer.ip(), known) else { continue };
                    links.spawn(serve(stream, peer, place, host.clone()));
                }
                Err(error) => {
                    limited!(warn, ("broker.listen", "accept"), %error, "accept failed on broker.listen");
                    refuse(&host.engine, "accept");
                    sleep(pause.next(&mut rng)).await;
                }
            }
        }
        drop(socket);
        let all = async { while links.join_next().await.is_some() {} };
        let _the_rest_is_aborted = timeout(STOP_DEADLINE, all).await;
    }
}

/// What each connection needs.
#[derive(Clone)]
struct Host {
    engine: Arc<Engine>,
    mesh: Option<Mesh>,
    tls: Option<Tls>,
    known: Arc<Known>,
    drain: Drain,
}

fn refuse(engine: &Engine, cause: &'static str) {
    engine.metrics().links_refused.get_or_create(&Cause { cause }).inc();
}

/// A node that proved itself, not yet welcomed.
struct Proven {
    hello: Hello,
    said: Transcript,
    reader: FrameReader<ReadSide>,
    writer: WriteSide,
}

async fn serve(stream: TcpStream, peer: SocketAddr, place: Place, host: Host) {
    let Host { engine, mesh, tls, known, drain } = host;
    socket::tune(&stream);
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    let open = async {
        place.first_byte(&stream, FIRST_BYTE).await?;
        socket::accepted(stream, tls.as_ref(), deadline).await
    };
    let opened = tokio::select! {
        opened = open => opened,
        () = place.taken() => Err(LinkError::Displaced),
        () = drain.begun() => Err(LinkError::Stopping),
    };
    let (reader, mut writer) = match opened {
        Ok(opened) => opened,
        Err(error) => return refused(&engine, peer, None, &error),
    };
    let mut reader = FrameReader::new(reader, HELLO_SIZE);
    let mut who = None;
    let greet = async {
        match reader.read_first(TLS_KEYS).await? {
            Opening::Node(hello) => {
                Ok(Ok(handshake(hello, &mut reader, &mut writer, &engine, &mut who).await?))
            }
            Opening::Broker(hello) => Ok(Err(hello)),
        }
    };
    let greeted = tokio::select! {
        greeted = timeout_at(deadline, greet) => greeted.unwrap_or(Err(LinkError::Deadline("the handshake"))),
        () = place.taken() => Err(LinkError::Displaced),
        () = drain.begun() => Err(LinkError::Stopping),
    };
    let error = match (greeted, mesh) {
        (Ok(Err(hello)), Some(mesh)) => {
            return mesh.accept(Opened { hello, reader, writer, peer, place, known, deadline }).await;
        }
        (Ok(Ok((hello, said))), _) => {
            known.proved(peer.ip());
            drop(place);
            return session::run(Proven { hello, said, reader, writer }, peer, &engine, &drain).await;
        }
        (Ok(Err(_)), None) => LinkError::Unexpected("a broker where there is no cluster"),
        (Err(error), _) => error,
    };
    drop(place);
    refused(&engine, peer, who.as_ref(), &error);
    if let Some(bye) = error.bye() {
        say_bye(&mut writer, bye).await;
    }
}

fn refused(engine: &Engine, peer: SocketAddr, who: Option<&Hello>, error: &LinkError) {
    let node = who.map(|h| tracing::field::display(h.node));
    let name = who.map(|h| h.name.as_str());
    limited!(warn, ("broker.listen", error.cause()), %peer, node, name, %error, "a link was refused");
    refuse(engine, error.cause());
}

async fn say_bye(writer: &mut WriteSide, bye: Bye) {
    // Whoever does not take it has not to be told.
    let _taken = timeout(crate::link::GOODBYE_DEADLINE, write_frame(writer, &FromBroker::Bye(bye))).await;
}

/// Up to the node's proof. `who` is what it calls itself, known before it is proved.
async fn handshake(
    hello: Hello,
    reader: &mut FrameReader<ReadSide>,
    writer: &mut WriteSide,
    engine: &Engine,
    who: &mut Option<Hello>,
) -> Result<(Hello, Transcript), LinkError> {
    if hello.name.len() > NAME_SIZE {
        return Err(LinkError::Unexpected("a name of this length"));
    }
    let secret = engine.conf().secret.reveal();
    let challenge = Challenge { broker: engine.run_id(), nonce: rand::random(), keyed: !secret.is_empty() };
    let said = Transcript::new(&hello, &challenge)?;
    *who = Some(hello.clone());
    write_frame(writer, &FromBroker::Challenge(challenge)).await?;
    match reader.read().await? {
        FromNode::Proof(mac) if said.verify(secret, NODE_PROOF, &mac) => Ok((hello, said)),
        FromNode::Proof(_) => Err(LinkError::Secret(
            "the node's secret is wrong or missing (broker.secret, node.broker_secret)",
        )),
        // Why the node goes is in its own log; most often our secret is not its own.
        FromNode::Bye(bye) => Err(LinkError::Bye(bye)),
        _ => Err(LinkError::Unexpected("no proof")),
    }
}
