//! A node's end of Weir's bus, by the node's own code.

use crate::pace;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use weir_broker::{Bus, Event, Inbox, RemoteBus};
use weir_conf::{Sources, load};
use weir_core::drain::Drain;
use weir_wire::envelope::{Ack, Publish, StreamOptions};
use weir_wire::id::NodeId;

pub const STREAM: StreamOptions = StreamOptions { size: 100, ttl_ms: 600_000, meta_ttl_ms: 86_400_000 };

/// Linked, when this returns.
pub async fn attach(addr: &str, inbox: usize) -> (Arc<dyn Bus>, Inbox) {
    let brokers: Vec<String> = addr.split(',').map(|a| format!("\"{a}\"")).collect();
    let conf = format!(
        "roles = [\"node\"]\n[node]\nbrokers = [{}]\ninbox_size = {inbox}\nbroker_secret = \"{}\"\n",
        brokers.join(", "),
        std::env::var("BUS_SECRET").unwrap_or_default(),
    );
    let conf = load(&Sources::new().text("bench", conf)).unwrap_or_else(|e| panic!("{e:?}")).config.node;
    let node = NodeId(rand::random());
    let started = RemoteBus::start(&conf, node, "bench", &mut Registry::default(), Drain::new());
    let (bus, mut inbox) = started.unwrap();
    while inbox.next().await.unwrap() != Event::Link(true) {}
    (bus, inbox)
}

pub fn publication(channel: String, size: usize, history: bool) -> Publish {
    let mut data = vec![b'x'; size.max(8)];
    data[..8].copy_from_slice(&pace::now().to_le_bytes());
    Publish {
        channel,
        data: data.into(),
        info: None,
        tags: Vec::new(),
        stream: history.then_some(STREAM),
        idempotency_key: None,
        version: 0,
        version_epoch: String::new(),
        ack: Ack::default(),
        live_without_owner: false,
    }
}

pub fn stamp(data: &[u8]) -> u64 {
    u64::from_le_bytes(data[..8].try_into().unwrap())
}
