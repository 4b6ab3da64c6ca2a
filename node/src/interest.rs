//! What is told to the bus after the fact, by one task: interest that nobody needs any more
//! (after a linger, since clients of a busy channel come and go), and memberships of clients
//! that are gone.
//!
//! The queue is bounded. A leave waits for a place in it (its connection's task has nothing else
//! to do); a release that finds none is found by the next sweep.

use crate::hub::{Channel, Hub};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weir_core::backoff::Backoff;
use weir_core::limited;

const QUEUE: usize = 4096;
/// Calls to the bus at once.
const AT_ONCE: usize = 64;
/// How long interest outlives the last subscriber.
pub const LINGER: Duration = Duration::from_secs(2);
/// Channels that linger at once; over it the longest goes. Many that are left at the same time are names that somebody
/// makes up, or those of a crowd that is gone, and would only take memory.
const LINGERING: usize = 4096;
/// Looks for channels without subscribers that found the queue full, or whose release failed.
const SWEEP: Duration = Duration::from_secs(30);
/// A leave is given up after this: by then the broker has dropped what it lost sight of.
const LEAVE_FOR: Duration = Duration::from_secs(60);

/// The sending end.
#[derive(Clone)]
pub struct Janitor {
    jobs: mpsc::Sender<Job>,
}

enum Job {
    Release(Arc<Channel>),
    Leave { channel: Arc<str>, client: Arc<str> },
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Janitor {
    pub fn new() -> (Janitor, Jobs) {
        let (jobs, receiver) = mpsc::channel(QUEUE);
        (Janitor { jobs }, Jobs { receiver })
    }

    pub fn release(&self, channel: &Arc<Channel>) {
        if channel.linger() && self.jobs.try_send(Job::Release(channel.clone())).is_err() {
            channel.end_linger();
        }
    }

    pub async fn leave(&self, channel: Arc<str>, client: Arc<str>) {
        // An error: the node has stopped, and its lease ends all memberships.
        let _ = self.jobs.send(Job::Leave { channel, client }).await;
    }
}

/// The receiving end.
pub struct Jobs {
    receiver: mpsc::Receiver<Job>,
}

impl Jobs {
    /// Ends when the future is dropped.
    pub async fn run(mut self, hub: Arc<Hub>) {
        let mut work: FuturesUnordered<Work> = FuturesUnordered::new();
        let mut lingering: VecDeque<(Instant, Arc<Channel>)> = VecDeque::new();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // One that was never open keeps its time: the answer to an attempt that failed may still be on its way.
            let too_many = |lingering: &VecDeque<(Instant, Arc<Channel>)>| {
                lingering.len() > LINGERING
                    && lingering.front().is_some_and(|(_, channel)| channel.was_open())
            };
            while too_many(&lingering) && work.len() < AT_ONCE {
                work.extend(lingering.pop_front().map(|(_, channel)| release(hub.clone(), channel)));
            }
            let room = work.len() < AT_ONCE;
            let due = lingering.front().map(|(at, _)| *at).filter(|_| room);
            tokio::select! {
                Some(()) = work.next(), if !work.is_empty() => {}
                Some(job) = self.receiver.recv(), if room => match job {
                    Job::Release(channel) => lingering.push_back((Instant::now() + LINGER, channel)),
                    Job::Leave { channel, client } => work.push(Box::pin(leave(hub.clone(), channel, client))),
                },
                () = sleep_until(due) => {
                    work.extend(lingering.pop_front().map(|(_, channel)| release(hub.clone(), channel)));
                }
                _ = sweep.tick() => lingering.extend(empty(&hub)),
            }
        }
    }
}

fn release(hub: Arc<Hub>, channel: Arc<Channel>) -> Work {
    Box::pin(async move { hub.release(&channel).await })
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// All channels without subscribers that do not linger yet.
fn empty(hub: &Hub) -> Vec<(Instant, Arc<Channel>)> {
    let channels: Vec<Arc<Channel>> = hub.channels.iter().map(|c| c.clone()).collect();
    let ends = Instant::now() + LINGER;
    channels.into_iter().filter(|c| c.is_empty() && c.linger()).map(|c| (ends, c)).collect()
}

/// Ends a membership, trying again while the bus is away.
async fn leave(hub: Arc<Hub>, channel: Arc<str>, client: Arc<str>) {
    let mut rng = SmallRng::from_os_rng();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let until = Instant::now() + LEAVE_FOR;
    loop {
        let Ok(bus) = hub.bus() else { return };
        // It may have subscribed anew meanwhile: then the membership is wanted.
        if hub.is_subscribed(&client, &channel) {
            return;
        }
        match bus.leave(channel.to_string(), client.to_string()).await {
            Ok(()) => return,
            Err(error) if Instant::now() >= until => {
                limited!(warn, "could not end a membership", channel = &*channel, %error, "could not end a membership");
                hub.metrics.leaves_lost.inc();
                return;
            }
            Err(_) => tokio::time::sleep(backoff.next(&mut rng)).await,
        }
    }
}
