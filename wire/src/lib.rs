//! What two machines of a Weir system must agree on: the envelopes that cross from tier to tier,
//! the frames that carry them, the close codes that clients see, and the names in all of these.
//!
//! No I/O and no clock in this crate.
//!
//! | hop | carried by | defined in |
//! |---|---|---|
//! | client → proxy → node | WebSocket, Centrifugo client protocol | the node crate (codes: [`close`], [`code`]) |
//! | proxy → node, request headers | HTTP/1.1 | [`hop`] |
//! | node ↔ broker, separate processes | length-prefixed frames over TCP | [`peer`], [`codec`] |
//! | broker ↔ broker | the same frames, in lanes | [`mesh`]; holders of a shard: [`replica`], [`entry`], [`snapshot`] |
//! | broker → its router → node's inbox | MQTT topic of the local rumqttd router | [`envelope`], [`topic`] |

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod close;
pub mod code;
pub mod codec;
pub mod entry;
pub mod envelope;
pub mod hop;
pub mod id;
pub mod mesh;
pub mod peer;
pub mod replica;
pub mod snapshot;
pub mod topic;
