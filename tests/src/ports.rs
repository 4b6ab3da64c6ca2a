//! Ports for processes that must know each other's addresses before any of them runs.
//!
//! Port 0 is no use there. A port is taken from below the range that the kernel gives to outgoing
//! connections, and is kept by a lock on a file as long as the `Port` lives: test binaries that run side by
//! side do not take each other's.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;

/// A port that is ours until this is dropped.
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub fn free() -> Port {
        let folder = std::env::temp_dir().join("weir-test-ports");
        std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let start = rand::random_range(FIRST..LAST);
        let tried = (start..LAST).chain(FIRST..start);
        for number in tried {
            let path = folder.join(number.to_string());
            let lock = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port between {FIRST} and {LAST}");
    }

    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.addr().fmt(f)
    }
}
