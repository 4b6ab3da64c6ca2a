//! Single rules, on replicas that are wired to each other by hand.

use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::time::Duration;
use weir_wire::codec;
use weir_wire::replica::{Append, Chunk, ChunkAck, Entry};

const A: BrokerId = BrokerId(1);
const B: BrokerId = BrokerId(2);
const C: BrokerId = BrokerId(3);

fn at(start: Instant, ms: u64) -> Now {
    Now { at: start + Duration::from_millis(ms), lease: start + Duration::from_millis(10_000) }
}

fn assignment(epoch: u64, version: u64, owner: BrokerId, in_sync: &[BrokerId]) -> Assignment {
    Assignment {
        epoch: ShardEpoch(epoch),
        version,
        owner: Some(owner),
        in_sync: in_sync.to_vec(),
        ..Assignment::default()
    }
}

/// Some brokers, and what is on its way between them.
struct Few {
    start: Instant,
    replicas: Vec<(BrokerId, Replica<u64>)>,
    sent: VecDeque<(BrokerId, BrokerId, Message)>,
    done: Vec<(BrokerId, Action<u64>)>,
}

impl Few {
    fn new(ids: &[BrokerId], limits: &Limits) -> Few {
        let replica = |id: &BrokerId| (*id, Replica::new(*id, limits.clone(), None, Floor::default()));
        let replicas = ids.iter().map(replica).collect();
        Few { start: Instant::now(), replicas, sent: VecDeque::new(), done: Vec::new() }
    }

    fn with<R>(
        &mut self,
        id: BrokerId,
        call: impl FnOnce(&mut Replica<u64>, &mut Vec<Action<u64>>) -> R,
    ) -> R {
        let mut out = Vec::new();
        let (_, replica) = self.replicas.iter_mut().find(|(other, _)| *other == id).unwrap();
        let result = call(replica, &mut out);
        for action in out {
            match action {
                Action::Send { to, message } => self.sent.push_back((id, to, message)),
                other => self.done.push((id, other)),
            }
        }
        result
    }

    fn assign(&mut self, now: Now, a: &Assignment) {
        let ids: Vec<_> = self.replicas.iter().map(|(id, _)| *id).collect();
        for id in ids {
            self.with(id, |r, out| r.assign(now, a, out));
        }
    }

    fn deliver(&mut self, now: Now) {
        while let Some((from, to, message)) = self.sent.pop_front() {
            self.with(to, |r, out| r.receive(now, from, message, out));
        }
    }

    fn publish(&mut self, now: Now, id: BrokerId, token: u64) -> Result<u64, Refusal> {
        let result = self.with(id, |r, out| {
            let result = r.propose(now, Bytes::from(token.to_string()), token, out);
            r.flush(now, out);
            result
        });
        result.map_err(|(refusal, _)| refusal)
    }

    /// Tokens that were committed, and those whose outcome is unknown, since the last call.
    fn outcomes(&mut self) -> (Vec<u64>, Vec<u64>) {
        let (mut committed, mut unknown) = (Vec::new(), Vec::new());
        for (_, action) in std::mem::take(&mut self.done) {
            match action {
                Action::Commit { token: Some(token), .. } => committed.push(token),
                Action::Unknown { token } => unknown.push(token),
                _ => {}
            }
        }
        (committed, unknown)
    }
}

#[test]
fn an_entry_is_committed_when_all_in_sync_have_it() {
    let mut few = Few::new(&[A, B, C], &Limits::default());
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A, B, C]));
    few.deliver(now);
    few.publish(now, A, 7).unwrap();
    let to_c = few.sent.iter().position(|(_, to, _)| *to == C).unwrap();
    let held_back = few.sent.remove(to_c).unwrap();
    few.deliver(now);
    assert_eq!(few.outcomes(), (vec![], vec![]));
    few.sent.push_back(held_back);
    few.deliver(now);
    assert_eq!(few.outcomes(), (vec![7], vec![]));
}

#[test]
fn a_single_copy_commits_at_once() {
    let mut few = Few::new(&[A], &Limits::default());
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A]));
    few.publish(now, A, 7).unwrap();
    assert_eq!(few.outcomes(), (vec![7], vec![]));
}

#[test]
fn without_a_lease_nothing_is_told_or_taken() {
    let mut few = Few::new(&[A, B], &Limits::default());
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A, B]));
    few.deliver(now);
    few.publish(now, A, 7).unwrap();
    let late = at(few.start, 10_000);
    few.deliver(late);
    assert_eq!(few.outcomes(), (vec![], vec![7]));
    assert_eq!(few.publish(late, A, 8), Err(Refusal::NoLease));
    assert!(!few.replicas[0].1.may_serve(late));
    // It goes on when the lease was only late, and commits what has no proposer any more.
    let renewed = Now { lease: late.at + Duration::from_secs(1), ..late };
    few.with(A, |r, out| r.tick(renewed, out));
    let first = few.done.first();
    assert!(matches!(first, Some((A, Action::Commit { token: None, .. }))), "{first:?}");
}

#[test]
fn proposals_are_refused_with_the_reason() {
    let limits = Limits { tail_entries: 2, tail_bytes: 1000, ..Limits::default() };
    let mut few = Few::new(&[A, B], &limits);
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A, B]));
    assert_eq!(few.publish(now, B, 1), Err(Refusal::NotOwner));
    few.sent.clear();
    few.publish(now, A, 2).unwrap();
    few.publish(now, A, 3).unwrap();
    assert_eq!(few.publish(now, A, 4), Err(Refusal::Full));
    let large = few.with(A, |r, out| r.propose(now, Bytes::from(vec![0; 1000]), 5, out));
    assert_eq!(large, Err((Refusal::TooLarge, 5)));
}

#[test]
fn a_new_owner_commits_the_tail_before_it_serves() {
    let mut few = Few::new(&[A, B, C], &Limits::default());
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A, B, C]));
    few.deliver(now);
    few.publish(now, A, 7).unwrap();
    few.sent.retain(|(_, to, _)| *to == B);
    few.deliver(now);
    few.sent.clear();
    few.assign(now, &assignment(2, 2, B, &[A, B, C]));
    assert_eq!(few.replicas[1].1.standing(), Standing::Promoting);
    assert_eq!(few.publish(now, B, 8), Err(Refusal::NotReady));
    assert_eq!(few.outcomes(), (vec![], vec![7]), "the old owner's proposal");
    few.deliver(now);
    assert_eq!(few.replicas[1].1.standing(), Standing::Serving);
    assert!(
        few.done.iter().any(|(id, a)| *id == B && matches!(a, Action::Commit { at, .. } if at.index == 1))
    );
}

#[test]
fn a_planned_move_leaves_nothing_unknown() {
    let mut few = Few::new(&[A, B], &Limits::default());
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A, B]));
    few.deliver(now);
    few.publish(now, A, 7).unwrap();
    few.assign(now, &Assignment { hand_to: Some(B), ..assignment(1, 2, A, &[A, B]) });
    assert_eq!(few.publish(now, A, 8), Err(Refusal::NotReady));
    few.with(A, |r, out| r.tick(now, out));
    assert!(!few.done.iter().any(|(_, a)| matches!(a, Action::Move { .. })), "not all is committed");
    few.deliver(now);
    few.with(A, |r, out| r.tick(now, out));
    assert!(few.done.iter().any(|(_, a)| matches!(a, Action::Move { version: 2, to: B })));
    assert_eq!(few.outcomes(), (vec![7], vec![]));
    assert_eq!(few.replicas[0].1.standing(), Standing::Holder);
}

#[test]
fn one_that_was_dropped_and_named_again_does_not_throw_away_what_it_acknowledged() {
    let mut few = Few::new(&[A, B], &Limits::default());
    let now = at(few.start, 0);
    few.assign(now, &assignment(1, 1, A, &[A, B]));
    few.deliver(now);
    // The owner has heard of both changes, the holder of none, when a message comes.
    few.with(A, |r, out| r.assign(now, &assignment(1, 2, A, &[A]), out));
    let again = Assignment { catching_up: vec![B], ..assignment(1, 3, A, &[A]) };
    few.with(A, |r, out| r.assign(now, &again, out));
    few.deliver(now);
    few.with(B, |r, out| r.assign(now, &assignment(1, 2, A, &[A]), out));
    assert!(!few.done.iter().any(|(_, a)| matches!(a, Action::Retire)));
    // Dropped for good, it goes.
    few.with(B, |r, out| r.assign(now, &assignment(1, 4, A, &[A]), out));
    assert!(few.done.iter().any(|(id, a)| *id == B && matches!(a, Action::Retire)));
}

fn nonsense(rng: &mut SmallRng) -> Message {
    fn number(rng: &mut SmallRng) -> u64 {
        match rng.random_range(0..4) {
            0 => rng.random_range(0..5),
            1 => u64::MAX - rng.random_range(0..3),
            2 => rng.random_range(0..100),
            _ => rng.random(),
        }
    }
    let epoch = ShardEpoch(rng.random_range(0..4));
    let place = Place { epoch, index: number(rng) };
    let session = rng.random_range(0..3);
    let tenure = Tenure { epoch, resets: rng.random_range(0..2), session };
    let data = Bytes::from(vec![0; rng.random_range(0..20)]);
    match rng.random_range(0..5) {
        0 => {
            let entries = (0..rng.random_range(0..5)).map(|_| Entry { epoch, data: data.clone() }).collect();
            Message::Append(Append { tenure, prev: place, commit: number(rng), entries })
        }
        1 => {
            let (matched, durable, gap) = (number(rng), number(rng), rng.random());
            Message::Ack(Ack { epoch, session, matched, durable, last: place, gap })
        }
        2 => {
            let (commit, sent, acked) = (number(rng), number(rng), number(rng));
            Message::Beat(Beat { epoch, session, commit, sent, acked })
        }
        3 => {
            let (take, total, offset) = (number(rng), number(rng), number(rng));
            Message::Chunk(Chunk { tenure, take, at: place, total, offset, data })
        }
        _ => Message::ChunkAck(ChunkAck { epoch, session, take: number(rng), received: number(rng) }),
    }
}

#[test]
fn nonsense_from_a_peer_is_no_panic_and_reads_back() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = rng.random();
        let mut few = Few::new(&[A, B, C], &Limits { disk, ..Limits::default() });
        let now = at(few.start, 0);
        few.assign(now, &assignment(1, 1, A, &[A, B, C]));
        for step in 0..100 {
            let (to, message) = ([A, B][rng.random_range(0..2)], nonsense(&mut rng));
            let frame = codec::encode(&message).unwrap();
            assert_eq!(codec::decode::<Message>(&frame[codec::HEADER..]).as_ref(), Ok(&message));
            let now = at(few.start, step * 20);
            few.with(to, |r, out| r.receive(now, C, message, out));
            few.with(to, |r, out| r.tick(now, out));
            let _ = few.publish(now, A, step);
            few.sent.clear();
        }
    }
}

#[test]
fn a_heartbeat_is_small() {
    let beat = Beat { epoch: ShardEpoch(200), session: 900, commit: 1 << 24, sent: 1 << 24, acked: 1 << 24 };
    assert!(codec::size(&beat).unwrap() <= 24, "a thousand shards go into one frame");
}

/// `cargo test --config 'profile.dev.package."weir-broker".opt-level=3' -p weir-broker figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn figures() {
    const BATCH: u64 = 32;
    for (ids, size) in [(&[A][..], 200), (&[A, B], 200), (&[A, B, C], 200), (&[A, B, C], 2000)] {
        let mut few = Few::new(ids, &Limits::default());
        let now = at(few.start, 0);
        few.assign(now, &assignment(1, 1, A, ids));
        few.deliver(now);
        let (data, started, total) = (Bytes::from(vec![7; size]), Instant::now(), 400_000);
        let mut committed = 0;
        for _ in 0..total / BATCH {
            few.with(A, |r, out| {
                for token in 0..BATCH {
                    r.propose(now, data.clone(), token, out).unwrap();
                }
                r.flush(now, out);
            });
            few.deliver(now);
            committed += few.outcomes().0.len();
        }
        assert_eq!(committed as u64, total);
        let each = started.elapsed() / total as u32;
        println!(
            "{} in sync, {size} bytes, batches of {BATCH}: {each:?} an entry, all copies together",
            ids.len()
        );
    }
}
