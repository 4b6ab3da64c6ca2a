//! The state by itself: offsets, history, keys, expiry; deliveries in the order of the entries.

use super::*;
use bytes::Bytes;
use weir_wire::envelope::Delivery;

const OPTIONS: StreamOptions = StreamOptions { size: 100, ttl_ms: 10_000, meta_ttl_ms: 60_000 };
const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
/// Some time, in milliseconds.
const T0: u64 = 1_000_000;

fn publish(channel: &str, data: &str) -> Publish {
    Publish {
        channel: channel.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        stream: Some(OPTIONS),
        ..Default::default()
    }
}

fn apply(state: &mut State, time_ms: u64, op: Op) -> (Reply, Vec<u64>) {
    let mut sent = Vec::new();
    let reply = state.apply(Entry { time_ms, op }, &mut |frame| {
        let FromBroker::Deliver(Delivery { body: Body::Publication(p), .. }) = frame else {
            panic!("not a publication")
        };
        sent.push(p.offset);
    });
    (reply, sent)
}

/// The result, and the offsets of what is delivered.
fn run(state: &mut State, time_ms: u64, publish: Publish) -> (Published, Vec<u64>) {
    match apply(state, time_ms, Op::Publish { publish, epoch: Epoch(time_ms) }) {
        (Reply::Published(published), sent) => (published, sent),
        other => panic!("{other:?}"),
    }
}

fn touch(state: &mut State, time_ms: u64, channel: &str) -> Position {
    let op = Op::Touch { channel: channel.into(), stream: OPTIONS, epoch: Epoch(time_ms) };
    match apply(state, time_ms, op).0 {
        Reply::Position(position) => position,
        other => panic!("{other:?}"),
    }
}

fn data(history: &History) -> Vec<String> {
    history.publications.iter().map(|p| String::from_utf8(p.data.to_vec()).unwrap()).collect()
}

/// As an owner does that nobody has told of any interest: sweeps, and lets end what may.
fn sweep(state: &mut State, now: u64) {
    let mut due = Vec::new();
    state.sweep(now, 100, &mut due);
    let channels = due.iter().map(|c| c.to_string()).collect();
    apply(state, now, Op::Expire { channels });
    state.sweep(now + RECHECK_TIME, 100, &mut Vec::new());
}

#[test]
fn offsets_rise_and_a_stream_keeps_its_first_epoch() {
    let mut state = State::default();
    assert_eq!(touch(&mut state, T0, "c"), Position { epoch: Epoch(T0), offset: 0 });
    for offset in 1..4 {
        let (published, sent) = run(&mut state, T0 + offset, publish("c", "x"));
        assert_eq!((published, sent), (Some(Position { epoch: Epoch(T0), offset }), vec![offset]));
    }
    assert_eq!(touch(&mut state, T0 + 9, "c").offset, 3);
    // Without a stream: delivered, without offset, and nothing kept.
    let live = Publish { stream: None, ..publish("live", "x") };
    assert_eq!(run(&mut state, T0, live), (None, vec![0]));
    sweep(&mut state, T0 + 1);
    assert_eq!((state.usage().streams, state.position("live")), (1, None));
}

#[test]
fn a_use_that_was_counted_needs_no_entry() {
    let mut state = State::default();
    touch(&mut state, T0, "c");
    assert!(state.touched(T0, "c", &OPTIONS).is_some());
    assert!(state.touched(T0 + 7_500, "c", &OPTIONS).is_some() && state.touched(T0, "d", &OPTIONS).is_none());
    assert!(state.touched(T0 + 7_501, "c", &OPTIONS).is_none(), "an eighth of its life");
    let other = StreamOptions { meta_ttl_ms: 50_000, ..OPTIONS };
    assert!(state.touched(T0, "c", &other).is_none(), "another life");
    // It lives on for a whole one after the last use that was counted this way.
    let end = |state: &mut State, now| apply(state, now, Op::Expire { channels: vec!["c".into()] });
    end(&mut state, T0 + 67_499);
    assert_eq!(state.usage().streams, 1);
    end(&mut state, T0 + 67_500);
    assert_eq!((state.usage().streams, state.channels()), (0, 0));
}

#[test]
fn a_repeated_key_and_a_late_version_publish_nothing() {
    let mut state = State::default();
    let keyed = Publish { idempotency_key: Some("k".into()), ..publish("c", "1") };
    let first = run(&mut state, T0, keyed.clone());
    assert_eq!(first.1.len(), 1);
    assert_eq!(run(&mut state, T0 + keys::KEPT - 1, keyed.clone()), (first.0, vec![]));
    let later = T0 + keys::KEPT;
    assert_eq!(run(&mut state, later, keyed.clone()).0.unwrap().offset, 2);
    let versioned = |version| Publish { version, ..publish("c", "v") };
    assert_eq!(run(&mut state, later, versioned(3)).0.unwrap().offset, 3);
    assert_eq!(run(&mut state, later, versioned(3)).1, [] as [u64; 0]);
    // An entry that is dated back counts at the latest time so far.
    assert_eq!(run(&mut state, 0, keyed.clone()).1.len(), 0);
    let live = Publish { stream: None, channel: "live".into(), ..keyed };
    assert_eq!(run(&mut state, later, live.clone()).1.len(), 1);
    assert_eq!(run(&mut state, later, live).1.len(), 0);
}

#[test]
fn short_memory_takes_publications_and_no_keys() {
    let mut state = State::default();
    let keyed = Publish { idempotency_key: Some("k".into()), ..publish("c", "1") };
    let first = run(&mut state, T0, keyed.clone()).0;
    assert!(state.drop_heaviest(None, None) && !state.drop_heaviest(None, None));
    assert!(state.usage().bytes > 0 && state.usage().bytes == state.usage().key_bytes);
    assert_eq!(run(&mut state, T0 + 1, keyed), (first, vec![]));
}

#[test]
fn a_repeat_that_finds_other_keys_expired_keeps_the_sum_right() {
    let mut state = State::default();
    for (name, stream) in [("c", Some(OPTIONS)), ("live", None)] {
        let keyed = |key: &str| Publish { stream, idempotency_key: Some(key.into()), ..publish(name, "x") };
        let start = state.time + T0;
        run(&mut state, start, keyed("early"));
        run(&mut state, start + 200_000, keyed("late"));
        run(&mut state, start + 301_000, keyed("late")); // A repeat; "early" has just expired.
        sweep(&mut state, start + 3_600_000);
        assert_eq!((state.usage().bytes, state.usage().key_bytes), (0, 0), "with stream {stream:?}");
    }
    assert_eq!((state.channels(), state.usage().streams), (0, 0));
}

#[test]
fn of_channels_alike_the_oldest_publication_goes_first() {
    let mut state = State::default();
    let at = |s: u64| T0 + s * 1000;
    for (s, channel, text) in [(0, "a", "a0"), (1, "b", "b1"), (2, "a", "a2"), (3, "b", "b3")] {
        run(&mut state, at(s), publish(channel, text));
    }
    let full = state.usage().bytes;
    let mut seen = Vec::new();
    while state.drop_heaviest(None, None) {
        let mut left = data(&state.history(at(3), "a", &ALL).unwrap());
        left.extend(data(&state.history(at(3), "b", &ALL).unwrap()));
        seen.push(left.join(" "));
    }
    assert_eq!(seen, ["a2 b1 b3", "a2 b3", "b3", ""]);
    assert!(full > 0 && state.usage().bytes == 0);
    assert_eq!(state.position("a").unwrap().offset, 2, "the place stays");
    // Dropped by size in between: the heap's item is early, and is put right.
    for (s, text) in [(4, "x"), (5, "y")] {
        let one = Publish { stream: Some(StreamOptions { size: 1, ..OPTIONS }), ..publish("a", text) };
        run(&mut state, at(s), one);
    }
    run(&mut state, at(6), publish("b", "z"));
    let heaviest = state.heaviest(None).map(|(class, at)| (class + 1, at));
    assert!(!state.drop_heaviest(None, heaviest), "nothing that heavy");
    assert!(state.drop_heaviest(None, None));
    assert_eq!(data(&state.history(at(6), "a", &ALL).unwrap()), [] as [&str; 0]);
    assert_eq!(data(&state.history(at(6), "b", &ALL).unwrap()), ["z"]);
}

#[test]
fn the_heaviest_channel_gives_first_and_its_oldest() {
    let mut state = State::default();
    for n in 0..10 {
        run(&mut state, T0 + n, publish("light", &format!("light {n}")));
    }
    for n in 0..1000 {
        run(&mut state, T0 + 100 + n, publish("heavy", &"x".repeat(1000)));
    }
    let light = |state: &mut State| data(&state.history(T0 + 2000, "light", &ALL).unwrap()).len();
    let heavy = |state: &State| state.log("heavy").map_or(0, |log| log.bytes());
    let size = state.log("light").map_or(0, |log| log.bytes());
    while heavy(&state) > 2 * size {
        assert!(state.drop_heaviest(None, None));
    }
    assert_eq!(light(&mut state), 10, "the older, lighter channel has lost nothing");
    let mut drops = 0;
    while state.drop_heaviest(None, None) {
        drops += 1;
    }
    assert!(drops > 10 && state.usage().bytes == 0);
}

#[test]
fn groups_are_counted_and_give_by_themselves() {
    let mut state = State::new(Arc::new(Groups::new([Some("chat".to_owned())])));
    for n in 0..20 {
        run(&mut state, T0 + n, publish("chat:a", "x"));
        run(&mut state, T0 + n, publish("other", &"x".repeat(1000)));
    }
    let [others, chat] = state.usage_by_group() else { panic!("two groups") };
    assert!(others.bytes > chat.bytes && chat.bytes > 0 && (others.streams, chat.streams) == (1, 1));
    let others = *others;
    while state.drop_heaviest(Some(1), None) {}
    assert_eq!((state.usage_by_group()[1].bytes, state.usage_by_group()[0]), (0, others));
}

/// What an owner that sees `wanted` would end.
fn idle(state: &mut State, now: u64, wanted: &[&str]) -> Vec<String> {
    let is_wanted = |channel: &str| wanted.contains(&channel);
    let found = std::iter::from_fn(|| state.idle(None, now, now - 1, &is_wanted));
    let streams: Vec<_> = found.map(|idle| (idle.channel.to_string(), idle.at)).collect();
    let names = streams.iter().map(|(channel, _)| channel.clone()).collect();
    apply(state, now, Op::Evict { streams });
    names
}

#[test]
fn what_is_empty_unwanted_and_unused_for_longest_is_evicted_first() {
    let mut state = State::default();
    apply(&mut state, T0, Op::Seed { seed: 1 });
    for (n, channel) in ["a", "wanted", "b", "c"].into_iter().enumerate() {
        run(&mut state, T0 + n as u64, publish(channel, "x"));
    }
    let before = state.position("a").unwrap();
    assert_eq!(idle(&mut state, T0 + 5_000, &[]), [""; 0], "all have publications");
    state.sweep(T0 + 10_100, 100, &mut Vec::new());
    touch(&mut state, T0 + 10_200, "b");
    touch(&mut state, T0 + 10_250, "a");
    assert_eq!(state.touched(T0 + 10_300, "a", &OPTIONS), Some(before), "counts as a use, without an entry");
    assert_eq!(state.touched(T0 + 10_290, "b", &OPTIONS).map(|at| at.offset), Some(1));
    run(&mut state, T0 + 10_400, publish("c", "new"));
    let idle_now = |state: &mut State| idle(state, T0 + 11_000, &["wanted"]);
    assert_eq!(idle_now(&mut state), ["b", "a"]);
    assert_eq!((state.usage().streams, idle_now(&mut state)), (2, vec![]));
    assert_ne!(state.position("a").unwrap().epoch, before.epoch);
    // Published to since it was chosen: it stays.
    let late =
        Op::Evict { streams: vec![("c".into(), Position { offset: 1, ..state.position("c").unwrap() })] };
    apply(&mut state, T0 + 12_000, late);
    assert_eq!(state.position("c").unwrap().offset, 2);
}

#[test]
fn names_that_are_only_subscribed_to_take_nothing() {
    let mut state = State::default();
    apply(&mut state, T0, Op::Seed { seed: 1 });
    for n in 0..1000 {
        let name = format!("name {n}");
        let position = touch(&mut state, T0 + n, &name);
        assert_eq!(state.touched(T0 + n, &name, &OPTIONS), Some(position));
        assert_eq!(state.history(T0 + n, &name, &ALL).unwrap().top, position);
    }
    assert_eq!((state.channels(), state.usage().streams, state.order.items()), (0, 0, 0));
    let first = state.position("name 7").unwrap();
    assert_eq!(run(&mut state, T0, publish("name 7", "x")).0, Some(Position { offset: 1, ..first }));
}

#[test]
fn what_is_past_its_time_ends_by_the_owners_word() {
    let mut state = State::default();
    for channel in ["gone", "watched"] {
        run(&mut state, T0, publish(channel, "x"));
    }
    let keyed = Publish { stream: None, idempotency_key: Some("k".into()), ..publish("keyed", "x") };
    run(&mut state, T0, keyed);
    let mut due = Vec::new();
    assert!(!state.sweep(T0 + 10_000, 100, &mut due) && due.is_empty());
    assert_eq!((state.usage().streams, state.channels()), (2, 3), "places outlive publications");
    state.sweep(T0 + 60_000, 100, &mut due);
    due.sort();
    assert_eq!(due.iter().map(|c| &**c).collect::<Vec<_>>(), ["gone", "watched"]);
    assert_eq!(state.usage().streams, 2, "nothing ends before that is agreed");
    apply(&mut state, T0 + 60_000, Op::Expire { channels: vec!["gone".into(), "nobody's".into()] });
    assert_eq!((state.usage().streams, state.channels()), (1, 2));
    // Used again before it came to that.
    run(&mut state, T0 + 60_001, publish("watched", "y"));
    apply(&mut state, T0 + 60_002, Op::Expire { channels: vec!["watched".into()] });
    assert_eq!(state.position("watched").unwrap().offset, 2);
    assert!(state.sweep(T0 + 400_000, 100, &mut Vec::new()), "the shard's time is behind");
    sweep(&mut state, T0 + 500_000);
    assert_eq!(
        (state.usage().streams, state.channels(), state.usage().bytes),
        (0, 0, 0),
        "nothing is left behind"
    );
}

#[test]
fn channels_that_come_and_go_leave_nothing_behind() {
    let mut state = State::default();
    for n in 0..1000 {
        let now = T0 + n * 100_000;
        run(&mut state, now, publish(&format!("c{n}"), "x"));
        run(&mut state, now, publish("again", "x"));
        sweep(&mut state, now + 61_000);
        assert_eq!((state.usage().streams, state.channels(), state.usage().bytes), (0, 0, 0));
    }
    assert!(state.order.items() <= 3 * (64 + 2) && state.channels.capacity() < 64);
}

#[test]
fn the_sweep_keeps_to_its_budget() {
    let mut state = State::default();
    for i in 0..10 {
        run(&mut state, T0, publish(&format!("c{i}"), "x"));
    }
    let mut due = Vec::new();
    state.sweep(T0 + 3_600_000, 4, &mut due);
    assert_eq!(due.len(), 4);
    state.sweep(T0 + 3_600_000, 100, &mut due);
    assert_eq!(due.len(), 10);
}

#[test]
fn other_epochs_are_the_same_ones_everywhere_and_repeats_follow() {
    let (mut a, mut b) = (State::default(), State::default());
    let keyed = Publish { idempotency_key: Some("k".into()), ..publish("c", "1") };
    for state in [&mut a, &mut b] {
        run(state, T0, keyed.clone());
        run(state, T0, publish("d", "1"));
        apply(state, T0, Op::NewEpochs { seed: 5 });
    }
    assert_eq!((a.position("c"), a.position("d")), (b.position("c"), b.position("d")));
    let (c, d) = (a.position("c").unwrap(), a.position("d").unwrap());
    assert!(c.epoch != d.epoch && c.epoch != Epoch(T0) && c.offset == 1);
    assert_eq!(run(&mut a, T0, keyed), (Some(c), vec![]));
}
