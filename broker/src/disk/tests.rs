//! Against a model, against files that forget, and (in `real`) against real ones.

mod forgetful;
mod model;
mod real;
mod torn;

use super::*;
use weir_wire::id::ShardEpoch;

pub(super) fn at(epoch: u64, index: u64) -> Place {
    Place { epoch: ShardEpoch(epoch), index }
}

/// So small that segments and states come and go.
pub(super) fn small(fsync: Fsync) -> Options {
    Options {
        segment_bytes: 4 << 10,
        log_bytes: 16 << 10,
        segments: 8,
        snapshot_after: 2 << 10,
        ..Options::new(fsync)
    }
}

pub(super) fn open(files: &Arc<forgetful::Forgetful>, options: Options) -> Result<Opened, OpenError> {
    let boot = Bytes::from(format!("boot {}", files.boots()));
    Disk::assemble(Path::new("test"), files.clone(), options, boot, None, None)
}

/// Until the shard's write is told.
pub(super) async fn persisted(events: &mut Events, shard: u16, write: u64) {
    loop {
        let told =
            |e: &Event| matches!(e, Event::Persisted { shard: s, write: w } if *s == shard && *w >= write);
        let events = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
        if events.unwrap().iter().any(told) {
            return;
        }
    }
}
