//! Behaviour of whole systems: real processes, real sockets. One module, one behaviour.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "system/acme.rs"]
mod acme;
#[path = "system/admin.rs"]
mod admin;
#[path = "system/bad_input.rs"]
mod bad_input;
#[path = "system/bench.rs"]
mod bench;
#[path = "system/breaker.rs"]
mod breaker;
#[path = "system/cluster.rs"]
mod cluster;
#[path = "system/conf.rs"]
mod conf;
#[path = "system/families.rs"]
mod families;
#[path = "system/flood.rs"]
mod flood;
#[path = "system/hosts.rs"]
mod hosts;
#[path = "system/limits.rs"]
mod limits;
#[path = "system/names.rs"]
mod names;
#[path = "system/nodes.rs"]
mod nodes;
#[path = "system/operate.rs"]
mod operate;
#[path = "system/path.rs"]
mod path;
#[path = "system/reconnect.rs"]
mod reconnect;
#[path = "system/slow.rs"]
mod slow;
#[path = "system/slow_peers.rs"]
mod slow_peers;
#[path = "system/smuggling.rs"]
mod smuggling;
#[path = "system/sticky.rs"]
mod sticky;
#[path = "system/stop.rs"]
mod stop;
#[path = "system/trust.rs"]
mod trust;
#[path = "system/unproven.rs"]
mod unproven;
#[path = "system/upgrades.rs"]
mod upgrades;
