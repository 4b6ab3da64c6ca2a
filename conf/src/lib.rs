//! The conf files that operators copy, and the code that reads them.
//!
//! No I/O beyond the files named.

pub mod admin;
pub mod broker;
pub mod channel;
pub mod node;
pub mod proxy;
pub mod roles;
pub mod telemetry;
pub mod units;

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
