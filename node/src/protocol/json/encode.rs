//! From replies and pushes to their JSON. Written by hand: which zero values are left out and
//! which are not is the protocol's, and payloads go in as they are.

use super::one_line;
use crate::protocol::{Answer, ConnectResult, Format, Push, Reply, SubscribeResult};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use weir_wire::envelope::{ClientInfo, Member, Publication};

/// Shown to clients and by `info`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

type Out = Vec<u8>;

pub fn reply(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(b"{\"id\":");
    number(&mut out, u64::from(reply.id));
    match &reply.answer {
        Answer::Error(e) => {
            out.extend_from_slice(b",\"error\":{\"code\":");
            number(&mut out, u64::from(e.code));
            out.extend_from_slice(b",\"message\":");
            write_str(&mut out, e.message);
            if e.temporary {
                out.extend_from_slice(b",\"temporary\":true");
            }
            out.push(b'}');
        }
        Answer::Connect(result) => object(&mut out, "connect", |o| connect_fields(o, result)),
        Answer::Subscribe(result) => object(&mut out, "subscribe", |o| subscribe_fields(o, result)),
        Answer::Unsubscribe => out.extend_from_slice(b",\"unsubscribe\":{}"),
        Answer::Publish => out.extend_from_slice(b",\"publish\":{}"),
        Answer::Presence(members) => {
            out.extend_from_slice(b",\"presence\":{\"presence\":");
            member_map(&mut out, members);
            out.push(b'}');
        }
        Answer::PresenceStats(stats) => {
            let text = format!(
                ",\"presence_stats\":{{\"num_clients\":{},\"num_users\":{}}}",
                stats.clients, stats.users
            );
            out.extend_from_slice(text.as_bytes());
        }
        Answer::History { top, publications } => {
            out.extend_from_slice(b",\"history\":{\"publications\":");
            list(&mut out, publications);
            let text = format!(",\"epoch\":\"{}\",\"offset\":{}}}", top.epoch, top.offset);
            out.extend_from_slice(text.as_bytes());
        }
        Answer::Refresh { client, ttl } => object(&mut out, "refresh", |o| {
            o.str("client", client);
            o.str("version", VERSION);
            o.expiry(*ttl);
        }),
        Answer::SubRefresh { ttl } => object(&mut out, "sub_refresh", |o| o.expiry(*ttl)),
    }
    out.push(b'}');
    out
}

pub fn push(push: &Push, format: Format) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    if format.wraps_pushes() {
        out.extend_from_slice(b"{\"push\":");
    }
    out.push(b'{');
    let channel = match push {
        Push::Publication { channel, .. }
        | Push::Join { channel, .. }
        | Push::Leave { channel, .. }
        | Push::Unsubscribe { channel, .. }
        | Push::Subscribe { channel, .. } => Some(channel),
        Push::Connect(_) | Push::Disconnect { .. } | Push::Refresh { .. } => None,
    };
    if let Some(channel) = channel {
        out.extend_from_slice(b"\"channel\":");
        write_str(&mut out, channel);
    }
    push_body(&mut out, push);
    out.push(b'}');
    if format.wraps_pushes() {
        out.push(b'}');
    }
    out
}

fn push_body(out: &mut Out, push: &Push) {
    match push {
        Push::Publication { publication, epoch, .. } => {
            out.extend_from_slice(b",\"pub\":");
            write_publication(out, publication, epoch.map(|e| e.to_string()).as_deref());
        }
        Push::Join { info, .. } => info_object(out, ",\"join\":{\"info\":", info),
        Push::Leave { info, .. } => info_object(out, ",\"leave\":{\"info\":", info),
        Push::Unsubscribe { code, .. } => {
            object(out, "unsubscribe", |o| {
                o.number("code", u64::from(code.code));
                o.str("reason", code.reason);
            });
        }
        Push::Subscribe { result, .. } => object(out, "subscribe", |o| {
            o.flag("recoverable", result.recoverable);
            o.position(result);
            o.flag("positioned", result.positioned);
            o.raw("data", &result.data);
        }),
        Push::Connect(result) => {
            out.extend_from_slice(b"\"connect\":{");
            connect_fields(&mut Fields { out, first: true }, result);
            out.push(b'}');
        }
        Push::Disconnect { code, reason, reconnect } => {
            out.extend_from_slice(b"\"disconnect\":{");
            let mut o = Fields { out, first: true };
            o.number("code", u64::from(*code));
            o.str("reason", reason);
            o.flag("reconnect", *reconnect);
            out.push(b'}');
        }
        Push::Refresh { ttl } => {
            out.extend_from_slice(b"\"refresh\":{");
            Fields { out, first: true }.expiry(*ttl);
            out.push(b'}');
        }
    }
}

fn connect_fields(o: &mut Fields<'_>, result: &ConnectResult) {
    o.str("client", &result.client);
    o.str("version", VERSION);
    o.expiry(result.ttl);
    if !result.subs.is_empty() {
        o.name("subs");
        o.out.push(b'{');
        for (i, (channel, sub)) in result.subs.iter().enumerate() {
            if i > 0 {
                o.out.push(b',');
            }
            write_str(o.out, channel);
            o.out.extend_from_slice(b":{");
            subscribe_fields(&mut Fields { out: o.out, first: true }, sub);
            o.out.push(b'}');
        }
        o.out.push(b'}');
    }
    o.number("ping", u64::from(result.ping));
    o.flag("pong", result.pong);
}

fn subscribe_fields(o: &mut Fields<'_>, result: &SubscribeResult) {
    o.expiry(result.ttl);
    o.flag("recoverable", result.recoverable);
    o.position(result);
    if !result.publications.is_empty() {
        o.name("publications");
        list(o.out, &result.publications);
    }
    o.flag("recovered", result.recovered);
    o.flag("positioned", result.positioned);
    o.raw("data", &result.data);
    o.flag("was_recovering", result.was_recovering);
}

/// `epoch`: given only where a client cannot know it yet.
pub fn write_publication(out: &mut Out, publication: &Publication, epoch: Option<&str>) {
    out.push(b'{');
    let mut o = Fields { out, first: true };
    if !publication.data.is_empty() {
        o.name("data");
        payload(o.out, &publication.data);
    }
    if let Some(info) = &publication.info {
        o.name("info");
        client_info(o.out, info);
    }
    o.number("offset", publication.offset);
    if !publication.tags.is_empty() {
        o.name("tags");
        for (i, (key, value)) in publication.tags.iter().enumerate() {
            o.out.push(if i == 0 { b'{' } else { b',' });
            write_str(o.out, key);
            o.out.push(b':');
            write_str(o.out, value);
        }
        o.out.push(b'}');
    }
    o.str("epoch", epoch.unwrap_or_default());
    out.push(b'}');
}

/// What a Protobuf client published need not be JSON, and may be made to look like more than a payload: such bytes
/// go to JSON clients as a string, in base64.
fn payload(out: &mut Out, data: &[u8]) {
    match one_line(data) {
        Some(json) => out.extend_from_slice(&json),
        None => write_str(out, &STANDARD.encode(data)),
    }
}

fn list(out: &mut Out, publications: &[Publication]) {
    out.push(b'[');
    for (i, publication) in publications.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_publication(out, publication, None);
    }
    out.push(b']');
}

/// Client id → ClientInfo: the `presence` of a reply and of the HTTP API.
pub fn member_map(out: &mut Out, members: &[Member]) {
    out.push(b'{');
    for (i, member) in members.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_str(out, &member.info.client);
        out.push(b':');
        client_info(out, &member.info);
    }
    out.push(b'}');
}

fn info_object(out: &mut Out, start: &str, info: &ClientInfo) {
    out.extend_from_slice(start.as_bytes());
    client_info(out, info);
    out.push(b'}');
}

/// `user` and `client` are there even when empty.
fn client_info(out: &mut Out, info: &ClientInfo) {
    out.extend_from_slice(b"{\"user\":");
    write_str(out, &info.user);
    out.extend_from_slice(b",\"client\":");
    write_str(out, &info.client);
    let mut o = Fields { out, first: false };
    o.raw("conn_info", &info.conn_info);
    o.raw("chan_info", &info.chan_info);
    out.push(b'}');
}

/// Fields of one object; zero values are left out.
struct Fields<'a> {
    out: &'a mut Out,
    first: bool,
}

impl Fields<'_> {
    fn name(&mut self, name: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn str(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.name(name);
            write_str(self.out, value);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.name(name);
            number(self.out, value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.name(name);
            self.out.extend_from_slice(b"true");
        }
    }

    fn raw(&mut self, name: &str, json: &Bytes) {
        if !json.is_empty() {
            self.name(name);
            self.out.extend_from_slice(json);
        }
    }

    fn expiry(&mut self, ttl: Option<u32>) {
        if let Some(ttl) = ttl {
            self.flag("expires", true);
            self.number("ttl", u64::from(ttl));
        }
    }

    fn position(&mut self, result: &SubscribeResult) {
        if let Some(position) = result.position {
            self.str("epoch", &position.epoch.to_string());
            self.number("offset", position.offset);
        }
    }
}

fn object(out: &mut Out, name: &str, fields: impl FnOnce(&mut Fields<'_>)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":{");
    fields(&mut Fields { out, first: true });
    out.push(b'}');
}

fn number(out: &mut Out, value: u64) {
    let mut digits = [0u8; 20];
    let (mut at, mut rest) = (digits.len(), value);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

pub fn write_str(out: &mut Out, text: &str) {
    // The text is valid UTF-8 and a Vec takes every byte: this cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_wire::code::{ErrorCode, UnsubscribeCode};
    use weir_wire::envelope::{Position, PresenceStats};
    use weir_wire::id::Epoch;

    fn text(id: u32, answer: Answer) -> String {
        String::from_utf8(reply(&Reply { id, answer })).unwrap()
    }

    fn publication(offset: u64, data: &str) -> Publication {
        Publication { offset, data: Bytes::copy_from_slice(data.as_bytes()), info: None, tags: vec![] }
    }

    fn info() -> ClientInfo {
        ClientInfo { client: "c1".into(), ..ClientInfo::default() }
    }

    #[test]
    fn zero_values_are_left_out_except_where_the_protocol_keeps_them() {
        let top = Position { epoch: Epoch(1), offset: 0 };
        let cases = [
            (Answer::Publish, r#"{"id":3,"publish":{}}"#),
            (Answer::Unsubscribe, r#"{"id":3,"unsubscribe":{}}"#),
            (Answer::Subscribe(Box::default()), r#"{"id":3,"subscribe":{}}"#),
            (Answer::SubRefresh { ttl: None }, r#"{"id":3,"sub_refresh":{}}"#),
            (Answer::SubRefresh { ttl: Some(60) }, r#"{"id":3,"sub_refresh":{"expires":true,"ttl":60}}"#),
            (
                Answer::Error(ErrorCode::INTERNAL),
                r#"{"id":3,"error":{"code":100,"message":"internal server error","temporary":true}}"#,
            ),
            (
                Answer::Error(ErrorCode::PERMISSION_DENIED),
                r#"{"id":3,"error":{"code":103,"message":"permission denied"}}"#,
            ),
            (Answer::Presence(vec![]), r#"{"id":3,"presence":{"presence":{}}}"#),
            (
                Answer::Presence(vec![Member { info: info(), listed: true, announced: false }]),
                r#"{"id":3,"presence":{"presence":{"c1":{"user":"","client":"c1"}}}}"#,
            ),
            (
                Answer::PresenceStats(PresenceStats::default()),
                r#"{"id":3,"presence_stats":{"num_clients":0,"num_users":0}}"#,
            ),
            (
                Answer::History { top, publications: vec![] },
                r#"{"id":3,"history":{"publications":[],"epoch":"0000000000000001","offset":0}}"#,
            ),
        ];
        for (answer, want) in cases {
            assert_eq!(text(3, answer), want);
        }
    }

    #[test]
    fn the_transcript_of_a_recovery() {
        let result = SubscribeResult {
            recoverable: true,
            positioned: true,
            position: Some(Position { epoch: Epoch(0xab), offset: 4 }),
            publications: vec![publication(5, "{\"a\":1}"), publication(6, "[]")],
            recovered: true,
            was_recovering: true,
            ..SubscribeResult::default()
        };
        assert_eq!(
            text(2, Answer::Subscribe(Box::new(result))),
            r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"00000000000000ab","offset":4,"publications":[{"data":{"a":1},"offset":5},{"data":[],"offset":6}],"recovered":true,"positioned":true,"was_recovering":true}}"#
        );
    }

    #[test]
    fn pushes_are_wrapped_for_those_who_also_ask() {
        let p = Push::Publication {
            channel: "a\"b".into(),
            publication: Publication {
                info: Some(ClientInfo { user: "u".into(), conn_info: Bytes::from_static(b"{}"), ..info() }),
                tags: vec![("k".into(), "v".into()), ("l".into(), "".into())],
                ..publication(1, "1")
            },
            epoch: Some(Epoch(2)),
        };
        let bare = r#"{"channel":"a\"b","pub":{"data":1,"info":{"user":"u","client":"c1","conn_info":{}},"offset":1,"tags":{"k":"v","l":""},"epoch":"0000000000000002"}}"#;
        assert_eq!(push(&p, Format::JsonUni), bare.as_bytes());
        assert_eq!(push(&p, Format::Json), format!("{{\"push\":{bare}}}").as_bytes());
    }

    #[test]
    fn every_push_is_json_under_its_name() {
        let channel: std::sync::Arc<str> = "c".into();
        let all = [
            (Push::Join { channel: channel.clone(), info: info() }, "join"),
            (Push::Leave { channel: channel.clone(), info: info() }, "leave"),
            (Push::Unsubscribe { channel: channel.clone(), code: UnsubscribeCode::SERVER }, "unsubscribe"),
            (Push::Subscribe { channel, result: Box::default() }, "subscribe"),
            (Push::Connect(Box::default()), "connect"),
            (Push::Disconnect { code: 3001, reason: "shutdown".into(), reconnect: true }, "disconnect"),
            (Push::Refresh { ttl: Some(3) }, "refresh"),
        ];
        for (p, name) in all {
            let value: serde_json::Value = serde_json::from_slice(&push(&p, Format::Json)).unwrap();
            assert!(value["push"][name].is_object(), "{name}: {value}");
        }
    }
}
