//! For the task of a connection that many others share, each of which gives it a little to write.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

/// Lets the tasks that are ready go first, whenever `task` is woken: what they write then goes out together, in
/// one record or packet and with one system call. The runtime by itself would run `task` after each of them,
/// since it runs what a task has woken next ("LIFO slot" in tokio's docs).
pub async fn batched<T>(task: impl Future<Output = T>) -> T {
    let (mut task, mut others_first) = (pin!(task), false);
    poll_fn(|cx| {
        others_first = !others_first;
        if !others_first {
            // A task that wakes itself goes to the queue's end.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        task.as_mut().poll(cx)
    })
    .await
}

/// The runtime of a QUIC endpoint, whose connections are such tasks.
#[derive(Debug)]
pub struct Runtime;

impl quinn::Runtime for Runtime {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        quinn::TokioRuntime.spawn(Box::pin(batched(task)));
    }

    fn wrap_udp_socket(
        &self,
        udp: std::net::UdpSocket,
    ) -> std::io::Result<std::sync::Arc<dyn quinn::AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(udp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use tokio::sync::Notify;

    /// On one worker, as tasks on a core are: what ten tasks have for another one, it gets at once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn all_that_are_ready_go_first() {
        let (given, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (wake, begin) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let taker = tokio::spawn({
            let (given, seen, wake) = (given.clone(), seen.clone(), wake.clone());
            batched(async move {
                while given.load(Relaxed) < 10 {
                    wake.notified().await;
                    seen.lock().unwrap().push(given.load(Relaxed));
                }
            })
        });
        let givers: Vec<_> = (0..10)
            .map(|_| {
                let (given, wake, begin) = (given.clone(), wake.clone(), begin.clone());
                tokio::spawn(async move {
                    begin.notified().await;
                    given.fetch_add(1, Relaxed);
                    wake.notify_one();
                })
            })
            .collect();
        // In a task of the worker, so that all of them are made ready before the first one runs.
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            begin.notify_waiters();
        });
        for giver in givers {
            giver.await.unwrap();
        }
        taker.await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [10]);
    }
}
