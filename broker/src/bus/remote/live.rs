//! A link that lives: replies go to their callers, everything else to the inbox, and what the
//! node has taken out of the inbox is given back to the broker as credit.

use super::connect::Proven;
use super::{Event, RESERVED, Shared};
use crate::link::{FrameReader, GOODBYE_DEADLINE, LinkError, SendQueue, write_loop};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::mpsc::Sender;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep_until, timeout};
use weir_wire::codec;
use weir_wire::envelope::Position;
use weir_wire::peer::{FromBroker, FromNode};

/// How soon taken deliveries are reported when they are few.
const CREDIT_PERIOD: Duration = Duration::from_millis(50);

/// Serves a link to its end, of which it returns the cause.
pub(super) async fn run(
    shared: &Shared,
    proven: Proven,
    events: &Sender<Event>,
    ended: Pin<&mut impl Future<Output = ()>>,
) -> LinkError {
    let Proven { welcome, mut reader, mut writer } = proven;
    let lease = Duration::from_millis(welcome.lease_ms.max(4));
    let queue = Arc::new(SendQueue::default());
    let heartbeat = match codec::encode(&FromNode::Heartbeat) {
        Ok(frame) => frame,
        Err(error) => return error.into(),
    };
    if let Err(error) = shared.link_up(&queue) {
        shared.link_down(false);
        return error.into();
    }
    let (error, write) = {
        let mut link =
            Link { shared, events, queue: &queue, unreported: 0, resync: Vec::new(), synced: false };
        let mut read = pin!(link.read_loop(&mut reader, lease));
        let mut write = Box::pin(write_loop(&mut writer, &queue, heartbeat, lease, || ()));
        tokio::select! {
            error = &mut read => (error, Some(write)),
            end = &mut write => (end.err().unwrap_or(LinkError::Closed), None),
            () = ended => (LinkError::Stopping, Some(write)),
        }
    };
    shared.link_down(error.is_void());
    shared.metrics.up.set(0);
    if let Some(write) = write {
        let bye = error.bye();
        queue.finish(bye.and_then(|bye| codec::encode(&FromNode::Bye(bye)).ok()));
        let _taken = timeout(GOODBYE_DEADLINE, write).await;
    }
    error
}

struct Link<'a> {
    shared: &'a Shared,
    events: &'a Sender<Event>,
    queue: &'a SendQueue,
    /// Deliveries received and not yet given back as credit.
    unreported: usize,
    /// Chunks of a resync that is not complete yet.
    resync: Vec<(String, Option<Position>)>,
    /// The first resync of this link came.
    synced: bool,
}

impl Link<'_> {
    async fn read_loop(
        &mut self,
        reader: &mut FrameReader<impl AsyncRead + Unpin>,
        lease: Duration,
    ) -> LinkError {
        let mut heard = Instant::now();
        // Timers are set when they fire or begin, not with each frame: that would cost as much as the frame.
        let mut report = pin!(sleep_until(heard));
        let mut silent = pin!(sleep_until(heard + lease));
        loop {
            let frame = tokio::select! {
                frame = reader.read() => frame,
                () = report.as_mut(), if self.unreported > 0 => {
                    report.as_mut().reset(Instant::now() + CREDIT_PERIOD);
                    if let Err(error) = self.give_credit(1) {
                        return error;
                    }
                    continue;
                }
                () = silent.as_mut() => {
                    if Instant::now() < heard + lease {
                        silent.as_mut().reset(heard + lease);
                        continue;
                    }
                    return LinkError::Silent(lease);
                }
            };
            heard = Instant::now();
            consume_budget().await;
            if self.unreported == 0 && report.deadline() <= heard {
                report.as_mut().reset(heard + CREDIT_PERIOD);
            }
            if let Err(error) = frame.and_then(|frame| self.received(frame)) {
                return error;
            }
        }
    }

    fn received(&mut self, frame: FromBroker) -> Result<(), LinkError> {
        match frame {
            FromBroker::Reply { id, result } => self.shared.answered(id, result),
            FromBroker::Deliver(delivery) => {
                self.unreported += 1;
                // What comes before the first resync is before its positions.
                if self.synced {
                    self.events.try_send(Event::Deliver(delivery)).map_err(|_| LinkError::InboxFull)?;
                }
            }
            FromBroker::Control(control) => self.offer(Event::Control(control)),
            FromBroker::Survey { id, question } => self.offer(Event::Survey { id, question }),
            FromBroker::Resync { positions, last } => {
                self.resync.extend(positions);
                if last {
                    self.resynced()?;
                }
            }
            FromBroker::Heartbeat => {}
            FromBroker::Bye(bye) => return Err(LinkError::Bye(bye)),
            FromBroker::Challenge(_) | FromBroker::Welcome(_) => {
                return Err(LinkError::Unexpected("a handshake"));
            }
        }
        self.give_credit((self.shared.inbox_size / 4).max(1))
    }

    /// Commands and surveys have no place in a stream: one that does not fit is lost, and counted.
    fn offer(&self, event: Event) {
        if self.events.capacity() <= RESERVED || self.events.try_send(event).is_err() {
            self.shared.metrics.events_dropped.inc();
        }
    }

    fn resynced(&mut self) -> Result<(), LinkError> {
        let positions = std::mem::take(&mut self.resync);
        self.shared.metrics.resyncs.inc();
        self.events.try_send(Event::Resync(positions)).map_err(|_| LinkError::InboxFull)?;
        if !self.synced {
            self.synced = true;
            self.shared.restored();
            self.shared.metrics.up.set(1);
            self.events.try_send(Event::Link(true)).map_err(|_| LinkError::InboxFull)?;
        }
        Ok(())
    }

    /// Reports what was taken out of the inbox, if it is at least `least`.
    fn give_credit(&mut self, least: usize) -> Result<(), LinkError> {
        // Not only deliveries wait there, so this is never too much.
        let waiting = self.events.max_capacity() - self.events.capacity();
        let taken = self.unreported.saturating_sub(waiting);
        if taken >= least {
            self.unreported -= taken;
            self.queue.talk(&FromNode::Consumed(u32::try_from(taken).unwrap_or(u32::MAX)))?;
        }
        Ok(())
    }
}
