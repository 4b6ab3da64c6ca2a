//! The bytes are those of bincode 2.0.1 `standard()`, and hostile bytes are errors.

use super::*;
use crate::entry::{self, Entry, Holder};
use crate::envelope::*;
use crate::id::{Epoch, NodeId};
use crate::peer::{self, FromBroker, FromNode, Op, Outcome};
use crate::snapshot::{self, Record};
use bytes::BytesMut;
use std::fmt::Debug;

/// The same shapes with bincode's own derive: field for field, variant for variant.
mod twin {
    use bincode::Encode;

    #[derive(Encode)]
    pub struct Position(pub u64, pub u64);
    #[derive(Encode)]
    pub struct ClientInfo(pub &'static str, pub &'static str, pub &'static [u8], pub &'static [u8]);
    pub type Tags = Vec<(&'static str, &'static str)>;
    #[derive(Encode)]
    pub struct Publication(pub u64, pub &'static [u8], pub Option<ClientInfo>, pub Tags);
    #[derive(Encode)]
    pub struct StreamOptions(pub u32, pub u64, pub u64);
    #[derive(Encode)]
    #[allow(dead_code)]
    pub enum Ack {
        Copies,
        Owner,
        None,
    }

    #[derive(Encode)]
    pub struct Publish {
        pub channel: &'static str,
        pub data: &'static [u8],
        pub info: Option<ClientInfo>,
        pub tags: Tags,
        pub stream: Option<StreamOptions>,
        pub key: Option<&'static str>,
        pub version: u64,
        pub version_epoch: &'static str,
        pub ack: Ack,
        pub live_without_owner: bool,
    }
    #[derive(Encode)]
    pub enum Body {
        Publication(Publication),
        Join(ClientInfo),
        Leave(ClientInfo),
    }
    #[derive(Encode)]
    pub struct Delivery(pub &'static str, pub Option<u64>, pub Body);
    #[derive(Encode)]
    pub struct HistoryQuery(pub Option<Position>, pub u32, pub bool);
    #[derive(Encode)]
    pub struct History(pub Position, pub Vec<Publication>);
    #[derive(Encode)]
    pub struct Member(pub ClientInfo, pub bool, pub bool);
    #[derive(Encode)]
    pub struct Target(pub &'static str, pub &'static str);
    #[derive(Encode)]
    pub enum Control {
        Disconnect(Target, Vec<&'static str>, u16, &'static str),
        Unsubscribe(Target, &'static str),
        Subscribe(Target, &'static str, &'static [u8], &'static [u8], Option<Position>, i64),
        Refresh(Target, bool, i64, &'static [u8]),
    }
    #[derive(Encode)]
    pub enum Question {
        Info,
        Channels(&'static str),
    }
    #[derive(Encode)]
    pub struct NodeInfo(pub u64, pub &'static str, pub &'static str, pub [Big; 5], pub f64, pub u64);
    /// An array has no length in front; its elements are varints.
    pub type Big = u32;
    #[derive(Encode)]
    pub enum Answer {
        Info(NodeInfo),
        Channels(Vec<(&'static str, u32)>),
    }
    #[derive(Encode)]
    pub struct Survey(pub Vec<(u64, Answer)>, pub Vec<u64>);
    #[derive(Encode)]
    pub enum EntryOp {
        Publish(Publish, u64),
        Touch(&'static str, StreamOptions, u64),
        HistoryRemove(&'static str),
        Join(&'static str, (u64, u64), Member, bool),
        Leave(&'static str, (u64, u64), &'static str),
        DropMembers((u64, u64)),
        Expire(Vec<&'static str>),
        NewEpochs(u64),
        Seed(u64),
        Evict(Vec<(&'static str, Position)>),
    }
    #[derive(Encode)]
    pub struct Entry(pub u64, pub EntryOp);
    #[derive(Encode)]
    pub struct Stream(
        pub &'static str,
        pub u64,
        pub u64,
        pub u64,
        pub &'static str,
        pub u64,
        pub u64,
        pub u64,
    );
    #[derive(Encode)]
    pub enum Record {
        Head(u16, u64),
        Stream(Stream),
        Kept(Publication, u64, u64),
        Key(&'static str, &'static str, u64, Option<Position>),
        Member(&'static str, (u64, u64), Member),
        End(u64),
        Epochs(u64, Vec<(u16, u32)>),
    }
}

/// Compares with bincode, reads back, and tries every truncation and many corruptions.
#[track_caller]
fn same<T: Encode + Decode + PartialEq + Debug>(ours: &T, theirs: impl bincode::Encode) {
    let golden = bincode::encode_to_vec(theirs, bincode::config::standard()).unwrap();
    let frame = encode(ours).unwrap();
    assert_eq!(&frame[HEADER..], golden, "{ours:?}");
    assert_eq!(size(ours).unwrap(), golden.len());
    assert_eq!(decode::<T>(&golden).as_ref(), Ok(ours));
    hostile::<T>(&golden);
}

fn hostile<T: Decode + Debug>(body: &[u8]) {
    for cut in 0..body.len() {
        assert!(decode::<T>(&body[..cut]).is_err(), "cut at {cut} of {}", body.len());
    }
    let mut longer = body.to_vec();
    longer.push(0);
    assert!(decode::<T>(&longer).is_err(), "trailing byte");
    let mut random = Random(body.len() as u64 + 1);
    for _ in 0..500 {
        let mut bad = body.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bad.len());
            bad[at] = random.next() as u8;
        }
        // Whatever it is, it must come back: no panic, no abort.
        let _ = decode::<T>(&bad);
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn info() -> ClientInfo {
    ClientInfo {
        user: "úser".into(),
        client: "c1".into(),
        conn_info: Bytes::from_static(b"{\"a\":1}"),
        chan_info: Bytes::new(),
    }
}

fn twin_info() -> twin::ClientInfo {
    twin::ClientInfo("úser", "c1", b"{\"a\":1}", b"")
}

fn target() -> Target {
    Target { user: "u".into(), client: String::new() }
}

#[test]
fn publications_and_what_carries_them() {
    let position = Position { epoch: Epoch(u64::MAX), offset: 250 };
    same(&position, twin::Position(u64::MAX, 250));
    same(&info(), twin_info());
    let publication = |offset| Publication {
        offset,
        data: Bytes::from_static(&[0, 255, 7]),
        info: Some(info()),
        tags: vec![("k".into(), "v".into())],
    };
    let twin_publication =
        |offset| twin::Publication(offset, &[0, 255, 7], Some(twin_info()), vec![("k", "v")]);
    // The edges of bincode's varints.
    for offset in [0, 250, 251, 65_535, 65_536, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX] {
        same(&publication(offset), twin_publication(offset));
    }
    let body = |body| Delivery { channel: "a:b".into(), epoch: Some(Epoch(9)), body };
    let twin_body = |body| twin::Delivery("a:b", Some(9), body);
    same(&body(Body::Publication(publication(3))), twin_body(twin::Body::Publication(twin_publication(3))));
    same(&body(Body::Join(info())), twin_body(twin::Body::Join(twin_info())));
    same(&body(Body::Leave(info())), twin_body(twin::Body::Leave(twin_info())));
    same(
        &Publish {
            channel: "ch".into(),
            data: Bytes::from_static(b"{}"),
            info: None,
            tags: vec![],
            stream: Some(StreamOptions { size: 10, ttl_ms: 300_000, meta_ttl_ms: 1 << 40 }),
            idempotency_key: Some("key".into()),
            version: 7,
            version_epoch: String::new(),
            ack: crate::envelope::Ack::Owner,
            live_without_owner: true,
        },
        twin::Publish {
            channel: "ch",
            data: b"{}",
            info: None,
            tags: vec![],
            stream: Some(twin::StreamOptions(10, 300_000, 1 << 40)),
            key: Some("key"),
            version: 7,
            version_epoch: "",
            ack: twin::Ack::Owner,
            live_without_owner: true,
        },
    );
    same(
        &HistoryQuery { since: Some(position), limit: u32::MAX, reverse: true },
        twin::HistoryQuery(Some(twin::Position(u64::MAX, 250)), u32::MAX, true),
    );
    same(
        &History { top: position, publications: vec![publication(1), publication(2)] },
        twin::History(twin::Position(u64::MAX, 250), vec![twin_publication(1), twin_publication(2)]),
    );
    same(&Member { info: info(), listed: true, announced: false }, twin::Member(twin_info(), true, false));
}

#[test]
fn control_and_surveys() {
    same(
        &Control::Disconnect {
            target: target(),
            whitelist: vec!["x".into()],
            code: 3503,
            reason: "r".into(),
        },
        twin::Control::Disconnect(twin::Target("u", ""), vec!["x"], 3503, "r"),
    );
    same(
        &Control::Unsubscribe { target: target(), channel: "c".into() },
        twin::Control::Unsubscribe(twin::Target("u", ""), "c"),
    );
    for expire_at in [0, -1, i64::MIN, i64::MAX] {
        same(
            &Control::Subscribe {
                target: target(),
                channel: "c".into(),
                info: Bytes::from_static(b"i"),
                data: Bytes::new(),
                recover_since: None,
                expire_at,
            },
            twin::Control::Subscribe(twin::Target("u", ""), "c", b"i", b"", None, expire_at),
        );
    }
    same(
        &Control::Refresh { target: target(), expired: true, expire_at: 5, info: Bytes::new() },
        twin::Control::Refresh(twin::Target("u", ""), true, 5, b""),
    );
    same(&Question::Info, twin::Question::Info);
    same(&Question::Channels { pattern: "a*".into() }, twin::Question::Channels("a*"));
    let node = NodeInfo {
        node: NodeId(1),
        name: "n".into(),
        version: "0.1".into(),
        clients: 1,
        users: 300,
        subscriptions: 70_000,
        channels: 4,
        uptime_s: 5,
        cpu_percent: 12.75,
        rss_bytes: 1 << 33,
    };
    let twin_node = twin::NodeInfo(1, "n", "0.1", [1, 300, 70_000, 4, 5], 12.75, 1 << 33);
    same(
        &Survey {
            answers: vec![
                (NodeId(1), Answer::Info(node)),
                (NodeId(2), Answer::Channels(vec![("c".into(), 3)])),
            ],
            missing: vec![NodeId(3)],
        },
        twin::Survey(
            vec![(1, twin::Answer::Info(twin_node)), (2, twin::Answer::Channels(vec![("c", 3)]))],
            vec![3],
        ),
    );
}

#[test]
fn entries_of_a_shards_log() {
    use entry::Op;
    let at = |op| Entry { time_ms: 1 << 41, op };
    let twin_at = |op| twin::Entry(1 << 41, op);
    let publish = Publish {
        channel: "c".into(),
        data: Bytes::from_static(b"x"),
        info: None,
        tags: vec![],
        stream: None,
        idempotency_key: Some("k".into()),
        version: 7,
        version_epoch: String::new(),
        ack: crate::envelope::Ack::Owner,
        live_without_owner: true,
    };
    let twin_publish = twin::Publish {
        channel: "c",
        data: b"x",
        info: None,
        tags: vec![],
        stream: None,
        key: Some("k"),
        version: 7,
        version_epoch: "",
        ack: twin::Ack::Owner,
        live_without_owner: true,
    };
    same(&at(Op::Publish { publish, epoch: Epoch(9) }), twin_at(twin::EntryOp::Publish(twin_publish, 9)));
    let stream = StreamOptions { size: 1, ttl_ms: 2, meta_ttl_ms: 300 };
    same(
        &at(Op::Touch { channel: "c".into(), stream, epoch: Epoch(9) }),
        twin_at(twin::EntryOp::Touch("c", twin::StreamOptions(1, 2, 300), 9)),
    );
    same(&at(Op::HistoryRemove { channel: "c".into() }), twin_at(twin::EntryOp::HistoryRemove("c")));
    let (holder, member) =
        (Holder { node: NodeId(3), link: 400 }, Member { info: info(), listed: true, announced: false });
    let twin_member = || twin::Member(twin_info(), true, false);
    same(
        &at(Op::Join { channel: "c".into(), holder, member: member.clone(), quiet: true }),
        twin_at(twin::EntryOp::Join("c", (3, 400), twin_member(), true)),
    );
    same(
        &at(Op::Leave { channel: "c".into(), holder, client: "x".into() }),
        twin_at(twin::EntryOp::Leave("c", (3, 400), "x")),
    );
    same(&at(Op::DropMembers { before: holder }), twin_at(twin::EntryOp::DropMembers((3, 400))));
    same(&at(Op::Expire { channels: vec!["c".into()] }), twin_at(twin::EntryOp::Expire(vec!["c"])));
    same(&at(Op::NewEpochs { seed: u64::MAX }), twin_at(twin::EntryOp::NewEpochs(u64::MAX)));
    same(&at(Op::Seed { seed: 300 }), twin_at(twin::EntryOp::Seed(300)));
    let streams = vec![("c".into(), Position { epoch: Epoch(1), offset: 2 })];
    same(&at(Op::Evict { streams }), twin_at(twin::EntryOp::Evict(vec![("c", twin::Position(1, 2))])));
}

#[test]
fn records_of_a_snapshot() {
    same(&Record::Head { version: 1, time_ms: 300 }, twin::Record::Head(1, 300));
    let stream = snapshot::Stream {
        channel: "c".into(),
        epoch: Epoch(1),
        top: 2,
        version: 3,
        version_epoch: "e".into(),
        last_use_ms: 4,
        outlives_ms: 5,
        top_expires_ms: 6,
    };
    same(&Record::Stream(stream), twin::Record::Stream(twin::Stream("c", 1, 2, 3, "e", 4, 5, 6)));
    let publication = Publication { offset: 1, data: Bytes::new(), info: None, tags: vec![] };
    same(
        &Record::Kept { publication, at_ms: 1, expires_ms: 2 },
        twin::Record::Kept(twin::Publication(1, b"", None, vec![]), 1, 2),
    );
    let position = Position { epoch: Epoch(1), offset: 2 };
    same(
        &Record::Key { channel: "c".into(), key: "k".into(), at_ms: 1, published: Some(position) },
        twin::Record::Key("c", "k", 1, Some(twin::Position(1, 2))),
    );
    let member = Member { info: info(), listed: true, announced: true };
    same(
        &Record::Member { channel: "c".into(), holder: Holder { node: NodeId(3), link: 4 }, member },
        twin::Record::Member("c", (3, 4), twin::Member(twin_info(), true, true)),
    );
    same(&Record::End { records: 300 }, twin::Record::End(300));
    let epochs = Record::Epochs { seed: u64::MAX, generations: vec![(1, 2), (300, 70_000)] };
    same(&epochs, twin::Record::Epochs(u64::MAX, vec![(1, 2), (300, 70_000)]));
}

#[test]
fn a_channel_has_the_same_shard_in_every_build() {
    let shards: Vec<u16> = ["", "a", "news:1", "news:2"].map(|c| entry::shard_of(c, 256)).into();
    assert_eq!(shards, [155, 248, 156, 97]);
    let mut counts = [0; 256];
    (0..256_000).for_each(|i| counts[usize::from(entry::shard_of(&format!("channel:{i}"), 256))] += 1);
    assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
}

#[test]
fn peer_frames_read_back_and_survive_corruption() {
    let publish = Op::Subscribe { channel: "c".into(), stream: None };
    let hello = peer::Hello { node: NodeId(1), name: "n".into(), nonce: [7; 32], inbox: 1 };
    for frame in [
        FromNode::Hello(hello),
        FromNode::Proof(vec![1, 2]),
        FromNode::Restored,
        FromNode::Request { id: 1 << 20, op: publish },
        FromNode::Consumed(3),
        FromNode::Bye(peer::Bye::Timeout),
    ] {
        let bytes = encode(&frame).unwrap();
        assert_eq!(decode::<FromNode>(&bytes[HEADER..]).as_ref(), Ok(&frame));
        hostile::<FromNode>(&bytes[HEADER..]);
    }
    let history = History { top: Position { epoch: Epoch(1), offset: 0 }, publications: vec![] };
    for frame in [
        FromBroker::Reply { id: 3, result: Outcome::History { history, more: true } },
        FromBroker::Reply { id: 3, result: Outcome::Limit("broker.x".into()) },
        FromBroker::Resync { positions: vec![("c".into(), None)], last: true },
    ] {
        let bytes = encode(&frame).unwrap();
        assert_eq!(decode::<FromBroker>(&bytes[HEADER..]).as_ref(), Ok(&frame));
        hostile::<FromBroker>(&bytes[HEADER..]);
    }
}

#[test]
fn garbage_is_an_error_and_a_length_bomb_costs_nothing() {
    let mut random = Random(42);
    let mut decoded = 0;
    for _ in 0..20_000 {
        let garbage: Vec<u8> = (0..random.below(64)).map(|_| random.next() as u8).collect();
        decoded += usize::from(decode::<FromNode>(&garbage).is_ok());
        decoded += usize::from(decode::<FromBroker>(&garbage).is_ok());
    }
    // A byte or two can be a valid small frame by chance; anything more would be luck.
    assert!(decoded < 400, "{decoded} of 40,000");

    // Sequences of 2^64-1, 2^32-1 and 2^20 elements, announced in a few bytes.
    for len in
        [&[253, 255, 255, 255, 255, 255, 255, 255, 255][..], &[252, 255, 255, 255, 255], &[252, 0, 0, 16, 0]]
    {
        let error = decode::<Vec<(String, Option<StreamOptions>)>>(len).unwrap_err();
        assert!(matches!(error, CodecError::Malformed(_)), "{error}");
    }
}

#[test]
fn frames_are_cut_out_of_a_stream_at_any_seam() {
    let frames: Vec<FromNode> = (0..5).map(FromNode::Consumed).collect();
    let mut stream = Vec::new();
    frames.iter().for_each(|f| encode_into(&mut stream, f).unwrap());
    for piece in 1..stream.len() {
        let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
        for part in stream.chunks(piece) {
            buffer.extend_from_slice(part);
            while let Some(body) = take_frame(&mut buffer, 64).unwrap() {
                read.push(decode::<FromNode>(&body).unwrap());
            }
        }
        assert_eq!(read, frames, "in pieces of {piece}");
    }
    let mut shared = Bytes::from(stream.clone());
    let mut count = 0;
    while next_frame(&mut shared).unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 5);
    assert!(next_frame(&mut Bytes::from(stream).slice(..7)).is_err());
}

#[test]
fn headers_are_checked_before_anything_is_kept() {
    let limit = 1024;
    let check = |bytes: &[u8]| frame_len(bytes, limit);
    assert_eq!(check(&[9, 0, 0]), Ok(None));
    assert_eq!(check(&u32::MAX.to_le_bytes()), Err(CodecError::TooLong { len: (1 << 32) + 3, limit }));
    assert_eq!(check(b"GET / HTTP/1.1"), Err(CodecError::Magic(b'/')));
    assert_eq!(check(&[9, 0, 0, 0, MAGIC, VERSION + 1]), Err(CodecError::Version(VERSION + 1)));
    assert!(matches!(check(&[1, 0, 0, 0, MAGIC]), Err(CodecError::Malformed(_))));
    assert_eq!(check(&[9, 0, 0, 0, MAGIC, VERSION]), Ok(Some(13)));
}
