//! The seam between node and broker.
//!
//! # What a `Bus` guarantees
//!
//! 1. **Order.** Publications of one channel are delivered in the order of their offsets; those
//!    of a channel without history in the order in which one publisher made them. When a channel
//!    gets another owner, the last ones may come again: by their offsets they are told.
//! 2. **Acknowledged means kept.** When [`Bus::publish`] returns a position, the publication is
//!    in the channel's stream (within its size and time limits) as long as one of the brokers that
//!    were in sync for it lives; with one broker, as long as that does.
//! 3. **Interest before answer.** When [`Bus::subscribe`] returns a position, every publication
//!    after it is delivered to this node's [`Inbox`], or an [`Event::Resync`] stands in its place.
//! 4. **No silent loss.** Whatever the reason that deliveries may be missing (inbox overflow, a
//!    rebuilt router, a broken link, another owner), an [`Event::Resync`] with the current positions
//!    follows. With one broker it comes before any later delivery; in a cluster a later one of a
//!    channel that another broker owns may come first, and shows the loss by the hole before its
//!    offset. Channels without history are at most once: there a loss is counted.
//! 5. **No wait without end.** Every call ends within its deadline (`node.bus_timeout`), with
//!    [`BusError::Unavailable`] at worst; then the outcome is unknown, and a repeat with the same
//!    `idempotency_key` is safe.
//! 6. **Leases.** Members and interest of a node live as long as its attachment. When it is gone
//!    for `broker.node_lease`, its members leave, each announced once.
//!
//! Nothing here holds a queue without a bound: the inbox holds `node.inbox_size` events; a node
//! that falls behind further gets a `Resync` in place of what did not fit.

pub mod local;
mod outcome;
pub mod remote;

use std::future::Future;
use std::pin::Pin;
use weir_wire::envelope::{
    Answer, Control, Delivery, History, HistoryQuery, Member, Position, PresenceStats, Publish, Published,
    Question, StreamOptions, Survey,
};

/// What a call returns: boxed, so that the node holds an `Arc<dyn Bus>` and never knows which.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, BusError>> + Send + 'a>>;

pub trait Bus: Send + Sync + 'static {
    /// Appends to the channel's stream (if it keeps one) and delivers to every node with interest.
    fn publish(&self, publish: Publish) -> Call<'_, Published>;

    /// Declares this node's interest. With `stream`, returns the top of the channel's stream; one that nobody has
    /// published to yet has an epoch and the offset 0, and takes no room. Idempotent.
    fn subscribe(&self, channel: String, stream: Option<StreamOptions>) -> Call<'_, Option<Position>>;

    /// Ends this node's interest. Idempotent.
    fn unsubscribe(&self, channel: String) -> Call<'_, ()>;

    /// Reads a stream. A `since` of another epoch, or one whose
    /// successors are no longer all there, is the caller's to notice from what is returned.
    fn history(&self, channel: String, query: HistoryQuery, stream: StreamOptions) -> Call<'_, History>;

    /// The first part of what [`Bus::history`] would read: what comes in one answer, at most some megabytes (and one
    /// publication at least). True: it goes on after the last one.
    fn history_page(
        &self,
        channel: String,
        query: HistoryQuery,
        stream: StreamOptions,
    ) -> Call<'_, (History, bool)>;

    /// Forgets a channel's publications; epoch and top stay.
    fn history_remove(&self, channel: String) -> Call<'_, ()>;

    /// Adds or replaces a member, announcing a join if it is new and wants that.
    fn join(&self, channel: String, member: Member) -> Call<'_, ()>;

    /// Removes a member by client id, announcing a leave if it was announced. Idempotent.
    fn leave(&self, channel: String, client: String) -> Call<'_, ()>;

    /// Listed members of a channel.
    fn presence(&self, channel: String) -> Call<'_, Vec<Member>>;

    fn presence_stats(&self, channel: String) -> Call<'_, PresenceStats>;

    /// Sends a command to every attached node, this one included.
    fn control(&self, command: Control) -> Call<'_, ()>;

    /// Asks every attached node, this one included, and waits for their answers up to a deadline.
    fn survey(&self, question: Question) -> Call<'_, Survey>;

    /// This node's answer to an [`Event::Survey`].
    fn answer(&self, survey: u64, answer: Answer) -> Call<'_, ()>;

    /// Whether calls can be expected to succeed now; for `/ready` and metrics.
    fn is_up(&self) -> bool;
}

/// What comes to a node unasked.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Deliver(Delivery),
    Control(Control),
    /// To be answered with [`Bus::answer`].
    Survey {
        id: u64,
        question: Question,
    },
    /// Deliveries may be missing up to here: the position of every channel this node has
    /// interest in, taken after that interest was (re)established. `None`: no stream.
    Resync(Vec<(String, Option<Position>)>),
    /// The link to the broker broke (`false`) or is back (`true`; a `Resync` came before it).
    Link(bool),
}

/// The receiving end of a node's attachment. Ends (`None`) only when the bus is shut down.
pub struct Inbox {
    pub(crate) events: tokio::sync::mpsc::Receiver<Event>,
}

impl Inbox {
    /// An inbox and its sending end, for an engine outside this crate (and for tests).
    pub fn channel(size: usize) -> (tokio::sync::mpsc::Sender<Event>, Inbox) {
        let (sender, events) = tokio::sync::mpsc::channel(size);
        (sender, Inbox { events })
    }

    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// What is there already, without waiting; for draining in batches.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Worth a retry: link down, deadline passed, broker stopping. The outcome is unknown.
    #[error("broker unavailable: {0}")]
    Unavailable(&'static str),
    /// Over a limit of the broker; the text names the conf key.
    #[error("limit exceeded: {0}")]
    Limit(&'static str),
    /// The request makes no sense to the broker (a programming mistake or a version skew).
    #[error("refused: {0}")]
    Refused(String),
}
