//! What this node holds at the broker, kept on its own side: pure bookkeeping.
//!
//! A member is *told* once the broker has acknowledged it. Members that were told are restored
//! quietly; those that were not yet are joined, so that their coming is announced. Members that
//! left without the broker's acknowledgement are remembered until it has it.

use std::collections::HashMap;
use weir_wire::envelope::{Member, StreamOptions};
use weir_wire::peer::{CHUNK_SIZE, Op, Outcome, Restore};

/// Channel and client.
type Key = (String, String);

#[derive(Default)]
pub struct Mirror {
    interest: HashMap<String, Option<StreamOptions>>,
    /// Subscribes under way, by channel; taken away by an unsubscribe.
    subscribing: HashMap<String, Attempts>,
    members: HashMap<Key, Held>,
    /// With the request that tells it, if there is one under way.
    departed: HashMap<Key, Option<u64>>,
    /// The members were taken for gone, and announced as such.
    void: bool,
}

#[derive(Default)]
struct Attempts {
    last: u64,
    /// The caller of an earlier one did not wait for the answer.
    given_up: bool,
}

struct Held {
    member: Member,
    told: Told,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Yes,
    By(u64),
    No,
}

/// A call that changes what is held.
pub enum Change {
    Subscribe(String, Option<StreamOptions>),
    Unsubscribe(String),
    Join(Key, Member),
    Leave(Key),
}

/// What is to be done when a call's outcome is known.
pub enum Effect {
    Subscribe(String, Option<StreamOptions>),
    Join(Key),
    Leave(Key),
}

impl Change {
    pub fn of(op: &Op) -> Option<Change> {
        Some(match op {
            Op::Subscribe { channel, stream } => Change::Subscribe(channel.clone(), *stream),
            Op::Unsubscribe { channel } => Change::Unsubscribe(channel.clone()),
            Op::Join { channel, member } => {
                Change::Join((channel.clone(), member.info.client.clone()), member.clone())
            }
            Op::Leave { channel, client } => Change::Leave((channel.clone(), client.clone())),
            _ => return None,
        })
    }

    pub fn gives_up(&self) -> bool {
        matches!(self, Change::Unsubscribe(_) | Change::Leave(_))
    }
}

impl Mirror {
    /// Without a link. False: this cannot be done without one.
    pub fn apply_unlinked(&mut self, change: Change) -> bool {
        match change {
            Change::Subscribe(..) => return false,
            Change::Unsubscribe(channel) => {
                self.interest.remove(&channel);
            }
            Change::Join(key, member) => {
                self.departed.remove(&key);
                // The broker has one that was told: restoring it replaces it, and nobody came or left.
                let told = self.members.get(&key).is_some_and(|held| held.told == Told::Yes);
                let told = if told { Told::Yes } else { Told::No };
                self.members.insert(key, Held { member, told });
            }
            Change::Leave(key) => {
                // Of one that was not here there is nothing to tell.
                if self.members.remove(&key).is_some() {
                    self.departed.insert(key, None);
                }
            }
        }
        true
    }

    /// Sent to the broker as request `id`.
    pub fn apply(&mut self, change: Change, id: u64) -> Option<Effect> {
        match change {
            Change::Subscribe(channel, stream) => {
                let attempts = self.subscribing.entry(channel.clone()).or_default();
                attempts.last = id;
                Some(Effect::Subscribe(channel, stream))
            }
            Change::Unsubscribe(channel) => {
                self.interest.remove(&channel);
                shrink(&mut self.interest);
                self.subscribing.remove(&channel);
                None
            }
            Change::Join(key, member) => {
                self.departed.remove(&key);
                self.members.insert(key.clone(), Held { member, told: Told::By(id) });
                Some(Effect::Join(key))
            }
            Change::Leave(key) => {
                self.members.remove(&key);
                self.departed.insert(key.clone(), Some(id));
                Some(Effect::Leave(key))
            }
        }
    }

    /// The broker answered. Returns what undoes what it may have done otherwise.
    pub fn done(&mut self, effect: &Effect, id: u64, outcome: &Outcome) -> Option<Op> {
        match effect {
            Effect::Subscribe(channel, stream) => {
                let wanted = self.subscribing.contains_key(channel);
                let ended = self.end_subscribing(channel, id);
                if wanted && matches!(outcome, Outcome::Subscribed(_)) {
                    self.interest.insert(channel.clone(), *stream);
                }
                // The answer to one that was given up may have been that it is subscribed.
                return self.undo(channel, ended.filter(|attempts| attempts.given_up));
            }
            Effect::Join(key) => match self.members.get_mut(key) {
                Some(held) if held.told != Told::By(id) => {}
                Some(held) if *outcome == Outcome::Done => held.told = Told::Yes,
                _ => {
                    self.members.remove(key);
                }
            },
            Effect::Leave(key) => {
                if self.departed.get(key) == Some(&Some(id)) {
                    self.departed.remove(key);
                }
            }
        }
        None
    }

    /// The caller gave up while the link lives. Returns what undoes the request.
    pub fn unknown(&mut self, effect: &Effect, id: u64) -> Option<Op> {
        match effect {
            Effect::Subscribe(channel, _) => {
                let ended = self.end_subscribing(channel, id);
                if let Some(later) = self.subscribing.get_mut(channel) {
                    later.given_up = true;
                }
                self.undo(channel, ended)
            }
            Effect::Join(key) => {
                let mine = self.members.get(key).is_some_and(|held| held.told == Told::By(id));
                mine.then(|| Op::Leave { channel: key.0.clone(), client: key.1.clone() })
            }
            // Told; only whether it was heard is open, and the link's end would show.
            Effect::Leave(_) => None,
        }
    }

    /// The link broke before the answer, and with it went the broker's interest. The caller of a
    /// join is told that it failed, so it must not be restored.
    pub fn cut(&mut self, effect: &Effect, id: u64) {
        match effect {
            Effect::Subscribe(channel, _) => {
                self.end_subscribing(channel, id);
            }
            Effect::Join(key) => {
                if self.members.get(key).is_some_and(|held| held.told == Told::By(id)) {
                    self.members.remove(key);
                    self.departed.insert(key.clone(), None);
                }
            }
            Effect::Leave(_) => {}
        }
    }

    /// Those under way, if this was the last of them.
    fn end_subscribing(&mut self, channel: &str, id: u64) -> Option<Attempts> {
        self.subscribing.get(channel).filter(|attempts| attempts.last == id)?;
        let ended = self.subscribing.remove(channel);
        shrink(&mut self.subscribing);
        ended
    }

    fn undo(&self, channel: &str, ended: Option<Attempts>) -> Option<Op> {
        let unwanted = ended.is_some() && !self.interest.contains_key(channel);
        unwanted.then(|| Op::Unsubscribe { channel: channel.to_owned() })
    }

    /// What a new link begins with.
    pub fn restores(&self) -> Vec<Restore> {
        let mut chunks = Chunks::default();
        for (channel, stream) in &self.interest {
            chunks.of_size(channel.len() + 32).interest.push((channel.clone(), *stream));
        }
        for ((channel, _), held) in self.members.iter().filter(|(_, held)| held.told == Told::Yes) {
            let info = &held.member.info;
            let size = channel.len() + info.user.len() + info.client.len();
            let size = size + info.conn_info.len() + info.chan_info.len() + 32;
            chunks.of_size(size).members.push((channel.clone(), held.member.clone()));
        }
        chunks.all.iter_mut().for_each(|restore| restore.void = self.void);
        chunks.all
    }

    /// The broker says that what this node holds was dropped.
    pub fn void(&mut self) {
        self.void = true;
    }

    /// What a new link began with has come to the broker.
    pub fn restored(&mut self) {
        self.void = false;
    }

    /// What the broker has to hear after that.
    pub fn untold(&self) -> Vec<Op> {
        let joins = self.members.iter().filter(|(_, held)| held.told != Told::Yes);
        let joins = joins
            .map(|((channel, _), held)| Op::Join { channel: channel.clone(), member: held.member.clone() });
        let leaves = self.departed.keys();
        let leaves =
            leaves.map(|(channel, client)| Op::Leave { channel: channel.clone(), client: client.clone() });
        leaves.chain(joins).collect()
    }
}

/// A table gives back its room when no more than this part of it is in use.
const SPARSE: usize = 8;

fn shrink<V>(table: &mut HashMap<String, V>) {
    if table.len() * SPARSE < table.capacity() {
        table.shrink_to(2 * table.len());
    }
}

#[derive(Default)]
struct Chunks {
    all: Vec<Restore>,
    size: usize,
}

impl Chunks {
    /// The chunk for an entry of this size.
    fn of_size(&mut self, size: usize) -> &mut Restore {
        self.size += size;
        if self.all.is_empty() || self.size > CHUNK_SIZE {
            self.all.push(Restore::default());
            self.size = size;
        }
        let last = self.all.len() - 1;
        &mut self.all[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_wire::envelope::ClientInfo;

    fn member(client: &str) -> Member {
        let info = ClientInfo { client: client.into(), ..ClientInfo::default() };
        Member { info, listed: true, announced: true }
    }

    fn join(client: &str) -> Change {
        Change::Join(("c".into(), client.into()), member(client))
    }

    fn leave(client: &str) -> Change {
        Change::Leave(("c".into(), client.into()))
    }

    fn interest(mirror: &Mirror) -> Vec<String> {
        mirror.restores().into_iter().flat_map(|r| r.interest).map(|(channel, _)| channel).collect()
    }

    #[test]
    fn interest_is_held_from_the_answer_to_the_unsubscribe() {
        let (mut m, yes) = (Mirror::default(), Outcome::Subscribed(None));
        let one = m.apply(Change::Subscribe("a".into(), None), 1).unwrap();
        assert!(interest(&m).is_empty());
        m.done(&one, 1, &yes);
        assert_eq!(interest(&m), ["a"]);
        let two = m.apply(Change::Subscribe("b".into(), None), 2).unwrap();
        m.apply(Change::Unsubscribe("b".into()), 3);
        m.done(&two, 2, &yes);
        assert_eq!(interest(&m), ["a"], "unsubscribed before the answer came");
        let four = m.apply(Change::Subscribe("d".into(), None), 4).unwrap();
        assert!(matches!(m.unknown(&four, 4), Some(Op::Unsubscribe { channel }) if channel == "d"));
        let again = m.apply(Change::Subscribe("a".into(), None), 5).unwrap();
        assert!(m.unknown(&again, 5).is_none(), "was held before");
        assert!(!m.apply_unlinked(Change::Subscribe("e".into(), None)));
    }

    #[test]
    fn of_several_subscribes_the_last_one_undoes_what_an_earlier_one_may_have_done() {
        let (yes, no) = (Outcome::Subscribed(None), Outcome::Limit("x".into()));
        let two = |m: &mut Mirror| [1, 2].map(|id| m.apply(Change::Subscribe("a".into(), None), id).unwrap());
        for given_up in [false, true] {
            let mut m = Mirror::default();
            let [one, last] = two(&mut m);
            match given_up {
                true => assert!(m.unknown(&one, 1).is_none(), "the other one is under way"),
                false => assert!(m.done(&one, 1, &no).is_none()),
            }
            assert_eq!(m.done(&last, 2, &no).is_some(), given_up);
            assert!(interest(&m).is_empty() && m.subscribing.is_empty());
        }
        let mut m = Mirror::default();
        let [one, last] = two(&mut m);
        assert!(m.unknown(&one, 1).is_none() && m.done(&last, 2, &yes).is_none());
        assert_eq!(interest(&m), ["a"]);
    }

    #[test]
    fn a_told_member_is_restored_quietly_and_others_join() {
        let mut m = Mirror::default();
        let told = m.apply(join("told"), 1).unwrap();
        m.done(&told, 1, &Outcome::Done);
        assert!(m.apply_unlinked(join("new")));
        let restored: Vec<_> = m.restores().into_iter().flat_map(|r| r.members).collect();
        assert_eq!(restored, [("c".to_string(), member("told"))]);
        assert_eq!(m.untold(), [Op::Join { channel: "c".into(), member: member("new") }]);
        let changed = Member { listed: false, ..member("told") };
        m.apply_unlinked(Change::Join(("c".into(), "told".into()), changed.clone()));
        let restored: Vec<_> = m.restores().into_iter().flat_map(|r| r.members).collect();
        assert_eq!(restored, [("c".to_string(), changed)], "replaced, neither left nor came");
        assert_eq!(m.untold().len(), 1);
    }

    #[test]
    fn members_that_were_taken_for_gone_are_restored_as_such_until_that_has_come_through() {
        let mut m = Mirror::default();
        let told = m.apply(join("a"), 1).unwrap();
        m.done(&told, 1, &Outcome::Done);
        let void = |m: &Mirror| m.restores().iter().map(|r| r.void).collect::<Vec<_>>();
        assert_eq!(void(&m), [false]);
        m.void();
        assert_eq!(void(&m), [true]);
        assert_eq!(void(&m), [true], "the link may break before it is heard");
        m.restored();
        assert_eq!(void(&m), [false]);
    }

    #[test]
    fn whoever_left_unheard_leaves_again_until_the_broker_has_it() {
        let mut m = Mirror::default();
        let bob = |m: &Mirror| m.untold() == [Op::Leave { channel: "c".into(), client: "bob".into() }];
        m.apply_unlinked(leave("stranger"));
        assert!(m.untold().is_empty());
        let joined = m.apply(join("bob"), 1).unwrap();
        m.done(&joined, 1, &Outcome::Done);
        m.apply_unlinked(leave("bob"));
        assert!(bob(&m));
        let left = m.apply(leave("bob"), 2).unwrap();
        m.cut(&left, 2);
        assert!(bob(&m), "cut before the answer");
        let left = m.apply(leave("bob"), 3).unwrap();
        m.done(&left, 3, &Outcome::Done);
        assert!(m.untold().is_empty());
        // A join whose outcome is unknown must leave no ghost.
        let unknown = m.apply(join("bob"), 4).unwrap();
        m.cut(&unknown, 4);
        assert!(bob(&m) && m.restores().is_empty());
    }

    #[test]
    fn long_lists_take_several_frames() {
        let mut m = Mirror::default();
        for i in 0..5000 {
            let name = format!("channel-{i:0>60}");
            let subscribed = m.apply(Change::Subscribe(name, None), i).unwrap();
            m.done(&subscribed, i, &Outcome::Subscribed(None));
        }
        let frames = m.restores();
        assert!(frames.len() > 3 && frames.iter().map(|r| r.interest.len()).sum::<usize>() == 5000);
        assert!(frames.iter().all(|r| weir_wire::codec::size(r).unwrap() <= CHUNK_SIZE));
    }
}
