//! Real files: a process killed while it writes, a full tmpfs, two processes, figures.

use super::*;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const SHARDS: u16 = 64;
const CHILD: &str = "WEIR_DISK_CHILD";

fn data(shard: u16, index: u64) -> Bytes {
    let length = 100 + (index as usize * 37 + usize::from(shard)) % 200;
    Bytes::from(vec![(index as u8) ^ (shard as u8); length])
}

fn spawn(dir: &Path, fsync: &str, shift: u64) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "disk::tests::real::child", "--ignored", "--nocapture"]);
    child.env(CHILD, format!("{}|{fsync}|{shift}", dir.display()));
    child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Not a test: what [`a_killed_process_loses_nothing_that_it_told`] kills.
#[tokio::test]
#[ignore = "run by the test that kills it"]
async fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let [dir, fsync, _] = what.split('|').collect::<Vec<_>>()[..] else { return };
    let fsync = match fsync {
        "always" => Fsync::Always,
        "interval" => Fsync::Interval(Duration::from_millis(20)),
        _ => Fsync::Never,
    };
    let options = Options {
        segment_bytes: 64 << 10,
        log_bytes: 512 << 10,
        snapshot_after: 32 << 10,
        ..Options::new(fsync)
    };
    let Opened { disk, mut events, shards, .. } = Disk::open_with(Path::new(dir), options).unwrap();
    let start =
        |shard: u16| shards.get(&shard).map_or(0, |s| s.restored.applied + s.restored.entries.len() as u64);
    let mut next: Vec<u64> = (0..SHARDS).map(|shard| start(shard) + 1).collect();
    let first = next.clone();
    loop {
        assert!(disk.waiting_bytes() < 32 << 20);
        for (shard, next) in (0..SHARDS).zip(&mut next) {
            for _ in 0..16 {
                let write = *next - first[usize::from(shard)] + 1;
                disk.write(shard, write, at(1, *next), data(shard, *next));
                *next += 1;
            }
        }
        for event in events.next().await {
            match event {
                Event::Persisted { shard, write } => {
                    println!("P {shard} {}", first[usize::from(shard)] + write - 1);
                }
                Event::SnapshotWanted { shard } => {
                    let last = next[usize::from(shard)] - 1;
                    disk.snapshot(shard, at(1, last), Bytes::from(last.to_string()));
                }
                Event::State(_) => {}
            }
        }
    }
}

fn rounds(fsync: &str, count: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut told = BTreeMap::<u16, u64>::new();
    let mut cuts = 0;
    for round in 0..count {
        let mut child = spawn(dir.path(), fsync, round);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // So many lines later, which is another place in its work each time.
        for line in lines.by_ref().take(100 + (round as usize * 211) % 1500) {
            note(&line.unwrap(), &mut told);
        }
        child.kill().unwrap();
        // The last line may be half written; what it says may then be too little.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        rest[..rest.len().saturating_sub(1)].iter().for_each(|line| note(line, &mut told));
        child.wait().unwrap();
        let opened = Disk::open(dir.path(), Fsync::Always).unwrap_or_else(|e| panic!("{fsync} {round}: {e}"));
        assert!(!opened.report.clean && !opened.report.may_have_lost, "{fsync} {round}");
        cuts += u64::from(opened.report.cut.is_some());
        for (shard, told) in &told {
            let found = &opened.shards[shard];
            let base = found.restored.base.index;
            let last = base + found.restored.entries.len() as u64;
            assert!(last >= *told, "{fsync} {round}: shard {shard} has {last}, told {told}");
            let state = if base == 0 { String::new() } else { base.to_string() };
            assert_eq!(found.state, state, "{fsync} {round}: shard {shard}");
            for (index, entry) in (base + 1..).zip(&found.restored.entries) {
                assert_eq!(entry.data, data(*shard, index), "{fsync} {round}: shard {shard} {index}");
            }
        }
    }
    assert_eq!(told.len(), usize::from(SHARDS), "{fsync}: {told:?}");
    println!("{fsync}: {count} kills, {cuts} torn writes cut off, up to {:?}", told.values().max());
}

fn note(line: &str, told: &mut BTreeMap<u16, u64>) {
    let mut words = line.split(' ');
    if let (Some("P"), Some(Ok(shard)), Some(Ok(index))) =
        (words.next(), words.next().map(str::parse), words.next().map(str::parse))
    {
        told.insert(shard, index);
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_told() {
    rounds("always", 12);
    rounds("interval", 12);
    rounds("never", 12);
}

#[test]
fn one_process_at_a_time_and_nobody_elses_files() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Disk::open(dir.path(), Fsync::Always).unwrap();
    let second = Disk::open(dir.path(), Fsync::Always).err().unwrap();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    let mine = Identity { cluster: crate::meta::ClusterId(7), broker: weir_wire::id::BrokerId(1) };
    opened.disk.claim(mine).unwrap();
    opened.disk.close();
    drop(opened.disk);
    let opened = Disk::open(dir.path(), Fsync::Always).unwrap();
    assert_eq!(opened.identity, Some(mine));
    let other = Identity { broker: weir_wire::id::BrokerId(2), ..mine };
    assert!(matches!(opened.disk.claim(other), Err(OpenError::OtherOwner { .. })));
    drop(opened);
    std::fs::remove_file(dir.path().join("identity.json")).unwrap();
    assert!(matches!(Disk::open(dir.path(), Fsync::Always), Err(OpenError::NotOurs { .. })));
    std::fs::write(dir.path().join("identity.json"), r#"{"format":9,"owner":null}"#).unwrap();
    assert!(matches!(Disk::open(dir.path(), Fsync::Always), Err(OpenError::Format { found: 9, .. })));
}

#[tokio::test]
async fn who_forgets_the_group_keeps_the_shards() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { disk, mut events, meta, .. } = Disk::open(dir.path(), Fsync::Never).unwrap();
    meta.set(crate::meta::store::Slot::Vote, Bytes::from("vote")).await.unwrap();
    meta.append((1..=5).map(|n| (n, Bytes::from("entry"))).collect()).await.unwrap();
    meta.truncate(5).await.unwrap();
    meta.purge(2).await.unwrap();
    disk.write(9, 1, at(1, 1), data(9, 1));
    persisted(&mut events, 9, 1).await;
    disk.close();
    drop(disk);
    let Opened { disk, meta, .. } = Disk::open(dir.path(), Fsync::Never).unwrap();
    let saved = meta.load().await.unwrap();
    assert_eq!(saved.entries.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(saved.slots.len(), 1);
    disk.forget_group().await.unwrap();
    disk.close();
    drop(disk);
    let opened = Disk::open(dir.path(), Fsync::Never).unwrap();
    let saved = opened.meta.load().await.unwrap();
    assert!(saved.slots.is_empty() && saved.entries.is_empty());
    assert_eq!(opened.shards[&9].restored.entries.len(), 1);
}

struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where mounting is not allowed.
    fn new(size: &str) -> Option<Mounted> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        mounted.then_some(Mounted(dir))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_file_system_refuses_and_goes_on_when_something_is_removed() {
    let Some(mounted) = Mounted::new("1m") else {
        eprintln!("SKIPPED: mounting a tmpfs takes root");
        return;
    };
    let ballast = mounted.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 512 << 10]).unwrap();
    let dir = mounted.0.path().join("data");
    let Opened { disk, mut events, .. } = Disk::open(&dir, Fsync::Always).unwrap();
    let (mut written, mut told, mut refused) = (0, 0, None);
    while refused.is_none() {
        written += 1;
        disk.write(1, written, at(1, written), data(1, written));
        for event in events.next().await {
            match event {
                Event::Persisted { write, .. } => told = write,
                Event::State(State::Full) => refused = disk.admit().err(),
                _ => {}
            }
        }
        assert!(written < 100_000);
    }
    assert_eq!(refused, Some(Refused::Full));
    assert!(told < written);
    std::fs::remove_file(&ballast).unwrap();
    persisted(&mut events, 1, written).await;
    assert_eq!((disk.admit(), disk.state()), (Ok(()), State::Ok));
    drop(disk);
    let opened = Disk::open(&dir, Fsync::Always).unwrap();
    assert_eq!(opened.shards[&1].restored.entries.len() as u64, written);
    assert_eq!(opened.report.cut, None);
}

fn cpu() -> Duration {
    let mut text = String::new();
    std::fs::File::open("/proc/self/stat").unwrap().read_to_string(&mut text).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// `cargo test --release -p weir-broker disk::tests::real::figures -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures"]
async fn figures() {
    let interval = Fsync::Interval(Duration::from_secs(1));
    for fsync in [Fsync::Always, interval, Fsync::Never] {
        for rate in [2_000, 20_000, usize::MAX] {
            measure(fsync, rate).await;
        }
    }
}

async fn measure(fsync: Fsync, rate: usize) {
    let base = std::env::var_os("WEIR_DISK_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(base).unwrap();
    let Opened { disk, mut events, .. } = Disk::open(dir.path(), fsync).unwrap();
    let entry = Bytes::from(vec![5; 200]);
    let mut sent: Vec<std::collections::VecDeque<Instant>> = vec![Default::default(); usize::from(SHARDS)];
    let mut first = vec![1_u64; usize::from(SHARDS)];
    let (mut waits, mut count, begun, cpu_before) = (Vec::new(), 0_usize, Instant::now(), cpu());
    let mut next = vec![1_u64; usize::from(SHARDS)];
    while begun.elapsed() < Duration::from_secs(3) {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        let mut room = due.min(count + 256) - count.min(due);
        while room > 0 && (rate != usize::MAX || count - waits.len() < 4096) {
            let shard = count % usize::from(SHARDS);
            disk.write(shard as u16, next[shard], at(1, next[shard]), entry.clone());
            sent[shard].push_back(Instant::now());
            (next[shard], count, room) = (next[shard] + 1, count + 1, room - 1);
        }
        let told = tokio::time::timeout(Duration::from_millis(1), events.next()).await;
        for event in told.unwrap_or_default() {
            match event {
                Event::Persisted { shard, write } => {
                    let shard = usize::from(shard);
                    while first[shard] <= write {
                        waits.push(sent[shard].pop_front().unwrap().elapsed());
                        first[shard] += 1;
                    }
                }
                Event::SnapshotWanted { shard } => {
                    let last = first[usize::from(shard)] - 1;
                    disk.snapshot(shard, at(1, last), Bytes::from(vec![1; 64 << 10]));
                }
                Event::State(_) => {}
            }
        }
    }
    let (took, cpu) = (begun.elapsed(), cpu() - cpu_before);
    waits.sort();
    let syncs = disk.counts().syncs.load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "{fsync:?} at {rate}: {:.0} entries/s, told after p50 {:?} p99 {:?}, {syncs} syncs, CPU {:.2} µs/entry",
        waits.len() as f64 / took.as_secs_f64(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        cpu.as_secs_f64() * 1e6 / waits.len() as f64,
    );
    disk.close();
    drop(disk);
}
