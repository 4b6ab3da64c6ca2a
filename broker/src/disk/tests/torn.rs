//! Ends cut at every byte, flipped bits, missing pieces, a full disk, failing syncs; and that the
//! log stays short.

use super::forgetful::Forgetful;
use super::*;

const LARGE: fn(Fsync) -> Options = Options::new;

fn data(index: u64) -> Bytes {
    Bytes::from(format!("entry {index} ").repeat(3))
}

/// One shard with `count` entries, each in a frame of its own, ended as by a kill.
async fn written(count: u64, options: Options) -> Arc<Forgetful> {
    let files = Arc::new(Forgetful::default());
    let Opened { disk, mut events, .. } = open(&files, options).unwrap();
    for index in 1..=count {
        disk.write(3, index, at(1, index), data(index));
        persisted(&mut events, 3, index).await;
    }
    files
}

fn entries(opened: &Opened) -> usize {
    opened.shards.get(&3).map_or(0, |s| s.restored.entries.len())
}

#[tokio::test]
async fn a_write_torn_at_any_byte_is_cut_off_and_reported() {
    let files = written(5, LARGE(Fsync::Always)).await;
    let [name] = &files.names()[..] else { panic!("one segment") };
    let mut length = 0;
    files.edit(name, |bytes| length = bytes.len());
    let frame = frame::HEADER + 1 + 2 + 16 + 4 + data(5).len();
    for keep in length - frame..length {
        let torn = files.copy();
        torn.edit(name, |bytes| bytes.truncate(keep));
        let opened = open(&torn, LARGE(Fsync::Always)).unwrap();
        assert_eq!(entries(&opened), 4, "cut at {keep} of {length}");
        let bytes = (keep + frame - length) as u64;
        assert_eq!(opened.report.cut.as_ref().map_or(0, |c| c.bytes), bytes);
        assert!(!opened.report.clean);
        // It goes on as if nothing had been.
        let Opened { disk, mut events, .. } = opened;
        disk.write(3, 1, at(2, 5), data(6));
        persisted(&mut events, 3, 1).await;
        disk.close();
        drop(disk);
        let again = open(&torn, LARGE(Fsync::Always)).unwrap();
        assert_eq!((entries(&again), again.report.clean, again.report.cut.is_some()), (5, true, false));
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_an_error_or_in_the_last_write_a_reported_cut() {
    let files = written(6, LARGE(Fsync::Always)).await;
    let [name] = &files.names()[..] else { panic!("one segment") };
    let mut length = 0;
    files.edit(name, |bytes| length = bytes.len());
    let last = length - (frame::HEADER + 1 + 2 + 16 + 4 + data(6).len());
    for byte in 0..length {
        let flipped = files.copy();
        flipped.edit(name, |bytes| bytes[byte] ^= 1 << (byte % 8));
        match open(&flipped, LARGE(Fsync::Always)) {
            Err(OpenError::Damaged { .. }) => assert!(byte < last, "byte {byte} of {length}"),
            Err(other) => panic!("byte {byte}: {other}"),
            Ok(opened) => {
                assert!(byte >= last && opened.report.cut.is_some(), "byte {byte} of {length} passed");
                assert_eq!(entries(&opened), 5);
            }
        }
    }
}

#[tokio::test]
async fn after_an_orderly_end_the_last_write_is_vouched_for_too() {
    let files = Arc::new(Forgetful::default());
    let Opened { disk, .. } = open(&files, LARGE(Fsync::Never)).unwrap();
    (1..=3).for_each(|index| disk.write(3, index, at(1, index), data(index)));
    disk.close();
    drop(disk);
    let [name] = &files.names()[..] else { panic!("one segment") };
    files.edit(name, |bytes| {
        let mark = bytes.len() - frame::HEADER - 1;
        bytes[mark - 5] ^= 4;
    });
    let error = open(&files, LARGE(Fsync::Never)).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { damage: Damage::Broken { .. }, .. }), "{error}");
    assert!(error.to_string().contains("Move the directory away"));
}

#[tokio::test]
async fn a_missing_segment_is_an_error() {
    let files = written(400, small(Fsync::Always)).await;
    let names = files.names();
    assert!(names.len() > 3);
    for name in &names[..names.len() - 1] {
        let missing = files.copy();
        missing.forget(name);
        let error = open(&missing, small(Fsync::Always)).err();
        assert!(matches!(error, Some(OpenError::Damaged { .. })), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_goes_on_by_itself_when_there_is_space() {
    let files = Arc::new(Forgetful::default());
    let Opened { disk, mut events, .. } = open(&files, LARGE(Fsync::Always)).unwrap();
    disk.write(3, 1, at(1, 1), data(1));
    persisted(&mut events, 3, 1).await;
    files.set_room(Some(files.total() + 10));
    (2..=4).for_each(|index| disk.write(3, index, at(1, index), data(index)));
    let told = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap();
    assert_eq!(told, [Event::State(State::Full)]);
    assert_eq!(disk.admit(), Err(Refused::Full));
    files.set_room(None);
    persisted(&mut events, 3, 4).await;
    assert_eq!(disk.admit(), Ok(()));
    drop(disk);
    let opened = open(&files, LARGE(Fsync::Always)).unwrap();
    assert_eq!((entries(&opened), opened.report.cut), (4, None));
}

#[tokio::test]
async fn what_a_failed_sync_lost_is_written_again_before_it_is_told() {
    let files = Arc::new(Forgetful::default());
    let Opened { disk, mut events, .. } = open(&files, LARGE(Fsync::Always)).unwrap();
    for index in 1..=20 {
        files.fail(0, u32::from(index % 3 == 0));
        disk.write(3, index, at(1, index), data(index));
        persisted(&mut events, 3, index).await;
    }
    drop(disk);
    files.power_failure(1);
    assert_eq!(entries(&open(&files, LARGE(Fsync::Always)).unwrap()), 20);
}

#[tokio::test]
async fn only_a_power_failure_makes_never_doubtful() {
    let files = written(3, LARGE(Fsync::Never)).await;
    let opened = open(&files, LARGE(Fsync::Never)).unwrap();
    assert_eq!((opened.report.clean, opened.report.may_have_lost), (false, false));
    drop(opened);
    files.power_failure(2);
    // The policy of the process before counts, not the one of now.
    let opened = open(&files, LARGE(Fsync::Always)).unwrap();
    assert!(opened.report.may_have_lost);
    opened.disk.close();
    drop(opened.disk);
    assert!(!open(&files, LARGE(Fsync::Never)).unwrap().report.may_have_lost);
}

/// An idle shard's state is moved along, so that it does not keep the log long.
#[tokio::test]
async fn states_free_old_segments_under_every_policy() {
    for fsync in [Fsync::Always, Fsync::Interval(Duration::from_millis(5)), Fsync::Never] {
        let files = Arc::new(Forgetful::default());
        let Opened { disk, mut events, .. } = open(&files, small(fsync)).unwrap();
        disk.write(9, 1, at(1, 1), data(1));
        let mut index = 0;
        while index < 3000 {
            for _ in 0..10 {
                index += 1;
                disk.write(3, index, at(1, index), data(index));
            }
            for event in events.next().await {
                match event {
                    Event::SnapshotWanted { shard: 3 } => disk.snapshot(3, at(1, index), data(index)),
                    Event::SnapshotWanted { shard } => disk.snapshot(shard, at(1, 1), data(1)),
                    _ => {}
                }
            }
        }
        disk.close();
        drop(disk);
        assert!(files.total() < 100 << 10, "{fsync:?}: {} bytes are kept", files.total());
        let opened = open(&files, small(fsync)).unwrap();
        assert_eq!(opened.shards[&9].state, data(1), "{fsync:?}");
        let found = &opened.shards[&3].restored;
        assert_eq!(found.base.index + found.entries.len() as u64, index, "{fsync:?}");
    }
}
