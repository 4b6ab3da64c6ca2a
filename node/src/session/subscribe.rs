//! Subscriptions: what is allowed, what is asked of the hub, and what its answer comes to.

use super::call::{SubscribeCall, Subscribed};
use super::connect::{REFRESH_ANEW, Refusal, since};
use super::subs::{Origin, Sub};
use super::{Action, Call, Now, Session, Ticket, Waiting};
use crate::auth::{Overrides, TokenError};
use crate::namespaces::{self, is_private, limited_to};
use crate::protocol::{Answer, Subscribe, SubscribeResult};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;
use weir_conf::channel::ChannelOptions;
use weir_wire::close::Close;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::Member;

/// A subscription that is allowed and about to be made.
#[derive(Debug)]
pub struct Made {
    pub call: Box<SubscribeCall>,
    pub origin: Origin,
    pub recoverable: bool,
    pub info: Bytes,
    pub data: Bytes,
    pub expires: Option<Instant>,
}

impl Session {
    pub(super) fn subscribe(&mut self, now: Now, id: u32, wish: &Subscribe) {
        match self.permit(now, wish) {
            Ok(made) => {
                let call = Call::Subscribe(made.call.clone());
                self.call(call, Waiting::Subscribe { id, made: Box::new(made) });
            }
            Err(Refusal::Reply(error)) => self.reply(id, Answer::Error(error)),
            Err(Refusal::Close(close)) => self.close(close),
        }
    }

    /// The order of the checks is the protocol's.
    pub(super) fn permit(&mut self, now: Now, wish: &Subscribe) -> Result<Made, Refusal> {
        let channel = wish.channel.as_str();
        let options = self.settings.namespaces.options(channel).map_err(Refusal::Reply)?.clone();
        if self.subs.contains(channel) {
            return Err(Refusal::Reply(ErrorCode::ALREADY_SUBSCRIBED));
        }
        if self.subs.len() >= self.settings.channels_per_client {
            return Err(Refusal::Reply(ErrorCode::LIMIT_EXCEEDED));
        }
        let limited = limited_to(channel).filter(|_| options.allow_user_limited_channels);
        let of_this_user = match limited {
            Some(mut users) => {
                let mine = !self.who.user.is_empty() && users.any(|user| *user == *self.who.user);
                mine.then_some(true).ok_or(Refusal::Reply(ErrorCode::PERMISSION_DENIED))?
            }
            None => false,
        };
        if !wish.token.is_empty() {
            return self.permit_by_token(now, wish, &options);
        }
        let allowed = of_this_user
            || self.may(options.allow_subscribe_for_client, options.allow_subscribe_for_anonymous);
        if is_private(channel) || !allowed {
            return Err(Refusal::Reply(ErrorCode::PERMISSION_DENIED));
        }
        Ok(self.make(wish, &options, Overrides::default(), Origin::Client, Bytes::new()))
    }

    fn permit_by_token(
        &mut self,
        now: Now,
        wish: &Subscribe,
        options: &ChannelOptions,
    ) -> Result<Made, Refusal> {
        let grant = match self.settings.auth.subscription(&wish.token, now.unix) {
            Ok(grant) => grant,
            Err(TokenError::Expired | TokenError::Early) => {
                return Err(Refusal::Reply(ErrorCode::TOKEN_EXPIRED));
            }
            Err(TokenError::Invalid(reason)) => {
                self.actions.push_back(Action::TokenRefused(reason));
                return Err(Refusal::Reply(ErrorCode::PERMISSION_DENIED));
            }
        };
        if !self.is_for(&grant, &wish.channel) {
            self.actions.push_back(Action::TokenRefused("subscription token for another".to_owned()));
            return Err(Refusal::Close(Close::INVALID_TOKEN));
        }
        if grant.expire_at.is_some_and(|at| at <= now.unix) {
            return Err(Refusal::Reply(ErrorCode::EXPIRED));
        }
        let mut made = self.make(wish, options, grant.overrides, Origin::Client, grant.info);
        made.data = grant.data;
        made.expires = grant.expire_at.map(|at| now.moment(at));
        Ok(made)
    }

    fn is_for(&self, grant: &crate::auth::Grant, channel: &str) -> bool {
        grant.channel == channel
            && *grant.user == *self.who.user
            && (grant.client.is_empty() || *grant.client == *self.who.client)
    }

    /// A right that the namespace gives; users without a name need the option for them on top.
    pub(super) fn may(&self, given: bool, for_anonymous: bool) -> bool {
        given && (for_anonymous || !self.who.user.is_empty())
    }

    /// What the wish, the namespace and the token's overrides come to.
    pub(super) fn make(
        &self,
        wish: &Subscribe,
        options: &ChannelOptions,
        overrides: Overrides,
        origin: Origin,
        info: Bytes,
    ) -> Made {
        let stream = namespaces::stream(options);
        let has_stream = stream.is_some();
        let force_recovery = overrides.force_recovery.unwrap_or(options.force_recovery);
        let force_positioning = overrides.force_positioning.unwrap_or(options.force_positioning);
        let recoverable = has_stream && (force_recovery || wish.recoverable && options.allow_recovery);
        let positioned = has_stream && (force_positioning || wish.positioned && options.allow_positioning);
        let presence = overrides.presence.unwrap_or(options.presence);
        let announced = overrides.join_leave.unwrap_or(options.join_leave);
        let pushed = overrides.force_push_join_leave.unwrap_or(options.force_push_join_leave);
        let member = (presence || announced).then(|| Member {
            info: self.who.info(info.clone()),
            listed: presence,
            announced,
        });
        let call = SubscribeCall {
            channel: wish.channel.clone(),
            stream,
            by_client: true,
            by_datagram: namespaces::by_datagram(options),
            positioned: positioned || recoverable,
            join_leave: announced && (pushed || wish.join_leave),
            since: since(wish).filter(|_| recoverable),
            reject_unrecovered: wish.rejects_unrecovered(),
            limit: self.settings.history_limit,
            bytes: self.settings.piece_size,
            member,
        };
        Made { call: Box::new(call), origin, recoverable, info, data: Bytes::new(), expires: None }
    }

    /// Takes a subscription that the hub made into the books; gives what its client is told.
    pub(super) fn add_sub(&mut self, now: Now, made: &Made, subscribed: Subscribed) -> SubscribeResult {
        self.subs.add(
            subscribed.channel,
            Sub {
                ticket: subscribed.ticket,
                origin: made.origin,
                expires: made.expires,
                info: made.info.clone(),
                member: made.call.member.is_some(),
            },
        );
        let positioned = made.call.positioned;
        SubscribeResult {
            ttl: self.ttl(now, made.expires),
            recoverable: made.recoverable,
            positioned,
            position: subscribed.position.filter(|_| positioned),
            publications: subscribed.publications,
            recovered: subscribed.recovered,
            was_recovering: made.call.since.is_some(),
            data: made.data.clone(),
        }
    }

    pub(super) fn on_subscribed(
        &mut self,
        now: Now,
        id: u32,
        made: Made,
        result: Result<Subscribed, ErrorCode>,
    ) {
        match result {
            Err(error) => {
                if error == ErrorCode::TOO_MANY_REQUESTS {
                    // A name too many; the hub has counted it.
                    self.refused(now);
                }
                self.reply(id, Answer::Error(error));
            }
            Ok(subscribed) => {
                let live = subscribed.live();
                let result = self.add_sub(now, &made, subscribed);
                self.reply(id, Answer::Subscribe(Box::new(result)));
                self.actions.push_back(Action::GoLive(live));
            }
        }
    }

    /// Stops pushes at once; says whether a membership remains to be ended.
    pub(super) fn drop_sub(&mut self, channel: &str) -> Option<(Arc<str>, Sub)> {
        let (channel, sub) = self.subs.remove(channel)?;
        self.actions.push_back(Action::Drop { channel: channel.clone() });
        Some((channel, sub))
    }

    pub(super) fn unsubscribe(&mut self, id: u32, channel: &str) {
        match self.drop_sub(channel) {
            Some((channel, Sub { member: true, .. })) => {
                self.call(Call::Leave { channel }, Waiting::Unsubscribe { id });
            }
            _ => self.reply(id, Answer::Unsubscribe),
        }
    }

    pub(super) fn sub_refresh(&mut self, now: Now, id: u32, channel: &str, token: &str) {
        if !self.subs.contains(channel) {
            return self.reply(id, Answer::Error(ErrorCode::PERMISSION_DENIED));
        }
        let grant = match self.settings.auth.subscription(token, now.unix) {
            Ok(grant) => grant,
            Err(TokenError::Expired | TokenError::Early) => {
                return self.reply(id, Answer::Error(REFRESH_ANEW));
            }
            Err(TokenError::Invalid(reason)) => {
                self.actions.push_back(Action::TokenRefused(reason));
                return self.close(Close::INVALID_TOKEN);
            }
        };
        if !self.is_for(&grant, channel) {
            self.actions.push_back(Action::TokenRefused("subscription token for another".to_owned()));
            return self.close(Close::INVALID_TOKEN);
        }
        if grant.expire_at.is_some_and(|at| at <= now.unix) {
            return self.reply(id, Answer::Error(ErrorCode::EXPIRED));
        }
        let expires = grant.expire_at.map(|at| now.moment(at));
        self.subs.set_expiry(channel, expires);
        self.reply(id, Answer::SubRefresh { ttl: self.ttl(now, expires) });
    }

    /// Whether `ticket` is the subscription that this client has now.
    pub(super) fn has_ticket(&self, channel: &str, ticket: Ticket) -> bool {
        self.subs.get(channel).is_some_and(|sub| sub.ticket == ticket)
    }
}
