//! The places of attached nodes: `broker.max_nodes` of them, used again, so that the router's
//! topics are a bounded set.

use super::interest::Slot;
use super::lock;
use crate::outlet::Outlet;
use bytes::Bytes;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use weir_core::sync::{read, write};
use weir_wire::entry::Holder;
use weir_wire::id::NodeId;
use weir_wire::topic;

/// An attached node.
pub struct Held {
    pub slot: Slot,
    pub node: NodeId,
    /// Tells this attachment from earlier and later ones; see [`Slots::renew`].
    link: AtomicU64,
    /// Its lease had ended: what it tells of again was announced as gone, and is as back.
    pub was_expired: bool,
    pub name: String,
    pub topic: Bytes,
    pub outlet: Arc<dyn Outlet>,
    /// Something could not be delivered, and nothing is until a resync was.
    pub lost: AtomicBool,
    interest: Mutex<HashSet<Arc<str>>>,
}

enum Place {
    Free,
    Held(Arc<Held>),
    /// Given up; its last holder's interest is not ended yet.
    Clearing,
    /// Something for its last holder may still be in the router.
    Draining,
}

pub struct Slots {
    places: RwLock<Vec<Place>>,
    topics: Vec<Bytes>,
    control: Bytes,
    leases: Mutex<Leases>,
}

#[derive(Default)]
struct Leases {
    /// Nodes that hold members without being attached.
    gone: HashMap<NodeId, Gone>,
    /// The last ones whose lease ended.
    expired: VecDeque<NodeId>,
    /// The newest that is known of.
    links: u64,
}

struct Gone {
    since: Instant,
    /// Its last one here.
    link: u64,
}

/// A table gives back its room when no more than this part of it is in use.
const SPARSE: usize = 8;
/// Ended leases that are remembered.
const REMEMBERED: usize = 1024;

impl Slots {
    pub fn new(count: usize) -> Slots {
        let count = count.min(usize::from(u16::MAX)) as u16;
        Slots {
            places: RwLock::new((0..count).map(|_| Place::Free).collect()),
            topics: (0..count).map(|slot| topic::inbox(slot).into()).collect(),
            control: Bytes::from_static(topic::CONTROL.as_bytes()),
            leases: Mutex::default(),
        }
    }

    pub fn topic(&self, slot: Slot) -> Bytes {
        self.topics.get(usize::from(slot.0)).cloned().unwrap_or_default()
    }

    pub fn control_topic(&self) -> Bytes {
        self.control.clone()
    }

    /// A free place for this node. Links are numbered by the Unix clock's milliseconds, so that
    /// those of a node that moves from one broker to another rise too.
    pub fn take(&self, node: NodeId, name: &str, outlet: Arc<dyn Outlet>, ms: u64) -> Option<Arc<Held>> {
        let mut places = write(&self.places);
        let free = places.iter().position(|p| matches!(p, Place::Free))?;
        // Under one lock with the end of a lease: a node is back in time, or it is not.
        let mut leases = lock(&self.leases);
        leases.gone.remove(&node);
        let link = leases.next_link(ms);
        let held = Arc::new(Held {
            slot: Slot(free as u16),
            node,
            link: AtomicU64::new(link),
            was_expired: leases.expired.contains(&node),
            name: name.to_owned(),
            topic: self.topics[free].clone(),
            outlet,
            lost: AtomicBool::new(false),
            interest: Mutex::default(),
        });
        places[free] = Place::Held(held.clone());
        Some(held)
    }

    /// Ends the hold of this node; from now on its lease runs.
    pub fn release(&self, slot: Slot, node: NodeId, now: Instant) -> Option<Arc<Held>> {
        let mut places = write(&self.places);
        let place = places.get_mut(usize::from(slot.0))?;
        match place {
            Place::Held(held) if held.node == node => {
                let held = held.clone();
                *place = Place::Clearing;
                lock(&self.leases).gone.insert(node, Gone { since: now, link: held.link() });
                Some(held)
            }
            _ => None,
        }
    }

    /// Nothing more is sent for the last holder.
    pub fn cleared(&self, slot: Slot) {
        let mut places = write(&self.places);
        if let Some(place @ Place::Clearing) = places.get_mut(usize::from(slot.0)) {
            *place = Place::Draining;
        }
    }

    /// Everything for the last holder has been through the router.
    pub fn drained(&self, slot: Slot) {
        let mut places = write(&self.places);
        if let Some(place @ Place::Draining) = places.get_mut(usize::from(slot.0)) {
            *place = Place::Free;
        }
    }

    pub fn draining(&self) -> Vec<Slot> {
        let places = read(&self.places);
        let draining = places.iter().enumerate().filter(|(_, p)| matches!(p, Place::Draining));
        draining.map(|(at, _)| Slot(at as u16)).collect()
    }

    pub fn get(&self, slot: Slot) -> Option<Arc<Held>> {
        let places = read(&self.places);
        match places.get(usize::from(slot.0)) {
            Some(Place::Held(held)) => Some(held.clone()),
            _ => None,
        }
    }

    pub fn all(&self) -> Vec<Arc<Held>> {
        let places = read(&self.places);
        let held = places.iter().filter_map(|p| match p {
            Place::Held(held) => Some(held.clone()),
            _ => None,
        });
        held.collect()
    }

    /// By which links nodes are attached, and those whose lease runs without one.
    pub fn holders(&self) -> Vec<Holder> {
        let attached: Vec<Holder> = self.all().iter().map(|held| held.holder()).collect();
        let leases = lock(&self.leases);
        // Of a node without a link nothing is known to be void.
        let waiting = leases.gone.keys().map(|node| Holder { node: *node, link: 0 });
        let waiting: Vec<Holder> = waiting.filter(|h| !attached.iter().any(|a| a.node == h.node)).collect();
        attached.into_iter().chain(waiting).collect()
    }

    pub fn find(&self, node: NodeId) -> Option<Arc<Held>> {
        self.all().into_iter().find(|h| h.node == node)
    }

    pub fn attached(&self) -> usize {
        self.all().len()
    }

    /// Ends leases that have run for `lease`. What these nodes hold from before the links returned
    /// is to be taken away: by their last one here, and not what they may have told elsewhere since.
    pub fn end_leases(&self, now: Instant, lease: Duration) -> Vec<Holder> {
        let mut leases = lock(&self.leases);
        let due = |gone: &Gone| now.duration_since(gone.since) >= lease;
        let over: Vec<_> = leases.gone.extract_if(|_, gone| due(gone)).collect();
        over.into_iter().map(|(node, gone)| leases.end(node, &gone)).collect()
    }

    /// Ends one at once, unless the node is back.
    pub fn end_lease(&self, node: NodeId) -> Option<Holder> {
        let mut leases = lock(&self.leases);
        leases.gone.remove(&node).map(|gone| leases.end(node, &gone))
    }

    /// Of another broker: those given from now on are later, however the clocks stand.
    pub fn heard(&self, link: u64) {
        let mut leases = lock(&self.leases);
        leases.links = leases.links.max(link);
    }

    /// A later link for one that stays attached.
    pub fn renew(&self, held: &Held) {
        let mut leases = lock(&self.leases);
        let link = leases.next_link(0);
        held.link.store(link, Relaxed);
    }
}

impl Leases {
    fn next_link(&mut self, ms: u64) -> u64 {
        self.links = ms.max(self.links.saturating_add(1));
        self.links
    }

    fn end(&mut self, node: NodeId, gone: &Gone) -> Holder {
        self.expired.push_back(node);
        if self.expired.len() > REMEMBERED {
            self.expired.pop_front();
        }
        Holder { node, link: gone.link.saturating_add(1) }
    }
}

impl Held {
    pub fn holder(&self) -> Holder {
        Holder { node: self.node, link: self.link() }
    }

    pub fn link(&self) -> u64 {
        self.link.load(Relaxed)
    }

    pub fn add_interest(&self, channel: Arc<str>) {
        lock(&self.interest).insert(channel);
    }

    pub fn remove_interest(&self, channel: &str) {
        let mut interest = lock(&self.interest);
        interest.remove(channel);
        if interest.len() * SPARSE < interest.capacity() {
            let room = 2 * interest.len();
            interest.shrink_to(room);
        }
    }

    pub fn interest(&self) -> Vec<Arc<str>> {
        lock(&self.interest).iter().cloned().collect()
    }

    pub fn take_interest(&self) -> HashSet<Arc<str>> {
        std::mem::take(&mut *lock(&self.interest))
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }
}
