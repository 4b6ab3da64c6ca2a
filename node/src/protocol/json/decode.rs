//! From a text frame to commands. Unknown fields are ignored, as the protocol asks; what is no
//! JSON object, or has a known field of the wrong type, is malformed.

use crate::protocol::request::request;
use crate::protocol::{Command, Connect, Malformed, Subscribe};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The lines of one frame. An empty frame is one malformed line.
#[derive(Debug)]
pub struct Lines {
    text: Bytes,
    at: usize,
}

impl Lines {
    pub fn new(text: Bytes) -> Lines {
        Lines { text, at: 0 }
    }
}

impl Iterator for Lines {
    type Item = Result<Command, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        // One trailing newline ends the frame; only as the very first thing is nothing malformed.
        if rest.is_empty() && self.at > 0 {
            return None;
        }
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        self.at += end + 1;
        Some(command(line))
    }
}

fn command(line: &[u8]) -> Result<Command, Malformed> {
    // serde would read an array as the fields of a struct, in order.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(Malformed);
    }
    let raw: RawCommand<'_> = serde_json::from_slice(line).map_err(|_| Malformed)?;
    let id = raw.id;
    Ok(Command { id, request: request!(raw, publish => publish.data.map(compact).unwrap_or_default()) })
}

/// The bare ConnectRequest of a listening client.
pub fn connect_request(text: &[u8]) -> Result<Connect, Malformed> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Malformed);
    }
    serde_json::from_slice::<RawConnect>(text).map(Into::into).map_err(|_| Malformed)
}

/// An application's JSON on one line: a newline outside a string is white space, inside it is escaped.
pub fn compact(raw: &RawValue) -> Bytes {
    let text = raw.get();
    if text.contains(['\n', '\r']) {
        Bytes::from(text.replace(['\n', '\r'], ""))
    } else {
        Bytes::copy_from_slice(text.as_bytes())
    }
}

/// The same of bytes that may be JSON. `None`: they are not.
pub fn one_line(data: &[u8]) -> Option<Bytes> {
    serde_json::from_slice::<&RawValue>(data).ok().map(compact)
}

#[derive(Deserialize)]
struct RawCommand<'a> {
    #[serde(default)]
    id: u32,
    connect: Option<RawConnect>,
    subscribe: Option<RawSubscribe>,
    unsubscribe: Option<RawChannel>,
    #[serde(borrow)]
    publish: Option<RawPublish<'a>>,
    presence: Option<RawChannel>,
    presence_stats: Option<RawChannel>,
    history: Option<RawHistory>,
    ping: Option<Ignored>,
    send: Option<Ignored>,
    rpc: Option<Ignored>,
    refresh: Option<RawRefresh>,
    sub_refresh: Option<RawRefresh>,
}

#[derive(Deserialize)]
struct Ignored {}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawConnect {
    token: String,
    subs: BTreeMap<String, RawSubscribe>,
    name: String,
    version: String,
}

impl From<RawConnect> for Connect {
    fn from(raw: RawConnect) -> Connect {
        let subs = raw.subs.into_iter().map(|(channel, s)| (channel, s.into())).collect();
        Connect { token: raw.token, name: raw.name, version: raw.version, subs }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSubscribe {
    channel: String,
    token: String,
    recover: bool,
    epoch: String,
    offset: u64,
    positioned: bool,
    recoverable: bool,
    join_leave: bool,
    flag: i64,
}

impl From<RawSubscribe> for Subscribe {
    fn from(raw: RawSubscribe) -> Subscribe {
        Subscribe {
            channel: raw.channel,
            token: raw.token,
            recover: raw.recover,
            epoch: raw.epoch,
            offset: raw.offset,
            positioned: raw.positioned,
            recoverable: raw.recoverable,
            join_leave: raw.join_leave,
            flag: raw.flag,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawChannel {
    channel: String,
}

#[derive(Deserialize)]
struct RawPublish<'a> {
    #[serde(default)]
    channel: String,
    #[serde(default, borrow, deserialize_with = "raw")]
    data: Option<&'a RawValue>,
}

/// `null` is a payload like any other, not an absent one.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawHistory {
    channel: String,
    limit: i32,
    since: Option<RawSince>,
    reverse: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSince {
    offset: u64,
    epoch: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRefresh {
    channel: String,
    token: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Request;

    fn lines(text: &str) -> Vec<Result<Command, Malformed>> {
        Lines::new(Bytes::copy_from_slice(text.as_bytes())).collect()
    }

    #[test]
    fn frames_are_split_and_a_trailing_newline_is_tolerated() {
        let two = lines("{\"id\":1,\"connect\":{}}\n{\"id\":2,\"rpc\":{\"data\":1}}\n");
        assert_eq!(two.len(), 2);
        assert!(matches!(two[0], Ok(Command { id: 1, request: Request::Connect(_) })));
        assert_eq!(two[1], Ok(Command { id: 2, request: Request::Rpc }));
        assert_eq!(lines("{}"), [Ok(Command { id: 0, request: Request::Pong })]);
        assert_eq!(lines(""), [Err(Malformed)], "an empty frame is no frame");
        assert_eq!(lines("\n"), [Err(Malformed)]);
        assert_eq!(lines("{}\n\n").last(), Some(&Err(Malformed)), "one trailing newline, not two");
    }

    #[test]
    fn what_is_no_command_is_malformed() {
        for bad in [
            "nope",
            "[]",
            "1",
            "\"x\"",
            "null",
            "{\"id\":-1}",
            "{\"id\":1",
            "{\"id\":1}x",
            "{\"id\":1,\"subscribe\":7}",
            "[1,null,null,null,null,null,null,null,null,null,null,null,null]",
            "{\"id\":1,\"publish\":{\"data\":{]}}",
            "{\"id\":4294967296}",
            "{\"id\":1,\"subscribe\":{\"offset\":-1}}",
        ] {
            assert_eq!(lines(bad), [Err(Malformed)], "{bad}");
        }
        let deep = format!("{{\"id\":1,\"publish\":{{\"data\":{}", "[".repeat(100_000));
        assert_eq!(lines(&deep), [Err(Malformed)], "nesting has an end");
    }

    #[test]
    fn payloads_stay_raw() {
        for (text, data) in
            [("{\"a\": [1,  2]}", "{\"a\": [1,  2]}"), ("null", "null"), ("\"ä\\n\"", "\"ä\\n\"")]
        {
            let got = lines(&format!("{{\"id\":3,\"publish\":{{\"channel\":\"c\",\"data\":{text}}}}}"));
            let want =
                Request::Publish { channel: "c".into(), data: Bytes::copy_from_slice(data.as_bytes()) };
            assert_eq!(got, [Ok(Command { id: 3, request: want })]);
        }
        let none = lines("{\"id\":3,\"publish\":{\"channel\":\"c\"}}");
        assert!(
            matches!(&none[0], Ok(Command { request: Request::Publish { data, .. }, .. }) if data.is_empty())
        );
    }

    #[test]
    fn newer_fields_are_ignored_and_the_first_request_wins() {
        let c = lines(
            "{\"id\":1,\"x\":{},\"publish\":{\"channel\":\"p\"},\"subscribe\":{\"channel\":\"s\",\"tf\":{}}}",
        );
        assert!(matches!(&c[0], Ok(Command { request: Request::Subscribe(s), .. }) if s.channel == "s"));
        assert_eq!(lines("{\"id\":9,\"x\":1}"), [Ok(Command { id: 9, request: Request::Unknown })]);
    }
}
