//! One suite for every `Bus`: what `broker/src/bus.rs` promises, checked on the bus of a node in
//! the same process, on that of a node elsewhere, plain and in TLS, and on those of nodes at different
//! brokers of a cluster of three. A new engine joins by a line in `each!`.

#![allow(clippy::unwrap_used)]

mod certs;

use bytes::Bytes;
use futures_util::FutureExt;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use weir_broker::{Broker, Bus, BusError, Event, Inbox, RemoteBus};
use weir_conf::Config;
use weir_conf::units::Secret;
use weir_core::drain::Drain;
use weir_wire::envelope::*;
use weir_wire::id::NodeId;

const WAIT: Duration = Duration::from_secs(10);
const STREAM: StreamOptions = StreamOptions { size: 1000, ttl_ms: 60_000, meta_ttl_ms: 60_000 };
const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Local,
    Remote,
    Tls,
    /// Each node is attached to another one of three brokers.
    Trio,
}

/// A broker and its nodes, all of one kind.
struct System {
    conf: Config,
    broker: Option<Broker>,
    /// Of all brokers that nodes connect to.
    addrs: Vec<String>,
    /// Of all brokers.
    registries: Vec<Registry>,
    drain: Drain,
    _certs: Option<certs::Files>,
}

impl System {
    async fn start(kind: Kind) -> System {
        System::with(kind, |_| {}).await
    }

    async fn with(kind: Kind, change: impl FnOnce(&mut Config)) -> System {
        let mut conf = Config::default();
        conf.broker.listen = "127.0.0.1:0".parse().unwrap();
        conf.broker.secret = Secret::new("between us".into());
        conf.broker.survey_timeout = Duration::from_millis(300);
        conf.node.broker_secret = conf.broker.secret.clone();
        let certs = (kind == Kind::Tls).then(|| certs::Authority::new("ours").files());
        if let Some(certs) = &certs {
            certs.set_broker(&mut conf.broker);
            certs.set_node(&mut conf.node);
        }
        change(&mut conf);
        let drain = Drain::new();
        if kind == Kind::Trio {
            let (addrs, registries) = trio(&conf, &drain).await;
            return System { conf, broker: None, addrs, registries, drain, _certs: None };
        }
        let mut registry = Registry::default();
        let broker = Broker::bind(&conf.broker, &conf.channel, &mut registry).await.unwrap();
        let addrs = vec![broker.local_addr().to_string()];
        let broker = match kind {
            Kind::Local => Some(broker),
            _ => {
                tokio::spawn(broker.run(drain.clone()));
                None
            }
        };
        System { conf, broker, addrs, registries: vec![registry], drain, _certs: certs }
    }

    /// Until a gauge of all brokers together has come down, or up, to this.
    async fn gauge_is(&self, name: &str, value: u64) {
        let sum = || {
            let value = |registry| {
                let mut text = String::new();
                encode(&mut text, registry).unwrap();
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
                line.parse::<u64>().unwrap()
            };
            self.registries.iter().map(value).sum::<u64>()
        };
        let waited = timeout(WAIT, async {
            while sum() != value {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{name} is {} and not {value}", sum()));
    }

    /// Attaches a node, and waits until it is.
    async fn node(&self, id: u64) -> (Arc<dyn Bus>, Inbox) {
        match &self.broker {
            Some(broker) => broker.attach(NodeId(id), "test", self.conf.node.inbox_size).unwrap(),
            None => {
                let mut registry = Default::default();
                let mut conf = self.conf.node.clone();
                conf.brokers = vec![self.addrs[id as usize % self.addrs.len()].clone()];
                let (bus, mut inbox) =
                    RemoteBus::start(&conf, NodeId(id), "test", &mut registry, self.drain.clone()).unwrap();
                until(&mut inbox, |e| (e == Event::Link(true)).then_some(())).await;
                (bus, inbox)
            }
        }
    }
}

/// Three brokers that have found each other, each shard on two of them.
async fn trio(conf: &Config, drain: &Drain) -> (Vec<String>, Vec<Registry>) {
    let (mut addrs, mut controls, mut registries) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..3 {
        let (mut conf, channels) = (conf.broker.clone(), &conf.channel);
        conf.name = format!("b{n}");
        conf.bootstrap = n == 0;
        conf.peers = addrs.first().cloned().into_iter().collect();
        let mut registry = Registry::default();
        let broker = Broker::bind(&conf, channels, &mut registry).await.unwrap();
        registries.push(registry);
        addrs.push(broker.local_addr().to_string());
        controls.push(broker.control().unwrap());
        tokio::spawn(broker.run(drain.clone()));
    }
    let ready = async {
        for control in controls {
            let good =
                |s: serde_json::Value| s["healthy"] == true && s["members"].as_array().unwrap().len() == 3;
            while !good(control.status().await) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    timeout(Duration::from_secs(60), ready).await.expect("three brokers become a cluster");
    (addrs, registries)
}

impl Drop for System {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

async fn next(inbox: &mut Inbox) -> Event {
    timeout(WAIT, inbox.next()).await.expect("an event within 10 s").expect("the bus goes on")
}

/// The first event that `want` takes.
async fn until<T>(inbox: &mut Inbox, mut want: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = want(next(inbox).await) {
            return found;
        }
    }
}

fn message(channel: &str, data: &str) -> Publish {
    Publish {
        channel: channel.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        stream: Some(STREAM),
        ..Default::default()
    }
}

fn publication(event: Event) -> Option<(Delivery, Publication)> {
    match event {
        Event::Deliver(delivery) => match delivery.body.clone() {
            Body::Publication(publication) => Some((delivery, publication)),
            _ => None,
        },
        _ => None,
    }
}

fn member(client: &str) -> Member {
    let info = ClientInfo { user: "u".into(), client: client.into(), ..ClientInfo::default() };
    Member { info, listed: true, announced: true }
}

/// Every test on every kind of bus.
macro_rules! each {
    ($($name:ident),* $(,)?) => {
        mod local { $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Kind::Local).await })* }
        mod remote { $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Kind::Remote).await })* }
        mod tls { $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Kind::Tls).await })* }
        mod trio { $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Kind::Trio).await })* }
    };
}

each! {
    publications_cross_from_node_to_node_in_order,
    a_position_comes_before_what_follows_it,
    channels_without_history_have_no_offsets,
    history_reads_from_any_place,
    a_repeated_key_publishes_once,
    members_come_and_go_once,
    a_node_that_stops_takes_its_members_along,
    control_reaches_every_node,
    a_survey_names_who_is_missing,
    limits_are_named,
    names_leave_nothing_behind_and_come_back_to_their_epochs,
    what_nobody_waits_for_is_not_subscribed,
    a_full_inbox_is_resynced_without_a_silent_loss,
}

async fn publications_cross_from_node_to_node_in_order(kind: Kind) {
    let system = System::start(kind).await;
    let (a, _inbox_a) = system.node(1).await;
    let (b, mut inbox_b) = system.node(2).await;
    let start = b.subscribe("ch".into(), Some(STREAM)).await.unwrap().unwrap();
    for i in 1..=500_u64 {
        let position = a.publish(message("ch", &i.to_string())).await.unwrap().unwrap();
        assert_eq!(position, Position { epoch: start.epoch, offset: i });
    }
    for i in 1..=500_u64 {
        // Again, by an owner that has just taken over: at most in a cluster.
        let again = |p: &Publication| kind == Kind::Trio && p.offset < i;
        let (delivery, p) = until(&mut inbox_b, |e| publication(e).filter(|(_, p)| !again(p))).await;
        assert_eq!((delivery.channel.as_str(), delivery.epoch, p.offset), ("ch", Some(start.epoch), i));
        assert_eq!(p.data, i.to_string());
    }
    b.unsubscribe("ch".into()).await.unwrap();
    a.publish(message("ch", "nobody")).await.unwrap();
    b.subscribe("other".into(), None).await.unwrap();
    a.publish(message("other", "after")).await.unwrap();
    let (delivery, _) = until(&mut inbox_b, publication).await;
    assert_eq!(delivery.channel, "other", "nothing after the unsubscribe");
}

/// Guarantee 3, under load: whatever the moment of the subscribe, the first delivery is the one
/// after its position.
async fn a_position_comes_before_what_follows_it(kind: Kind) {
    let system = System::start(kind).await;
    let (a, _inbox_a) = system.node(1).await;
    let (b, mut inbox_b) = system.node(2).await;
    let publisher = tokio::spawn(async move {
        for i in 0..2_000 {
            a.publish(message("ch", &i.to_string())).await.unwrap();
        }
    });
    for _ in 0..50 {
        let position = b.subscribe("ch".into(), Some(STREAM)).await.unwrap().unwrap();
        if position.offset >= 1_990 {
            break;
        }
        let first = until(&mut inbox_b, |e| publication(e).filter(|(_, p)| p.offset > position.offset)).await;
        assert_eq!(first.1.offset, position.offset + 1);
        b.unsubscribe("ch".into()).await.unwrap();
    }
    publisher.await.unwrap();
}

async fn channels_without_history_have_no_offsets(kind: Kind) {
    let system = System::start(kind).await;
    let (a, mut inbox) = system.node(1).await;
    assert_eq!(a.subscribe("live".into(), None).await.unwrap(), None);
    let live = |data| Publish { stream: None, ..message("live", data) };
    assert_eq!(a.publish(live("x")).await.unwrap(), None);
    let (delivery, p) = until(&mut inbox, publication).await;
    assert_eq!((delivery.epoch, p.offset), (None, 0));
}

async fn history_reads_from_any_place(kind: Kind) {
    let system = System::start(kind).await;
    let (a, _inbox) = system.node(1).await;
    let empty = a.history("ch".into(), ALL, STREAM).await.unwrap();
    assert_eq!((empty.top.offset, empty.publications.len()), (0, 0), "reading creates the stream");
    // Larger than one answer may be (4 MiB): the bus asks again.
    let large = "x".repeat(300_000);
    for i in 1..=20_u64 {
        let position = a.publish(message("ch", &large)).await.unwrap().unwrap();
        assert_eq!((position.epoch, position.offset), (empty.top.epoch, i));
    }
    let offsets = async |query| {
        let history = a.history("ch".into(), query, STREAM).await.unwrap();
        assert_eq!(history.top, Position { epoch: empty.top.epoch, offset: 20 });
        history.publications.iter().map(|p| p.offset).collect::<Vec<_>>()
    };
    let since = |offset| Some(Position { epoch: empty.top.epoch, offset });
    assert_eq!(offsets(ALL).await, (1..=20).collect::<Vec<_>>());
    assert_eq!(offsets(HistoryQuery { since: since(17), ..ALL }).await, [18, 19, 20]);
    assert_eq!(offsets(HistoryQuery { limit: 0, ..ALL }).await, [] as [u64; 0]);
    assert_eq!(offsets(HistoryQuery { limit: 18, ..ALL }).await, (1..=18).collect::<Vec<_>>());
    assert_eq!(offsets(HistoryQuery { reverse: true, limit: 2, since: None }).await, [20, 19]);
    a.history_remove("ch".into()).await.unwrap();
    assert_eq!(offsets(ALL).await, [] as [u64; 0]);
}

async fn a_repeated_key_publishes_once(kind: Kind) {
    let system = System::start(kind).await;
    let (a, mut inbox) = system.node(1).await;
    a.subscribe("ch".into(), Some(STREAM)).await.unwrap();
    let keyed = || Publish { idempotency_key: Some("k".into()), ..message("ch", "once") };
    let first = a.publish(keyed()).await.unwrap();
    assert_eq!(a.publish(keyed()).await.unwrap(), first);
    a.publish(message("ch", "next")).await.unwrap();
    let seen = [until(&mut inbox, publication).await.1.data, until(&mut inbox, publication).await.1.data];
    assert_eq!(seen, ["once", "next"]);
}

async fn members_come_and_go_once(kind: Kind) {
    let system = System::start(kind).await;
    let (a, _inbox_a) = system.node(1).await;
    let (b, mut inbox_b) = system.node(2).await;
    b.subscribe("ch".into(), None).await.unwrap();
    for _ in 0..2 {
        a.join("ch".into(), member("c1")).await.unwrap();
    }
    b.join("ch".into(), member("c2")).await.unwrap();
    assert_eq!(a.presence_stats("ch".into()).await.unwrap(), PresenceStats { clients: 2, users: 1 });
    assert_eq!(a.presence("ch".into()).await.unwrap().len(), 2);
    for _ in 0..2 {
        a.leave("ch".into(), "c1".into()).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if let Event::Deliver(delivery) = next(&mut inbox_b).await {
            seen.push(match delivery.body {
                Body::Join(info) => format!("+{}", info.client),
                Body::Leave(info) => format!("-{}", info.client),
                Body::Publication(_) => "?".into(),
            });
        }
    }
    assert_eq!(seen, ["+c1", "+c2", "-c1"]);
}

async fn a_node_that_stops_takes_its_members_along(kind: Kind) {
    let system = System::start(kind).await;
    let (a, inbox_a) = system.node(1).await;
    let (b, mut inbox_b) = system.node(2).await;
    b.subscribe("ch".into(), None).await.unwrap();
    a.join("ch".into(), member("c1")).await.unwrap();
    drop((a, inbox_a));
    let left = until(&mut inbox_b, |e| match e {
        Event::Deliver(Delivery { body: Body::Leave(info), .. }) => Some(info.client),
        _ => None,
    });
    assert_eq!(left.await, "c1");
    assert_eq!(b.presence_stats("ch".into()).await.unwrap(), PresenceStats::default());
}

async fn control_reaches_every_node(kind: Kind) {
    let system = System::start(kind).await;
    let (a, mut inbox_a) = system.node(1).await;
    let (_b, mut inbox_b) = system.node(2).await;
    let target = Target { user: "u".into(), client: String::new() };
    let command = Control::Unsubscribe { target, channel: "ch".into() };
    a.control(command.clone()).await.unwrap();
    for inbox in [&mut inbox_a, &mut inbox_b] {
        let got = until(inbox, |e| match e {
            Event::Control(command) => Some(command),
            _ => None,
        });
        assert_eq!(got.await, command);
    }
}

async fn a_survey_names_who_is_missing(kind: Kind) {
    let system = System::start(kind).await;
    let (a, mut inbox_a) = system.node(1).await;
    let (_silent, _inbox_b) = system.node(2).await;
    let answering = a.clone();
    let task = tokio::spawn(async move {
        let id = until(&mut inbox_a, |e| match e {
            Event::Survey { id, question: Question::Channels { .. } } => Some(id),
            _ => None,
        });
        let id = id.await;
        answering.answer(id, Answer::Channels(vec![("ch".into(), 3)])).await.unwrap();
        inbox_a
    });
    let survey = a.survey(Question::Channels { pattern: String::new() }).await.unwrap();
    assert_eq!(survey.answers, [(NodeId(1), Answer::Channels(vec![("ch".into(), 3)]))]);
    assert_eq!(survey.missing, [NodeId(2)]);
    drop(task.await.unwrap());
}

async fn limits_are_named(kind: Kind) {
    let system = System::with(kind, |c| {
        c.broker.max_channels = 1;
        c.broker.message_size = 1000;
    })
    .await;
    let (a, _inbox) = system.node(1).await;
    a.publish(message("one", "x")).await.unwrap();
    if kind == Kind::Trio {
        // Each broker counts the streams of which it has a copy.
        let large = a.publish(message("one", &"x".repeat(1000))).await;
        return assert_eq!(large, Err(BusError::Limit("broker.message_size")));
    }
    assert_eq!(a.publish(message("two", "x")).await, Err(BusError::Limit("broker.max_channels")));
    let large = a.publish(message("one", &"x".repeat(1000))).await;
    assert_eq!(large, Err(BusError::Limit("broker.message_size")));
    assert_eq!(a.publish(message("one", "y")).await.unwrap().unwrap().offset, 2);
}

async fn names_leave_nothing_behind_and_come_back_to_their_epochs(kind: Kind) {
    let system = System::start(kind).await;
    let (a, _inbox) = system.node(1).await;
    let position = async |channel: &str| a.subscribe(channel.into(), Some(STREAM)).await.unwrap().unwrap();
    let mut given = Vec::new();
    for n in 0..200 {
        let channel = format!("name {n}");
        given.push(position(&channel).await);
        a.unsubscribe(channel).await.unwrap();
    }
    for gauge in ["weir_broker_interest", "weir_broker_streams", "weir_broker_channels"] {
        system.gauge_is(gauge, 0).await;
    }
    for (n, given) in given.iter().enumerate() {
        assert_eq!(position(&format!("name {n}")).await, *given, "nothing was missed");
    }
    let first = a.publish(message("name 7", "x")).await.unwrap();
    assert_eq!(first, Some(Position { offset: 1, ..given[7] }), "the first publication keeps the epoch");
}

/// A caller that gives up leaves nothing behind, whatever becomes of its call; one that asks again for the same channel
/// keeps it.
async fn what_nobody_waits_for_is_not_subscribed(kind: Kind) {
    let system = System::start(kind).await;
    let (a, _inbox) = system.node(1).await;
    let (b, mut to_b) = system.node(2).await;
    for n in 0..200 {
        let (channel, stream) = (format!("name {n}"), (n % 2 == 0).then_some(STREAM));
        if b.subscribe(channel.clone(), stream).now_or_never().is_some_and(|answer| answer.is_ok()) {
            b.unsubscribe(channel).await.unwrap();
        }
    }
    for _ in 0..50 {
        let _given_up = b.subscribe("again".into(), Some(STREAM)).now_or_never();
    }
    b.subscribe("again".into(), Some(STREAM)).await.unwrap();
    a.publish(message("again", "x")).await.unwrap();
    until(&mut to_b, |event| publication(event).filter(|(delivery, _)| delivery.channel == "again")).await;
    b.unsubscribe("again".into()).await.unwrap();
    system.gauge_is("weir_broker_interest", 0).await;
}

/// Guarantee 4: a node that does not read loses deliveries, but never without a resync or a hole in
/// the offsets, after which history has the rest; and nobody waits for it.
async fn a_full_inbox_is_resynced_without_a_silent_loss(kind: Kind) {
    let system = System::with(kind, |c| c.node.inbox_size = 64).await;
    let (a, _inbox_a) = system.node(1).await;
    let (b, mut inbox_b) = system.node(2).await;
    b.subscribe("ch".into(), Some(STREAM)).await.unwrap();
    for i in 0..900 {
        a.publish(message("ch", &i.to_string())).await.unwrap();
    }
    let (mut last, mut resyncs) = (0, 0);
    while last < 900 {
        let epoch = match next(&mut inbox_b).await {
            Event::Resync(positions) => {
                resyncs += 1;
                // Of channels that another broker owns it comes by itself.
                let Some((_, position)) = positions.into_iter().find(|(c, _)| c == "ch") else { continue };
                // From before the stream was there.
                let Some(position) = position else { continue };
                position.epoch
            }
            event => match publication(event).filter(|(_, p)| p.offset > last) {
                Some((_, p)) if p.offset == last + 1 => {
                    last = p.offset;
                    continue;
                }
                Some((delivery, _)) => {
                    assert!(kind == Kind::Trio, "a hole without a resync");
                    delivery.epoch.unwrap()
                }
                None => continue,
            },
        };
        let since = Some(Position { epoch, offset: last });
        let missed = b.history("ch".into(), HistoryQuery { since, ..ALL }, STREAM).await.unwrap();
        for p in missed.publications {
            assert_eq!(p.offset, last + 1);
            last = p.offset;
        }
    }
    assert!(resyncs >= 1, "900 publications do not fit into an inbox of 64");
}
