//! The conf files that operators copy, and the code that reads them.
//!
//! No I/O beyond the files named.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod broker;
pub mod channel;
pub mod error;
pub mod load;
pub mod node;
pub mod proxy;
pub mod roles;
pub mod telemetry;
pub mod units;

pub use error::{Errors, Mistake, Place};
pub use load::{Loaded, Sources, load};

/// Every key with its default, unit and reason.
pub const REFERENCE: &str = include_str!("../weir.toml");

/// What `weir` without arguments runs: all tiers on loopback, open to anyone there.
pub const DEMO: &str = include_str!("../demo.toml");

/// Everything a Weir process is told. `Config::default()` is what `weir.toml` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub roles: roles::Roles,
    pub telemetry: telemetry::Telemetry,
    pub admin: admin::Admin,
    pub proxy: proxy::Proxy,
    pub node: node::Node,
    pub channel: channel::Channels,
    pub broker: broker::Broker,
}

impl Default for Config {
    fn default() -> Config {
        unimplemented!()
    }
}

impl Config {
    /// This conf as TOML that parses back; secrets show as `"(set)"` or `""`.
    pub fn to_toml(&self) -> String {
        unimplemented!()
    }
}
