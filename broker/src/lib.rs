//! Tier 3: the embedded broker, in place of Redis. The only crate that knows rumqttd.
//!
//! Nodes see it as a [`Bus`]: [`bus::local`] when the broker is in the same process,
//! [`bus::remote`] when it is in another one. Both pass one conformance suite.

pub mod bus;

pub use bus::{Bus, BusError, Event, Inbox};
