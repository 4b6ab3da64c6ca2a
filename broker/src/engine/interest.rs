//! Who wants what is delivered in a shard's channels: nodes of this broker by their places, and
//! other brokers for theirs. Not part of the shard's state: nodes tell it anew wherever they attach.
//!
//! What a node asked for is noted before the answer comes, which may be that it is refused, or none. Such attempts are
//! numbered: whatever was noted is taken back when the last of them has ended and none of them succeeded, unless the
//! node gave it up itself meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use weir_wire::id::BrokerId;

/// A place for an attached node; its number is used again when the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub u16);

#[derive(Debug, Default)]
pub struct Interest {
    channels: HashMap<Arc<str>, Who>,
    /// Those without an answer, by channels.
    attempts: HashMap<Arc<str>, Vec<Attempts>>,
    numbers: u64,
}

/// One node's to subscribe to one channel.
#[derive(Debug)]
struct Attempts {
    slot: Slot,
    /// The number of the first one: earlier ones were given up.
    first: u64,
    open: usize,
    /// One has succeeded, or the node was subscribed before.
    held: bool,
}

/// A table gives back its room when no more than this part of it is in use.
const SPARSE: usize = 8;

#[derive(Debug, Default)]
pub struct Who {
    pub nodes: Vec<Slot>,
    /// Asked for by them; known to a shard's owner alone.
    pub brokers: Vec<BrokerId>,
}

impl Interest {
    pub fn get(&self, channel: &str) -> Option<&Who> {
        self.channels.get(channel)
    }

    pub fn has(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
    }

    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// `name` is the channel's shared one, if it has one elsewhere. Returns it if this is new.
    pub fn add(&mut self, slot: Slot, channel: &str, name: Option<Arc<str>>) -> Option<Arc<str>> {
        let (key, who) = self.entry(channel, name);
        if who.nodes.contains(&slot) {
            return None;
        }
        who.nodes.push(slot);
        Some(key)
    }

    /// The same for an attempt that is answered later: with its number, for [`Interest::end`].
    pub fn begin(&mut self, slot: Slot, channel: &str, name: Option<Arc<str>>) -> (u64, Option<Arc<str>>) {
        let (key, _) = self.entry(channel, name);
        let new = self.add(slot, channel, None);
        self.numbers += 1;
        let all = self.attempts.entry(key).or_default();
        match all.iter_mut().find(|a| a.slot == slot) {
            Some(attempts) => attempts.open += 1,
            None => all.push(Attempts { slot, first: self.numbers, open: 1, held: new.is_none() }),
        }
        (self.numbers, new)
    }

    /// An attempt was answered, or given up. `Some`: it is taken back what it noted; true: no node of this broker is
    /// interested any more.
    pub fn end(&mut self, slot: Slot, channel: &str, number: u64, subscribed: bool) -> Option<bool> {
        let all = self.attempts.get_mut(channel)?;
        let attempts = all.iter_mut().find(|a| a.slot == slot && a.first <= number)?;
        attempts.held |= subscribed;
        attempts.open -= 1;
        if attempts.open > 0 {
            return None;
        }
        let held = attempts.held;
        self.forget_attempts(slot, channel);
        (!held).then(|| self.remove(slot, channel))
    }

    /// Subscribed by an answer that came at once: attempts that are still open take nothing back.
    pub fn hold(&mut self, slot: Slot, channel: &str) {
        let all = self.attempts.get_mut(channel).into_iter().flatten();
        all.filter(|a| a.slot == slot).for_each(|a| a.held = true);
    }

    fn forget_attempts(&mut self, slot: Slot, channel: &str) {
        let Some(all) = self.attempts.get_mut(channel) else { return };
        all.retain(|a| a.slot != slot);
        if all.is_empty() {
            self.attempts.remove(channel);
            shrink(&mut self.attempts);
        }
    }

    /// Whether no node of this broker is interested any more.
    pub fn remove(&mut self, slot: Slot, channel: &str) -> bool {
        self.forget_attempts(slot, channel);
        let Some(who) = self.channels.get_mut(channel) else { return true };
        who.nodes.retain(|s| *s != slot);
        let last = who.nodes.is_empty();
        self.tidy(channel);
        last
    }

    /// Whether this is new.
    pub fn add_broker(&mut self, broker: BrokerId, channel: &str, name: Option<Arc<str>>) -> bool {
        let (_, who) = self.entry(channel, name);
        let new = !who.brokers.contains(&broker);
        if new {
            who.brokers.push(broker);
        }
        new
    }

    pub fn remove_broker(&mut self, broker: BrokerId, channel: &str) {
        if let Some(who) = self.channels.get_mut(channel) {
            who.brokers.retain(|b| *b != broker);
            self.tidy(channel);
        }
    }

    /// Takes out other brokers, all or one of them.
    pub fn forget_brokers(&mut self, which: Option<BrokerId>) {
        self.channels.retain(|_, who| {
            who.brokers.retain(|b| which.is_some_and(|which| which != *b));
            !(who.nodes.is_empty() && who.brokers.is_empty())
        });
        shrink(&mut self.channels);
    }

    /// Channels that nodes of this broker want.
    pub fn wanted_here(&self) -> Vec<String> {
        let here = self.channels.iter().filter(|(_, who)| !who.nodes.is_empty());
        here.map(|(channel, _)| channel.to_string()).collect()
    }

    /// Channels that another broker wants.
    pub fn wanted_by(&self, broker: BrokerId) -> Vec<Arc<str>> {
        let its = self.channels.iter().filter(|(_, who)| who.brokers.contains(&broker));
        its.map(|(channel, _)| channel.clone()).collect()
    }

    /// Those that want something.
    pub fn brokers(&self) -> impl Iterator<Item = BrokerId> {
        self.channels.values().flat_map(|who| who.brokers.iter().copied())
    }

    fn entry(&mut self, channel: &str, name: Option<Arc<str>>) -> (Arc<str>, &mut Who) {
        let known = self.channels.get_key_value(channel).map(|(key, _)| key.clone());
        let key = known.or(name).unwrap_or_else(|| channel.into());
        (key.clone(), self.channels.entry(key).or_default())
    }

    fn tidy(&mut self, channel: &str) {
        if self.channels.get(channel).is_some_and(|w| w.nodes.is_empty() && w.brokers.is_empty()) {
            self.channels.remove(channel);
            shrink(&mut self.channels);
        }
    }
}

fn shrink<V>(table: &mut HashMap<Arc<str>, V>) {
    if table.len() * SPARSE < table.capacity() {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_before_an_answer_goes_with_it_unless_another_attempt_is_under_way() {
        let slot = Slot(1);
        let fresh = || {
            let mut interest = Interest::default();
            let first = interest.begin(slot, "c", None);
            assert!(first.1.is_some() && interest.has("c"));
            (interest, first.0)
        };
        let empty = |i: &Interest| i.len() == 0 && i.attempts.is_empty();
        // Refused, or no answer.
        let (mut i, one) = fresh();
        assert!(i.end(slot, "c", one, false) == Some(true) && empty(&i));
        // Subscribed; a later attempt that fails takes away nothing.
        let (mut i, one) = fresh();
        assert!(i.end(slot, "c", one, true).is_none() && i.attempts.is_empty());
        let (two, new) = i.begin(slot, "c", None);
        assert!(new.is_none() && i.end(slot, "c", two, false).is_none() && i.has("c"));
        // Two at once: the later answer decides, and one success is enough.
        for answers in [[false, false], [true, false], [false, true]] {
            for turned in [false, true] {
                let (mut i, one) = fresh();
                let (two, _) = i.begin(slot, "c", None);
                let (first, last) = if turned { ((two, 1), (one, 0)) } else { ((one, 0), (two, 1)) };
                assert!(i.end(slot, "c", first.0, answers[first.1]).is_none() && i.has("c"));
                i.end(slot, "c", last.0, answers[last.1]);
                assert_eq!(i.has("c"), answers.contains(&true), "{answers:?} {turned}");
                assert!(i.attempts.is_empty());
            }
        }
        // Given up and asked for anew: the answer to the first one comes late, and says nothing of the second.
        for late in [false, true] {
            let (mut i, one) = fresh();
            assert!(i.remove(slot, "c") && empty(&i));
            let (two, new) = i.begin(slot, "c", None);
            assert!(new.is_some() && i.end(slot, "c", one, late).is_none() && i.has("c"));
            assert!(i.end(slot, "c", two, false) == Some(true) && empty(&i), "{late}");
        }
        // An answer that came at once meanwhile holds.
        let (mut i, one) = fresh();
        i.hold(slot, "c");
        assert!(i.end(slot, "c", one, false).is_none() && i.has("c"));
        // Another node's stays.
        let (mut i, one) = fresh();
        i.add(Slot(2), "c", None);
        assert!(i.end(slot, "c", one, false) == Some(false) && i.has("c"));
    }

    #[test]
    fn tables_give_back_their_room() {
        let mut interest = Interest::default();
        for n in 0..10_000 {
            interest.begin(Slot(1), &n.to_string(), None);
        }
        for n in 0..10_000 {
            interest.remove(Slot(1), &n.to_string());
        }
        assert!(interest.channels.capacity() < 64 && interest.attempts.capacity() < 64);
    }

    #[test]
    fn interest_comes_and_goes_without_a_trace() {
        let (mut interest, a, b) = (Interest::default(), Slot(1), Slot(2));
        assert_eq!(interest.add(a, "c", None).as_deref(), Some("c"));
        assert_eq!(interest.add(a, "c", None), None, "idempotent");
        assert!(interest.add(b, "c", None).is_some());
        interest.add_broker(BrokerId(7), "c", None);
        interest.add_broker(BrokerId(7), "d", None);
        interest.add_broker(BrokerId(8), "d", None);
        assert!(!interest.remove(a, "c") && interest.remove(b, "c") && interest.has("c"));
        interest.forget_brokers(Some(BrokerId(7)));
        assert!(!interest.has("c") && interest.get("d").is_some_and(|w| w.brokers == [BrokerId(8)]));
        interest.remove_broker(BrokerId(8), "d");
        assert!(interest.len() == 0 && interest.remove(a, "x"));
    }
}
