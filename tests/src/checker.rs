//! Reads what publishers were told and what subscribers saw, and says which promises were broken.
//!
//! Logs may come from several processes: of one publisher, and of one subscriber, the lines must be in order.
//! First every event goes in, then the verdict is asked for.

pub mod event;
pub mod fault;
mod figures;
mod subscriber;
#[cfg(test)]
mod tests;

use event::Event;
use fault::{Fault, Faults};
use figures::Figures;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader};
use std::path::Path;
use subscriber::Cursor;

/// The epoch of what has no place in a stream.
const LIVE: &str = "live";

/// What may be in this run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// All copies may be gone at once, and are only in memory: an epoch may end, if everyone is told.
    pub epochs_may_end: bool,
    /// History is smaller than what was published: what is older than its first is not looked for.
    pub window: bool,
}

#[derive(Default)]
pub struct Checker {
    rules: Rules,
    pubs: HashMap<String, Published>,
    /// Ids per (publisher, channel), in the order in which they were begun.
    programs: BTreeMap<(String, String), Vec<String>>,
    channels: BTreeMap<String, Channel>,
    cursors: HashMap<String, BTreeMap<String, Cursor>>,
    gone: BTreeSet<String>,
    looks: Vec<Look>,
    presence: BTreeMap<String, Vec<String>>,
    faults: Faults,
    figures: Figures,
}

/// A look at history.
struct Look {
    t: u64,
    channel: String,
    epoch: String,
    top: u64,
    pubs: Vec<(u64, String)>,
}

struct Published {
    channel: String,
    /// As acknowledged first.
    acked: Option<Place>,
    nacks: u32,
    unknown: u32,
    /// Where it was seen, by anybody.
    seen: Option<Place>,
}

#[derive(Clone, Debug, PartialEq)]
struct Place {
    epoch: String,
    offset: u64,
}

#[derive(Default)]
struct Channel {
    /// Epoch → offset → id, by whoever saw it.
    data: HashMap<String, BTreeMap<u64, String>>,
    /// The last that was read: epoch, top, offset → id.
    history: Option<(String, u64, BTreeMap<u64, String>)>,
}

impl Checker {
    pub fn new(rules: Rules) -> Checker {
        Checker { rules, ..Checker::default() }
    }

    /// A log in JSON lines. The last line may be torn: a process was killed.
    pub fn read(&mut self, path: &Path) -> Result<(), String> {
        let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut lines = BufReader::new(file).lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let at = |e: String| format!("{}:{}: {e}", path.display(), number + 1);
            let line = line.map_err(|e| at(e.to_string()))?;
            match serde_json::from_str(&line) {
                Ok(event) => self.take(event),
                Err(_) if lines.peek().is_none() => {}
                Err(error) => return Err(at(error.to_string())),
            }
        }
        Ok(())
    }

    pub fn take(&mut self, event: Event) {
        self.figures.take(&event);
        match event {
            Event::Pub { id, ch, by, .. } => self.begun(id, ch, by),
            // Told that it went out to whoever is there, and is not kept: it may arrive, or not.
            Event::Ack { id, off: 0, .. } => self.told(&id, |p| p.unknown += 1),
            Event::Ack { id, ep, off, .. } => self.acked(&id, Place { epoch: ep, offset: off }),
            Event::Nack { id, .. } => self.told(&id, |p| p.nacks += 1),
            Event::Unknown { id, .. } => self.told(&id, |p| p.unknown += 1),
            Event::Sub { c, ch, ep, off, was, recovered, .. } => {
                let at = Place { epoch: ep, offset: off };
                self.subscribed(&c, &ch, at, was && recovered);
            }
            Event::Msg { c, ch, off, id, .. } => self.delivered(&c, &ch, off, id),
            Event::Gone { c, .. } => {
                self.gone.insert(c);
            }
            Event::Hist { t, ch, ep, off, pubs } => {
                self.looks.push(Look { t, channel: ch, epoch: ep, top: off, pubs });
            }
            Event::Presence { ch, users, .. } => {
                self.presence.insert(ch, users);
            }
            Event::Mark { .. } => {}
        }
    }

    fn begun(&mut self, id: String, channel: String, by: String) {
        self.programs.entry((by, channel.clone())).or_default().push(id.clone());
        let published = self.published(&id);
        published.channel = channel;
    }

    /// Logs may name an id before the one of its publisher is read.
    fn published(&mut self, id: &str) -> &mut Published {
        if !self.pubs.contains_key(id) {
            let new = Published { channel: String::new(), acked: None, nacks: 0, unknown: 0, seen: None };
            self.pubs.insert(id.to_owned(), new);
        }
        self.pubs.get_mut(id).expect("just put there")
    }

    fn told(&mut self, id: &str, note: impl FnOnce(&mut Published)) {
        note(self.published(id));
    }

    fn acked(&mut self, id: &str, place: Place) {
        let published = self.published(id);
        match &published.acked {
            None => published.acked = Some(place),
            Some(first) if *first == place => {}
            Some(first) => {
                let other_epoch = first.epoch != place.epoch;
                let text = format!("{id}: first {first:?}, then {place:?}");
                let fault = if other_epoch { Fault::TwiceAcrossEpochs } else { Fault::Moved };
                self.faults.add(fault, || text);
            }
        }
    }

    /// Somebody says that this is what stands there.
    fn place(&mut self, channel: &str, place: &Place, id: &str) {
        let data = &mut self.channels.entry(channel.to_owned()).or_default().data;
        let epoch = match data.get_mut(&place.epoch) {
            Some(epoch) => epoch,
            None => data.entry(place.epoch.clone()).or_default(),
        };
        match epoch.get(&place.offset) {
            Some(known) if known == id => return,
            Some(known) => {
                return self.faults.add(Fault::Split, || format!("{channel} {place:?}: {known} and {id}"));
            }
            None => epoch.insert(place.offset, id.to_owned()),
        };
        let published = self.published(id);
        match &published.seen {
            None => published.seen = Some(place.clone()),
            Some(seen) => {
                if [&seen.epoch, &place.epoch].contains(&&LIVE.to_owned()) {
                    // A repeat that went out live, while an attempt before it was kept on the other side of a cut.
                    self.figures.live_and_kept += 1;
                    return;
                }
                let across = seen.epoch != place.epoch;
                let text = format!("{id} in {channel}: at {seen:?} and {place:?}");
                let fault = if across { Fault::TwiceAcrossEpochs } else { Fault::Twice };
                self.faults.add(fault, || text);
            }
        }
    }

    fn subscribed(&mut self, client: &str, channel: &str, at: Place, recovered: bool) {
        let cursors = self.cursors.entry(client.to_owned()).or_default();
        match cursors.get_mut(channel) {
            Some(cursor) if recovered => {
                if let Some(fault) = cursor.recovered(&at) {
                    self.faults.add(fault, || format!("{client} in {channel}: {cursor:?}, told {at:?}"));
                }
            }
            Some(cursor) => {
                self.figures.resets += 1;
                if cursor.place.epoch == at.epoch && at.offset < cursor.place.offset {
                    self.faults.add(Fault::TopWentBack, || {
                        format!("{client} in {channel}: {cursor:?}, told {at:?}")
                    });
                }
                *cursor = Cursor::at(at);
            }
            None => {
                cursors.insert(channel.to_owned(), Cursor::at(at));
            }
        }
    }

    fn delivered(&mut self, client: &str, channel: &str, offset: u64, id: String) {
        if offset == 0 {
            let live = Place { epoch: LIVE.to_owned(), offset: self.figures.next_live() };
            let published = self.published(&id);
            if published.seen.is_none() {
                self.place(channel, &live, &id);
            }
            return;
        }
        let Some(cursor) = self.cursors.get_mut(client).and_then(|c| c.get_mut(channel)) else {
            return self.faults.add(Fault::Stray, || format!("{client} in {channel}: {offset} {id}"));
        };
        let before = cursor.place.offset;
        if let Some(fault) = cursor.delivered(offset) {
            self.faults.add(fault, || format!("{client} in {channel}: at {before} it got {offset} ({id})"));
        }
        let place = Place { epoch: cursor.place.epoch.clone(), offset };
        self.place(channel, &place, &id);
    }

    fn history(&mut self, channel: &str, epoch: String, top: u64, pubs: Vec<(u64, String)>) {
        for (offset, id) in &pubs {
            self.place(channel, &Place { epoch: epoch.clone(), offset: *offset }, id);
        }
        let pubs: BTreeMap<_, _> = pubs.into_iter().collect();
        let first = pubs.first_key_value().map_or(top + 1, |(first, _)| *first);
        if (first..=top).any(|offset| !pubs.contains_key(&offset)) {
            self.faults.add(Fault::Hole, || format!("{channel}: {} of {first}..={top}", pubs.len()));
        }
        let known = self.channels.entry(channel.to_owned()).or_default();
        if let Some((before, was, _)) = known.history.as_ref().filter(|(e, was, _)| *e == epoch && *was > top)
        {
            self.faults.add(Fault::TopWentBack, || {
                format!("{channel}: history of {before} was at {was}, is at {top}")
            });
        }
        known.history = Some((epoch, top, pubs));
    }

    /// The end: what only the whole can tell.
    pub fn verdict(mut self) -> Verdict {
        self.figures.complete();
        let mut looks = std::mem::take(&mut self.looks);
        looks.sort_by_key(|look| look.t);
        looks.into_iter().for_each(|l| self.history(&l.channel, l.epoch, l.top, l.pubs));
        self.place_what_was_acked();
        self.look_for_what_was_acked();
        self.look_at_programs();
        self.look_for_phantoms();
        self.look_at_subscribers();
        self.look_at_presence();
        let told: Vec<_> = self.pubs.values().filter(|p| !p.channel.is_empty()).collect();
        let acked = told.iter().filter(|p| p.acked.is_some()).count();
        let open = told.iter().filter(|p| p.acked.is_none() && p.unknown > 0).count();
        let epochs: usize =
            self.channels.values().map(|c| c.data.keys().filter(|e| *e != LIVE).count()).sum();
        let counts = json!({
            "published": told.len(), "acked": acked, "unknown": open, "refused": told.len() - acked - open,
            "channels": self.channels.len(), "subscribers": self.cursors.len(), "epochs": epochs,
        });
        Verdict {
            right: self.faults.none(self.rules.epochs_may_end),
            faults: self.faults,
            counts,
            figures: self.figures,
        }
    }

    /// An acknowledgement says, too, what stands where; only now is each one's channel known.
    fn place_what_was_acked(&mut self) {
        let acked = |(id, p): (&String, &Published)| Some((id.clone(), p.channel.clone(), p.acked.clone()?));
        let all: Vec<_> = self.pubs.iter().filter_map(acked).collect();
        for (id, channel, place) in all {
            self.place(&channel, &place, &id);
        }
    }

    fn look_for_what_was_acked(&mut self) {
        for (id, published) in &self.pubs {
            let (Some(place), Some(channel)) = (&published.acked, self.channels.get(&published.channel))
            else {
                continue;
            };
            let Some((epoch, top, pubs)) = &channel.history else { continue };
            let text = || {
                format!(
                    "{id} in {}: acknowledged at {place:?}; the top is {top} of {epoch}",
                    published.channel
                )
            };
            if place.epoch != *epoch {
                self.faults.add(Fault::LostWithEpoch, text);
                continue;
            }
            let first = pubs.first_key_value().map_or(top + 1, |(first, _)| *first);
            let older = self.rules.window && place.offset < first && place.offset <= *top;
            if !older && pubs.get(&place.offset) != Some(id) {
                self.faults.add(Fault::Lost, text);
            }
        }
    }

    fn look_at_programs(&mut self) {
        for ((by, channel), ids) in &self.programs {
            let mut last: Option<(&String, &Place)> = None;
            for id in ids {
                let Some(place) = self.pubs.get(id).and_then(|p| p.acked.as_ref()) else { continue };
                if let Some((before, at)) =
                    last.filter(|(_, at)| at.epoch == place.epoch && at.offset >= place.offset)
                {
                    self.faults.add(Fault::AckOrder, || {
                        format!("{by} in {channel}: {before} at {at:?}, then {id} at {place:?}")
                    });
                }
                last = Some((id, place));
            }
        }
    }

    fn look_for_phantoms(&mut self) {
        for (channel, known) in &self.channels {
            for (offset, id) in known.data.values().flatten() {
                let text = || format!("{channel}: {id} at {offset}");
                match self.pubs.get(id).filter(|p| p.channel == *channel) {
                    None => self.faults.add(Fault::Phantom, text),
                    Some(p) if p.acked.is_none() && p.unknown == 0 && p.nacks > 0 => {
                        self.faults.add(Fault::Refused, text)
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn look_at_subscribers(&mut self) {
        for (client, cursors) in self.cursors.iter().filter(|(c, _)| !self.gone.contains(*c)) {
            for (channel, cursor) in cursors {
                let Some((epoch, top, _)) = self.channels.get(channel).and_then(|c| c.history.as_ref())
                else {
                    continue;
                };
                if cursor.place.epoch != *epoch || cursor.place.offset != *top {
                    self.faults.add(Fault::Behind, || {
                        format!("{client} in {channel}: at {:?}; the top is {top} of {epoch}", cursor.place)
                    });
                }
            }
        }
    }

    fn look_at_presence(&mut self) {
        for (channel, users) in &self.presence {
            let mut there: BTreeMap<&str, u32> = BTreeMap::new();
            for user in users {
                *there.entry(user).or_default() += 1;
            }
            for (client, _) in
                self.cursors.iter().filter(|(c, chs)| chs.contains_key(channel) && !self.gone.contains(*c))
            {
                match there.remove(client.as_str()) {
                    Some(1) => {}
                    Some(n) => self.faults.add(Fault::Ghost, || format!("{client} in {channel}: {n} times")),
                    None => self.faults.add(Fault::Absent, || format!("{client} in {channel}")),
                }
            }
            for client in there.keys() {
                self.faults.add(Fault::Ghost, || format!("{client} in {channel}"));
            }
        }
    }
}

pub struct Verdict {
    pub right: bool,
    pub faults: Faults,
    pub counts: Value,
    pub figures: Figures,
}

impl Verdict {
    pub fn json(&self) -> Value {
        json!({
            "right": self.right, "faults": self.faults.counts(), "examples": self.faults.examples(),
            "counts": self.counts, "figures": self.figures.json(),
        })
    }
}
