//! Where an attached node's deliveries go: into the inbox of the node in this process, or onto
//! the link of one in another.

use bytes::Bytes;
use weir_wire::envelope::Position;
use weir_wire::peer::Bye;

/// All methods are called from the router's receiving task and must not block.
pub trait Outlet: Send + Sync + 'static {
    /// Takes one encoded [`weir_wire::peer::FromBroker`] frame (a delivery, control or survey).
    /// False: there is no room, and the frame is dropped; a resync will follow.
    fn offer(&self, frame: &Bytes) -> bool;

    /// Takes the positions of all of the node's interest. Only called while there is room, and
    /// so seldom that it is always taken.
    fn resync(&self, positions: Vec<(String, Option<Position>)>);

    /// Whether a resync is worth it now: about half of what may wait is free again. When that
    /// comes to be, the outlet calls `Engine::wake`.
    fn has_room(&self) -> bool;

    /// The attachment was taken away.
    fn close(&self, why: Bye);

    /// The node was taken for gone and its members dropped, though it is here: it is to tell of them again, under
    /// a later link.
    fn tell_again(&self);
}
