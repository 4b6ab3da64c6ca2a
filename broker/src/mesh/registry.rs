//! The members, the links to them, and which link is the one.

use super::group::CallLinks;
use super::handler::Handler;
use super::link::Link;
use super::metrics::Metrics;
use super::status::PeerStatus;
use super::{Conf, Identity, dial};
use crate::link::LinkError;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use weir_core::drain::Drain;
use weir_core::sync::{lock, read, write};
use weir_wire::id::BrokerId;
use weir_wire::peer::Bye;

/// Links at once. Clusters are much smaller.
const MAX_LINKS: usize = 64;
/// Those that were members, of which so many are remembered.
const REMEMBERED: usize = 1024;

pub struct Shared {
    pub conf: Conf,
    pub me: Identity,
    /// Of this process.
    pub run: u64,
    cluster: AtomicU64,
    pub handler: Arc<dyn Handler>,
    pub metrics: Arc<Metrics>,
    links: RwLock<HashMap<BrokerId, Arc<Link>>>,
    /// Held for each change of `links`, and while the handler is told of it.
    turn: Mutex<()>,
    members: Mutex<Members>,
    pub call_links: CallLinks,
    /// Links for calls alone.
    pub callers: AtomicUsize,
    drain: Drain,
    stop: Drain,
}

#[derive(Default)]
struct Members {
    known: BTreeMap<BrokerId, Member>,
    removed: VecDeque<BrokerId>,
}

struct Member {
    addr: String,
    /// Wakes its dialler when the link is gone.
    down: Arc<Notify>,
    dialler: AbortHandle,
    error: Option<String>,
}

impl Shared {
    pub fn new(
        conf: Conf,
        me: Identity,
        handler: Arc<dyn Handler>,
        metrics: Metrics,
        drain: Drain,
    ) -> Shared {
        Shared {
            conf,
            cluster: AtomicU64::new(me.cluster),
            me,
            run: rand::random(),
            handler,
            metrics: Arc::new(metrics),
            links: RwLock::default(),
            turn: Mutex::default(),
            members: Mutex::default(),
            call_links: CallLinks::default(),
            callers: AtomicUsize::new(0),
            drain,
            stop: Drain::new(),
        }
    }

    pub fn cluster(&self) -> u64 {
        self.cluster.load(Relaxed)
    }

    pub fn set_cluster(&self, cluster: u64) {
        self.cluster.store(cluster, Relaxed);
    }

    /// This broker stops, or the last handle is gone.
    pub async fn ending(&self) {
        tokio::select! {
            () = self.drain.begun() => {}
            () = self.stop.begun() => {}
        }
    }

    pub fn stop(&self) {
        self.stop.begin();
        for member in std::mem::take(&mut lock(&self.members).known).into_values() {
            member.dialler.abort();
        }
    }

    pub fn link(&self, to: BrokerId) -> Option<Arc<Link>> {
        read(&self.links).get(&to).cloned()
    }

    pub fn linked(&self) -> Vec<BrokerId> {
        read(&self.links).keys().copied().collect()
    }

    pub fn others(&self) -> Vec<BrokerId> {
        lock(&self.members).known.keys().copied().collect()
    }

    pub fn set_members(self: &Arc<Shared>, list: &[(BrokerId, String)]) {
        let mut members = lock(&self.members);
        let wanted: BTreeMap<_, _> = list.iter().filter(|(id, _)| *id != self.me.id).cloned().collect();
        let gone: Vec<_> = members.known.extract_if(.., |id, _| !wanted.contains_key(id)).collect();
        for (id, member) in &gone {
            member.dialler.abort();
            members.removed.push_back(*id);
        }
        members.removed.retain(|id| !wanted.contains_key(id));
        let surplus = members.removed.len().saturating_sub(REMEMBERED);
        members.removed.drain(..surplus);
        for (id, addr) in wanted {
            match members.known.get(&id) {
                Some(member) if member.addr == addr => continue,
                Some(member) => member.dialler.abort(),
                None => {}
            }
            let down = Arc::new(Notify::new());
            let dialler = tokio::spawn(dial::keep_linked(self.clone(), id, addr.clone(), down.clone()));
            let dialler = dialler.abort_handle();
            members.known.insert(id, Member { addr, down, dialler, error: None });
        }
        drop(members);
        for (id, _) in gone {
            self.cut(id, Bye::Removed);
        }
    }

    pub fn note_error(&self, id: BrokerId, error: Option<String>) {
        if let Some(member) = lock(&self.members).known.get_mut(&id) {
            member.error = error;
        }
    }

    /// Whether a link with it may be kept at all.
    pub fn check(&self, id: BrokerId) -> Result<(), LinkError> {
        match lock(&self.members).removed.contains(&id) {
            true => Err(LinkError::Refused(Bye::Removed)),
            false => Ok(()),
        }
    }

    /// A proved link becomes the one to its broker, or is refused.
    pub fn adopt(&self, link: &Arc<Link>) -> Result<(), LinkError> {
        let id = link.who.id;
        let _turn = lock(&self.turn);
        self.check(id)?;
        let old = {
            let mut links = write(&self.links);
            match links.get(&id) {
                Some(old) if !link.ends.replaces(&old.ends) => return Err(LinkError::Refused(Bye::Twin)),
                None if links.len() >= MAX_LINKS => return Err(LinkError::Full),
                _ => links.insert(id, link.clone()),
            }
        };
        match old {
            Some(old) => {
                let twin = LinkError::Refused(Bye::Twin);
                old.finish(Some(&twin));
                old.close(twin);
                self.handler.link(id, false);
            }
            None => {
                self.metrics.links.inc();
            }
        }
        self.metrics.link_ups.inc();
        self.handler.link(id, true);
        if link.wants_resync() {
            self.handler.behind(id);
        }
        Ok(())
    }

    /// A link has ended.
    pub fn forget(&self, link: &Arc<Link>) {
        let id = link.who.id;
        let _turn = lock(&self.turn);
        {
            let mut links = write(&self.links);
            if !links.get(&id).is_some_and(|now| Arc::ptr_eq(now, link)) {
                return;
            }
            links.remove(&id);
        }
        self.metrics.links.dec();
        self.handler.link(id, false);
        if let Some(member) = lock(&self.members).known.get(&id) {
            member.down.notify_one();
        }
    }

    fn cut(&self, id: BrokerId, why: Bye) {
        if let Some(link) = self.link(id) {
            let why = LinkError::Refused(why);
            link.finish(Some(&why));
            link.close(why);
            self.forget(&link);
        }
    }

    pub fn status(&self) -> Vec<PeerStatus> {
        let members = lock(&self.members);
        let links = read(&self.links);
        let strangers = links.values().filter(|link| !members.known.contains_key(&link.who.id));
        let known = members.known.iter().map(|(id, m)| {
            let link = links.get(id).map(|link| &**link);
            PeerStatus::new(*id, &m.addr, link, m.error.clone())
        });
        let strangers = strangers.map(|link| PeerStatus::new(link.who.id, &link.who.addr, Some(link), None));
        known.chain(strangers).collect()
    }
}
