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
    /// Names by which the listener may be asked, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Where a successor waits for the listeners of the process that it replaces; "": in a folder of its user's.
    pub upgrade_socket: String,
}

keys!(Admin { enabled, listen, token, hosts, upgrade_socket });
