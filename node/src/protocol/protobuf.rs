//! The Protobuf form of the protocol: each message behind its length as a varint. Payloads are bytes of the
//! application's; those that JSON clients send or get are JSON.

mod decode;
mod encode;
pub mod messages;

pub use decode::{Messages, message_at};
pub use encode::{push, reply};
