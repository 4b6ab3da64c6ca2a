//! One shard as this broker holds it: its replica, the state that committed entries make, who is
//! interested, and the calls that wait. What a replica wants done is carried out here, in order and
//! while the shard is held, so that deliveries leave in the order of the log.

use super::Engine;
use super::cluster::{Ask, Change, Cluster, Found, Moment, Store, Submitted};
use super::interest::Interest;
use crate::replica::{Action, Refusal as Refused, Replica, Standing};
use crate::state::groups::{Groups, Usage};
use crate::state::{Reply, State};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use tokio::sync::oneshot;
use weir_wire::codec::{self, HEADER};
use weir_wire::entry::{Entry, Op};
use weir_wire::envelope::HistoryQuery;
use weir_wire::id::ShardEpoch;
use weir_wire::peer::Outcome;
use weir_wire::replica::Place;

pub struct Shard {
    pub number: u16,
    /// `None`: this broker does not hold it.
    pub replica: Option<Replica<Token>>,
    pub state: State,
    pub interest: Interest,
    groups: Arc<Groups>,
    /// What the broker's sums contain of `state`; see [`super::memory`].
    pub reported: Vec<Usage>,
    /// The last entry that `state` contains.
    applied: Place,
    /// Calls by their numbers, for those that could not be answered at once.
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    calls: u64,
    /// The answer to the call that is under way, if it came at once.
    answered: Option<(u64, Outcome)>,
    /// Publications without history that wait for their commit: later ones go behind them.
    pub live_waiting: usize,
    /// Since when this broker serves it.
    pub serving: Option<Instant>,
    broken: bool,
    out: Vec<Action<Token>>,
}

/// A proposal of this broker.
pub type Token = Box<Pending>;

#[derive(Debug)]
pub struct Pending {
    call: u64,
    /// So that it is not decoded here again.
    entry: Entry,
    then: Then,
    live: bool,
}

/// What the call behind an entry asks of the state that the entry makes.
#[derive(Debug)]
pub enum Then {
    Nothing,
    Reply,
    History { channel: String, query: HistoryQuery, max_bytes: usize },
}

impl Shard {
    pub fn new(number: u16, groups: Arc<Groups>) -> Shard {
        Shard {
            number,
            replica: None,
            state: State::new(groups.clone()),
            interest: Interest::default(),
            reported: vec![Usage::default(); groups.count()],
            groups,
            applied: Place::default(),
            waiting: HashMap::new(),
            calls: 0,
            answered: None,
            live_waiting: 0,
            serving: None,
            broken: false,
            out: Vec::new(),
        }
    }

    pub fn standing(&self) -> Standing {
        self.replica.as_ref().map_or(Standing::Holder, Replica::standing)
    }

    pub fn may_serve(&self, moment: Moment) -> bool {
        self.replica.as_ref().is_some_and(|r| r.may_serve(moment.now))
    }

    /// Whether a call can be taken up now that may change something.
    pub fn accepts(&self, moment: Moment) -> bool {
        self.replica.as_ref().is_some_and(|r| r.accepts(moment.now))
    }

    /// Makes a replica if there is none: of what is on disk, or of nothing.
    pub fn create(&mut self, cluster: &dyn Cluster) {
        if self.replica.is_some() || self.broken {
            return;
        }
        let Found { log, state } = cluster.found(self.number);
        match state.map(|data| State::restore(data, &self.groups)).transpose() {
            Ok(state) => {
                self.state = state.unwrap_or_else(|| State::new(self.groups.clone()));
                self.applied = log.as_ref().map(|log| log.base).unwrap_or_default();
                let (me, limits, floor) = (cluster.me(), cluster.limits(), cluster.floor(self.number));
                self.replica = Some(Replica::new(me, limits, log, floor));
            }
            Err(error) => {
                tracing::error!(shard = self.number, %error, "the state on disk cannot be read");
                self.broken = true;
            }
        }
    }

    /// The owner's epoch, while this broker is the owner.
    pub fn epoch(&self) -> ShardEpoch {
        self.replica.as_ref().map(Replica::epoch).unwrap_or_default()
    }

    fn answer(&mut self, call: u64, outcome: Outcome) {
        match self.waiting.remove(&call) {
            // One that has given up has dropped its end.
            Some(waiting) => drop(waiting.send(outcome)),
            None => self.answered = Some((call, outcome)),
        }
    }

    fn outcome(&mut self, moment: Moment, then: Then, reply: Reply) -> Option<Outcome> {
        Some(match (then, reply) {
            (Then::Nothing, _) => return None,
            (Then::History { channel, query, max_bytes }, _) => {
                self.history(moment, &channel, &query, max_bytes)
            }
            (Then::Reply, Reply::Published(published)) => Outcome::Published(published),
            (Then::Reply, Reply::Position(position)) => Outcome::Subscribed(Some(position)),
            (Then::Reply, Reply::Left(_) | Reply::Done) => Outcome::Done,
        })
    }

    /// At most `max_bytes` of data, at least one publication.
    pub fn history(&mut self, moment: Moment, channel: &str, query: &HistoryQuery, max: usize) -> Outcome {
        let Some(mut history) = self.state.history(moment.ms, channel, query) else {
            return Outcome::Unavailable;
        };
        let mut bytes = 0;
        let fits = history.publications.iter().take_while(|p| {
            let first = bytes == 0;
            bytes += p.data.len() + 64;
            first || bytes <= max
        });
        let fits = fits.count();
        let more = fits < history.publications.len();
        history.publications.truncate(fits);
        Outcome::History { history, more }
    }

    /// Takes no part any more: what it has is of no use, and what it would say could be wrong.
    fn break_off(&mut self, cluster: &dyn Cluster, why: &str) {
        tracing::error!(shard = self.number, error = why, "this broker's copy of a shard cannot go on");
        self.broken = true;
        self.clear();
        self.out.clear();
        cluster.changed(self.number, Change::Broken);
    }

    fn clear(&mut self) {
        self.replica = None;
        self.state = State::new(self.groups.clone());
        (self.applied, self.serving, self.live_waiting) = (Place::default(), None, 0);
        self.interest.forget_brokers(None);
        for (_, waiting) in self.waiting.drain() {
            let _gave_up = waiting.send(Outcome::Unavailable);
        }
    }
}

impl Engine {
    /// Proposes an entry; its outcome, if it is committed at once.
    pub(super) fn propose(&self, shard: &mut Shard, moment: Moment, op: Op, then: Then) -> Submitted {
        if let Err(why) = self.cluster.admit() {
            return Outcome::Limit(why.into()).into();
        }
        let call = shard.calls;
        shard.calls += 1;
        match self.append(shard, moment, op, then, call) {
            Ok(()) => {}
            Err(Refused::TooLarge) => return super::Refusal::TooLarge.into(),
            Err(_) => return Outcome::Unavailable.into(),
        }
        self.carry_out(shard, moment);
        match shard.answered.take() {
            Some((answered, outcome)) if answered == call => outcome.into(),
            _ => {
                let (answer, later) = oneshot::channel();
                shard.waiting.insert(call, answer);
                Submitted::Later(later)
            }
        }
    }

    /// The state for the disk, with the place in the log that it stands for.
    pub(super) fn applied_state(&self, shard: &Shard) -> Option<(Place, Bytes)> {
        shard.replica.as_ref()?;
        match shard.state.snapshot(self.cluster.limits().snapshot_bytes) {
            Ok(data) => Some((shard.applied, data)),
            Err(error) => {
                tracing::error!(shard = shard.number, %error, "no snapshot of a shard's state");
                None
            }
        }
    }

    /// As [`Engine::propose`], for what nobody waits for.
    pub(super) fn propose_quietly(&self, shard: &mut Shard, moment: Moment, op: Op) {
        // Where it is refused, another broker owns the shard, or will.
        let _proposed_again_when_due = self.append(shard, moment, op, Then::Nothing, 0);
        self.carry_out(shard, moment);
    }

    pub(super) fn append(
        &self,
        shard: &mut Shard,
        moment: Moment,
        op: Op,
        then: Then,
        call: u64,
    ) -> Result<(), Refused> {
        let Some(replica) = &mut shard.replica else { return Err(Refused::NotOwner) };
        let live = matches!(&op, Op::Publish { publish, .. } if publish.stream.is_none());
        let entry = Entry { time_ms: moment.ms, op };
        let data = match self.cluster.needs_bytes() {
            true => codec::encode(&entry).map_err(|_| Refused::TooLarge)?,
            false => Bytes::new(),
        };
        let token = Box::new(Pending { call, entry, then, live });
        replica.propose(moment.now, data, token, &mut shard.out).map_err(|(refusal, _)| refusal)?;
        shard.live_waiting += usize::from(live);
        replica.flush(moment.now, &mut shard.out);
        Ok(())
    }

    /// Lets the replica act, and does what it wants.
    pub(super) fn drive(
        &self,
        shard: &mut Shard,
        moment: Moment,
        act: impl FnOnce(&mut Replica<Token>, &mut Vec<Action<Token>>),
    ) {
        if let Some(replica) = &mut shard.replica {
            act(replica, &mut shard.out);
            self.carry_out(shard, moment);
        }
    }

    pub(super) fn carry_out(&self, shard: &mut Shard, moment: Moment) {
        let mut actions = Vec::new();
        while !shard.out.is_empty() {
            std::mem::swap(&mut actions, &mut shard.out);
            for action in actions.drain(..) {
                if shard.broken {
                    return;
                }
                self.act(shard, moment, action);
            }
        }
        // The room is used again, unless a burst made it large.
        if actions.capacity() <= 64 && shard.out.capacity() == 0 {
            shard.out = actions;
        }
    }

    fn act(&self, shard: &mut Shard, moment: Moment, action: Action<Token>) {
        let (number, cluster) = (shard.number, &*self.cluster);
        match action {
            Action::Commit { at, data, token } => self.commit(shard, moment, at, &data, token),
            Action::Unknown { token } => {
                shard.live_waiting = shard.live_waiting.saturating_sub(usize::from(token.live));
                if !matches!(token.then, Then::Nothing) {
                    shard.answer(token.call, Outcome::Unavailable);
                }
            }
            Action::Send { to, message } => cluster.send(number, to, message),
            Action::Write { write, at, data } => cluster.store(number, Store::Append { write, at, data }),
            Action::Truncate { write, after } => cluster.store(number, Store::Truncate { write, after }),
            Action::Install { write, at, resets, data } => {
                match State::restore(data.clone(), &shard.groups) {
                    Ok(state) => {
                        (shard.state, shard.applied) = (state, at);
                        cluster.store(number, Store::Install { write, at, resets, data });
                    }
                    Err(error) => shard.break_off(cluster, &error.to_string()),
                }
            }
            Action::Reset { write, resets, keep } => {
                if !keep {
                    (shard.state, shard.applied) = (State::new(shard.groups.clone()), Place::default());
                }
                cluster.store(number, Store::Reset { write, resets, keep });
            }
            Action::Snapshot => self.snapshot(shard, moment),
            Action::Shrink { version, without } => cluster.ask(number, Ask::Shrink { version, without }),
            Action::Grow { version, add } => cluster.ask(number, Ask::Grow { version, add }),
            Action::Move { version, to } => cluster.ask(number, Ask::Move { version, to }),
            Action::Serving { epoch, fresh } => {
                shard.serving = Some(moment.now.at);
                if fresh {
                    // Before anything else is proposed in this epoch.
                    let op = Op::NewEpochs { seed: rand::random() };
                    let _taken_since_it_serves = self.append(shard, moment, op, Then::Nothing, 0);
                }
                self.seed(shard, moment);
                cluster.changed(number, Change::Serving { epoch, fresh });
            }
            Action::Stopped { epoch } => {
                (shard.serving, shard.live_waiting) = (None, 0);
                shard.interest.forget_brokers(None);
                cluster.changed(number, Change::Stopped { epoch });
            }
            Action::Retire => {
                shard.clear();
                cluster.store(number, Store::Retire);
                cluster.changed(number, Change::Retired);
            }
        }
    }

    /// Applies an entry, delivers what it brings if this broker is the one to do so, and answers.
    fn commit(&self, shard: &mut Shard, moment: Moment, at: Place, data: &Bytes, token: Option<Token>) {
        let owner = token.is_some() || shard.standing() != Standing::Holder;
        let (entry, asked) = match token {
            Some(token) => {
                let Pending { call, entry, then, live } = *token;
                shard.live_waiting = shard.live_waiting.saturating_sub(usize::from(live));
                (entry, Some((call, then)))
            }
            None => match decode(data) {
                Ok(entry) => (entry, None),
                Err(error) => return shard.break_off(&*self.cluster, &error.to_string()),
            },
        };
        let epoch = shard.epoch();
        let Shard { number, state, interest, .. } = &mut *shard;
        let reply = match owner {
            true => state.apply(entry, &mut |frame| self.deliver(*number, epoch, interest, frame)),
            false => state.apply(entry, &mut |_| {}),
        };
        shard.applied = at;
        if let Reply::Left(count) = reply
            && owner
        {
            self.left.fetch_add(count, Relaxed);
        }
        if let Some((call, then)) = asked
            && let Some(outcome) = shard.outcome(moment, then, reply)
        {
            shard.answer(call, outcome);
        }
    }

    fn snapshot(&self, shard: &mut Shard, moment: Moment) {
        let Some(replica) = &mut shard.replica else { return };
        match shard.state.snapshot(self.cluster.limits().snapshot_bytes) {
            Ok(data) => {
                let size = data.len();
                if !replica.snapshot(moment.now, shard.applied.index, data, &mut shard.out) {
                    tracing::error!(
                        shard = shard.number,
                        size,
                        "a shard's state is too large to be passed on"
                    );
                }
            }
            Err(error) => tracing::error!(shard = shard.number, %error, "no snapshot of a shard's state"),
        }
    }
}

/// As it came from another holder or from the disk: a whole frame.
fn decode(data: &Bytes) -> Result<Entry, codec::CodecError> {
    match codec::frame_len(data, codec::MAX_FRAME)? {
        Some(len) if len == data.len() => codec::decode(&data[HEADER..]),
        _ => Err(codec::CodecError::Malformed("not one whole entry".into())),
    }
}
