//! Behaviour of whole systems: real processes, real sockets. One module, one behaviour.

#![allow(clippy::unwrap_used, clippy::expect_used)]
fn main() {}
