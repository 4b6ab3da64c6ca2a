//! The connect command and the refresh of its token.

use super::call::{Live, Subscribed};
use super::state::State;
use super::subs::Origin;
use super::subscribe::Made;
use super::{Action, Call, Kind, Now, Rate, Session, Since, Waiting};
use crate::auth::{Identity, ServerSub, TokenError};
use crate::protocol::{Answer, Connect, ConnectResult, Push, Subscribe};
use std::collections::VecDeque;
use std::sync::Arc;
use weir_wire::close::Close;
use weir_wire::code::ErrorCode;

/// A connect command under way.
#[derive(Debug, Default)]
pub struct Connecting {
    id: u32,
    /// Subscriptions still to be made.
    todo: VecDeque<Made>,
    /// The one being made.
    current: Option<Made>,
    result: ConnectResult,
    live: Vec<Live>,
    /// Bytes of publications in the reply so far: all subscriptions share its room.
    recovered: usize,
}

impl Session {
    pub(super) fn connect(&mut self, now: Now, id: u32, request: Connect) {
        let identity = match self.identify(now, &request.token) {
            Ok(identity) => identity,
            Err(Refusal::Reply(error)) => return self.refuse(id, error),
            Err(Refusal::Close(close)) => return self.close(close),
        };
        if identity.subs.len() > self.settings.channels_per_client {
            return self.close(Close::CHANNEL_LIMIT);
        }
        self.who.user = identity.user.as_str().into();
        self.who.info = identity.info.clone();
        self.meter.set_user(&identity.user);
        self.timers.expires = identity.expire_at.map(|at| now.moment(at));
        match self.plan(now, identity, request.subs) {
            Err(Refusal::Reply(error)) => self.refuse(id, error),
            Err(Refusal::Close(close)) => self.close(close),
            Ok(todo) => {
                self.state = State::Connecting(Box::new(Connecting { id, todo, ..Connecting::default() }));
                self.call(Call::Register { user: self.who.user.clone() }, Waiting::Register);
            }
        }
    }

    fn identify(&mut self, now: Now, token: &str) -> Result<Identity, Refusal> {
        if token.is_empty() {
            let anonymous = self.settings.anonymous;
            return anonymous.then(Identity::default).ok_or(Refusal::Close(Close::BAD_REQUEST));
        }
        match self.settings.auth.connection(token, now.unix) {
            Err(TokenError::Expired | TokenError::Early) => Err(Refusal::Reply(ErrorCode::TOKEN_EXPIRED)),
            Err(TokenError::Invalid(reason)) => {
                self.actions.push_back(Action::TokenRefused(reason));
                Err(Refusal::Close(Close::INVALID_TOKEN))
            }
            Ok(identity) if identity.expire_at.is_some_and(|at| at <= now.unix) => {
                Err(Refusal::Reply(ErrorCode::EXPIRED))
            }
            Ok(identity) => Ok(identity),
        }
    }

    /// The server-side subscriptions of a connection: those of its token, and what a listening
    /// client wishes (it has no subscribe command).
    fn plan(
        &mut self,
        now: Now,
        identity: Identity,
        remembered: Vec<(String, Subscribe)>,
    ) -> Result<VecDeque<Made>, Refusal> {
        let mut todo = VecDeque::new();
        for (channel, sub) in &identity.subs {
            let known = remembered.iter().find(|(c, _)| c == channel).map(|(_, s)| s);
            todo.push_back(self.token_sub(channel, sub, known).map_err(Refusal::Reply)?);
        }
        if self.kind == Kind::Uni {
            for (channel, mut wish) in remembered {
                if identity.subs.iter().all(|(c, _)| *c != channel) {
                    wish.channel = channel;
                    if todo.len() >= self.settings.channels_per_client {
                        return Err(Refusal::Close(Close::CHANNEL_LIMIT));
                    }
                    let mut made = self.permit(now, &wish)?;
                    made.origin = Origin::Server;
                    todo.push_back(made);
                }
            }
        }
        Ok(todo)
    }

    fn token_sub(
        &self,
        channel: &str,
        sub: &ServerSub,
        known: Option<&Subscribe>,
    ) -> Result<Made, ErrorCode> {
        let options = self.settings.namespaces.options(channel)?.clone();
        let wish = Subscribe { channel: channel.to_owned(), ..known.cloned().unwrap_or_default() };
        let mut made = self.make(&wish, &options, sub.overrides, Origin::Token, sub.info.clone());
        made.data = sub.data.clone();
        made.call.reject_unrecovered = false;
        Ok(made)
    }

    pub(super) fn next_connect_sub(&mut self, now: Now) {
        let State::Connecting(connecting) = &mut self.state else { return };
        let (id, next) = (connecting.id, connecting.todo.pop_front());
        if next.is_some()
            && let Err(error) = self.take(now, Rate::Subscribe)
        {
            return self.refuse(id, error);
        }
        let State::Connecting(connecting) = &mut self.state else { return };
        match next {
            Some(mut made) => {
                made.call.bytes = made.call.bytes.saturating_sub(connecting.recovered);
                let call = Call::Subscribe(made.call.clone());
                connecting.current = Some(made);
                self.call(call, Waiting::ConnectSub);
            }
            None => self.connected(now),
        }
    }

    pub(super) fn on_connect_sub(&mut self, now: Now, result: Result<Subscribed, ErrorCode>) {
        let State::Connecting(connecting) = &mut self.state else { return };
        let Some(made) = connecting.current.take() else { return };
        match result {
            Err(error) => {
                let id = connecting.id;
                self.refuse(id, error);
            }
            Ok(subscribed) => {
                let live = subscribed.live();
                let result = self.add_sub(now, &made, subscribed);
                if let State::Connecting(connecting) = &mut self.state {
                    connecting.recovered += result.publications.iter().map(|p| p.data.len()).sum::<usize>();
                    connecting.result.subs.push((live.channel.clone(), result));
                    connecting.live.push(live);
                }
                self.next_connect_sub(now);
            }
        }
    }

    fn connected(&mut self, now: Now) {
        let State::Connecting(connecting) = std::mem::replace(&mut self.state, State::Open) else { return };
        let Connecting { id, mut result, live, .. } = *connecting;
        result.client = self.who.client.clone();
        result.ttl = self.ttl(now, self.timers.expires);
        if !self.pings_by_control_frame {
            result.ping = self.settings.ping_interval.as_secs_f64().ceil() as u32;
            result.pong = result.ping > 0 && !self.settings.pong_timeout.is_zero();
        }
        self.actions.push_back(Action::Connected);
        match self.kind {
            Kind::Bidi => self.reply(id, Answer::Connect(Box::new(result))),
            Kind::Uni => self.actions.push_back(Action::Push(Push::Connect(Box::new(result)))),
        }
        self.actions.extend(live.into_iter().map(Action::GoLive));
        self.start_pings(now.at);
    }

    /// Connect failed with an error: nothing more is expected of this connection.
    fn refuse(&mut self, id: u32, error: ErrorCode) {
        if self.is_closed() {
            return;
        }
        self.actions.push_back(Action::DropAll);
        self.subs = Default::default();
        self.timers.expires = None;
        if self.kind == Kind::Uni {
            return self.close(close_for(error));
        }
        self.state = State::Refused;
        self.reply(id, Answer::Error(error));
    }

    pub(super) fn refresh(&mut self, now: Now, id: u32, token: &str) {
        let identity = match self.settings.auth.connection(token, now.unix) {
            Ok(identity) => identity,
            Err(TokenError::Expired) => return self.close(Close::EXPIRED),
            Err(TokenError::Early) => return self.reply(id, Answer::Error(REFRESH_ANEW)),
            Err(TokenError::Invalid(reason)) => {
                self.actions.push_back(Action::TokenRefused(reason));
                return self.close(Close::INVALID_TOKEN);
            }
        };
        if *identity.user != *self.who.user {
            self.actions.push_back(Action::TokenRefused("refresh for another user".to_owned()));
            return self.close(Close::INVALID_TOKEN);
        }
        if identity.expire_at.is_some_and(|at| at <= now.unix) {
            return self.close(Close::EXPIRED);
        }
        let listed = |channel: &Arc<str>| identity.subs.iter().any(|(c, _)| **c == **channel);
        let same = self.subs.brought_by_token().count() == identity.subs.len()
            && self.subs.brought_by_token().all(listed);
        if !same {
            return self.close(Close::INSUFFICIENT_STATE);
        }
        self.who.info = identity.info;
        self.timers.expires = identity.expire_at.map(|at| now.moment(at));
        let ttl = self.ttl(now, self.timers.expires);
        self.reply(id, Answer::Refresh { client: self.who.client.clone(), ttl });
    }
}

/// A refresh by a token that is out of its time. Temporary, so that SDKs fetch another one and come again; without
/// that they would end for good, since the one that they have was just fetched.
pub const REFRESH_ANEW: ErrorCode = ErrorCode { temporary: true, ..ErrorCode::TOKEN_EXPIRED };

/// How a command is refused: with an error reply, or with the connection.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    Reply(ErrorCode),
    Close(Close),
}

/// A listening client gets no replies: its errors are closes.
pub fn close_for(error: ErrorCode) -> Close {
    match error.code {
        109 | 110 => Close::EXPIRED,
        111 => Close::TOO_MANY_REQUESTS,
        103 => Close::PERMISSION_DENIED,
        _ => Close::INTERNAL_SERVER_ERROR,
    }
}

/// The position a client remembers, if it wants to go on from there.
pub fn since(wish: &Subscribe) -> Option<Since> {
    wish.recover.then(|| Since { epoch: wish.epoch.clone(), offset: wish.offset })
}
