//! Making a subscription, so that its reply precedes its pushes and nothing is lost or doubled:
//!
//! 1. interest at the bus (one at a time per channel; only the first subscriber needs it),
//! 2. a *pending* subscriber: pushes for it are held back,
//! 3. history, if the client wants to recover and the mark alone does not answer it,
//! 4. the membership (presence, join message),
//! 5. the reply, by the session; then [`Hub::go_live`] lets go what was held back.

use super::channel::{Channel, NewSubscriber};
use super::{Hub, bus_error};
use crate::client::{Client, SubRef};
use crate::session::{Since, SubscribeCall, Subscribed, Ticket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
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

/// Where a subscription begins.
#[derive(Debug, Default, PartialEq)]
struct Start {
    position: Option<Position>,
    publications: Vec<Publication>,
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
            (Some(since), Some(stream)) => self.recover(&pending, since, stream, call.limit).await?,
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
            publications: start.publications,
            recovered: start.recovered,
        })
    }

    async fn add_pending(&self, client: &Arc<Client>, call: &SubscribeCall) -> Result<Pending, ErrorCode> {
        loop {
            let channel = self.channel_or_new(call);
            let mut interest = channel.interest.lock().await;
            if interest.removed {
                continue;
            }
            if !interest.held {
                let bus = self.bus().map_err(|e| bus_error(&e))?;
                // Should this be cut short, the bus has to be told that it is over.
                interest.asked = true;
                match bus.subscribe(call.channel.clone(), call.stream).await {
                    Ok(top) => lock(&channel.inner).opened(top),
                    Err(error) => {
                        // Not kept for another try: a thousand names asked for while the bus is
                        // away are not to be a thousand channels here.
                        interest.asked = false;
                        drop(interest);
                        self.release_later(&channel);
                        return Err(bus_error(&error));
                    }
                }
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

    fn channel_or_new(&self, call: &SubscribeCall) -> Arc<Channel> {
        if let Some(channel) = self.channel(&call.channel) {
            return channel;
        }
        let name: Arc<str> = call.channel.as_str().into();
        let new = || Arc::new(Channel::new(name.clone(), call.stream, call.by_datagram));
        self.channels.entry(name.clone()).or_insert_with(new).clone()
    }

    async fn recover(
        &self,
        pending: &Pending,
        since: &Since,
        stream: StreamOptions,
        limit: u32,
    ) -> Result<Start, ErrorCode> {
        let epoch = Epoch::parse(&since.epoch);
        // Nothing was missed: the common case when many come back at once.
        if let Some(mark) = pending.mark
            && epoch == Some(mark.epoch)
            && since.offset == mark.offset
        {
            return Ok(Start { position: Some(mark), publications: Vec::new(), recovered: true });
        }
        let position = Position { epoch: epoch.unwrap_or(Epoch(0)), offset: since.offset };
        let query = HistoryQuery { since: Some(position), limit, reverse: false };
        let bus = self.bus().map_err(|e| bus_error(&e))?;
        let history =
            bus.history(pending.channel.name.to_string(), query, stream).await.map_err(|e| bus_error(&e))?;
        // A history older than what was delivered here would leave a hole behind it.
        let behind = |mark: Position| mark.epoch == history.top.epoch && mark.offset > history.top.offset;
        if let Some(mark) = pending.mark.filter(|mark| behind(*mark)) {
            return Ok(Start { position: Some(mark), ..Start::default() });
        }
        lock(&pending.channel.inner).set_from(pending.slot, pending.ticket, history.top);
        Ok(judge(since, history))
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

/// Whether `history`, read since the client's position, is all that it missed.
fn judge(since: &Since, history: History) -> Start {
    let top = history.top;
    let same_stream = since.epoch.is_empty() || Epoch::parse(&since.epoch) == Some(top.epoch);
    let publications = history.publications;
    let whole = match (publications.first(), publications.last()) {
        (Some(first), Some(last)) => first.offset == since.offset + 1 && last.offset == top.offset,
        _ => since.offset == top.offset,
    };
    if same_stream && whole {
        let position = Position { epoch: top.epoch, offset: since.offset };
        return Start { position: Some(position), publications, recovered: true };
    }
    Start { position: Some(top), ..Start::default() }
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
        /// Epoch, offset, history, top, recovered, offset of the result.
        type Case<'a> = (&'a str, u64, &'a [u64], u64, bool, u64);
        let cases: &[Case<'_>] = &[
            (&e, 3, &[4, 5], 5, true, 3),
            (&e, 5, &[], 5, true, 5),
            ("", 3, &[4, 5], 5, true, 3),
            ("", 0, &[], 0, true, 0),
            ("0000000000000008", 3, &[4, 5], 5, false, 5),
            ("junk", 3, &[4, 5], 5, false, 5),
            (&e, 2, &[4, 5], 5, false, 5),
            (&e, 3, &[4], 5, false, 5),
            (&e, 3, &[], 5, false, 5),
            (&e, 9, &[], 5, false, 5),
        ];
        for (epoch, offset, offsets, top, recovered, at) in cases {
            let since = Since { epoch: (*epoch).to_owned(), offset: *offset };
            let start = judge(&since, history(offsets, *top));
            assert_eq!(
                (start.recovered, start.position.map(|p| p.offset)),
                (*recovered, Some(*at)),
                "{since:?}"
            );
            assert_eq!(start.publications.is_empty(), !recovered || offsets.is_empty(), "{since:?}");
        }
    }
}
