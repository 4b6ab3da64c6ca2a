//! A faithful twin of the bus, in memory: channel streams with epochs and offsets, interest,
//! members, several attached nodes; and switches for what goes wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot, watch};
use weir_broker::bus::Call;
use weir_broker::{Bus, BusError, Event, Inbox};
use weir_core::sync::lock;
use weir_wire::envelope::{
    Answer, Body, Control, Delivery, History, HistoryQuery, Member, Position, PresenceStats, Publication,
    Publish, Published, Question, StreamOptions, Survey,
};
use weir_wire::id::{Epoch, NodeId};

/// The broker itself; nodes attach to it.
#[derive(Clone, Default)]
pub struct Twin {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    streams: HashMap<String, Stream>,
    members: HashMap<String, BTreeMap<String, Member>>,
    nodes: Vec<Attached>,
    next_epoch: u64,
    /// Deliveries still to be lost.
    drop_next: usize,
    surveys: HashMap<u64, (Survey, oneshot::Sender<Survey>)>,
    calls: Vec<String>,
}

struct Stream {
    top: Position,
    publications: Vec<Publication>,
    keys: HashMap<String, Position>,
}

struct Attached {
    id: NodeId,
    events: mpsc::Sender<Event>,
    interest: HashSet<String>,
}

/// One node's attachment.
pub struct TwinBus {
    twin: Twin,
    node: usize,
    faults: watch::Sender<Faults>,
}

#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Calls fail at once.
    pub down: bool,
    /// Calls wait until this ends.
    pub stalled: bool,
    /// Publish panics, in the task that calls it.
    pub panics: bool,
    /// Subscribes are refused.
    pub refuses: bool,
    /// Subscribes fail, and are carried out a second later.
    pub late: bool,
}

impl Twin {
    pub fn attach(&self, id: NodeId) -> (Arc<TwinBus>, Inbox) {
        let (events, inbox) = Inbox::channel(4096);
        let mut state = lock(&self.state);
        state.nodes.push(Attached { id, events, interest: HashSet::new() });
        let node = state.nodes.len() - 1;
        (Arc::new(TwinBus { twin: self.clone(), node, faults: watch::Sender::default() }), inbox)
    }

    /// Loses the next deliveries (not what is kept).
    pub fn drop_next(&self, n: usize) {
        lock(&self.state).drop_next = n;
    }

    /// Forgets the publications of a channel, as its limits would.
    pub fn trim(&self, channel: &str) {
        if let Some(stream) = lock(&self.state).streams.get_mut(channel) {
            stream.publications.clear();
        }
    }

    /// The numbering starts anew.
    pub fn new_epoch(&self, channel: &str) {
        lock(&self.state).streams.remove(channel);
    }

    /// What a bus does when it cannot know what was lost.
    pub fn resync(&self) {
        let state = lock(&self.state);
        for node in 0..state.nodes.len() {
            let channels: Vec<String> = state.nodes[node].interest.iter().cloned().collect();
            let tops = channels.into_iter().map(|c| {
                let top = state.streams.get(&c).map(|s| s.top);
                (c, top)
            });
            let event = Event::Resync(tops.collect());
            state.nodes[node].send(event);
        }
    }

    pub fn is_interested(&self, channel: &str) -> bool {
        lock(&self.state).nodes.iter().any(|n| n.interest.contains(channel))
    }

    pub fn interested(&self) -> usize {
        lock(&self.state).nodes.iter().map(|n| n.interest.len()).sum()
    }

    pub fn members(&self, channel: &str) -> Vec<String> {
        let state = lock(&self.state);
        state.members.get(channel).map(|m| m.keys().cloned().collect()).unwrap_or_default()
    }

    /// How many calls of this name there were.
    pub fn calls(&self, name: &str) -> usize {
        lock(&self.state).calls.iter().filter(|c| *c == name).count()
    }

    pub fn top(&self, channel: &str) -> Position {
        lock(&self.state).stream(channel).top
    }
}

impl Attached {
    fn send(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
}

impl State {
    fn stream(&mut self, channel: &str) -> &mut Stream {
        let next_epoch = &mut self.next_epoch;
        self.streams.entry(channel.to_owned()).or_insert_with(|| {
            *next_epoch += 1;
            let top = Position { epoch: Epoch(*next_epoch), offset: 0 };
            Stream { top, publications: Vec::new(), keys: HashMap::new() }
        })
    }

    fn deliver(&mut self, channel: &str, epoch: Option<Epoch>, body: Body) {
        if self.drop_next > 0 {
            self.drop_next -= 1;
            return;
        }
        let delivery = Delivery { channel: channel.to_owned(), epoch, body };
        for node in self.nodes.iter().filter(|n| n.interest.contains(channel)) {
            node.send(Event::Deliver(delivery.clone()));
        }
    }

    fn publish(&mut self, p: Publish) -> Published {
        let mut publication = Publication { offset: 0, data: p.data, info: p.info, tags: p.tags };
        let Some(options) = p.stream else {
            self.deliver(&p.channel, None, Body::Publication(publication));
            return None;
        };
        let stream = self.stream(&p.channel);
        if let Some(at) = p.idempotency_key.as_ref().and_then(|key| stream.keys.get(key)) {
            return Some(*at);
        }
        stream.top.offset += 1;
        let top = stream.top;
        publication.offset = top.offset;
        stream.publications.push(publication.clone());
        let over = stream.publications.len().saturating_sub(options.size as usize);
        stream.publications.drain(..over);
        if let Some(key) = p.idempotency_key {
            stream.keys.insert(key, top);
        }
        self.deliver(&p.channel, Some(top.epoch), Body::Publication(publication));
        Some(top)
    }

    fn history(&mut self, channel: &str, query: HistoryQuery) -> History {
        let stream = self.stream(channel);
        let since = query.since.map(|s| s.offset);
        let mut all: Vec<Publication> = stream.publications.clone();
        if query.reverse {
            all.reverse();
            all.retain(|p| since.is_none_or(|s| p.offset < s));
        } else {
            all.retain(|p| since.is_none_or(|s| p.offset > s));
        }
        all.truncate(query.limit as usize);
        History { top: stream.top, publications: all }
    }
}

impl TwinBus {
    pub fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        f: impl FnOnce(&mut State, usize) -> T + Send + 'static,
    ) -> Call<'_, T> {
        let (twin, node, mut faults) = (self.twin.clone(), self.node, self.faults.subscribe());
        Box::pin(async move {
            lock(&twin.state).calls.push(name.to_owned());
            let faults = *faults.wait_for(|f| !f.stalled).await.map_err(|_| BusError::Unavailable("gone"))?;
            if faults.down {
                return Err(BusError::Unavailable("down"));
            }
            if faults.refuses && name == "subscribe" {
                return Err(BusError::Limit("broker.max_channels"));
            }
            if faults.late && name == "subscribe" {
                tokio::spawn(async move {
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    f(&mut lock(&twin.state), node);
                });
                return Err(BusError::Unavailable("no answer in time"));
            }
            assert!(!(faults.panics && name == "publish"), "a panic that the test ordered");
            Ok(f(&mut lock(&twin.state), node))
        })
    }
}

impl Bus for TwinBus {
    fn publish(&self, publish: Publish) -> Call<'_, Published> {
        self.call("publish", move |state, _| state.publish(publish))
    }

    fn subscribe(&self, channel: String, stream: Option<StreamOptions>) -> Call<'_, Option<Position>> {
        self.call("subscribe", move |state, node| {
            state.nodes[node].interest.insert(channel.clone());
            stream.map(|_| state.stream(&channel).top)
        })
    }

    fn unsubscribe(&self, channel: String) -> Call<'_, ()> {
        self.call("unsubscribe", move |state, node| {
            state.nodes[node].interest.remove(&channel);
        })
    }

    fn history(&self, channel: String, query: HistoryQuery, _: StreamOptions) -> Call<'_, History> {
        self.call("history", move |state, _| state.history(&channel, query))
    }

    fn history_page(
        &self,
        channel: String,
        query: HistoryQuery,
        _: StreamOptions,
    ) -> Call<'_, (History, bool)> {
        self.call("history", move |state, _| (state.history(&channel, query), false))
    }

    fn history_remove(&self, channel: String) -> Call<'_, ()> {
        self.call("history_remove", move |state, _| state.stream(&channel).publications.clear())
    }

    fn join(&self, channel: String, member: Member) -> Call<'_, ()> {
        self.call("join", move |state, _| {
            let (info, announced) = (member.info.clone(), member.announced);
            let members = state.members.entry(channel.clone()).or_default();
            if members.insert(info.client.clone(), member).is_none() && announced {
                state.deliver(&channel, None, Body::Join(info));
            }
        })
    }

    fn leave(&self, channel: String, client: String) -> Call<'_, ()> {
        self.call("leave", move |state, _| {
            let member = state.members.get_mut(&channel).and_then(|m| m.remove(&client));
            if let Some(member) = member.filter(|m| m.announced) {
                state.deliver(&channel, None, Body::Leave(member.info));
            }
        })
    }

    fn presence(&self, channel: String) -> Call<'_, Vec<Member>> {
        self.call("presence", move |state, _| {
            let members = state.members.get(&channel);
            members.into_iter().flat_map(|m| m.values().filter(|m| m.listed).cloned()).collect()
        })
    }

    fn presence_stats(&self, channel: String) -> Call<'_, PresenceStats> {
        self.call("presence_stats", move |state, _| {
            let members: Vec<&Member> =
                state.members.get(&channel).into_iter().flat_map(|m| m.values()).collect();
            let users: HashSet<&str> = members.iter().map(|m| m.info.user.as_str()).collect();
            PresenceStats { clients: members.len() as u32, users: users.len() as u32 }
        })
    }

    fn control(&self, command: Control) -> Call<'_, ()> {
        self.call("control", move |state, _| {
            state.nodes.iter().for_each(|n| n.send(Event::Control(command.clone())));
        })
    }

    fn survey(&self, question: Question) -> Call<'_, Survey> {
        let asked = self.call("survey", move |state, _| {
            let (answer, all) = oneshot::channel();
            let id = state.surveys.len() as u64 + 1;
            let missing = state.nodes.iter().map(|n| n.id).collect();
            state.surveys.insert(id, (Survey { answers: vec![], missing }, answer));
            state.nodes.iter().for_each(|n| n.send(Event::Survey { id, question: question.clone() }));
            all
        });
        Box::pin(async move { asked.await?.await.map_err(|_| BusError::Unavailable("no answers")) })
    }

    fn answer(&self, survey: u64, answer: Answer) -> Call<'_, ()> {
        self.call("answer", move |state, node| {
            let id = state.nodes[node].id;
            let Some((mut all, done)) = state.surveys.remove(&survey) else { return };
            all.answers.push((id, answer));
            all.missing.retain(|n| *n != id);
            if all.missing.is_empty() {
                let _ = done.send(all);
            } else {
                state.surveys.insert(survey, (all, done));
            }
        })
    }

    fn is_up(&self) -> bool {
        !self.faults.borrow().down
    }
}
