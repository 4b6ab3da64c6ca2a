//! What comes from other brokers.

use super::{ReplyTo, Room};
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use tokio::time::Instant;
use weir_wire::envelope::Position;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Delivery, Request};
use weir_wire::replica::{Beat, Message};

pub type Served = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// Called by the task that reads a link: nothing of it may block, and all that is said of one link
/// comes in order. What one link's reader is at may still come when the link is already said to
/// be down.
pub trait Handler: Send + Sync + 'static {
    /// As a rule [`crate::meta::Group::serve`]. Given up when the asking side has given up.
    fn group_call(&self, from: BrokerId, request: Bytes) -> Served;

    /// A member can be reached, or no longer. A link that takes another one's place says `false`
    /// and then `true`. Must not change the members.
    fn link(&self, peer: BrokerId, up: bool);

    fn replica(&self, from: BrokerId, shard: u16, message: Message);

    fn beats(&self, from: BrokerId, beats: Vec<(u16, Beat)>);

    /// Replica messages to it were dropped, and now there is room again.
    fn trouble(&self, peer: BrokerId);

    /// Requests of one lane come in the order in which they were asked.
    fn request(&self, from: BrokerId, request: Request, deadline: Instant, reply: ReplyTo);

    /// `room` is given back when it is dropped; until then the sender counts it as on its way.
    fn delivered(&self, from: BrokerId, delivery: Delivery, room: Room);

    /// Part of a list that is complete with `last`.
    fn resynced(&self, from: BrokerId, positions: Vec<(String, Option<Position>)>, last: bool);

    /// Deliveries to it were refused, or a link begins: time for [`super::Mesh::resume`] and
    /// [`super::Mesh::resync`].
    fn behind(&self, peer: BrokerId);
}
