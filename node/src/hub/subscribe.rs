//! Making a subscription, so that its reply precedes its pushes and nothing is lost or doubled:
//!
//! 1. interest at the bus (one at a time per channel; only the first subscriber needs it),
//! 2. a *pending* subscriber: pushes for it are held back,
//! 3. history, if the client wants to recover and the mark alone does not answer it,
//! 4. the membership (presence, join message),
//! 5. the reply, by the session; then [`Hub::go_live`] lets go what was held back. What it missed and the reply does
//!    not hold comes before that, in pieces ([`super::catch_up`]).

use super::channel::{Channel, NewSubscriber};
use super::pages::{self, Wanted, follow};
use super::{Hub, bus_error};
use crate::client::{Client, SubRef};
use crate::session::{Since, SubscribeCall, Subscribed, Ticket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use weir_broker::BusError;
use weir_core::sync::lock;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{History, HistoryQuery, Member, Position, Publication, StreamOptions};
use weir_wire::id::Epoch;

/// A pending subscriber's place.
struct Pending {
    channel: Arc<Channel>,
    slot: u32,
    ticket: Ticket,
    mark: Option<Position>,
}

/// An attempt that failed, or was cut short: unless somebody else has come, the channel is released.
struct ReleaseOnDrop<'a> {
    hub: &'a Hub,
    channel: &'a Arc<Channel>,
}

impl Drop for ReleaseOnDrop<'_> {
    fn drop(&mut self) {
        self.hub.release_later(self.channel);
    }
}

/// Where a subscription begins.
#[derive(Debug, Default, PartialEq)]
struct Start {
    /// The stream's, when it was read.
    top: Option<Position>,
    position: Option<Position>,
    publications: Vec<Publication>,
    /// The stream goes on behind them.
    more: bool,
    recovered: bool,
}

impl Hub {
    /// If it fails or is cancelled by the deadline, nothing of it is left.
    pub async fn subscribe(
        self: Arc<Self>,
        client: Arc<Client>,
        call: SubscribeCall,
    ) -> Result<Subscribed, ErrorCode> {
        let name = call.channel.clone();
        let made = tokio::time::timeout(self.deadline, self.make(&client, call)).await;
        let error = match made {
            Ok(Ok(subscribed)) => return Ok(subscribed),
            Ok(Err(error)) => error,
            Err(_) => ErrorCode::INTERNAL,
        };
        if self.drop_sub(&client, &name)
            && let Some(janitor) = self.janitor()
        {
            janitor.leave(name.into(), client.id.clone()).await;
        }
        Err(error)
    }

    async fn make(&self, client: &Arc<Client>, call: SubscribeCall) -> Result<Subscribed, ErrorCode> {
        let pending = self.add_pending(client, &call).await?;
        let start = match (&call.since, call.stream) {
            (Some(since), Some(stream)) => {
                let query = HistoryQuery { limit: call.limit, ..HistoryQuery::default() };
                self.recover(&pending, since, stream, Wanted { query, bytes: call.bytes }).await?
            }
            _ => Start { position: pending.mark, ..Start::default() },
        };
        if call.since.is_some() && !start.recovered && call.reject_unrecovered {
            return Err(ErrorCode::UNRECOVERABLE_POSITION);
        }
        if let Some(member) = call.member {
            self.join(client, &pending, member).await?;
        }
        Ok(Subscribed {
            channel: pending.channel.name.clone(),
            ticket: pending.ticket,
            position: start.position,
            behind: start.position.filter(|_| start.more).map(|at| {
                let last = start.publications.last().map_or(at.offset, |last| last.offset);
                Position { offset: last, ..at }
            }),
            publications: start.publications,
            recovered: start.recovered,
        })
    }

    async fn add_pending(&self, client: &Arc<Client>, call: &SubscribeCall) -> Result<Pending, ErrorCode> {
        loop {
            let channel = self.channel_or_new(client, call)?;
            let mut interest = channel.interest.lock().await;
            if interest.removed {
                continue;
            }
            if !interest.held {
                let bus = self.bus().map_err(|e| bus_error(&e))?;
                // Should this be cut short, the bus has to be told that it is over.
                interest.asked = true;
                let undo = ReleaseOnDrop { hub: self, channel: &channel };
                match bus.subscribe(call.channel.clone(), call.stream).await {
                    Ok(top) => lock(&channel.inner).opened(top),
                    Err(error) => {
                        // A refusal is an answer, and a bus that is away forgets by itself. Otherwise it may still take
                        // the interest, and must be told.
                        interest.asked = matches!(error, BusError::Unavailable(_)) && bus.is_up();
                        if !interest.asked {
                            // A thousand names are not to be a thousand channels here.
                            interest.removed = true;
                            self.forget(&channel);
                        }
                        return Err(bus_error(&error));
                    }
                }
                std::mem::forget(undo);
                interest.held = true;
                self.metrics.channels.inc();
            }
            // Under the interest's lock: or else it could end before the subscriber is there.
            let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
            let (slot, mark) = lock(&channel.inner).add(NewSubscriber {
                client: client.clone(),
                ticket,
                positioned: call.positioned,
                join_leave: call.join_leave,
            });
            drop(interest);
            lock(&client.subs).push(SubRef { channel: channel.clone(), slot, ticket, member: false });
            self.metrics.subscriptions.inc();
            return Ok(Pending { channel, slot, ticket, mark });
        }
    }

    pub(super) fn forget(&self, channel: &Arc<Channel>) {
        self.channels.remove_if(&channel.name, |_, there| Arc::ptr_eq(there, channel));
    }

    fn channel_or_new(&self, client: &Client, call: &SubscribeCall) -> Result<Arc<Channel>, ErrorCode> {
        if let Some(channel) = self.channel(&call.channel) {
            return Ok(channel);
        }
        // A backend that subscribes its clients has a key, and is not counted.
        if call.by_client {
            self.take_new(client)?;
        }
        let name: Arc<str> = call.channel.as_str().into();
        let new = || Arc::new(Channel::new(name.clone(), call.stream, call.by_datagram, self.window));
        Ok(self.channels.entry(name.clone()).or_insert_with(new).clone())
    }

    async fn recover(
        &self,
        pending: &Pending,
        since: &Since,
        stream: StreamOptions,
        mut wanted: Wanted,
    ) -> Result<Start, ErrorCode> {
        let epoch = Epoch::parse(&since.epoch);
        // Nothing was missed: the common case when many come back at once.
        if let Some(mark) = pending.mark
            && epoch == Some(mark.epoch)
            && since.offset == mark.offset
        {
            return Ok(Start { position: Some(mark), recovered: true, ..Start::default() });
        }
        let position = Position { epoch: epoch.unwrap_or(Epoch(0)), offset: since.offset };
        wanted.query.since = Some(position);
        let history = self.read(&pending.channel.name, wanted, stream).await.map_err(|e| bus_error(&e))?;
        // A history older than what was delivered here would leave a hole behind it.
        let behind = |mark: Position| mark.epoch == history.top.epoch && mark.offset > history.top.offset;
        if let Some(mark) = pending.mark.filter(|mark| behind(*mark)) {
            return Ok(Start { position: Some(mark), ..Start::default() });
        }
        let mut start = judge(since, history);
        if pages::bytes(&start.publications) > wanted.bytes {
            // Not even one fits.
            (start.publications, start.more) = (Vec::new(), true);
        }
        if let (Some(top), false) = (start.top, start.more) {
            lock(&pending.channel.inner).set_from(pending.slot, pending.ticket, top);
        }
        Ok(start)
    }

    async fn join(&self, client: &Client, pending: &Pending, member: Member) -> Result<(), ErrorCode> {
        // Before the call: should this be cut short, the membership is ended all the same.
        if let Some(sub) = lock(&client.subs).iter_mut().find(|s| s.ticket == pending.ticket) {
            sub.member = true;
        }
        let bus = self.bus().map_err(|e| bus_error(&e))?;
        bus.join(pending.channel.name.to_string(), member).await.map_err(|e| bus_error(&e))
    }
}

/// Whether `history`, read since the client's position, is what it missed, from the first on.
fn judge(since: &Since, history: History) -> Start {
    let top = history.top;
    let same_stream = since.epoch.is_empty() || Epoch::parse(&since.epoch) == Some(top.epoch);
    let publications = history.publications;
    let from_the_first = follow(since.offset, &publications);
    let last = publications.last().map_or(since.offset, |last| last.offset);
    // All in one answer, or so much of it that there is a next one.
    let there = if publications.is_empty() { last == top.offset } else { last <= top.offset };
    if same_stream && from_the_first && there {
        let (position, more) = (Position { epoch: top.epoch, offset: since.offset }, last < top.offset);
        return Start { top: Some(top), position: Some(position), publications, more, recovered: true };
    }
    Start { top: Some(top), position: Some(top), ..Start::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn recovered_or_not() {
        let e = Epoch(7).to_string();
        let history = |offsets: &[u64], top: u64| History {
            top: Position { epoch: Epoch(7), offset: top },
            publications: offsets
                .iter()
                .map(|o| Publication { offset: *o, data: Bytes::new(), info: None, tags: vec![] })
                .collect(),
        };
        /// Epoch, offset, history, top, recovered, offset of the result, more.
        type Case<'a> = (&'a str, u64, &'a [u64], u64, bool, u64, bool);
        let cases: &[Case<'_>] = &[
            (&e, 3, &[4, 5], 5, true, 3, false),
            (&e, 5, &[], 5, true, 5, false),
            ("", 3, &[4, 5], 5, true, 3, false),
            ("", 0, &[], 0, true, 0, false),
            ("0000000000000008", 3, &[4, 5], 5, false, 5, false),
            ("junk", 3, &[4, 5], 5, false, 5, false),
            (&e, 2, &[4, 5], 5, false, 5, false),
            (&e, 3, &[4, 6], 6, false, 6, false),
            (&e, 3, &[4], 5, true, 3, true),
            (&e, 3, &[], 5, false, 5, false),
            (&e, 9, &[], 5, false, 5, false),
        ];
        for (epoch, offset, offsets, top, recovered, at, more) in cases {
            let since = Since { epoch: (*epoch).to_owned(), offset: *offset };
            let start = judge(&since, history(offsets, *top));
            assert_eq!(
                (start.recovered, start.position.map(|p| p.offset), start.more),
                (*recovered, Some(*at), *more),
                "{since:?}"
            );
            assert_eq!(start.publications.is_empty(), !recovered || offsets.is_empty(), "{since:?}");
        }
    }
}
