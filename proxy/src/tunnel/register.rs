//! Who is in a tunnel, by age; and sending them away at a pace that the rest of the system can take
//! in again.

use crate::metrics::{Carried, Metrics};
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use weir_core::accept::Transport;
use weir_core::sync::lock;

/// Said so often how far a drain is.
const REPORT: Duration = Duration::from_secs(5);
/// Shown so often, and looked so often whether all are gone.
const REFRESH: Duration = Duration::from_millis(100);

/// What a tunnel is told. A later one of this list goes over an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Told {
    Nothing = 0,
    /// End in an orderly way.
    Go = 1,
    /// End now; nobody waits.
    GoNow = 2,
}

/// The open tunnels of a proxy.
pub struct Open {
    /// By their order of coming.
    seats: Mutex<BTreeMap<u64, Arc<Place>>>,
    next: AtomicU64,
    pub metrics: Metrics,
}

struct Place {
    upstream: Arc<str>,
    server: Arc<str>,
    told: AtomicU8,
    /// Of the tunnel's task. Set before it first looks at `told`; both sides go through this lock, so
    /// either the tunnel sees what it is told, or whoever tells sees the waker.
    waker: Mutex<Option<Waker>>,
}

/// Held by an open tunnel.
pub struct Seat {
    open: Arc<Open>,
    number: u64,
    place: Arc<Place>,
    tunnels: Gauge,
}

/// Whose tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// Of this upstream.
    Upstream(Arc<str>),
    /// Of this server of an upstream.
    Server(Arc<str>, Arc<str>),
}

impl Which {
    fn holds(&self, place: &Place) -> bool {
        match self {
            Which::All => true,
            Which::Upstream(upstream) => place.upstream == *upstream,
            Which::Server(upstream, server) => place.server == *server && place.upstream == *upstream,
        }
    }
}

impl Open {
    pub fn new(metrics: Metrics) -> Arc<Open> {
        Arc::new(Open { seats: Mutex::default(), next: AtomicU64::new(0), metrics })
    }

    pub fn enter(self: &Arc<Open>, upstream: Arc<str>, server: Arc<str>, transport: Transport) -> Seat {
        let place = Place { upstream, server, told: AtomicU8::new(0), waker: Mutex::new(None) };
        let (place, number) = (Arc::new(place), self.next.fetch_add(1, Relaxed));
        self.seats().insert(number, place.clone());
        let tunnels = self.metrics.tunnels.get_or_create(&Carried { transport: transport.as_str() }).clone();
        tunnels.inc();
        Seat { open: self.clone(), number, place, tunnels }
    }

    /// How many are open.
    pub fn len(&self, which: &Which) -> usize {
        match which {
            Which::All => self.seats().len(),
            which => self.seats().values().filter(|place| which.holds(place)).count(),
        }
    }

    /// Tells all of them at once.
    pub fn tell(&self, which: &Which, told: Told) -> usize {
        let places = self.untold(which, told);
        places.iter().for_each(|place| place.tell(told));
        places.len()
    }

    /// Sends them away, the oldest first: they have been served longest, and most of what is young came
    /// from another server that drains too. Evenly spread at `rate` per second, and at the deadline
    /// whoever is left at once. Returns when all have gone, or the deadline has passed; says how many
    /// were told.
    pub async fn drain(&self, which: &Which, rate: f64, deadline: Instant) -> usize {
        let mut pace = Pace { begun: Instant::now(), rate, told: 0 };
        let mut progress = Progress::new(self, which);
        // Those that come meanwhile (a handshake was under way) go as the last ones.
        loop {
            let places = self.untold(which, Told::Go);
            if places.is_empty() {
                break;
            }
            for place in places {
                // Who has left by himself takes nobody's turn.
                if place.is_gone() {
                    continue;
                }
                let due = pace.due();
                if due >= deadline {
                    return self.end(which, pace.told, deadline, progress).await;
                }
                while Instant::now() < due {
                    sleep_until(due.min(progress.next)).await;
                    progress.refresh(pace.told);
                }
                place.tell(Told::Go);
                pace.told += 1;
            }
        }
        while progress.refresh(pace.told) > 0 && Instant::now() < deadline {
            sleep_until(progress.next.min(deadline)).await;
        }
        pace.told
    }

    async fn end(&self, which: &Which, told: usize, deadline: Instant, mut progress: Progress<'_>) -> usize {
        while Instant::now() < deadline {
            sleep_until(deadline.min(progress.next)).await;
            progress.refresh(told);
        }
        let rest = self.tell(which, Told::Go);
        tracing::info!(told, at_once = rest, "the deadline of a drain of tunnels has passed");
        told + rest
    }

    fn untold(&self, which: &Which, told: Told) -> Vec<Arc<Place>> {
        let seats = self.seats();
        let fits = |place: &&Arc<Place>| place.told.load(Relaxed) < told as u8 && which.holds(place);
        seats.values().filter(fits).cloned().collect()
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Place>>> {
        // Nothing that holds it can stop half way.
        lock(&self.seats)
    }
}

/// Of a place that nobody sits in any more.
const GONE: u8 = u8::MAX;

impl Place {
    fn tell(&self, told: Told) {
        self.told.fetch_max(told as u8, Relaxed);
        if let Some(waker) = &*self.waker() {
            waker.wake_by_ref();
        }
    }

    fn is_gone(&self) -> bool {
        self.told.load(Relaxed) == GONE
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        lock(&self.waker)
    }
}

impl Seat {
    /// To be called in the tunnel's task before it first asks what it was told.
    pub fn listen(&self, waker: &Waker) {
        *self.place.waker() = Some(waker.clone());
    }

    #[inline]
    pub fn told(&self) -> Told {
        match self.place.told.load(Relaxed) {
            0 => Told::Nothing,
            1 => Told::Go,
            _ => Told::GoNow,
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.open.metrics
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.place.told.store(GONE, Relaxed);
        // It holds the task's memory.
        *self.place.waker() = None;
        self.open.seats().remove(&self.number);
        self.tunnels.dec();
    }
}

/// When the next one is due.
struct Pace {
    begun: Instant,
    rate: f64,
    told: usize,
}

impl Pace {
    fn due(&self) -> Instant {
        let wait = self.told as f64 / self.rate.max(1e-9);
        // Longer than any deadline, and no more than a clock can count.
        self.begun + Duration::from_secs_f64(wait.min(86_400.0 * 365.0))
    }
}

/// Shows how far a drain is, in the gauge and in the log.
struct Progress<'a> {
    open: &'a Open,
    which: &'a Which,
    gauge: Gauge,
    shown: i64,
    of: usize,
    next: Instant,
    report: Instant,
}

impl Progress<'_> {
    fn new<'a>(open: &'a Open, which: &'a Which) -> Progress<'a> {
        let (gauge, now) = (open.metrics.drain_remaining.clone(), Instant::now());
        let of = open.len(which);
        let mut progress = Progress { open, which, gauge, shown: 0, of, next: now, report: now + REPORT };
        progress.refresh(0);
        progress
    }

    /// Says how many are left.
    fn refresh(&mut self, told: usize) -> usize {
        let now = Instant::now();
        if now < self.next {
            return usize::try_from(self.shown).unwrap_or_default();
        }
        self.next = now + REFRESH;
        let left = self.open.len(self.which);
        self.show(i64::try_from(left).unwrap_or(i64::MAX));
        if now >= self.report {
            self.report = now + REPORT;
            tracing::info!(told, left, of = self.of, "tunnels drain");
        }
        left
    }

    /// Several drains may be under way: the gauge is their sum.
    fn show(&mut self, left: i64) {
        self.gauge.inc_by(left - self.shown);
        self.shown = left;
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.show(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;
    use tokio::sync::mpsc;

    /// Tunnels that end when they are told, and say when.
    struct Tunnels {
        open: Arc<Open>,
        ends: mpsc::UnboundedReceiver<(usize, Instant)>,
        end: mpsc::UnboundedSender<(usize, Instant)>,
    }

    impl Tunnels {
        fn new() -> Tunnels {
            let (end, ends) = mpsc::unbounded_channel();
            Tunnels { open: Open::new(Metrics::default()), ends, end }
        }

        fn enter(&self, name: usize, upstream: &str, server: &str) {
            let (seat, end) =
                (self.open.enter(upstream.into(), server.into(), Transport::H2), self.end.clone());
            tokio::spawn(async move {
                poll_fn(|cx| {
                    seat.listen(cx.waker());
                    if seat.told() == Told::Nothing { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
                end.send((name, Instant::now())).unwrap();
            });
        }

        async fn ended(&mut self) -> Vec<(usize, Instant)> {
            // Time is paused: every task that can go on does before it moves.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut all = Vec::new();
            while let Ok(end) = self.ends.try_recv() {
                all.push(end);
            }
            all
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_first_and_evenly() {
        for (count, rate) in [(5_000, 500.0), (40, 2.0), (3_000, 3_000.0)] {
            let mut tunnels = Tunnels::new();
            for name in 0..count {
                tunnels.enter(name, "app", "a:1");
            }
            tokio::task::yield_now().await;
            let begun = Instant::now();
            let told = tunnels.open.drain(&Which::All, rate, begun + Duration::from_secs(60)).await;
            assert_eq!((told, tunnels.open.len(&Which::All)), (count, 0));
            let ended = tunnels.ended().await;
            assert!(ended.iter().map(|(name, _)| *name).eq(0..count), "{rate}/s: in another order");
            for (n, (_, at)) in ended.iter().enumerate() {
                let due = Duration::from_secs_f64(n as f64 / rate);
                let late = (*at - begun).saturating_sub(due);
                assert!(
                    *at - begun >= due && late <= Duration::from_millis(5),
                    "{rate}/s: {n} is {late:?} late"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_those_that_are_meant_go_and_latecomers_too() {
        let mut tunnels = Tunnels::new();
        for (name, upstream, server) in
            [(0, "app", "a:1"), (1, "app", "b:1"), (2, "chat", "a:1"), (3, "app", "a:1")]
        {
            tunnels.enter(name, upstream, server);
        }
        let open = tunnels.open.clone();
        let which = Which::Server("app".into(), "a:1".into());
        let far = Instant::now() + Duration::from_secs(60);
        let drain = async { open.drain(&which, 1.0, far).await };
        let late = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(tunnels.open.metrics.drain_remaining.get(), 1);
            tunnels.enter(4, "app", "a:1");
            tunnels.enter(5, "app", "b:1");
        };
        let (told, ()) = tokio::join!(drain, late);
        assert_eq!(told, 3);
        assert_eq!(tunnels.ended().await.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [0, 3, 4]);
        let far = Instant::now() + Duration::from_secs(60);
        assert_eq!(tunnels.open.drain(&Which::Upstream("app".into()), 100.0, far).await, 2);
        assert_eq!(tunnels.open.len(&Which::All), 1);
        assert_eq!(tunnels.open.metrics.drain_remaining.get(), 0);
        assert_eq!(tunnels.open.metrics.tunnels.get_or_create(&Carried { transport: "h2" }).get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_the_rest_goes_at_once() {
        let mut tunnels = Tunnels::new();
        for name in 0..100 {
            tunnels.enter(name, "app", "a:1");
        }
        tokio::task::yield_now().await;
        let begun = Instant::now();
        let told = tunnels.open.drain(&Which::All, 10.0, begun + Duration::from_secs(2)).await;
        assert_eq!((told, begun.elapsed()), (100, Duration::from_secs(2)));
        let ended = tunnels.ended().await;
        assert_eq!(ended.iter().filter(|(_, at)| *at - begun < Duration::from_secs(2)).count(), 20);
        assert_eq!(ended.len(), 100);
    }
}
