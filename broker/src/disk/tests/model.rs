//! Random writes over some shards, starts in between after orderly ends, kills and power failures:
//! what is found is what was told, plus perhaps some of what was not told yet, never anything else.

use super::forgetful::Forgetful;
use super::*;
use crate::meta::store::Slot;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SHARDS: u16 = 5;

/// What a shard should be after each of its writes; the state is the entries up to its base, hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    resets: u64,
    held: bool,
    /// All entries since the log began or was installed.
    entries: Vec<(u64, u64, Vec<u8>)>,
}

impl Content {
    fn last(&self) -> u64 {
        self.entries.last().map_or(0, |(_, index, _)| *index)
    }

    fn state(&self, to: u64) -> Vec<u8> {
        let of = self.entries.iter().take_while(|(_, index, _)| *index <= to);
        let mut state = Vec::new();
        for (epoch, index, data) in of {
            state.extend_from_slice(&epoch.to_le_bytes());
            state.extend_from_slice(&index.to_le_bytes());
            state.extend_from_slice(&(data.len() as u64).to_le_bytes());
            state.extend_from_slice(data);
        }
        state
    }

    fn epoch_at(&self, index: u64) -> u64 {
        self.entries.iter().find(|(_, i, _)| *i == index).map_or(0, |(epoch, ..)| *epoch)
    }
}

#[derive(Default)]
struct Modelled {
    /// By write number, from the last one told on; the first is what surely is there.
    history: Vec<(u64, Content)>,
    committed: u64,
    written: u64,
    epoch: u64,
}

impl Modelled {
    fn now(&self) -> &Content {
        &self.history.last().unwrap().1
    }

    fn push(&mut self, content: Content) -> u64 {
        self.written += 1;
        self.history.push((self.written, content));
        self.written
    }

    fn told(&mut self, write: u64) {
        assert!(write <= self.written);
        self.history.retain(|(number, _)| *number >= write);
    }

    fn found(content: Content) -> Modelled {
        // Nothing is known to be committed beyond the state; keep it so that truncation stays legal.
        let (committed, epoch) = (content.last(), content.entries.last().map_or(0, |e| e.0));
        Modelled { history: vec![(0, content)], committed, written: 0, epoch }
    }
}

fn step(disk: &Disk, shard: u16, m: &mut Modelled, rng: &mut StdRng) {
    let mut content = m.now().clone();
    match rng.random_range(0..100) {
        0..70 => {
            let data: Vec<u8> = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
            let index = content.last() + 1;
            content.held = true;
            content.entries.push((m.epoch, index, data.clone()));
            let write = m.push(content);
            disk.write(shard, write, at(m.epoch, index), data.into());
        }
        70..80 => m.committed = rng.random_range(m.committed..=content.last()),
        80..86 if content.last() > 0 => {
            let after = rng.random_range(m.committed..=content.last());
            content.entries.retain(|(_, index, _)| *index <= after);
            m.epoch += 1;
            let write = m.push(content);
            disk.truncate(shard, write, after);
        }
        86..92 if m.committed > 0 => snapshot(disk, shard, m),
        92..94 => {
            content.resets += 1;
            content.held = true;
            let keep: bool = rng.random();
            if !keep {
                (content.entries, m.committed) = (Vec::new(), 0);
            }
            let resets = content.resets;
            let write = m.push(content);
            disk.reset(shard, write, resets, keep);
        }
        94..98 => {
            let (first, count) = (content.last() + rng.random_range(1..9), rng.random_range(1..50));
            m.epoch += 1;
            content.held = true;
            content.entries = (first..first + count).map(|i| (m.epoch, i, vec![7; 20])).collect();
            (m.committed, content.resets) = (content.last(), content.resets + 1);
            let (last, resets, state) = (content.last(), content.resets, content.state(u64::MAX));
            let write = m.push(content);
            disk.install(shard, write, at(m.epoch, last), resets, state.into());
        }
        98 => {
            disk.retire(shard);
            // Numbers begin anew, and what was told of before does not count: so nothing is told here.
            let keep: Vec<Content> = m.history.drain(..).map(|(_, c)| c).collect();
            m.history = keep.into_iter().map(|c| (0, c)).collect();
            m.history.push((0, Content::default()));
            (m.committed, m.written) = (0, 0);
        }
        _ => {}
    }
}

fn snapshot(disk: &Disk, shard: u16, m: &Modelled) {
    if m.committed > 0 && m.now().last() >= m.committed {
        let state = m.now().state(m.committed);
        disk.snapshot(shard, at(m.now().epoch_at(m.committed), m.committed), state.into());
    }
}

/// As the model sees what was found.
fn content(shard: &Shard) -> Content {
    let mut entries = Vec::new();
    let mut state = &shard.state[..];
    while !state.is_empty() {
        let word = |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().unwrap());
        let (epoch, index, length) = (word(0), word(8), word(16) as usize);
        entries.push((epoch, index, state[24..24 + length].to_vec()));
        state = &state[24 + length..];
    }
    let base = shard.restored.base;
    assert_eq!(entries.last().map_or((0, 0), |e| (e.0, e.1)), (base.epoch.0, base.index));
    for (index, entry) in (base.index + 1..).zip(&shard.restored.entries) {
        entries.push((entry.epoch.0, index, entry.data.to_vec()));
    }
    Content { resets: shard.restored.resets, held: true, entries }
}

async fn listen(disk: &Disk, events: &mut Events, models: &mut [Modelled]) {
    let Ok(events) = tokio::time::timeout(Duration::from_millis(1), events.next()).await else { return };
    for event in events {
        match event {
            Event::Persisted { shard, write } => models[usize::from(shard)].told(write),
            Event::SnapshotWanted { shard } => snapshot(disk, shard, &models[usize::from(shard)]),
            Event::State(_) => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Orderly,
    Killed,
    PowerFailure,
}

async fn run(seed: u64, fsync: Fsync) {
    let mut rng = StdRng::seed_from_u64(seed);
    let files = Arc::new(Forgetful::default());
    let mut models: Vec<Modelled> = (0..SHARDS).map(|_| Modelled::found(Content::default())).collect();
    let mut vote = None;
    for round in 0..6 {
        let Opened { disk, mut events, meta, shards, report, .. } =
            open(&files, small(fsync)).unwrap_or_else(|e| panic!("seed {seed} round {round}: {e}"));
        for (shard, model) in (0..SHARDS).zip(&mut models) {
            let found = shards.get(&shard).map(content).unwrap_or_default();
            let may_be = report.may_have_lost || model.history.iter().any(|(_, c)| *c == found);
            let wanted = model.history.iter().map(|(w, c)| (*w, c.resets, c.last())).collect::<Vec<_>>();
            let seen = (found.resets, found.last(), found.held);
            assert!(may_be, "seed {seed} round {round} shard {shard}: {seen:?}, of {wanted:?}");
            *model = Modelled::found(found);
        }
        let slot = meta.load().await.unwrap().slots.into_iter().find(|(slot, _)| *slot == Slot::Vote);
        assert_eq!(slot.map(|(_, v)| v), vote, "seed {seed}: the vote");
        for n in 0..rng.random_range(0..400) {
            let shard = rng.random_range(0..SHARDS);
            step(&disk, shard, &mut models[usize::from(shard)], &mut rng);
            if rng.random_ratio(1, 20) {
                listen(&disk, &mut events, &mut models).await;
            }
            if rng.random_ratio(1, 100) {
                vote = Some(Bytes::from(format!("{round} {n}")));
                meta.set(Slot::Vote, vote.clone().unwrap()).await.unwrap();
            }
            if rng.random_ratio(1, 200) {
                files.fail(rng.random_range(0..2), u32::from(fsync == Fsync::Always));
            }
        }
        files.fail(0, 0);
        let end = [End::Orderly, End::Killed, End::PowerFailure][rng.random_range(0..3)];
        match end {
            End::Orderly => {
                disk.close();
                drop(disk);
            }
            End::Killed | End::PowerFailure => drop(disk),
        }
        listen_to_the_end(&mut events, &mut models).await;
        match end {
            End::Orderly => {
                models.iter_mut().for_each(|m| drop(m.history.drain(..m.history.len() - 1)));
            }
            End::Killed => {}
            End::PowerFailure => files.power_failure(rng.random()),
        }
        assert!(files.total() < 400 << 10, "seed {seed}: {} bytes are kept", files.total());
    }
}

async fn listen_to_the_end(events: &mut Events, models: &mut [Modelled]) {
    while let Ok(events) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
        for event in events {
            if let Event::Persisted { shard, write } = event {
                models[usize::from(shard)].told(write);
            }
        }
    }
}

#[tokio::test]
async fn what_was_told_is_found_after_any_end_under_always() {
    for seed in 0..60 {
        run(seed, Fsync::Always).await;
    }
}

#[tokio::test]
async fn what_was_told_is_found_after_a_kill_under_never_and_a_power_failure_is_owned_up_to() {
    for seed in 0..30 {
        run(seed, Fsync::Never).await;
        run(seed, Fsync::Interval(Duration::from_millis(5))).await;
    }
}
