//! A node's bus when the broker is another process.

use super::{Bus, Inbox};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use weir_core::drain::Drain;
use weir_wire::id::NodeId;

pub struct RemoteBus {}

impl RemoteBus {
    /// Connects in the background, and again whenever the link breaks; returns at once. Needs a
    /// tokio runtime. Ends when the inbox is dropped or `drain` is stopped.
    pub fn start(
        _conf: &weir_conf::node::Node,
        _node: NodeId,
        _name: &str,
        _registry: &mut Registry,
        _drain: Drain,
    ) -> (Arc<dyn Bus>, Inbox) {
        todo!()
    }
}
