//! What counts as one client: a network, or a key that a request brings. Pure.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use weir_core::client_addr::network;

/// One client in tables of rates and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u128);

/// An IPv6 client is its prefix.
pub fn of_ip(ip: IpAddr, v6_prefix: u8) -> Key {
    match network(ip, v6_prefix) {
        IpAddr::V4(v4) => Key(u128::from(v4.to_bits()) | (0xffff << 32)),
        IpAddr::V6(v6) => Key(v6.to_bits()),
    }
}

/// A key that clients choose is hashed with numbers that they do not know, so none can aim at another's.
pub fn of_bytes(bytes: &[u8], secret: &RandomState) -> Key {
    Key(u128::from(secret.hash_one(bytes)))
}

impl Key {
    /// Which of 65,536 groups it belongs to: an IPv4 /16, an IPv6 /32 folded, any hash.
    pub fn group(self) -> u16 {
        let low = |bits: u128| (bits & 0xffff) as u16;
        match self.0 >> 48 {
            // IPv4, as it is mapped.
            0 => low(self.0 >> 16),
            _ => low(self.0 >> 112) ^ low(self.0 >> 96) ^ if self.0 >> 64 == 0 { low(self.0) } else { 0 },
        }
    }
}
