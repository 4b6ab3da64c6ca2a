//! `[proxy.http2]`: what one connection of HTTP/2 may do.

use crate::section::keys;
use crate::units::Bytes;

#[derive(Clone, Debug, PartialEq)]
pub struct Http2 {
    /// Open streams of one connection.
    pub max_streams: u32,
    /// What a client may send on a stream before it is taken.
    pub stream_window: usize,
    /// All headers of a request, as RFC 9113 counts them.
    pub max_header_list: usize,
    /// Streams that a client may reset, or make us reset, before they are forgotten.
    pub max_resets: u32,
}

keys!(Http2 {
    max_streams in 1..=100_000,
    stream_window as Bytes in Bytes(1024)..=Bytes(16 << 20),
    max_header_list as Bytes in Bytes(1024)..=Bytes(1 << 20),
    max_resets in 1..=100_000,
});
