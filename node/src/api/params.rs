//! The parameters of each method, as backends send them. Unknown fields are ignored.

use super::Failure;
use crate::protocol::json::compact;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::Position;
use weir_wire::id::Epoch;

pub fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Failure> {
    // serde would read an array as the fields of a struct, in order.
    if !text.trim_start().starts_with('{') {
        return Err(Failure::Malformed);
    }
    serde_json::from_str(text).map_err(|_| Failure::Malformed)
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Publish<'a> {
    pub channel: String,
    pub channels: Vec<String>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    pub b64data: String,
    pub skip_history: bool,
    pub tags: BTreeMap<String, String>,
    pub idempotency_key: String,
    pub version: u64,
    pub version_epoch: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Subscribe<'a> {
    pub user: String,
    pub client: String,
    pub channel: String,
    #[serde(borrow)]
    pub info: Option<&'a RawValue>,
    pub b64info: String,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    pub b64data: String,
    pub expire_at: i64,
    pub recover_since: Option<Since>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Since {
    pub offset: u64,
    pub epoch: String,
}

impl Since {
    /// Text that is no epoch of ours equals no stream's.
    pub fn position(&self) -> Position {
        Position { offset: self.offset, epoch: Epoch::parse(&self.epoch).unwrap_or(Epoch(0)) }
    }
}

/// `unsubscribe` and `disconnect`, and whatever only names a channel.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Whom {
    pub user: String,
    pub client: String,
    pub channel: String,
    pub whitelist: Vec<String>,
    pub disconnect: Option<Disconnect>,
}

#[derive(Deserialize)]
pub struct Disconnect {
    pub code: u16,
    #[serde(default)]
    pub reason: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Refresh<'a> {
    pub user: String,
    pub client: String,
    pub expired: bool,
    pub expire_at: i64,
    #[serde(borrow)]
    pub info: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct History {
    pub channel: String,
    pub limit: i32,
    pub since: Option<Since>,
    pub reverse: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Channels {
    pub pattern: String,
}

#[derive(Deserialize)]
pub struct Batch {
    pub commands: Vec<BTreeMap<String, Box<RawValue>>>,
    #[serde(default)]
    pub parallel: bool,
}

/// JSON given as such or in base64, on one line; empty if neither is there.
pub fn payload(json: Option<&RawValue>, base64: &str) -> Result<Bytes, Failure> {
    if base64.is_empty() {
        return Ok(json.map(compact).unwrap_or_default());
    }
    // It goes to JSON clients, so it has to be JSON.
    let bad = || Failure::Error(ErrorCode::BAD_REQUEST);
    let bytes = STANDARD.decode(base64).map_err(|_| bad())?;
    serde_json::from_slice::<&RawValue>(&bytes).map(compact).map_err(|_| bad())
}
