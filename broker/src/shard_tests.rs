//! The shard as a pure state machine: offsets, history, interest, presence.

use super::*;

const OPTIONS: StreamOptions = StreamOptions { size: 100, ttl_ms: 10_000, meta_ttl_ms: 60_000 };
const A: Slot = Slot(1);
const B: Slot = Slot(2);

fn now_at(at: Instant) -> Now {
    Now { at, epoch: Epoch(5), room: true }
}

fn publish(channel: &str, data: &str) -> Publish {
    Publish {
        channel: channel.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        info: None,
        tags: vec![],
        stream: Some(OPTIONS),
        idempotency_key: None,
        version: 0,
        version_epoch: String::new(),
    }
}

/// Publishes, and returns the result with (slots, offset) of each delivery.
fn run(shard: &mut Shard, now: Now, publish: Publish) -> (Published, Vec<(Vec<Slot>, u64)>) {
    let mut sent = Vec::new();
    let result = shard.publish(now, publish, &mut |slots, frame| {
        let Ok(FromBroker::Deliver(Delivery { body: Body::Publication(p), .. })) =
            codec::decode(&frame[codec::HEADER..])
        else {
            panic!("not a publication")
        };
        sent.push((slots.to_vec(), p.offset));
    });
    (result.unwrap(), sent)
}

fn data(history: &History) -> Vec<String> {
    history.publications.iter().map(|p| String::from_utf8(p.data.to_vec()).unwrap()).collect()
}

const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };

#[test]
fn interest_and_position_are_one_step() {
    let (mut shard, now) = (Shard::default(), now_at(Instant::now()));
    let (position, name) = shard.subscribe(now, A, "c", Some(OPTIONS)).unwrap();
    assert_eq!((position, name.as_deref()), (Some(Position { epoch: Epoch(5), offset: 0 }), Some("c")));
    assert_eq!(run(&mut shard, now, publish("c", "1")).1, [(vec![A], 1)]);
    let (position, _) = shard.subscribe(now, B, "c", Some(OPTIONS)).unwrap();
    assert_eq!(position.unwrap().offset, 1);
    assert_eq!(shard.subscribe(now, B, "c", Some(OPTIONS)).unwrap().1, None, "idempotent");
    assert_eq!(run(&mut shard, now, publish("c", "2")).1, [(vec![A, B], 2)]);
    shard.unsubscribe(A, "c");
    assert_eq!(run(&mut shard, now, publish("c", "3")).1, [(vec![B], 3)]);
    // Without a stream: delivered, without offset, and nothing kept.
    assert_eq!(shard.subscribe(now, A, "live", None).unwrap().0, None);
    let live = Publish { stream: None, ..publish("live", "x") };
    assert_eq!(run(&mut shard, now, live), (None, vec![(vec![A], 0)]));
    shard.unsubscribe(A, "live");
    assert_eq!(shard.channels(), 1);
}

#[test]
fn a_repeated_key_and_a_late_version_publish_nothing() {
    let (mut shard, now) = (Shard::default(), now_at(Instant::now()));
    shard.subscribe(now, A, "c", Some(OPTIONS)).unwrap();
    let keyed = Publish { idempotency_key: Some("k".into()), ..publish("c", "1") };
    let first = run(&mut shard, now, keyed.clone());
    assert_eq!(first.1.len(), 1);
    assert_eq!(run(&mut shard, now, keyed.clone()), (first.0, vec![]));
    let later = now_at(now.at + crate::idempotency::KEPT);
    assert_eq!(run(&mut shard, later, keyed.clone()).0.unwrap().offset, 2);
    let versioned = |version| Publish { version, ..publish("c", "v") };
    assert_eq!(run(&mut shard, later, versioned(3)).0.unwrap().offset, 3);
    assert_eq!(run(&mut shard, later, versioned(3)), (Some(Position { epoch: Epoch(5), offset: 3 }), vec![]));
    let live = Publish { stream: None, channel: "live".into(), ..keyed };
    shard.subscribe(now, A, "live", None).unwrap();
    assert_eq!(run(&mut shard, later, live.clone()).1.len(), 1);
    assert_eq!(run(&mut shard, later, live).1.len(), 0);
}

#[test]
fn a_repeat_that_finds_other_keys_expired_keeps_the_sum_right() {
    let (mut shard, t0) = (Shard::default(), Instant::now());
    let at = |s| now_at(t0 + Duration::from_secs(s));
    for stream in [Some(OPTIONS), None] {
        let keyed = |key: &str| Publish { stream, idempotency_key: Some(key.into()), ..publish("c", "x") };
        run(&mut shard, at(0), keyed("early"));
        run(&mut shard, at(200), keyed("late"));
        run(&mut shard, at(301), keyed("late")); // A repeat; "early" has just expired.
        while shard.sweep(t0 + Duration::from_secs(3600), 100) {}
        assert_eq!(shard.bytes(), 0, "with stream {stream:?}");
    }
}

#[test]
fn the_oldest_of_all_channels_goes_first() {
    let (mut shard, t0) = (Shard::default(), Instant::now());
    let at = |s| now_at(t0 + Duration::from_secs(s));
    for (s, channel, text) in [(0, "a", "a0"), (1, "b", "b1"), (2, "a", "a2"), (3, "b", "b3")] {
        run(&mut shard, at(s), publish(channel, text));
    }
    let full = shard.bytes();
    let mut seen = Vec::new();
    while shard.drop_oldest(t0, None) {
        let mut left = data(&shard.history(at(3), "a", &ALL, &OPTIONS).unwrap());
        left.extend(data(&shard.history(at(3), "b", &ALL, &OPTIONS).unwrap()));
        seen.push(left.join(" "));
    }
    assert_eq!(seen, ["a2 b1 b3", "a2 b3", "b3", ""]);
    assert!(full > 0 && shard.bytes() == 0);
    assert_eq!(shard.position("a").unwrap().offset, 2, "the place stays");
    // Dropped by size in between: the heap's entry is early, and is put right.
    for (s, text) in [(4, "x"), (5, "y")] {
        run(
            &mut shard,
            at(s),
            Publish { stream: Some(StreamOptions { size: 1, ..OPTIONS }), ..publish("a", text) },
        );
    }
    run(&mut shard, at(4), publish("b", "older than y"));
    assert!(!shard.drop_oldest(t0, Some(t0 + Duration::from_millis(3_999))), "nothing that old");
    assert!(shard.drop_oldest(t0, None));
    assert_eq!(data(&shard.history(at(5), "a", &ALL, &OPTIONS).unwrap()), ["y"]);
}

#[test]
fn the_sweep_ends_what_is_past_its_time_and_keeps_what_is_of_interest() {
    let (mut shard, t0) = (Shard::default(), Instant::now());
    let at = |s| t0 + Duration::from_secs(s);
    shard.subscribe(now_at(t0), A, "watched", Some(OPTIONS)).unwrap();
    for channel in ["gone", "watched"] {
        run(&mut shard, now_at(t0), publish(channel, "x"));
        run(
            &mut shard,
            now_at(t0),
            Publish { stream: None, idempotency_key: Some("k".into()), ..publish("keyed", "x") },
        );
    }
    assert!(!shard.sweep(at(9), 100) && shard.bytes() > 0);
    assert!(!shard.sweep(at(10), 100));
    assert_eq!((shard.streams(), shard.channels()), (2, 3), "places outlive publications");
    assert!(!shard.sweep(at(61), 100));
    assert_eq!((shard.streams(), shard.channels()), (1, 2));
    assert!(!shard.sweep(at(400), 100));
    assert_eq!((shard.channels(), shard.bytes()), (1, 0));
    shard.unsubscribe(A, "watched");
    assert!(!shard.sweep(at(600), 100));
    assert_eq!((shard.streams(), shard.channels()), (0, 0), "nothing is left behind");
    assert!(shard.by_age.len() + shard.by_deadline.len() <= 3);
}

#[test]
fn the_sweep_keeps_to_its_budget() {
    let (mut shard, t0) = (Shard::default(), Instant::now());
    for i in 0..10 {
        run(&mut shard, now_at(t0), publish(&format!("c{i}"), "x"));
    }
    let late = t0 + Duration::from_secs(3600);
    assert!(shard.sweep(late, 4));
    assert_eq!(shard.channels(), 6);
    while shard.sweep(late, 4) {}
    assert_eq!(shard.channels(), 0);
}

#[test]
fn no_room_is_a_refusal_without_a_trace() {
    let (mut shard, full) = (Shard::default(), Now { room: false, ..now_at(Instant::now()) });
    assert_eq!(shard.publish(full, publish("c", "x"), &mut |_, _| {}), Err(Refusal::MaxChannels));
    assert_eq!(shard.subscribe(full, A, "c", Some(OPTIONS)), Err(Refusal::MaxChannels));
    assert_eq!(shard.history(full, "c", &ALL, &OPTIONS), Err(Refusal::MaxChannels));
    assert_eq!(shard.channels(), 0);
    assert!(shard.subscribe(full, A, "c", None).is_ok(), "no stream, no limit");
}
