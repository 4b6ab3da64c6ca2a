//! Handshakes between rustls's own client and ours, over a pipe in memory.

mod clients;
mod common;
mod doors;
mod files;
mod names;
mod quic;
mod shake;
