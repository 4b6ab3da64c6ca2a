//! The links between brokers: one for each pair, proved, kept alive, and made again when it breaks.
//!
//! ```text
//!   group calls   replica messages   requests   deliveries   pieces of a state
//!        │               │              │            │              │
//!        └───────────────┴──────┬───────┴────────────┴──────────────┘
//!                             lanes     each with a bound, and what is done over it
//!                               │
//!                             parts     none larger than 64 KiB: nothing waits for a large message
//!                               │
//!                     one connection ───────► the other broker's `Handler`
//! ```
//!
//! | traffic | over its bound | when the link breaks |
//! |---|---|---|
//! | [`Peers::call`] | refused, not sent | [`PeerError::NoAnswer`] |
//! | [`Mesh::send_replica`], [`Mesh::send_beats`] | dropped; [`Handler::trouble`] when there is room | lost |
//! | [`Mesh::forward`], [`Mesh::fan_out`] | [`ForwardError::NotSent`] | [`ForwardError::Unknown`] |
//! | [`Mesh::deliver`] | refused, and all after it until [`Mesh::resume`]; [`Handler::behind`] when there is room | lost, and as above |
//!
//! Order holds within one row and one link, but not across rows.
//!
//! `lanes`, `parts`, `credit`, `pair` are pure; `pending` are requests without an answer; `hello`
//! proves, `dial` connects, `live` serves a link, `registry` knows the links, `group` carries the
//! group's calls.

mod credit;
mod dial;
mod group;
mod handler;
mod hello;
mod lanes;
mod link;
mod live;
mod metrics;
mod pair;
mod parts;
mod pending;
mod registry;
mod reply;
mod status;
#[cfg(test)]
mod tests;

use crate::link::FrameReader;
use crate::listener::Known;
use crate::meta::Versions;
use crate::socket::{ReadSide, WriteSide};
use crate::tls::Tls;
use lanes::Bounds;
use prometheus_client::registry::Registry;
use registry::Shared;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use weir_conf::units::Secret;
use weir_core::drain::Drain;
use weir_core::unproven::Place;
use weir_wire::envelope::Position;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Delivery, Hello, Lane, Reply, Request};
use weir_wire::replica::{Beat, Message};

pub use handler::{Handler, Served};
pub use link::Room;
#[cfg(test)]
pub use reply::Unknown;
pub use reply::{ForwardError, Forwarded, NotSent, ReplyTo};
pub use status::PeerStatus;

/// Who this broker is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: BrokerId,
    /// 0: of none yet.
    pub cluster: u64,
    pub name: String,
    /// Where other brokers reach it.
    pub addr: String,
    pub wire: Versions,
}

#[derive(Clone, Debug)]
pub struct Conf {
    /// This or TLS is needed for every address that is not loopback.
    pub secret: Secret,
    /// That of the listener: all brokers of a cluster have it, or none.
    pub tls: Option<Tls>,
    /// A link without a sign of life for so long is cut. Shorter than the lease of a broker.
    pub dead_after: Duration,
    /// Between two attempts to connect.
    pub redial: (Duration, Duration),
    /// Bytes of deliveries on their way to one broker and not taken by it.
    pub window: usize,
    /// Bytes that may wait for one link, by lane.
    pub bounds: Bounds,
    /// Requests to one broker without an answer.
    pub max_requests: usize,
}

impl Conf {
    pub fn new(secret: Secret) -> Conf {
        let ms = Duration::from_millis;
        Conf {
            secret,
            tls: None,
            dead_after: ms(500),
            redial: (ms(50), ms(1000)),
            window: 8 << 20,
            bounds: Bounds::default(),
            max_requests: 16 << 10,
        }
    }
}

/// A handle; the links end with the last one, or when the drain has begun.
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A broker's hello came on a connection to this one's listener.
pub(crate) struct Opened {
    pub hello: Hello,
    pub reader: FrameReader<ReadSide>,
    pub writer: WriteSide,
    pub peer: SocketAddr,
    /// Its place among the unproven; given back when it is proved.
    pub place: Place,
    pub known: Arc<Known>,
    pub deadline: Instant,
}

impl Mesh {
    /// Without members; needs a tokio runtime.
    pub fn start(
        conf: Conf,
        identity: Identity,
        handler: Arc<dyn Handler>,
        registry: &mut Registry,
        drain: Drain,
    ) -> Mesh {
        let metrics = metrics::Metrics::register(registry);
        let shared = Arc::new(Shared::new(conf, identity, handler, metrics, drain));
        Mesh { _stop: Arc::new(StopOnDrop(shared.clone())), shared }
    }

    /// The brokers to keep links with; this one may be among them. Links with those that were
    /// members and are no longer are closed, and they are refused from now on.
    pub fn set_members(&self, members: &[(BrokerId, String)]) {
        self.shared.set_members(members);
    }

    /// Once it is known. Brokers of other clusters are refused.
    pub fn set_cluster(&self, cluster: u64) {
        self.shared.set_cluster(cluster);
    }

    pub(crate) async fn accept(&self, opened: Opened) {
        live::accept(&self.shared, opened).await;
    }

    /// Members with a link.
    pub fn linked(&self) -> Vec<BrokerId> {
        self.shared.linked()
    }

    pub fn is_linked(&self, to: BrokerId) -> bool {
        self.shared.link(to).is_some()
    }

    /// False: it was not sent. Without a link nobody is told; [`Handler::link`] was.
    pub fn send_replica(&self, to: BrokerId, shard: u16, message: Message) -> bool {
        self.shared.link(to).is_some_and(|link| link.send_replica(shard, message))
    }

    pub fn send_beats(&self, to: BrokerId, beats: Vec<(u16, Beat)>) -> bool {
        self.shared.link(to).is_some_and(|link| link.send_beats(beats))
    }

    /// Puts a request on its way at once, so requests to one broker arrive in the order of these
    /// calls; the answer, or that there is none, comes no later than the deadline.
    pub fn forward(
        &self,
        to: BrokerId,
        request: Request,
        deadline: Instant,
    ) -> impl Future<Output = Result<Reply, ForwardError>> + Send + use<> {
        reply::ask(self.shared.link(to), Lane::Forward, request, deadline)
    }

    /// The same request to all members but this one, and what became of each: also those that
    /// have no link.
    pub async fn fan_out(&self, request: Request, deadline: Instant) -> Vec<(BrokerId, Forwarded)> {
        let asked = self.shared.others().into_iter().map(|to| {
            let answer = reply::ask(self.shared.link(to), Lane::Control, request.clone(), deadline);
            async move { (to, answer.await) }
        });
        futures_util::future::join_all(asked).await
    }

    /// False: it will not arrive, nor will those after it, until [`Mesh::resume`].
    pub fn deliver(&self, to: BrokerId, delivery: Delivery) -> bool {
        self.shared.link(to).is_some_and(|link| link.deliver(delivery))
    }

    /// Deliveries go out again. To be called before the positions of a resync are looked up, so
    /// that whatever comes after them is delivered.
    pub fn resume(&self, to: BrokerId) {
        if let Some(link) = self.shared.link(to) {
            link.resume();
        }
    }

    /// In the order of the deliveries around it, and never refused.
    pub fn resync(&self, to: BrokerId, positions: Vec<(String, Option<Position>)>) {
        if let Some(link) = self.shared.link(to) {
            link.resync(positions);
        }
    }

    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.status()
    }
}
