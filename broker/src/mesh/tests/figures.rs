//! Messages of 200 bytes over one link.

use super::rig::pair;
use super::tls::tls;
use crate::certs::{Authority, Files};
use crate::mesh::Conf;
use bytes::Bytes;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use weir_wire::id::ShardEpoch;
use weir_wire::replica::{Append, Chunk, Entry, Message, Place, Tenure};

const EPOCH: ShardEpoch = ShardEpoch(1);

pub fn chunk(n: u64, data: Bytes) -> Message {
    let at = Place { epoch: EPOCH, index: n };
    let tenure = Tenure { epoch: EPOCH, ..Tenure::default() };
    Message::Chunk(Chunk { tenure, take: 1, at, total: u64::MAX, offset: n, data })
}

fn append(n: u64, data: &Bytes) -> Message {
    let tenure = Tenure { epoch: EPOCH, resets: 0, session: 1 };
    let entry = Entry { epoch: EPOCH, data: data.clone() };
    Message::Append(Append {
        tenure,
        prev: Place { epoch: EPOCH, index: n },
        commit: n,
        entries: vec![entry],
    })
}

/// User and system time of this process.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// `cargo test --release -p weir-broker mesh::tests::figures -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn messages_of_200_bytes_on_one_link() {
    measure("plain", None).await;
    measure("TLS", Some(&Authority::new("ours").files())).await;
}

async fn measure(link: &str, files: Option<&Files>) {
    let (a, b) = pair(Conf { dead_after: Duration::from_secs(5), ..tls(files, "secret") }).await;
    let data = Bytes::from(vec![1; 200]);
    for (name, count, pause_every) in
        [("as fast as it goes", 1_000_000u64, None), ("20 every millisecond", 60_000, Some(20))]
    {
        let (before, start, spent) = (b.seen.count.load(SeqCst), Instant::now(), cpu());
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        for n in 0..count {
            while !a.mesh.send_replica(b.id, u16::MAX, append(n, &data)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if pause_every.is_some_and(|every| n % every == 0) {
                tick.tick().await;
            }
        }
        b.seen.until("all", || b.seen.count.load(SeqCst) - before == count).await;
        let (took, spent) = (start.elapsed(), cpu() - spent);
        println!(
            "{link}, {name}: {:.0} messages/s, CPU per message, both ends: {:.2} µs",
            count as f64 / took.as_secs_f64(),
            spent.as_secs_f64() * 1e6 / count as f64
        );
    }
}
