//! Commands of an open connection, one at a time.

use super::state::State;
use super::{Call, Now, Rate, Session, Waiting};
use crate::namespaces;
use crate::protocol::{Answer, Command, HistoryRequest, Request};
use bytes::Bytes;
use std::sync::Arc;
use weir_conf::channel::ChannelOptions;
use weir_wire::close::Close;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{History, HistoryQuery, Position, Publish};
use weir_wire::id::Epoch;

impl Session {
    pub(super) fn command(&mut self, now: Now, command: Command) {
        let Command { id, request } = command;
        match (&self.state, &request) {
            (State::Opening, Request::Connect(_)) if id > 0 => {}
            (State::Open, Request::Connect(_)) => return self.close(Close::BAD_REQUEST),
            (State::Open, Request::Pong) if id == 0 => return self.on_pong(),
            (State::Open, Request::Send) => return self.close(Close::NOT_AVAILABLE),
            (State::Open, Request::Unknown) => return self.close(Close::BAD_REQUEST),
            (State::Open, _) if id > 0 => {}
            // Before connect, after a refused one, or without an id.
            _ => return self.close(Close::BAD_REQUEST),
        }
        if request.channel().is_some_and(str::is_empty) {
            return self.close(Close::BAD_REQUEST);
        }
        if id > 0
            && let Err(error) = self.admit(now, &request)
        {
            return self.reply(id, Answer::Error(error));
        }
        match request {
            Request::Connect(request) => self.connect(now, id, *request),
            Request::Subscribe(wish) => self.subscribe(now, id, &wish),
            Request::Unsubscribe { channel } => self.unsubscribe(id, &channel),
            Request::Publish { channel, data } => self.publish(id, channel, data),
            Request::Presence { channel } => self.presence(id, channel, false),
            Request::PresenceStats { channel } => self.presence(id, channel, true),
            Request::History(request) => self.history(id, *request),
            Request::Ping | Request::Rpc => self.reply(id, Answer::Error(ErrorCode::NOT_AVAILABLE)),
            Request::Refresh { token } => self.refresh(now, id, &token),
            Request::SubRefresh { channel, token } => self.sub_refresh(now, id, &channel, &token),
            Request::Pong | Request::Send | Request::Unknown => {}
        }
    }

    /// Whether its rates allow a command. The subscriptions of a connect command count when they are made.
    fn admit(&mut self, now: Now, request: &Request) -> Result<(), ErrorCode> {
        self.take(now, Rate::Command)?;
        match request {
            Request::Publish { .. } => self.take(now, Rate::Publication),
            Request::Subscribe(_) => self.take(now, Rate::Subscribe),
            Request::Rpc => self.take(now, Rate::Rpc),
            Request::Presence { .. } | Request::PresenceStats { .. } => self.take(now, Rate::Read),
            Request::History(request) => {
                let most = self.settings.history_limit;
                let asked = u32::try_from(request.limit).map_or(most, |limit| limit.min(most));
                (0..=asked / 100).try_for_each(|_| self.take(now, Rate::Read))
            }
            _ => Ok(()),
        }
    }

    fn publish(&mut self, id: u32, channel: String, data: Bytes) {
        let error = |e| Answer::Error(e);
        let options = match self.options(&channel) {
            Ok(options) => options,
            Err(e) => return self.reply(id, error(e)),
        };
        let given =
            self.given(&channel, options.allow_publish_for_client, options.allow_publish_for_subscriber);
        if !self.may(given, options.allow_publish_for_anonymous) {
            return self.reply(id, error(ErrorCode::PERMISSION_DENIED));
        }
        if data.is_empty() {
            return self.reply(id, error(ErrorCode::BAD_REQUEST));
        }
        let chan_info = self.subs.get(&channel).map(|sub| sub.info.clone()).unwrap_or_default();
        let publish = Publish {
            channel,
            data,
            info: Some(self.who.info(chan_info)),
            tags: Vec::new(),
            stream: namespaces::stream(&options),
            idempotency_key: None,
            version: 0,
            version_epoch: String::new(),
            ack: namespaces::ack(&options),
            live_without_owner: namespaces::live_without_owner(&options),
        };
        self.call(Call::Publish(Box::new(publish)), Waiting::Publish { id });
    }

    fn presence(&mut self, id: u32, channel: String, stats: bool) {
        let allowed = self.options(&channel).and_then(|o| {
            if !o.presence {
                return Err(ErrorCode::NOT_AVAILABLE);
            }
            let given = self.given(&channel, o.allow_presence_for_client, o.allow_presence_for_subscriber);
            let may = self.may(given, o.allow_presence_for_anonymous);
            may.then_some(()).ok_or(ErrorCode::PERMISSION_DENIED)
        });
        match allowed {
            Err(error) => self.reply(id, Answer::Error(error)),
            Ok(()) if stats => self.call(Call::PresenceStats { channel }, Waiting::PresenceStats { id }),
            Ok(()) => {
                let bytes = self.settings.reply_size;
                self.call(Call::Presence { channel, bytes }, Waiting::Presence { id });
            }
        }
    }

    fn history(&mut self, id: u32, request: HistoryRequest) {
        match self.history_call(&request) {
            Err(error) => self.reply(id, Answer::Error(error)),
            Ok(call) => {
                let epoch = request.since.map(|(_, epoch)| epoch).unwrap_or_default();
                self.call(call, Waiting::History { id, epoch });
            }
        }
    }

    fn history_call(&self, request: &HistoryRequest) -> Result<Call, ErrorCode> {
        let channel = &request.channel;
        let options = self.options(channel)?;
        let stream = namespaces::stream(&options).ok_or(ErrorCode::NOT_AVAILABLE)?;
        let given =
            self.given(channel, options.allow_history_for_client, options.allow_history_for_subscriber);
        if !self.may(given, options.allow_history_for_anonymous) {
            return Err(ErrorCode::PERMISSION_DENIED);
        }
        let query = history_query(request, self.settings.history_limit)?;
        Ok(Call::History { channel: channel.clone(), query, stream, bytes: self.settings.reply_size })
    }

    pub(super) fn on_history(&mut self, id: u32, epoch: &str, result: Result<History, ErrorCode>) {
        let answer = result.and_then(|history| {
            if !epoch.is_empty() && Epoch::parse(epoch) != Some(history.top.epoch) {
                return Err(ErrorCode::UNRECOVERABLE_POSITION);
            }
            Ok(Answer::History { top: history.top, publications: history.publications })
        });
        self.reply_result(id, answer);
    }

    fn options(&self, channel: &str) -> Result<Arc<ChannelOptions>, ErrorCode> {
        self.settings.namespaces.options(channel).cloned()
    }

    fn given(&self, channel: &str, for_client: bool, for_subscriber: bool) -> bool {
        for_client || for_subscriber && self.subs.contains(channel)
    }
}

/// The part of a stream that was asked for, within `max`; shared with the HTTP API.
pub fn history_query(request: &HistoryRequest, max: u32) -> Result<HistoryQuery, ErrorCode> {
    if request.reverse && request.since.as_ref().is_some_and(|(offset, _)| *offset == 0) {
        return Err(ErrorCode::BAD_REQUEST);
    }
    // A foreign epoch is noticed in the answer; the broker only counts from the offset.
    let since = request
        .since
        .as_ref()
        .map(|(offset, epoch)| Position { epoch: Epoch::parse(epoch).unwrap_or(Epoch(0)), offset: *offset });
    let limit = u32::try_from(request.limit).map_or(max, |limit| limit.min(max));
    Ok(HistoryQuery { since, limit, reverse: request.reverse })
}

impl Request {
    /// The channel of a command that needs one.
    fn channel(&self) -> Option<&str> {
        match self {
            Request::Subscribe(wish) => Some(&wish.channel),
            Request::Unsubscribe { channel }
            | Request::Publish { channel, .. }
            | Request::Presence { channel }
            | Request::PresenceStats { channel }
            | Request::SubRefresh { channel, .. } => Some(channel),
            Request::History(request) => Some(&request.channel),
            _ => None,
        }
    }
}
