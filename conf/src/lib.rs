//! The conf files that operators copy, and the code that reads them.
//!
//! No I/O beyond the files named.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod admin;
pub mod broker;
pub mod channel;
mod check;
pub mod error;
mod inline;
pub mod load;
pub mod node;
pub mod proxy;
pub mod roles;
mod section;
mod syntax;
pub mod telemetry;
mod tree;
pub mod units;
mod value;
mod write;

pub use error::{Errors, Mistake, Place};
pub use load::{Loaded, Sources, load};

use section::{Field, Value};
use std::collections::BTreeMap;
use write::Writer;

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

section::keys!(Config { roles, telemetry, admin, proxy, node, channel, broker });

impl Config {
    /// This conf as TOML that parses back, but for secrets: they show as `"(set)"` or `""`.
    /// Sections of roles that are not listed are left out.
    pub fn to_toml(&self) -> String {
        self.write(None)
    }

    fn write(&self, places: Option<&BTreeMap<String, Place>>) -> String {
        let mut writer = Writer::new(places);
        let w = &mut writer;
        w.value("roles", self.roles.write());
        self.telemetry.write_field(w, "telemetry");
        self.admin.write_field(w, "admin");
        if self.roles.proxy {
            self.proxy.write_field(w, "proxy");
        }
        if self.roles.node {
            self.node.write_field(w, "node");
            self.channel.write_field(w, "channel");
        }
        if self.roles.broker {
            self.broker.write_field(w, "broker");
        }
        writer.finish()
    }
}
