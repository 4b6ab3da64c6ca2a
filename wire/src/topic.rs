//! Topics of the router inside each broker. There are as many as attached nodes, plus one:
//! a channel's name never becomes a topic (the router keeps a log per topic, and never frees it).

use crate::id::NodeId;

/// Control: read by every attached node.
pub const CONTROL: &str = "c/all";

/// The inbox of one attached node.
pub fn inbox(node: NodeId) -> String {
    format!("n/{node}")
}
