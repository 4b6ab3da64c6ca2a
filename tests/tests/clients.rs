//! Published clients, unchanged, against the running binary: the SDKs of three languages, Socket.IO, a
//! browser. `tests/setup.sh` installs what they need.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "clients/apps.rs"]
mod apps;
#[path = "clients/descriptors.rs"]
mod descriptors;
#[path = "clients/floods.rs"]
mod floods;
#[path = "clients/habits.rs"]
mod habits;
#[path = "clients/rust.rs"]
mod rust;
#[path = "clients/suites.rs"]
mod suites;
#[path = "clients/transports.rs"]
mod transports;
