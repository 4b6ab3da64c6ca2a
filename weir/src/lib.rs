//! Weir in one process: which tiers there are, and how they are joined, is decided here and
//! nowhere else.
//!
//! Start: bind everything, then serve broker, node, proxy. Stop: the proxy and the node drain
//! together (they may hold the same sockets), then the broker, then the admin listener.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod cli;
pub mod signal;
