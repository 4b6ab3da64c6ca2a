//! What comes to a connection from elsewhere: the hub, the HTTP API, its own timers.

use super::call::{Live, ServerSubscribe, Subscribed};
use super::subs::{Origin, Sub};
use super::subscribe::Made;
use super::{Action, Call, Event, Now, Session, Waiting};
use crate::auth::Overrides;
use crate::protocol::{Push, Subscribe};
use weir_wire::close::Close;
use weir_wire::code::{ErrorCode, UnsubscribeCode};

impl Session {
    /// A disconnect counts at once; everything else waits for its turn.
    pub fn on_event(&mut self, event: Event) {
        match event {
            _ if self.is_closed() => {}
            Event::Disconnect(close) => self.close(close),
            event => self.events.push_back(event),
        }
    }

    pub(super) fn handle_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Disconnect(close) => self.close(close),
            Event::Insufficient { channel, ticket } if self.has_ticket(&channel, ticket) => {
                self.end_sub(&channel, UnsubscribeCode::INSUFFICIENT_STATE, Close::INSUFFICIENT_STATE);
            }
            Event::SubExpired { channel, ticket } if self.has_ticket(&channel, ticket) => {
                self.end_sub(&channel, UnsubscribeCode::EXPIRED, Close::SUBSCRIPTION_EXPIRED);
            }
            Event::Behind { channel, ticket, at } if self.has_ticket(&channel, ticket) => {
                self.actions.push_back(Action::GoLive(Live { channel, ticket, behind: Some(at) }));
            }
            Event::Insufficient { .. } | Event::SubExpired { .. } | Event::Behind { .. } => {}
            Event::Unsubscribe { channel } => self.server_unsubscribe(&channel),
            Event::Subscribe(subscribe) => self.server_subscribe(now, *subscribe),
            Event::Refresh { expired: true, .. } => self.close(Close::EXPIRED),
            Event::Refresh { expire_at, info, .. } if self.is_open() => {
                self.timers.expires = (expire_at > 0).then(|| now.moment(expire_at));
                if !info.is_empty() {
                    self.who.info = info;
                }
                let ttl = self.ttl(now, self.timers.expires);
                self.actions.push_back(Action::Push(Push::Refresh { ttl }));
            }
            Event::Refresh { .. } => {}
        }
    }

    /// A subscription cannot go on: its client is told to subscribe again, or, where the server
    /// made it, to connect again.
    fn end_sub(&mut self, channel: &str, code: UnsubscribeCode, close: Close) {
        match self.subs.get(channel) {
            Some(sub) if sub.is_server_side() => self.close(close),
            Some(_) => self.push_unsubscribe(channel, code),
            None => {}
        }
    }

    fn server_unsubscribe(&mut self, channel: &str) {
        // An empty channel: all of them.
        if !channel.is_empty() {
            return self.push_unsubscribe(channel, UnsubscribeCode::SERVER);
        }
        let Some(one) = self.subs.any() else { return };
        self.push_unsubscribe(&one, UnsubscribeCode::SERVER);
        self.events.push_front(Event::Unsubscribe { channel: String::new() });
    }

    fn push_unsubscribe(&mut self, channel: &str, code: UnsubscribeCode) {
        let Some((channel, Sub { member, .. })) = self.drop_sub(channel) else { return };
        let push = Push::Unsubscribe { channel: channel.clone(), code };
        self.actions.push_back(Action::Push(push));
        if member {
            self.call(Call::Leave { channel }, Waiting::Nobody);
        }
    }

    fn server_subscribe(&mut self, now: Now, order: ServerSubscribe) {
        if !self.is_open() || self.subs.contains(&order.channel) {
            return;
        }
        let Ok(options) = self.settings.namespaces.options(&order.channel).cloned() else { return };
        if self.subs.len() >= self.settings.channels_per_client {
            return self.close(Close::CHANNEL_LIMIT);
        }
        let since = order.since;
        let wish = Subscribe {
            channel: order.channel,
            recover: since.is_some(),
            recoverable: since.is_some(),
            epoch: since.map(|p| p.epoch.to_string()).unwrap_or_default(),
            offset: since.map_or(0, |p| p.offset),
            ..Subscribe::default()
        };
        let mut made = self.make(&wish, &options, Overrides::default(), Origin::Server, order.info);
        made.call.by_client = false;
        // The push has no room for them: all come behind it.
        (made.call.limit, made.call.bytes) = (1, 0);
        made.data = order.data;
        made.expires = (order.expire_at > 0).then(|| now.moment(order.expire_at));
        let call = Call::Subscribe(made.call.clone());
        self.call(call, Waiting::ServerSubscribe { made: Box::new(made) });
    }

    /// The client learns of it by a push; what it missed since the given position follows.
    pub(super) fn on_server_subscribed(
        &mut self,
        now: Now,
        made: Made,
        result: Result<Subscribed, ErrorCode>,
    ) {
        // The backend was told long ago that its command went out: nobody to answer.
        let Ok(subscribed) = result else { return };
        let live = subscribed.live();
        let channel = live.channel.clone();
        let result = self.add_sub(now, &made, subscribed);
        self.actions.push_back(Action::Push(Push::Subscribe { channel, result: Box::new(result) }));
        self.actions.push_back(Action::GoLive(live));
    }
}
