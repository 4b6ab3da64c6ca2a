//! The group's calls: over the link of a member, or, where there is none or nobody knows who is
//! there, over one that is made for them by address.

use super::Mesh;
use super::dial;
use super::link::Link;
use super::live;
use super::pending::Lost;
use super::registry::Shared;
use super::reply::millis;
use crate::meta::{PeerError, Peers};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use weir_core::backoff::Backoff;
use weir_core::sync::lock;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Purpose, Talk};

/// Addresses that are known at once.
const MAX_ADDRESSES: usize = 256;
/// One that was not reached is tried again after so long; meanwhile calls to it fail at once.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

#[derive(Default)]
pub struct CallLinks(Mutex<HashMap<String, Arc<Address>>>);

#[derive(Default)]
struct Address {
    /// Held while somebody connects: the others wait for that.
    way: tokio::sync::Mutex<Way>,
}

struct Way {
    link: Option<Arc<Link>>,
    failed: Option<(Instant, String)>,
    backoff: Backoff,
}

impl Default for Way {
    fn default() -> Way {
        Way { link: None, failed: None, backoff: Backoff::new(PAUSE.0, PAUSE.1) }
    }
}

impl CallLinks {
    fn address(&self, addr: &str) -> Option<Arc<Address>> {
        let mut all = lock(&self.0);
        if let Some(address) = all.get(addr) {
            return Some(address.clone());
        }
        if all.len() >= MAX_ADDRESSES {
            // Those that nobody uses at the moment.
            all.retain(|_, address| {
                address.way.try_lock().map_or(true, |way| way.link.as_ref().is_some_and(|l| !l.is_finished()))
            });
        }
        let room = all.len() < MAX_ADDRESSES;
        room.then(|| all.entry(addr.to_owned()).or_default().clone())
    }
}

#[async_trait]
impl Peers for Mesh {
    async fn call(
        &self,
        to: Option<BrokerId>,
        addr: &str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, PeerError> {
        let link = match to.and_then(|to| self.shared.link(to)) {
            Some(link) => link,
            None => by_address(&self.shared, to, addr, deadline).await?,
        };
        call(&link, request, deadline).await
    }
}

fn unreachable(why: impl ToString) -> PeerError {
    PeerError::Unreachable(why.to_string())
}

async fn by_address(
    shared: &Arc<Shared>,
    to: Option<BrokerId>,
    addr: &str,
    deadline: Instant,
) -> Result<Arc<Link>, PeerError> {
    let late = || unreachable("no link in time");
    let address = shared.call_links.address(addr).ok_or_else(|| unreachable("too many addresses"))?;
    let mut way = timeout_at(deadline, address.way.lock()).await.map_err(|_| late())?;
    if let Some(link) = way.link.as_ref().filter(|link| !link.is_finished()) {
        if to.is_none_or(|to| to == link.who.id) {
            return Ok(link.clone());
        }
    } else if let Some((until, why)) = &way.failed
        && Instant::now() < *until
    {
        return Err(unreachable(why));
    }
    let until = |way: &mut Way| Instant::now() + way.backoff.next(&mut rand::rng());
    // In case that this call is given up in between.
    way.failed = Some((until(&mut way), "connecting takes long".into()));
    match timeout_at(deadline, dial::dial(shared, addr, Purpose::Calls, to)).await {
        Ok(Ok(dialled)) => {
            let link = dialled.held.link.clone();
            tokio::spawn(live::run(dialled.held, dialled.reader, dialled.writer));
            if let Some(old) = way.link.replace(link.clone()) {
                old.close(crate::link::LinkError::Stopping);
            }
            way.failed = None;
            way.backoff.reset();
            Ok(link)
        }
        Ok(Err(error)) => {
            if let Some((_, why)) = &mut way.failed {
                *why = error.to_string();
            }
            Err(unreachable(error))
        }
        Err(_) => Err(late()),
    }
}

struct Called<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.link.calls.forget(self.id);
    }
}

async fn call(link: &Link, body: Bytes, deadline: Instant) -> Result<Bytes, PeerError> {
    link.use_now();
    let id = link.next_id();
    let waiting = link.calls.insert(id).ok_or_else(|| unreachable("too many calls, or no link"))?;
    let _called = Called { link, id };
    let within_ms = millis(deadline.saturating_duration_since(Instant::now()));
    match link.talk(&Talk::Call { id, within_ms, body }, id) {
        Ok(true) => {}
        Ok(false) => return Err(unreachable("too much waits for it, or no link")),
        Err(error) => return Err(unreachable(error)),
    }
    let no_answer = |why: &str| Err(PeerError::NoAnswer(why.into()));
    match timeout_at(deadline, waiting).await {
        Ok(Ok(Ok(Some(answer)))) => Ok(answer),
        Ok(Ok(Ok(None))) => Err(unreachable("it has too much to do")),
        Ok(Ok(Err(Lost::NotSent))) => Err(unreachable("the link broke before")),
        Ok(Ok(Err(Lost::Broke)) | Err(_)) => no_answer("the link broke"),
        Err(_) => no_answer("the deadline passed"),
    }
}
