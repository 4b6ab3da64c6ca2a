//! Meshes on loopback ports, each behind a whole listener.

mod figures;
mod links;
mod rig;
mod strangers;
mod tls;
mod traffic;
