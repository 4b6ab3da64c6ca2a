//! Random entries: holders that apply the same ones answer the same, whatever each of them dropped
//! by its own clock and memory in between, and whether or not it began from a snapshot.

use super::*;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weir_wire::entry::Holder;
use weir_wire::envelope::ClientInfo;

const ALL: HistoryQuery = HistoryQuery { since: None, limit: u32::MAX, reverse: false };
const CHANNELS: u32 = 6;
/// In an [`Op::Evict`] until it is known where the stream stands.
const NOWHERE: Position = Position { epoch: Epoch(0), offset: 0 };

fn channel(rng: &mut StdRng) -> String {
    format!("c{}", rng.random_range(0..CHANNELS))
}

fn options(rng: &mut StdRng) -> StreamOptions {
    let size = [0, 1, 3, 10][rng.random_range(0..4)];
    let ttl_ms = [0, 50, 1_000, 20_000, u64::MAX][rng.random_range(0..5)];
    StreamOptions { size, ttl_ms, meta_ttl_ms: [0, 100, 60_000][rng.random_range(0..3)] }
}

fn publish(rng: &mut StdRng) -> Publish {
    Publish {
        channel: channel(rng),
        data: Bytes::from(vec![rng.random(); rng.random_range(0..40)]),
        info: rng.random_bool(0.2).then(|| info(rng)),
        tags: if rng.random_bool(0.1) { vec![("k".into(), "v".into())] } else { vec![] },
        stream: rng.random_bool(0.8).then(|| options(rng)),
        idempotency_key: rng.random_bool(0.5).then(|| format!("k{}", rng.random_range(0..5))),
        version: if rng.random_bool(0.3) { rng.random_range(1..6) } else { 0 },
        version_epoch: ["", "e"][rng.random_range(0..2)].into(),
        ..Default::default()
    }
}

fn info(rng: &mut StdRng) -> ClientInfo {
    let (user, client) = (rng.random_range(0..3_u32), rng.random_range(0..5_u32));
    ClientInfo { user: format!("u{user}"), client: format!("c{client}"), ..ClientInfo::default() }
}

fn holder(rng: &mut StdRng) -> Holder {
    Holder { node: NodeId(rng.random_range(1..4)), link: rng.random_range(1..5) }
}

fn op(rng: &mut StdRng) -> Op {
    match rng.random_range(0..20) {
        0..9 => Op::Publish { publish: publish(rng), epoch: Epoch(rng.random()) },
        9..11 => Op::Touch { channel: channel(rng), stream: options(rng), epoch: Epoch(rng.random()) },
        11 => Op::HistoryRemove { channel: channel(rng) },
        12..15 => {
            let member = Member { info: info(rng), listed: rng.random(), announced: rng.random() };
            Op::Join { channel: channel(rng), holder: holder(rng), member, quiet: rng.random_bool(0.2) }
        }
        15 => Op::Leave { channel: channel(rng), holder: holder(rng), client: info(rng).client },
        16 => Op::DropMembers { before: holder(rng) },
        17..19 => Op::Expire { channels: (0..CHANNELS / 2).map(|_| channel(rng)).collect() },
        _ => match rng.random_range(0..4) {
            0 => Op::NewEpochs { seed: rng.random() },
            1 => Op::Seed { seed: rng.random() },
            _ => Op::Evict { streams: (0..CHANNELS / 2).map(|_| (channel(rng), NOWHERE)).collect() },
        },
    }
}

/// An eviction of streams where they stand, as an owner decides it.
fn aimed(op: Op, state: &State) -> Op {
    let Op::Evict { streams } = op else { return op };
    let aim = |(channel, _): (String, _)| {
        let at = state.position(&channel).unwrap_or(NOWHERE);
        (channel, at)
    };
    Op::Evict { streams: streams.into_iter().map(aim).collect() }
}

fn restored(bytes: Bytes) -> Result<State, snapshot::Malformed> {
    State::restore(bytes, &Arc::default())
}

/// The reply, and what is delivered; leaves of one entry in any order.
fn apply(state: &mut State, entry: &Entry) -> (Reply, Vec<String>) {
    let mut sent = Vec::new();
    let reply = state.apply(entry.clone(), &mut |frame| sent.push(format!("{frame:?}")));
    sent.sort();
    (reply, sent)
}

/// What is the same at every holder.
fn agreed(state: &State) -> String {
    let mut seen = format!("at {} ", state.time);
    for n in 0..CHANNELS {
        let channel = format!("c{n}");
        let mut members: Vec<String> = state.members(&channel).iter().map(|m| format!("{m:?}")).collect();
        members.sort();
        let (position, stats) = (state.position(&channel), state.stats(&channel));
        seen += &format!("{channel} {position:?} {members:?} {stats:?}\n");
    }
    seen
}

fn contents(state: &mut State) -> Vec<Option<History>> {
    (0..CHANNELS).map(|n| state.history(0, &format!("c{n}"), &ALL)).collect()
}

/// The sums are those of what is there.
fn sums_are_right(state: &State) {
    for (group, usage) in state.usage.iter().enumerate() {
        let mut sum = Usage::default();
        let channels = state.channels.iter().filter(|(name, _)| state.groups.of(name) == group);
        channels.for_each(|(_, channel)| sum.add(channel.usage()));
        assert_eq!(*usage, sum, "of group {group}");
    }
}

#[test]
fn every_holder_of_the_same_entries_answers_the_same() {
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut plain, mut short, mut copy) = (State::default(), State::default(), State::default());
        let (mut time, snapshot_at) = (1_000_000, rng.random_range(0..300));
        for step in 0..400 {
            let say = format!("seed {seed}, step {step}");
            time += [0, 1, 40, 3_000, 70_000][rng.random_range(0..5)];
            // A new owner's clock may be behind.
            let time_ms = time - [0, 0, 0, 5_000][rng.random_range(0..4)];
            let entry = Entry { time_ms, op: aimed(op(&mut rng), &plain) };
            let first = apply(&mut plain, &entry);
            assert_eq!(apply(&mut short, &entry), first, "{say}: {entry:?}");
            assert_eq!(apply(&mut copy, &entry), first, "{say}: {entry:?}");
            if step == snapshot_at {
                copy = restored(plain.snapshot(usize::MAX).unwrap()).unwrap();
            }
            // One holder's memory is short and its clock ahead.
            if rng.random_bool(0.3) {
                short.drop_heaviest(None, None);
                short.sweep(time + rng.random_range(0..100_000), 3, &mut Vec::new());
            }
            if rng.random_bool(0.02) {
                short = restored(short.snapshot(rng.random_range(0..500)).unwrap()).unwrap();
            }
            assert_eq!(agreed(&short), agreed(&plain), "{say}");
            assert_eq!(agreed(&copy), agreed(&plain), "{say}");
            assert_eq!(contents(&mut copy), contents(&mut plain), "{say}");
            [&plain, &short, &copy].into_iter().for_each(sums_are_right);
        }
    }
}

/// Whoever was given a position and finds its epoch again has missed nothing but what history has since: an epoch is
/// never answered for again once publications of its stream may be forgotten. The other way round, a seeded stream
/// without publications keeps its epoch whatever happens to others (here no two names share a bucket), in memory and
/// through snapshots, and takes it along into its first publication.
#[test]
fn an_epoch_is_never_answered_for_again_and_never_lost_without_need() {
    let name = |n: u32| format!("c{n}");
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut state, mut time) = (State::default(), 1_000_000);
        // Which incarnation of a name's stream each epoch was given out for.
        let mut given: HashMap<(u32, u64), u64> = HashMap::new();
        let mut incarnations = [0_u64; CHANNELS as usize];
        for step in 0..600 {
            let say = format!("seed {seed}, step {step}");
            time += [0, 1, 40, 3_000, 70_000][rng.random_range(0..5)];
            let entry = Entry { time_ms: time, op: aimed(op(&mut rng), &state) };
            let before: Vec<Option<Position>> = (0..CHANNELS).map(|n| state.position(&name(n))).collect();
            let (kept, seeded) = (entry.clone(), state.is_seeded());
            let had: Vec<bool> = (0..CHANNELS).map(|n| state.has_stream(&name(n))).collect();
            apply(&mut state, &entry);
            if rng.random_bool(0.05) {
                state = restored(state.snapshot(rng.random_range(0..500)).unwrap()).unwrap();
            }
            for n in 0..CHANNELS {
                let (at, channel) = (n as usize, name(n));
                let (was, is) = (before[at], state.position(&channel));
                let lost = had[at] && !state.has_stream(&channel);
                let published = was.is_some_and(|was| was.offset > 0);
                if matches!(kept.op, Op::NewEpochs { .. }) || lost && published {
                    incarnations[at] += 1;
                }
                let Some(is) = is else { continue };
                let of = *given.entry((n, is.epoch.0)).or_insert(incarnations[at]);
                assert_eq!(of, incarnations[at], "{say}: {channel} answers to an epoch of before: {is:?}");
                let calm = !lost && !matches!(kept.op, Op::NewEpochs { .. } | Op::Seed { .. });
                if let Some(was) = was.filter(|_| seeded && calm) {
                    assert_eq!(was.epoch, is.epoch, "{say}: {channel} by {:?}", kept.op);
                    assert!(is.offset >= was.offset, "{say}");
                }
                if seeded && !published && calm && !had[at] && matches!(kept.op, Op::Touch { .. }) {
                    assert!(
                        !state.has_stream(&channel),
                        "{say}: a name without publications takes something"
                    );
                }
            }
        }
    }
}

/// What the release before wrote is read, and means what it meant: streams keep the epochs that they were given.
#[test]
fn a_state_without_a_seed_goes_on_as_before_until_it_gets_one() {
    let mut state = State::default();
    let stream = StreamOptions { size: 10, ttl_ms: 1_000, meta_ttl_ms: 1_000 };
    let touch = |channel: &str, epoch| Op::Touch { channel: channel.into(), stream, epoch: Epoch(epoch) };
    let entry = |time_ms, op| Entry { time_ms, op };
    apply(&mut state, &entry(1, touch("silent", 7)));
    let publish = Publish { channel: "c".into(), stream: Some(stream), ..Publish::default() };
    apply(&mut state, &entry(2, Op::Publish { publish: publish.clone(), epoch: Epoch(8) }));
    let old = state.snapshot(usize::MAX).unwrap();
    let mut state = restored(old).unwrap();
    assert_eq!(
        (state.position("silent"), state.position("new")),
        (Some(Position { epoch: Epoch(7), offset: 0 }), None)
    );
    apply(&mut state, &entry(3, Op::Seed { seed: 1 }));
    apply(&mut state, &entry(4, touch("silent", 9)));
    let derived = state.position("new").unwrap();
    assert_eq!(state.position("silent").unwrap().epoch, Epoch(7));
    apply(&mut state, &entry(5, touch("new", 9)));
    let first = Publish { channel: "new".into(), ..publish };
    apply(&mut state, &entry(6, Op::Publish { publish: first, epoch: Epoch(9) }));
    assert_eq!(state.position("new"), Some(Position { offset: 1, ..derived }));
    let mut copy = restored(state.snapshot(usize::MAX).unwrap()).unwrap();
    for state in [&mut state, &mut copy] {
        let all = ["new", "silent", "c"].map(str::to_owned).to_vec();
        apply(state, &entry(10_000, Op::Expire { channels: all }));
        assert_eq!(state.usage().streams, 0);
        assert_ne!(state.position("new").unwrap().epoch, derived.epoch);
    }
    assert_eq!(copy.position("new"), state.position("new"));
}

#[test]
fn a_snapshot_keeps_to_its_limit_and_drops_the_oldest() {
    let mut state = State::default();
    let stream = Some(StreamOptions { size: 1000, ttl_ms: 60_000, meta_ttl_ms: 60_000 });
    let mut rng = StdRng::seed_from_u64(1);
    for n in 0..200_u64 {
        let data = vec![n as u8; 1000].into();
        let channel = format!("c{}", n % u64::from(CHANNELS));
        let publish =
            Publish { channel, data, stream, version: 0, idempotency_key: None, ..publish(&mut rng) };
        apply(&mut state, &Entry { time_ms: 1000 + n, op: Op::Publish { publish, epoch: Epoch(n) } });
    }
    let small = state.snapshot(50_000).unwrap();
    assert!(small.len() <= 50_000 && small.len() > 40_000, "{}", small.len());
    let mut kept = Vec::new();
    for history in contents(&mut restored(small).unwrap()).into_iter().flatten() {
        assert!(history.top.offset >= 33);
        kept.extend(history.publications.iter().map(|p| p.data[0]));
    }
    kept.sort_unstable();
    assert_eq!(kept, (200 - kept.len() as u8..200).collect::<Vec<_>>(), "the youngest");
}

#[test]
fn what_is_no_whole_snapshot_is_an_error() {
    let (mut rng, mut state) = (StdRng::seed_from_u64(3), State::default());
    for n in 0..100 {
        apply(&mut state, &Entry { time_ms: n, op: op(&mut rng) });
    }
    let whole = state.snapshot(usize::MAX).unwrap();
    assert!(restored(whole.clone()).is_ok());
    for cut in 0..whole.len() {
        assert!(restored(whole.slice(..cut)).is_err(), "cut at {cut}");
    }
    assert!(restored([&whole[..], &whole[..]].concat().into()).is_err(), "twice");
    for _ in 0..2000 {
        let mut bad = whole.to_vec();
        let at = rng.random_range(0..bad.len());
        bad[at] = rng.random();
        // Whatever comes of it: no panic.
        let _ = restored(bad.into());
    }
}
