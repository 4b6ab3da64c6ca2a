//! From a call to its operation and back: the same for a broker in this process and in another.

use super::BusError;
use weir_wire::envelope::{Position, Survey};
use weir_wire::peer::Outcome;

/// Sorts out what is an error for every call.
pub fn checked(outcome: Outcome) -> Result<Outcome, BusError> {
    match outcome {
        Outcome::Unavailable => Err(BusError::Unavailable("the broker cannot take it now")),
        // Full, or failing: worth a retry, once somebody has made room.
        Outcome::Limit(key) if key == "broker.data_dir" => {
            Err(BusError::Unavailable("broker.data_dir cannot be written"))
        }
        Outcome::Limit(key) => Err(BusError::Limit(match key.as_str() {
            "broker.max_channels" => "broker.max_channels",
            "broker.history_memory" => "broker.history_memory",
            "broker.message_size" => "broker.message_size",
            _ => "a limit of the broker",
        })),
        Outcome::Refused(why) => Err(BusError::Refused(why)),
        outcome => Ok(outcome),
    }
}

pub fn unexpected<T>() -> Result<T, BusError> {
    Err(BusError::Refused("the answer is of another kind than the call".into()))
}

pub fn position(outcome: Outcome) -> Result<Option<Position>, BusError> {
    match outcome {
        Outcome::Published(position) | Outcome::Subscribed(position) => Ok(position),
        _ => unexpected(),
    }
}

pub fn done(outcome: Outcome) -> Result<(), BusError> {
    match outcome {
        Outcome::Done => Ok(()),
        _ => unexpected(),
    }
}

pub fn survey(outcome: Outcome) -> Result<Survey, BusError> {
    match outcome {
        Outcome::Survey(survey) => Ok(survey),
        _ => unexpected(),
    }
}

/// The methods of [`Bus`](super::Bus) over `self.op(Op) -> Result<Outcome, BusError>`.
macro_rules! op_call {
    () => {
        fn publish(&self, publish: Publish) -> Call<'_, Published> {
            Box::pin(async move { outcome::position(self.op(Op::Publish(publish)).await?) })
        }

        fn subscribe(&self, channel: String, stream: Option<StreamOptions>) -> Call<'_, Option<Position>> {
            Box::pin(async move { outcome::position(self.op(Op::Subscribe { channel, stream }).await?) })
        }

        fn unsubscribe(&self, channel: String) -> Call<'_, ()> {
            Box::pin(async move { outcome::done(self.op(Op::Unsubscribe { channel }).await?) })
        }

        fn history(&self, channel: String, query: HistoryQuery, stream: StreamOptions) -> Call<'_, History> {
            Box::pin(async move {
                let mut query = query;
                let mut whole: Option<History> = None;
                let limit = query.limit;
                loop {
                    let (history, more) = self.history_page(channel.clone(), query, stream).await?;
                    let whole = match &mut whole {
                        // Numbering began anew in between: what was read before is of no use.
                        Some(before) if before.top.epoch != history.top.epoch => whole.insert(history),
                        Some(before) => {
                            before.publications.extend(history.publications);
                            before
                        }
                        None => whole.insert(history),
                    };
                    match whole.publications.last() {
                        Some(last) if more => {
                            let got = u32::try_from(whole.publications.len()).unwrap_or(u32::MAX);
                            query.since = Some(Position { epoch: whole.top.epoch, offset: last.offset });
                            query.limit = if limit == u32::MAX { limit } else { limit.saturating_sub(got) };
                        }
                        _ => {
                            let top = whole.top;
                            return Ok(std::mem::replace(whole, History { top, publications: vec![] }));
                        }
                    }
                }
            })
        }

        fn history_page(
            &self,
            channel: String,
            query: HistoryQuery,
            stream: StreamOptions,
        ) -> Call<'_, (History, bool)> {
            Box::pin(async move {
                match self.op(Op::History { channel, query, stream }).await? {
                    Outcome::History { history, more } => Ok((history, more)),
                    _ => outcome::unexpected(),
                }
            })
        }

        fn history_remove(&self, channel: String) -> Call<'_, ()> {
            Box::pin(async move { outcome::done(self.op(Op::HistoryRemove { channel }).await?) })
        }

        fn join(&self, channel: String, member: Member) -> Call<'_, ()> {
            Box::pin(async move { outcome::done(self.op(Op::Join { channel, member }).await?) })
        }

        fn leave(&self, channel: String, client: String) -> Call<'_, ()> {
            Box::pin(async move { outcome::done(self.op(Op::Leave { channel, client }).await?) })
        }

        fn presence(&self, channel: String) -> Call<'_, Vec<Member>> {
            Box::pin(async move {
                match self.op(Op::Presence { channel }).await? {
                    Outcome::Members(members) => Ok(members),
                    _ => outcome::unexpected(),
                }
            })
        }

        fn presence_stats(&self, channel: String) -> Call<'_, PresenceStats> {
            Box::pin(async move {
                match self.op(Op::PresenceStats { channel }).await? {
                    Outcome::Stats(stats) => Ok(stats),
                    _ => outcome::unexpected(),
                }
            })
        }

        fn control(&self, command: Control) -> Call<'_, ()> {
            Box::pin(async move { outcome::done(self.op(Op::Control(command)).await?) })
        }

        fn survey(&self, question: Question) -> Call<'_, Survey> {
            Box::pin(async move { outcome::survey(self.op(Op::Survey(question)).await?) })
        }

        fn answer(&self, survey: u64, answer: Answer) -> Call<'_, ()> {
            Box::pin(async move { outcome::done(self.op(Op::Answer { survey, answer }).await?) })
        }
    };
}
pub(crate) use op_call;
