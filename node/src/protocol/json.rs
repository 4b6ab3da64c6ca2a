//! The JSON form of the protocol: one object per line, application payloads embedded as they are.

mod decode;
mod encode;

pub use decode::{Lines, compact, connect_request, one_line};
pub use encode::{VERSION, member_map, push, reply, write_publication, write_str};
