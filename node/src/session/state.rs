//! The states of a connection, and the only moves between them.
//!
//! ```text
//!            connect                 all server-side subscriptions made
//!  Opening ───────────► Connecting ─────────────────────────────────────► Open
//!     │                     │ error reply                                   │
//!     │ error reply         ▼                                               │
//!     └────────────────► Refused (any further command: 3501)                │
//!     │                     │                                               │
//!     ▼ 3502, 3500, 3501    ▼ 3502, 3501                                    ▼ any close
//!   Closed ◄────────────────┴───────────────────────────────────────────────┘
//! ```

use super::connect::Connecting;

#[derive(Debug)]
pub enum State {
    /// Waits for the connect command, as long as `node.stale_timeout`.
    Opening,
    /// The token is good; server-side subscriptions are being made.
    Connecting(Box<Connecting>),
    Open,
    /// Connect was answered with an error: the client is expected to leave.
    Refused,
    Closed,
}

impl State {
    /// No (successful) connect yet: the stale timer runs.
    pub fn is_stale_prone(&self) -> bool {
        matches!(self, State::Opening | State::Refused)
    }
}
