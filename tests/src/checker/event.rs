//! What a log holds: a line of JSON for each thing that a publisher was told, that a subscriber saw, and that was
//! read at the end.

use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// `t` is in milliseconds since 1970: what the logs of several processes are compared by.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "e", rename_all = "lowercase")]
pub enum Event {
    /// A publication is begun. `by` names its publisher, who waits for the outcome before the next one.
    Pub { t: u64, id: String, ch: String, by: String },
    /// One attempt at it was acknowledged. Offset 0: it went out, and is not kept.
    Ack { t: u64, id: String, ep: String, off: u64 },
    /// … was refused for certain: nothing can come of it.
    Nack { t: u64, id: String, why: String },
    /// … ended without an answer, or with one that leaves it open.
    Unknown { t: u64, id: String, why: String },
    /// A subscriber was told where it is. `was`: it had asked to recover; `recovered`: and nothing is missing.
    Sub { t: u64, c: String, ch: String, ep: String, off: u64, was: bool, recovered: bool },
    /// A publication reached the subscriber's callback. Offset 0: one of a channel that has no history just now.
    Msg { t: u64, c: String, ch: String, off: u64, id: String },
    /// The subscriber left on purpose.
    Gone { t: u64, c: String },
    /// History, whole, and its top.
    Hist { t: u64, ch: String, ep: String, off: u64, pubs: Vec<(u64, String)> },
    /// Who is there, when all has been quiet for a while.
    Presence { t: u64, ch: String, users: Vec<String> },
    /// What was done to the system; `chs` are the channels that it concerned.
    Mark {
        t: u64,
        what: String,
        #[serde(default)]
        chs: Vec<String>,
    },
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
