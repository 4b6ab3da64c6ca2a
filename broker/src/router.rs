//! The rumqttd router of this broker, driven through one local link: what is sent here comes back
//! in order to the one receiving task, which hands it to the attached nodes.
//!
//! Two filters, a bounded set of topics: `n/<slot>` (a node's inbox) and `c/all` (control). What
//! reading the library taught, and what this file does about it:
//!
//! - its calls block when its queue is full: only `try_publish` is used, which leaves the packet
//!   in the link's buffer for the next event, so a full queue loses nothing;
//! - a reader that falls behind has its cursor moved without an error: what is in flight is
//!   bounded below what the router keeps, and the cursor is watched all the same;
//! - a link falls silent after `Unschedule` until `ready` is called;
//! - its thread may panic: then the link errs, and [`Router::rebuild`] makes a new one.

use bytes::Bytes;
use rumqttd::local::{LinkError, LinkRx, LinkTx};
use rumqttd::{Config, Notification, RouterConfig};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use weir_core::sync::lock;

const SEGMENT_SIZE: usize = 512 << 10;
const SEGMENT_COUNT: usize = 24;
/// Well below what all segments hold, so that the reader is never overtaken.
const MAX_IN_FLIGHT: usize = 8 << 20;
/// What the router accounts for besides the payload.
const OVERHEAD: usize = 64;

const INBOXES: &str = "n/+";

/// The sending side; shared.
pub struct Router {
    tx: Mutex<Option<LinkTx>>,
    in_flight: AtomicUsize,
}

/// The receiving side: one task has it.
pub struct Receiver {
    rx: LinkRx,
    /// Next expected cursor of `n/+` and of `c/all`.
    expected: [Option<u64>; 2],
    /// The router's thread ends when nobody can send to it any more.
    _router: rumqttd::Broker,
}

pub enum Item {
    Frame {
        topic: Bytes,
        payload: Bytes,
    },
    /// Something before this was dropped by the router.
    Gap,
}

/// The router's thread is gone.
#[derive(Debug, thiserror::Error)]
#[error("the router ended: {0}")]
pub struct Ended(String);

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Ended {
        Ended(error.to_string())
    }
}

impl Router {
    /// Blocks for a moment, as `rebuild` does.
    pub fn start() -> Result<(Router, Receiver), Ended> {
        let (tx, receiver) = connect()?;
        Ok((Router { tx: Mutex::new(Some(tx)), in_flight: AtomicUsize::new(0) }, receiver))
    }

    /// A new router in place of one that ended. What was in flight is lost.
    pub fn rebuild(&self) -> Result<Receiver, Ended> {
        let (tx, receiver) = connect()?;
        *lock(&self.tx) = Some(tx);
        self.in_flight.store(0, Relaxed);
        Ok(receiver)
    }

    /// False: too much is in flight, or the router is being rebuilt; nothing was sent.
    pub fn send(&self, topic: &Bytes, payload: Bytes) -> bool {
        let size = payload.len() + OVERHEAD;
        if self.in_flight.fetch_add(size, Relaxed) + size > MAX_IN_FLIGHT {
            self.landed(size);
            return false;
        }
        let mut link = lock(&self.tx);
        let sent = if let Some(tx) = link.as_mut() {
            match tx.try_publish(topic.clone(), payload) {
                // Full: the packet waits in the link's buffer, and one of the events that fill the
                // queue takes it along. Disconnected: the receiving task sees it too, and resyncs.
                Ok(_) | Err(LinkError::TrySend(_)) => true,
                Err(_) => {
                    *link = None;
                    false
                }
            }
        } else {
            false
        };
        drop(link);
        if !sent {
            self.landed(size);
        }
        sent
    }

    /// The receiving task took a payload of this size off the router.
    pub fn received(&self, payload: usize) {
        self.landed(payload + OVERHEAD);
    }

    /// After a gap nobody knows what is still in flight.
    pub fn forget_in_flight(&self) {
        self.in_flight.store(0, Relaxed);
    }

    #[cfg(test)]
    fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Makes the router's thread panic, by a topic that it is known not to bear: one that starts
    /// with a character of several bytes.
    #[cfg(test)]
    pub fn kill(&self) {
        let mut tx = self.tx.lock().unwrap();
        let _ = tx.as_mut().unwrap().try_publish("ä", "x");
    }

    fn landed(&self, size: usize) {
        let _always_some =
            self.in_flight.fetch_update(Relaxed, Relaxed, |held| Some(held.saturating_sub(size)));
    }
}

fn connect() -> Result<(LinkTx, Receiver), Ended> {
    let router = rumqttd::Broker::new(Config {
        router: RouterConfig {
            max_connections: 4,
            max_outgoing_packet_count: 4096,
            max_segment_size: SEGMENT_SIZE,
            max_segment_count: SEGMENT_COUNT,
            ..RouterConfig::default()
        },
        ..Config::default()
    });
    let (mut tx, rx) = router.link("weir")?;
    tx.subscribe(INBOXES)?;
    tx.subscribe(weir_wire::topic::CONTROL)?;
    Ok((tx, Receiver { rx, expected: [None; 2], _router: router }))
}

impl Receiver {
    /// Safe to cancel.
    pub async fn next(&mut self) -> Result<Item, Ended> {
        loop {
            match self.rx.next().await? {
                Some(Notification::Forward(forward)) => {
                    let (topic, payload) = (forward.publish.topic, forward.publish.payload);
                    let control = usize::from(topic.as_ref() == weir_wire::topic::CONTROL.as_bytes());
                    let cursor = forward.cursor.map(|(_, offset)| offset);
                    let expected = std::mem::replace(&mut self.expected[control], cursor.map(|c| c + 1));
                    if expected.is_some() && expected != cursor {
                        // The message itself is newer than the resync that follows.
                        return Ok(Item::Gap);
                    }
                    return Ok(Item::Frame { topic, payload });
                }
                Some(Notification::Unschedule) => self.rx.ready()?,
                Some(Notification::Disconnect(..)) => return Err(Ended("disconnected".into())),
                Some(_) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_comes_back_in_order_far_beyond_one_schedule() {
        let (router, mut receiver) = Router::start().unwrap();
        let topics = [Bytes::from_static(b"n/0"), Bytes::from_static(b"c/all")];
        let mut sent = 0_u32;
        let mut seen = [Vec::new(), Vec::new()];
        while seen[0].len() + seen[1].len() < 20_000 {
            while sent < 20_000 && router.send(&topics[sent as usize % 2], sent.to_le_bytes().to_vec().into())
            {
                sent += 1;
            }
            match receiver.next().await.unwrap() {
                Item::Frame { topic, payload } => {
                    router.received(payload.len());
                    let number = u32::from_le_bytes(payload.as_ref().try_into().unwrap());
                    seen[usize::from(topic == topics[1])].push(number);
                }
                Item::Gap => panic!("gap after {} messages", seen[0].len() + seen[1].len()),
            }
        }
        assert!(seen.iter().all(|numbers| numbers.is_sorted()) && router.in_flight() == 0);
    }

    #[tokio::test]
    async fn what_is_in_flight_is_bounded() {
        let (router, mut receiver) = Router::start().unwrap();
        let (topic, payload) = (Bytes::from_static(b"n/0"), Bytes::from(vec![0; 1 << 20]));
        let sent = (0..100).take_while(|_| router.send(&topic, payload.clone())).count();
        assert_eq!(sent, MAX_IN_FLIGHT / ((1 << 20) + OVERHEAD));
        for _ in 0..sent {
            assert!(matches!(receiver.next().await.unwrap(), Item::Frame { .. }));
            router.received(payload.len());
        }
        assert!(router.send(&topic, payload));
    }
}
