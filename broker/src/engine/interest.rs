//! Who wants what is delivered in a shard's channels: nodes of this broker by their places, and
//! other brokers for theirs. Not part of the shard's state: nodes tell it anew wherever they attach.

use std::collections::HashMap;
use std::sync::Arc;
use weir_wire::id::BrokerId;

/// A place for an attached node; its number is used again when the node is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub u16);

#[derive(Debug, Default)]
pub struct Interest {
    channels: HashMap<Arc<str>, Who>,
}

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

    /// Whether no node of this broker is interested any more.
    pub fn remove(&mut self, slot: Slot, channel: &str) -> bool {
        let Some(who) = self.channels.get_mut(channel) else { return true };
        who.nodes.retain(|s| *s != slot);
        let last = who.nodes.is_empty();
        self.tidy(channel);
        last
    }

    pub fn add_broker(&mut self, broker: BrokerId, channel: &str, name: Option<Arc<str>>) {
        let (_, who) = self.entry(channel, name);
        if !who.brokers.contains(&broker) {
            who.brokers.push(broker);
        }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
