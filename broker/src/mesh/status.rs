//! What an operator sees of the links.

use super::link::Link;
use std::time::Duration;
use weir_wire::id::BrokerId;
use weir_wire::mesh::Lane;

#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub id: BrokerId,
    pub addr: String,
    /// Empty without a link.
    pub name: String,
    /// The wire version that both speak.
    pub wire: Option<u16>,
    /// For how long.
    pub up: Option<Duration>,
    /// The last way there and back.
    pub rtt: Option<Duration>,
    /// Bytes that wait to be written.
    pub queued: Vec<(Lane, usize)>,
    /// Bytes of deliveries that it has not taken yet, and whether it has to be resynced.
    pub untaken: u64,
    pub behind: bool,
    /// Calls and requests without an answer.
    pub unanswered: usize,
    /// Why there is no link.
    pub error: Option<String>,
}

impl PeerStatus {
    pub(super) fn new(id: BrokerId, addr: &str, link: Option<&Link>, error: Option<String>) -> PeerStatus {
        let (untaken, behind) = link.map_or((0, true), Link::window);
        PeerStatus {
            id,
            addr: addr.to_owned(),
            name: link.map(|l| l.who.name.clone()).unwrap_or_default(),
            wire: link.map(|l| l.who.wire),
            up: link.map(|l| l.since.elapsed()),
            rtt: link.map(Link::rtt),
            queued: link.map(|l| l.queued().to_vec()).unwrap_or_default(),
            untaken,
            behind,
            unanswered: link.map_or(0, |l| l.calls.len() + l.requests.len()),
            error: error.filter(|_| link.is_none()),
        }
    }
}
