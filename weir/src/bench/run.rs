//! The course of a run: connect, publish, settle, report.

use super::BenchArgs;
use super::client::{Client, Kind, Stats};
use super::dial::Dialer;
use super::publisher::{self, Outcome};
use super::report::{Process, Report};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::LocalSet;
use weir_core::process::{self, Usage};

/// Once publishing ended, no delivery for so long means that no more will come.
const QUIET: Duration = Duration::from_secs(2);
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// A timer that fires later than this shows that the tool's cores were busy.
const LAG_LIMIT: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Connecting,
    Publishing,
    Settling,
    Over,
}

/// What was published in a channel, for its subscribers to compare with.
#[derive(Default)]
pub struct Top {
    pub offset: AtomicU64,
    pub count: AtomicU64,
}

impl Top {
    pub fn last(&self, by_offset: bool) -> u64 {
        if by_offset { self.offset.load(Relaxed) } else { self.count.load(Relaxed) }
    }
}

/// Seen by all threads of a run.
pub struct Shared {
    pub args: BenchArgs,
    pub start: Instant,
    pub phase: watch::Sender<Phase>,
    pub tops: Vec<Top>,
    pub ready: AtomicUsize,
    pub failed: AtomicUsize,
    pub delivered: AtomicU64,
    /// The longest delay of a timer while publishing, in microseconds.
    pub lag_us: AtomicU64,
}

impl Shared {
    pub fn elapsed_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    pub fn channel_name(&self, index: usize) -> String {
        format!("{}-{index}", self.args.channel_prefix)
    }

    fn total(&self) -> usize {
        self.args.clients + self.args.stalled + self.args.mute
    }
}

pub fn run(args: &BenchArgs) -> Result<Report, String> {
    validate(args)?;
    let shared = Arc::new(Shared {
        args: args.clone(),
        start: Instant::now(),
        phase: watch::channel(Phase::Connecting).0,
        tops: (0..args.channels).map(|_| Top::default()).collect(),
        ready: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        delivered: AtomicU64::new(0),
        lag_us: AtomicU64::new(0),
    });
    let before = measure(&args.pids)?;
    let threads: Vec<_> = (0..args.threads)
        .map(|t| {
            let shared = shared.clone();
            thread::spawn(move || client_thread(&shared, t))
        })
        .collect();
    let course = Course { shared: &shared, bar: progress_bar(args) };
    let middle = course.conduct()?;
    let mut stats = Stats::new();
    for thread in threads {
        match thread.join() {
            Ok(Ok(part)) => stats.merge(part),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err("a client thread panicked".into()),
        }
    }
    let processes = args
        .pids
        .iter()
        .zip(before)
        .zip(middle.from.iter().zip(&middle.to))
        .map(|((pid, before), (from, to))| Process { pid: *pid, before, from: *from, to: *to })
        .collect();
    Ok(Report {
        clients: args.clients,
        stats,
        outcome: middle.outcome,
        published_for: middle.lasted,
        own_cpu: middle.own_cpu,
        cores: args.threads + 1,
        lag: Duration::from_micros(shared.lag_us.load(Relaxed)),
        lag_limit: LAG_LIMIT,
        processes,
    })
}

fn validate(args: &BenchArgs) -> Result<(), String> {
    if args.channels == 0 || args.threads == 0 || args.publishers == 0 || args.urls.is_empty() {
        return Err("--channels, --threads, --publishers and --url want at least one".into());
    }
    if args.streams_per_connection == Some(0) {
        return Err("--streams-per-connection wants at least one".into());
    }
    // What is wrong with a URL or with --ca is told before anything begins.
    Dialer::new(args)?;
    if args.size < publisher::MIN_SIZE {
        return Err(format!("--size {}: at least {} (the stamp needs them)", args.size, publisher::MIN_SIZE));
    }
    if args.connect_rate <= 0.0 || args.rate < 0.0 {
        return Err("--connect-rate must be above zero, --rate not below".into());
    }
    Ok(())
}

fn measure(pids: &[u32]) -> Result<Vec<Usage>, String> {
    pids.iter().map(|pid| process::of(*pid).map_err(|e| format!("--pid {pid}: {e}"))).collect()
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())
}

/// Runs every `threads`-th client, all in one thread, so that counting needs no locks.
fn client_thread(shared: &Arc<Shared>, thread: usize) -> Result<Stats, String> {
    let stats = Rc::new(RefCell::new(Stats::new()));
    let local = LocalSet::new();
    let args = &shared.args;
    let dialer = Rc::new(Dialer::new(args)?);
    let gap = Duration::from_secs_f64(args.threads as f64 / args.connect_rate);
    local.spawn_local(watch_lag(shared.clone()));
    let clients = async {
        let mut pace = tokio::time::interval(gap);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut tasks = Vec::new();
        for index in (thread..shared.total()).step_by(args.threads) {
            pace.tick().await;
            let kind = match index {
                i if i < args.clients => Kind::Normal,
                i if i < args.clients + args.stalled => Kind::Stalled,
                _ => Kind::Mute,
            };
            let client =
                Client { index, kind, shared: shared.clone(), stats: stats.clone(), dialer: dialer.clone() };
            tasks.push(tokio::task::spawn_local(client.run()));
        }
        futures_util::future::join_all(tasks).await;
        dialer.close().await;
    };
    runtime()?.block_on(local.run_until(clients));
    drop(local);
    Rc::try_unwrap(stats).map(RefCell::into_inner).map_err(|_| "a client is still running".into())
}

async fn watch_lag(shared: Arc<Shared>) {
    const TICK: Duration = Duration::from_millis(20);
    loop {
        let due = Instant::now() + TICK;
        tokio::time::sleep_until(due.into()).await;
        if *shared.phase.borrow() == Phase::Publishing {
            shared.lag_us.fetch_max(due.elapsed().as_micros() as u64, Relaxed);
        }
    }
}

fn progress_bar(args: &BenchArgs) -> ProgressBar {
    let bar = ProgressBar::new(args.duration.as_secs().max(1));
    if let Ok(style) = ProgressStyle::with_template("{msg:12} [{bar:40}] {pos}/{len} {prefix}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// What was measured while messages were published.
struct Measured {
    outcome: Outcome,
    lasted: Duration,
    own_cpu: Duration,
    from: Vec<Usage>,
    to: Vec<Usage>,
}

struct Course<'a> {
    shared: &'a Arc<Shared>,
    bar: ProgressBar,
}

impl Course<'_> {
    /// Leads through the phases; whatever happens, the clients are told that it is over.
    fn conduct(&self) -> Result<Measured, String> {
        let result = self.phases();
        self.shared.phase.send_replace(Phase::Over);
        self.bar.finish_and_clear();
        result
    }

    fn phases(&self) -> Result<Measured, String> {
        self.await_clients()?;
        let args = &self.shared.args;
        let from = measure(&args.pids)?;
        let own_from = process::own().map_err(|e| e.to_string())?;
        let begun = Instant::now();
        self.shared.phase.send_replace(Phase::Publishing);
        let outcome = self.publish()?;
        let lasted = begun.elapsed();
        let own_to = process::own().map_err(|e| e.to_string())?;
        let to = measure(&args.pids)?;
        self.shared.phase.send_replace(Phase::Settling);
        self.settle();
        Ok(Measured { outcome, lasted, own_cpu: own_to.cpu.saturating_sub(own_from.cpu), from, to })
    }

    fn await_clients(&self) -> Result<(), String> {
        let total = self.shared.total();
        self.bar.set_length(total as u64);
        self.bar.set_message("connecting");
        loop {
            let (ready, failed) = (self.shared.ready.load(Relaxed), self.shared.failed.load(Relaxed));
            self.bar.set_position((ready + failed) as u64);
            if failed == total && total > 0 {
                return Err(
                    "no client could connect and subscribe: is the URL right, may anonymous clients in?"
                        .into(),
                );
            }
            if ready + failed == total {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn publish(&self) -> Result<Outcome, String> {
        let args = &self.shared.args;
        self.bar.set_length(args.duration.as_secs().max(1));
        self.bar.set_message("publishing");
        let shared = self.shared.clone();
        let publishing = thread::spawn(move || runtime()?.block_on(publisher::run(&shared)));
        let begun = Instant::now();
        let mut delivered = self.shared.delivered.load(Relaxed);
        while !publishing.is_finished() {
            thread::sleep(Duration::from_millis(100));
            let now = self.shared.delivered.load(Relaxed);
            self.bar.set_position(begun.elapsed().as_secs());
            self.bar.set_prefix(format!("{} deliveries/s", (now - delivered) * 10));
            delivered = now;
        }
        publishing.join().unwrap_or_else(|_| Err("the publisher panicked".into()))
    }

    fn settle(&self) {
        self.bar.set_message("settling");
        let begun = Instant::now();
        let mut quiet_since = Instant::now();
        let mut seen = self.shared.delivered.load(Relaxed);
        while quiet_since.elapsed() < QUIET && begun.elapsed() < SETTLE_MAX {
            thread::sleep(Duration::from_millis(50));
            let now = self.shared.delivered.load(Relaxed);
            if now != seen {
                (seen, quiet_since) = (now, Instant::now());
            }
        }
    }
}
