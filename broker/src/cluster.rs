//! One broker of several, or one with a disk: joins the engine's shards with the group that assigns
//! them (`meta`), the links to the other brokers (`mesh`) and what is kept on disk (`disk`).
//!
//! ```text
//!   meta ──assignments──► follow ──► engine ──entries──► world ──► mesh ──► other brokers
//!     ▲                                │                  │
//!     └── asks ◄── shrink, grow, move ─┘                  └──► disk
//! ```
//!
//! | file | |
//! |---|---|
//! | `start` | puts it together: disk, group, mesh, engine; into the cluster, and out of it |
//! | `world` | what the engine hands out: its [`Cluster`](crate::engine::Cluster) |
//! | `inbound` | what other brokers send: the mesh's [`Handler`](crate::mesh::Handler) |
//! | `follow` | assignments to the engine, leases, the engine's questions to the group |
//! | `forward` | calls on their way to a shard's owner, again and again until their deadline |
//! | `interest` | tells owners what nodes here want, and nodes where channels stand |
//! | `nodes` | which nodes are attached anywhere; what others held leaves |
//! | `operate` | what operators ask for, and see |

mod follow;
mod forward;
mod inbound;
mod interest;
mod metrics;
mod nodes;
mod operate;
mod start;
mod world;

pub use operate::Control;
pub use start::{Joined, start};
