//! `[admin]`: the operator's listener.

use crate::section::keys;
use crate::units::Secret;
use std::net::SocketAddr;

#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub enabled: bool,
    pub listen: SocketAddr,
    /// Bearer token for `/admin/v1/…`; needed for everything when `listen` is not loopback.
    pub token: Secret,
    /// Where a successor waits for the listeners of the process that it replaces.
    pub upgrade_socket: String,
}

keys!(Admin { enabled, listen, token, upgrade_socket });
