//! Run-time parts that two or more tiers share: the breaker, backoff, windows of counts, drain, metrics, admin, tokens,
//! client addresses, limited log lines, descriptors, places of those who have not shown who they are, and the seam through which
//! the proxy hands a client to the node of the same process.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accept;
pub mod admin;
pub mod backoff;
pub mod breaker;
pub mod client_addr;
pub mod descriptors;
pub mod drain;
pub mod jwt;
pub mod limited;
pub mod metrics;
pub mod net;
pub mod private;
pub mod process;
pub mod sync;
pub mod telemetry;
pub mod unproven;
pub mod window;
