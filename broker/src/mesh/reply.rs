//! Requests from broker to broker: asked here, answered there.

use super::link::{Link, encoded};
use super::pending::Lost;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use weir_wire::codec::{self, CodecError};
use weir_wire::mesh::{Forward, Lane, Reply, Request};
use weir_wire::peer::Outcome;

/// An answer of this size finds room always: there are only so many requests.
const SMALL: usize = 1 << 10;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// Surely not done.
    #[error("not sent: {0}")]
    NotSent(NotSent),
    /// It may have been done, or may be done yet.
    #[error("no answer: {0}")]
    Unknown(Unknown),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    #[error("no link to that broker")]
    NoLink,
    #[error("too much waits for that broker")]
    Full,
    #[error("larger than any frame")]
    TooLong,
    #[error("that broker has too much to do")]
    Busy,
    #[error("the link broke before")]
    Broke,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("the deadline passed")]
    Deadline,
    #[error("the link broke")]
    Broke,
    #[error("that broker gave none")]
    Unanswered,
}

pub type Forwarded = Result<Reply, ForwardError>;

/// Takes the entry away however the waiting ends.
struct Asked {
    link: Arc<Link>,
    id: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.link.requests.forget(self.id);
    }
}

/// Sent when this returns, or never.
pub fn ask(
    link: Option<Arc<Link>>,
    lane: Lane,
    request: Request,
    deadline: Instant,
) -> impl Future<Output = Forwarded> + Send + use<> {
    let sent = link.ok_or(NotSent::NoLink).and_then(|link| {
        let id = link.next_id();
        let within_ms = millis(deadline.saturating_duration_since(Instant::now()));
        let data = codec::encode_body(&Forward::Request { id, within_ms, request });
        let data = data.map_err(|_| NotSent::TooLong)?;
        let waiting = link.requests.insert(id).ok_or(NotSent::Full)?;
        let asked = Asked { link, id };
        match asked.link.push(lane, data, id) {
            true => Ok((asked, waiting)),
            false => Err(NotSent::Full),
        }
    });
    async move {
        let (_asked, waiting) = sent.map_err(ForwardError::NotSent)?;
        let unknown = |why| Err(ForwardError::Unknown(why));
        match timeout_at(deadline, waiting).await {
            Ok(Ok(Ok(Some(Reply::Busy)))) => Err(ForwardError::NotSent(NotSent::Busy)),
            Ok(Ok(Ok(Some(reply)))) => Ok(reply),
            Ok(Ok(Ok(None))) => unknown(Unknown::Unanswered),
            Ok(Ok(Err(Lost::NotSent))) => Err(ForwardError::NotSent(NotSent::Broke)),
            Ok(Ok(Err(Lost::Broke)) | Err(_)) => unknown(Unknown::Broke),
            Err(_) => unknown(Unknown::Deadline),
        }
    }
}

pub fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Where the answer to a request goes. Dropped without one, the other side learns that there is none.
pub struct ReplyTo {
    link: Arc<Link>,
    lane: Lane,
    id: u64,
    done: bool,
}

impl ReplyTo {
    /// `None`, and answered, if too much is under way.
    pub(super) fn new(link: &Arc<Link>, lane: Lane, id: u64) -> Option<ReplyTo> {
        let under_way = link.serving.fetch_add(1, Relaxed);
        let to = ReplyTo { link: link.clone(), lane, id, done: false };
        // Those whose caller gave up are still under way here.
        if under_way >= link.max_requests * 2 {
            to.send(Reply::Busy);
            return None;
        }
        Some(to)
    }

    pub fn send(mut self, reply: Reply) {
        self.done = true;
        let id = self.id;
        let data = match codec::encode_body(&Forward::Reply { id, reply: Some(reply) }) {
            Ok(data) if data.len() <= SMALL => {
                self.link.push_anyway(self.lane, data);
                return;
            }
            Ok(data) => data,
            Err(CodecError::TooLong { .. }) => {
                return self.instead(Some(Outcome::Refused("the answer is too long".into())));
            }
            Err(_) => return self.instead(None),
        };
        if !self.link.push(self.lane, data, 0) {
            // Only reading has long answers, so asking again does no harm.
            self.instead(Some(Outcome::Unavailable));
        }
    }

    fn instead(&self, outcome: Option<Outcome>) {
        let reply = outcome.map(Reply::Outcome);
        if let Some(data) = encoded(&Forward::Reply { id: self.id, reply }) {
            self.link.push_anyway(self.lane, data);
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.link.serving.fetch_sub(1, Relaxed);
        if !self.done {
            self.instead(None);
        }
    }
}
