//! The hub with a twin of the bus: order, holes, resync, recovery, interest.

use super::channel::{Inner, NewSubscriber};
use super::*;
use crate::protocol::Format;
use crate::session::{Since, SubscribeCall, Subscribed};
use crate::socket_tests::front::Fake;
use crate::testing::{Faults, Twin, TwinBus};
use bytes::Bytes;
use std::collections::VecDeque;
use weir_broker::{Event as BusEvent, Inbox};
use weir_wire::envelope::{Body, ClientInfo, Member, Publication, Publish, StreamOptions};
use weir_wire::id::NodeId;

const STREAM: StreamOptions = StreamOptions { size: 100, ttl_ms: 60_000, meta_ttl_ms: 60_000 };

struct Node {
    hub: Arc<Hub>,
    bus: Arc<TwinBus>,
    inbox: Inbox,
}

struct Peer {
    client: Arc<Client>,
    sub: Option<Subscribed>,
}

async fn settle() {
    // Everything that can run, has run; and the (stopped) clock went on a little.
    tokio::time::sleep(Duration::from_millis(1)).await;
}

impl Node {
    fn new(twin: &Twin) -> Node {
        let (bus, inbox) = twin.attach(NodeId(rand::random()));
        let hub = Arc::new(Hub::new(0, Duration::from_secs(5), Duration::ZERO, Default::default()));
        let (janitor, jobs) = Janitor::new();
        hub.start(bus.clone(), janitor);
        tokio::spawn(jobs.run(hub.clone()));
        Node { hub, bus, inbox }
    }

    /// Hands on what the bus delivered.
    async fn pump(&mut self) {
        settle().await;
        while let Some(event) = self.inbox.try_next() {
            match event {
                BusEvent::Deliver(delivery) => self.hub.deliver(delivery),
                BusEvent::Resync(all) => all.into_iter().for_each(|(c, top)| self.hub.resync(&c, top)),
                _ => {}
            }
        }
        settle().await;
    }

    async fn publish(&self, data: &str) {
        self.publish_in("c", data, Some(STREAM)).await;
    }

    async fn publish_in(&self, channel: &str, data: &str, stream: Option<StreamOptions>) {
        let publish = Publish {
            channel: channel.into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            stream,
            ..Default::default()
        };
        self.bus.publish(publish).await.unwrap();
    }

    fn call(channel: &str, positioned: bool, since: Option<Since>) -> SubscribeCall {
        SubscribeCall {
            channel: channel.into(),
            stream: Some(STREAM),
            by_client: true,
            by_datagram: false,
            positioned,
            join_leave: false,
            since,
            reject_unrecovered: false,
            limit: 300,
            bytes: 1 << 18,
            member: None,
        }
    }

    fn client(&self) -> Arc<Client> {
        let client =
            Arc::new(Client::new(format!("{:x}", rand::random::<u64>()).into(), Format::Json, 1 << 20));
        self.hub.register(&client, "u".into());
        client
    }

    async fn pending(&self, call: SubscribeCall) -> Peer {
        let client = self.client();
        let sub = self.hub.clone().subscribe(client.clone(), call).await.unwrap();
        Peer { client, sub: Some(sub) }
    }

    async fn subscribe(&self, positioned: bool) -> Peer {
        let mut peer = self.pending(Node::call("c", positioned, None)).await;
        peer.go_live(&self.hub);
        peer
    }
}

impl Peer {
    fn go_live(&mut self, hub: &Hub) {
        let sub = self.sub.take().unwrap();
        self.client.outbox.add(Bytes::from_static(b"reply"));
        hub.go_live(&self.client, &sub.channel, sub.ticket);
        self.sub = Some(sub);
    }

    /// What stands in the outbox, as data of publications; `reply` where it was written.
    fn got(&self) -> Vec<String> {
        let mut queue = VecDeque::new();
        self.client.outbox.take(&mut queue);
        let word = |frame: Bytes| match frame.iter().position(|b| *b == b'{') {
            None => "reply".to_owned(),
            Some(at) => {
                let push: serde_json::Value = serde_json::from_slice(&frame[at..]).unwrap();
                let push = &push["push"];
                match push["pub"]["data"].as_i64() {
                    Some(n) => n.to_string(),
                    None => push.as_object().unwrap().keys().find(|k| *k != "channel").unwrap().clone(),
                }
            }
        };
        queue.into_iter().map(word).collect()
    }

    fn is_insufficient(&self) -> bool {
        matches!(self.client.take_mail(), Some(Event::Insufficient { .. }))
    }
}

fn since(sub: &Subscribed) -> Since {
    let at = sub.position.unwrap();
    Since { epoch: at.epoch.to_string(), offset: at.offset }
}

#[tokio::test(start_paused = true)]
async fn everybody_gets_everything_once_and_in_order() {
    let twin = Twin::default();
    let (mut a, mut b) = (Node::new(&twin), Node::new(&twin));
    let peers = [a.subscribe(true).await, a.subscribe(false).await];
    let other = b.subscribe(true).await;
    for n in 1..=5 {
        a.publish(&n.to_string()).await;
    }
    a.pump().await;
    b.pump().await;
    for peer in peers.iter().chain([&other]) {
        assert_eq!(peer.got(), ["reply", "1", "2", "3", "4", "5"]);
    }
    assert_eq!(a.hub.metrics.deliveries.get(), 10);
    assert_eq!(twin.calls("subscribe"), 2, "one per node, not per subscriber");
}

#[tokio::test(start_paused = true)]
async fn pushes_are_held_back_until_the_reply() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    node.publish("1").await;
    let mut peer = node.pending(Node::call("c", true, None)).await;
    assert_eq!(peer.sub.as_ref().unwrap().position.unwrap().offset, 1);
    node.publish("2").await;
    node.pump().await;
    assert!(peer.got().is_empty());
    peer.go_live(&node.hub);
    node.publish("3").await;
    node.pump().await;
    assert_eq!(peer.got(), ["reply", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn recovery_and_live_deliveries_meet_without_loss_or_double() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let first = node.subscribe(true).await;
    let mut at = since(first.sub.as_ref().unwrap());
    for n in 1..=4 {
        node.publish(&n.to_string()).await;
    }
    node.pump().await;
    at.offset = 2;
    // 5 is in history already, but its delivery still stands in the inbox.
    node.publish("5").await;
    let mut peer = node.pending(Node::call("c", true, Some(at.clone()))).await;
    let sub = peer.sub.as_ref().unwrap();
    assert!(sub.recovered);
    assert_eq!(sub.position.unwrap().offset, 2, "the client's own");
    assert_eq!(sub.publications.iter().map(|p| p.offset).collect::<Vec<_>>(), [3, 4, 5]);
    node.publish("6").await;
    node.pump().await;
    peer.go_live(&node.hub);
    assert_eq!(peer.got(), ["reply", "6"]);
    assert_eq!(first.got(), ["reply", "1", "2", "3", "4", "5", "6"]);
    // Nothing missed: no history is read for it.
    let before = twin.calls("history");
    let here = Node::call("c", true, Some(Since { offset: 6, ..at.clone() }));
    assert!(node.pending(here).await.sub.unwrap().recovered);
    assert_eq!(twin.calls("history"), before);
    // Not all there any more, or of another stream: honestly not recovered.
    twin.trim("c");
    for lost in [at.clone(), Since { epoch: "x".into(), ..at }] {
        let sub = node.pending(Node::call("c", true, Some(lost))).await.sub.unwrap();
        assert!(!sub.recovered && sub.publications.is_empty());
        assert_eq!(sub.position.unwrap().offset, 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hole_is_filled_from_history_and_what_comes_meanwhile_waits() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let peers = [node.subscribe(true).await, node.subscribe(false).await];
    node.publish("1").await;
    twin.drop_next(2);
    node.publish("2").await;
    node.publish("3").await;
    node.publish("4").await;
    node.bus.set(Faults { down: true, ..Faults::default() });
    node.pump().await;
    for peer in &peers {
        assert_eq!(peer.got(), ["reply", "1"], "4 waits for 2 and 3");
    }
    node.bus.set(Faults::default());
    node.publish("5").await;
    node.pump().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    for peer in &peers {
        assert_eq!(peer.got(), ["2", "3", "4", "5"]);
        assert!(!peer.is_insufficient());
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_filled_is_told_to_the_positioned_only() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let (positioned, plain) = (node.subscribe(true).await, node.subscribe(false).await);
    let mut pending = node.pending(Node::call("c", true, None)).await;
    node.publish("1").await;
    twin.drop_next(1);
    node.publish("2").await;
    twin.trim("c");
    node.publish("3").await;
    node.pump().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(positioned.got(), ["reply", "1"]);
    assert!(positioned.is_insufficient());
    assert_eq!(plain.got(), ["reply", "1", "3"]);
    assert!(!plain.is_insufficient());
    pending.go_live(&node.hub);
    assert!(pending.is_insufficient(), "one that waited for its reply is told after it");
    node.publish("4").await;
    node.pump().await;
    assert_eq!((positioned.got().len(), plain.got()), (0, vec!["4".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_new_epoch_ends_positions() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let (positioned, plain) = (node.subscribe(true).await, node.subscribe(false).await);
    node.publish("1").await;
    node.publish("2").await;
    node.pump().await;
    twin.new_epoch("c");
    node.publish("3").await;
    node.pump().await;
    assert_eq!(positioned.got(), ["reply", "1", "2"]);
    assert!(positioned.is_insufficient());
    assert_eq!(plain.got(), ["reply", "1", "2", "3"], "offset 1 of the new stream is no repetition");
}

#[tokio::test(start_paused = true)]
async fn a_resync_finds_a_lost_last_message() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let peer = node.subscribe(true).await;
    node.publish("1").await;
    twin.drop_next(2);
    node.publish("2").await;
    node.publish("3").await;
    node.pump().await;
    assert_eq!(peer.got(), ["reply", "1"]);
    twin.resync();
    node.pump().await;
    assert_eq!(peer.got(), ["2", "3"]);
    twin.resync();
    node.pump().await;
    assert!(peer.got().is_empty() && !peer.is_insufficient(), "nothing was missing");
    twin.new_epoch("c");
    twin.resync();
    node.pump().await;
    assert!(!peer.is_insufficient(), "a stream that is gone: no position to compare");
    twin.top("c");
    twin.resync();
    node.pump().await;
    assert!(peer.is_insufficient());
}

#[tokio::test(start_paused = true)]
async fn a_hole_that_grows_too_large_is_given_up() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let (positioned, plain) = (node.subscribe(true).await, node.subscribe(false).await);
    twin.drop_next(1);
    node.publish("0").await;
    for n in 1..=1200 {
        node.publish(&n.to_string()).await;
    }
    node.bus.set(Faults { down: true, ..Faults::default() });
    node.pump().await;
    assert!(positioned.is_insufficient());
    assert_eq!(plain.got().len(), 1 + 1200, "all that came, once");
    assert_eq!(positioned.got(), ["reply"]);
}

#[tokio::test(start_paused = true)]
async fn interest_lingers_and_then_ends() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let peer = node.subscribe(true).await;
    node.hub.disconnect(&peer.client);
    settle().await;
    assert!(twin.is_interested("c"), "not at once");
    let again = node.subscribe(true).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(twin.is_interested("c"), "somebody came");
    assert_eq!(twin.calls("subscribe"), 1);
    // The bus is away just then: tried again later.
    node.bus.set(Faults { down: true, ..Faults::default() });
    node.hub.disconnect(&again.client);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(twin.is_interested("c"));
    node.bus.set(Faults::default());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!twin.is_interested("c"));
    assert!(node.hub.channels.is_empty());
    assert_eq!(node.hub.metrics.subscriptions.get(), 0);
    let anew = node.subscribe(true).await;
    node.publish("1").await;
    node.pump().await;
    assert_eq!(anew.got(), ["reply", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_subscribe_leaves_nothing() {
    let twin = Twin::default();
    let node = Node::new(&twin);
    let client = node.client();
    node.bus.set(Faults { down: true, ..Faults::default() });
    let down = node.hub.clone().subscribe(client.clone(), Node::call("c", true, None)).await;
    assert_eq!(down.unwrap_err(), ErrorCode::INTERNAL);
    node.bus.set(Faults { stalled: true, ..Faults::default() });
    let stalled = node.hub.clone().subscribe(client.clone(), Node::call("c", true, None)).await;
    assert_eq!(stalled.unwrap_err(), ErrorCode::INTERNAL, "a call that does not come back has a deadline");
    node.bus.set(Faults::default());
    let since = Since { epoch: "other".into(), offset: 9 };
    let call = SubscribeCall { reject_unrecovered: true, ..Node::call("c", true, Some(since)) };
    let refused = node.hub.clone().subscribe(client.clone(), call).await;
    assert_eq!(refused.unwrap_err(), ErrorCode::UNRECOVERABLE_POSITION);
    assert_eq!(lock(&client.subs).len(), 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(node.hub.channels.is_empty() && !twin.is_interested("c"));
}

/// Ten thousand names each that are refused, fail, are answered too late, are given up, and are held for a moment.
#[tokio::test(start_paused = true)]
async fn names_that_nobody_has_leave_nothing_behind() {
    let kinds = [
        ("refused", Faults { refuses: true, ..Faults::default() }),
        ("away", Faults { down: true, ..Faults::default() }),
        ("late", Faults { late: true, ..Faults::default() }),
        ("no answer", Faults { stalled: true, ..Faults::default() }),
        ("held", Faults::default()),
    ];
    for (kind, faults) in kinds {
        let twin = Twin::default();
        let node = Node::new(&twin);
        let client = node.client();
        node.bus.set(faults);
        let names = (0..10_000).map(|n| {
            let call = Node::call(&format!("name:{n}"), true, None);
            let attempt = node.hub.clone().subscribe(client.clone(), call);
            // Some of those who wait for an answer leave before it comes.
            tokio::time::timeout(Duration::from_secs(if n % 2 == 0 { 3 } else { 30 }), attempt)
        });
        let outcomes = futures_util::future::join_all(names).await;
        let made = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Ok(_)))).count();
        assert_eq!(made, if kind == "held" { 10_000 } else { 0 }, "{kind}");
        node.bus.set(Faults::default());
        node.hub.disconnect(&client);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let left =
            (node.hub.channels.len(), node.hub.metrics.channels.get(), node.hub.metrics.subscriptions.get());
        assert_eq!((left, twin.interested()), ((0, 0, 0), 0), "{kind}");
        // The name is as good as any other.
        node.hub.clone().subscribe(node.client(), Node::call("name:1", true, None)).await.unwrap();
        assert!(twin.is_interested("name:1"), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn joins_and_leaves_of_a_busy_channel_are_told_together() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    node.hub = Arc::new(Hub::new(0, Duration::from_secs(5), Duration::from_millis(200), Default::default()));
    let (janitor, _jobs) = Janitor::new();
    node.hub.start(node.bus.clone(), janitor);
    let watch = |format| {
        let client = Arc::new(Client::new("w".into(), format, 1 << 20));
        let call = SubscribeCall { join_leave: true, stream: None, ..Node::call("j", false, None) };
        let (hub, client_too) = (node.hub.clone(), client.clone());
        async move {
            let sub = hub.clone().subscribe(client_too.clone(), call).await.unwrap();
            hub.go_live(&client_too, &sub.channel, sub.ticket);
            client
        }
    };
    let (json, uni) = (watch(Format::Json).await, watch(Format::JsonUni).await);
    let taken = |client: &Client| {
        let mut queue = VecDeque::new();
        client.outbox.take(&mut queue);
        queue
            .iter()
            .map(|frame| String::from_utf8_lossy(frame).matches("\"channel\"").count())
            .collect::<Vec<_>>()
    };
    let member = |n: u32| {
        let info = ClientInfo { client: n.to_string(), ..ClientInfo::default() };
        Member { info, listed: true, announced: true }
    };
    for n in 0..50 {
        node.bus.join("j".into(), member(n)).await.unwrap();
        if n % 2 == 1 {
            node.bus.leave("j".into(), n.to_string()).await.unwrap();
        }
    }
    node.pump().await;
    assert_eq!((taken(&json), taken(&uni)), (vec![1], vec![1]), "the first at once");
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!((taken(&json), taken(&uni)), (vec![24], vec![24]), "in one piece, and who left is left out");
    // Somebody may have seen who is there meanwhile: then he is told.
    node.hub.presence_asked("j");
    node.bus.join("j".into(), member(90)).await.unwrap();
    for _ in 0..2 {
        node.bus.join("j".into(), member(91)).await.unwrap();
        node.bus.leave("j".into(), "91".into()).await.unwrap();
    }
    node.pump().await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(taken(&json).iter().sum::<usize>(), 2);
    assert_eq!(twin.members("j").len(), 26);
}

#[tokio::test(start_paused = true)]
async fn members_come_and_go_with_their_messages() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let member = |client: &Client| Member {
        info: ClientInfo { user: "u".into(), client: client.id.to_string(), ..ClientInfo::default() },
        listed: true,
        announced: true,
    };
    let mut peers = Vec::new();
    for _ in 0..2 {
        let client = node.client();
        let call = SubscribeCall {
            join_leave: true,
            member: Some(member(&client)),
            stream: None,
            ..Node::call("j", false, None)
        };
        let sub = node.hub.clone().subscribe(client.clone(), call).await.unwrap();
        let mut peer = Peer { client, sub: Some(sub) };
        peer.go_live(&node.hub);
        peers.push(peer);
        node.pump().await;
    }
    assert_eq!(peers[0].got(), ["reply", "join", "join"], "its own, after the reply");
    assert_eq!(peers[1].got(), ["reply", "join"]);
    assert_eq!(twin.members("j").len(), 2);
    node.bus.set(Faults { down: true, ..Faults::default() });
    let left = node.hub.disconnect(&peers[1].client);
    for channel in left {
        node.hub.janitor().unwrap().leave(channel, peers[1].client.id.clone()).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.bus.set(Faults::default());
    tokio::time::sleep(Duration::from_secs(10)).await;
    node.pump().await;
    assert_eq!(peers[0].got(), ["leave"], "told once, and even though the bus was away");
    assert_eq!(twin.members("j"), [peers[0].client.id.to_string()]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_is_no_burden_to_others() {
    let twin = Twin::default();
    let mut node = Node::new(&twin);
    let fast = node.subscribe(true).await;
    let slow = Peer { client: Arc::new(Client::new("slow".into(), Format::Json, 200)), sub: None };
    let sub = node.hub.clone().subscribe(slow.client.clone(), Node::call("c", true, None)).await.unwrap();
    node.hub.go_live(&slow.client, &"c".into(), sub.ticket);
    for n in 1..=50 {
        node.publish(&n.to_string()).await;
    }
    node.pump().await;
    assert!(slow.client.outbox.overflown() && slow.client.outbox.waiting() == 0);
    assert_eq!(fast.got().len(), 51);
}

#[test]
fn events_go_to_whom_they_are_for() {
    let hub = Hub::new(2, Duration::from_secs(1), Duration::ZERO, Default::default());
    let client = |id: &str, user: &str| {
        let client = Arc::new(Client::new(id.into(), Format::Json, 100));
        (hub.register(&client, user.into()), client)
    };
    let (a, b, nobody) = (client("a", "1").1, client("b", "1").1, client("n", "").1);
    assert!(!client("c", "1").0, "as many as a user may have");
    let post = |user: &str, client: &str, except: &[String]| {
        let target = Target { user: user.into(), client: client.into() };
        hub.post(&target, except, &Event::Disconnect(weir_wire::close::Close::NORMAL));
        [&a, &b, &nobody].map(|c| c.take_mail().is_some())
    };
    assert_eq!(post("1", "", &[]), [true, true, false]);
    assert_eq!(post("1", "", &["a".to_owned()]), [false, true, false]);
    assert_eq!(post("1", "a", &[]), [true, false, false]);
    assert_eq!(post("2", "a", &[]), [false, false, false], "another user's client");
    assert_eq!(post("", "n", &[]), [false, false, true]);
    assert_eq!(post("", "", &[]), [false, false, false]);
    assert_eq!((hub.clients(), hub.users()), (3, 2));
    for c in [&a, &b, &nobody] {
        hub.disconnect(c);
    }
    assert_eq!((hub.clients(), hub.users(), hub.users.len()), (0, 0, 0));
}

/// A datagram could come before the subscribe reply: what comes meanwhile goes behind it on the stream, the newest alone.
#[test]
fn of_datagrams_held_back_the_newest_is_left() {
    let session = Fake::new();
    let client = Client::new("c".into(), Format::JsonLines, 1 << 20).with_datagrams(Some(session.clone()));
    let client = Arc::new(client);
    let channel = Channel::new("cursors:1".into(), None, true, Duration::ZERO);
    let mut inner = lock(&channel.inner);
    inner.opened(None);
    let new = NewSubscriber { client: client.clone(), ticket: 1, positioned: false, join_leave: false };
    let (slot, _) = inner.add(new);
    let publish = |inner: &mut Inner, data: &'static str| {
        let publication = Publication { offset: 0, data: data.into(), info: None, tags: vec![] };
        let body = Body::Publication(publication);
        inner.deliver(Delivery { channel: "cursors:1".into(), epoch: None, body }).datagrams.sent
    };
    assert_eq!((publish(&mut inner, "1"), publish(&mut inner, "2")), (0, 0));
    assert_eq!(inner.go_live(slot, 1), Went::Live);
    assert_eq!(publish(&mut inner, "3"), 1);
    let mut out = VecDeque::new();
    client.outbox.take(&mut out);
    let of = |n| format!("{{\"push\":{{\"channel\":\"cursors:1\",\"pub\":{{\"data\":{n}}}}}}}");
    assert_eq!(out, [of(2) + "\n"]);
    assert_eq!(*lock(&session.datagrams), [of(3)]);
}
