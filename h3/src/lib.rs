//! HTTP/3 (RFC 9114), QPACK (RFC 9204), HTTP Datagrams and capsules (RFC 9297) and WebTransport without I/O:
//! bytes in, events out, and back. For both roles: the proxy is the server, `weir bench` a client.
//!
//! A reader takes whatever has arrived and gives what is complete; it never holds more than its limit. What
//! breaks the protocol is an [`Error`], which says how far it reaches (a stream or the connection) and with
//! which [`Code`]. Streams, sockets, deadlines and sessions are left to whoever drives this.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod capsule;
mod code;
pub mod datagram;
pub mod frame;
pub mod head;
pub mod qpack;
mod settings;
pub mod stream;
pub mod varint;
pub mod webtransport;

pub use code::{Code, Error, Scope};
pub use head::{EarlyData, Protocol};
pub use settings::Settings;
