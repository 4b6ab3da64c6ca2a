//! Who is where: the members of a shard's channels, each held by the node of its client. Pure: it
//! says what is to be announced, and the shard tells whom.

use super::SPARSE;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use weir_wire::entry::Holder;
use weir_wire::envelope::{ClientInfo, Member, PresenceStats};
use weir_wire::id::NodeId;

#[derive(Debug, Default)]
pub struct Presence {
    channels: HashMap<Arc<str>, HashMap<String, Held>>,
    /// So that a node's end costs what it held, not what all hold.
    by_node: HashMap<NodeId, HashSet<Arc<str>>>,
}

#[derive(Debug)]
struct Held {
    /// The attachment under which it was told last.
    holder: Holder,
    member: Member,
}

impl Held {
    /// Told by the same node under a later link than this.
    fn is_newer(&self, holder: Holder) -> bool {
        self.holder.node == holder.node && self.holder.link > holder.link
    }
}

impl Presence {
    /// Adds or replaces a member; a new one that wants it is to be announced as joined. A word that comes late, from
    /// a broker that the node has left meanwhile, changes nothing.
    pub fn join(&mut self, holder: Holder, channel: &Arc<str>, member: Member) -> Option<ClientInfo> {
        if self.held(channel, &member.info.client).is_some_and(|held| held.is_newer(holder)) {
            return None;
        }
        let members = self.channels.entry(channel.clone()).or_default();
        let announce = member.announced.then(|| member.info.clone());
        let old = members.insert(member.info.client.clone(), Held { holder, member });
        self.by_node.entry(holder.node).or_default().insert(channel.clone());
        match old {
            Some(old) if old.member.announced => None,
            _ => announce,
        }
    }

    /// Removes a member that this node holds, and has not told of since; one that was announced is to be announced
    /// as left.
    pub fn leave(&mut self, holder: Holder, channel: &str, client: &str) -> Option<ClientInfo> {
        let held = self.held(channel, client)?;
        let node = holder.node;
        if held.holder.node != node || held.is_newer(holder) {
            return None;
        }
        let members = self.channels.get_mut(channel)?;
        let held = members.remove(client)?;
        if !members.values().any(|h| h.holder.node == node) {
            self.forget(node, channel);
        }
        if self.channels.get(channel).is_some_and(HashMap::is_empty) {
            self.channels.remove(channel);
            self.shrink();
        }
        held.member.announced.then_some(held.member.info)
    }

    /// Removes what the node told of under links before this one, and not again since. Returns
    /// what is to be announced as left.
    pub fn remove_before(&mut self, Holder { node, link }: Holder) -> Vec<(Arc<str>, ClientInfo)> {
        let (mut left, mut kept) = (Vec::new(), HashSet::new());
        for channel in self.by_node.remove(&node).unwrap_or_default() {
            let Some(members) = self.channels.get_mut(&channel) else { continue };
            let gone = members.extract_if(|_, h| h.holder.node == node && h.holder.link < link);
            let announced = gone.map(|(_, h)| h.member).filter(|m| m.announced);
            left.extend(announced.map(|m| (channel.clone(), m.info)));
            let any = members.values().any(|h| h.holder.node == node);
            if members.is_empty() {
                self.channels.remove(&channel);
            }
            if any {
                kept.insert(channel);
            }
        }
        if !kept.is_empty() {
            self.by_node.insert(node, kept);
        }
        self.shrink();
        left
    }

    /// Rooms that a crowd took are given back.
    fn shrink(&mut self) {
        if self.channels.len() * SPARSE < self.channels.capacity() {
            self.channels.shrink_to(2 * self.channels.len());
        }
        for channels in self.by_node.values_mut().filter(|c| c.len() * SPARSE < c.capacity()) {
            channels.shrink_to(2 * channels.len());
        }
    }

    /// The listed members of a channel.
    pub fn members(&self, channel: &str) -> Vec<Member> {
        self.listed(channel).cloned().collect()
    }

    pub fn stats(&self, channel: &str) -> PresenceStats {
        let users: HashSet<&str> = self.listed(channel).map(|m| m.info.user.as_str()).collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        PresenceStats { clients: count(self.listed(channel).count()), users: count(users.len()) }
    }

    fn listed(&self, channel: &str) -> impl Iterator<Item = &Member> {
        let members = self.channels.get(channel).into_iter().flat_map(HashMap::values);
        members.map(|h| &h.member).filter(|m| m.listed)
    }

    /// Whether this node holds any.
    pub fn has(&self, node: NodeId) -> bool {
        self.by_node.contains_key(&node)
    }

    /// Up to which links the members of nodes are void; see [`super::State::stale_holders`].
    pub fn stale_holders(&self, known: &dyn Fn(NodeId) -> Option<u64>) -> Vec<Holder> {
        let stale = |(node, channels): (&NodeId, &HashSet<Arc<str>>)| {
            let members = channels.iter().filter_map(|c| self.channels.get(c)).flat_map(HashMap::values);
            let mut links = members.filter(|h| h.holder.node == *node).map(|h| h.holder.link);
            let link = match known(*node) {
                Some(link) => links.any(|l| l < link).then_some(link),
                None => links.max().map(|newest| newest.saturating_add(1)),
            };
            link.map(|link| Holder { node: *node, link })
        };
        self.by_node.iter().filter_map(stale).collect()
    }

    /// All of them; for a snapshot.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Holder, &Member)> {
        self.channels.iter().flat_map(|(c, members)| members.values().map(|h| (&**c, h.holder, &h.member)))
    }

    fn held(&self, channel: &str, client: &str) -> Option<&Held> {
        self.channels.get(channel)?.get(client)
    }

    fn forget(&mut self, node: NodeId, channel: &str) {
        if let Some(channels) = self.by_node.get_mut(&node) {
            channels.remove(channel);
            if channels.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Holder = Holder { node: NodeId(1), link: 1 };
    const B: Holder = Holder { node: NodeId(2), link: 2 };
    const LATER: u64 = 3;

    fn end(p: &mut Presence, of: Holder) -> Vec<(Arc<str>, ClientInfo)> {
        p.remove_before(Holder { link: LATER, ..of })
    }

    fn member(user: &str, client: &str) -> Member {
        let info = ClientInfo { user: user.into(), client: client.into(), ..ClientInfo::default() };
        Member { info, listed: true, announced: true }
    }

    #[test]
    fn coming_and_going_is_announced_once() {
        let (mut p, ch) = (Presence::default(), Arc::<str>::from("ch"));
        assert!(p.join(A, &ch, member("u", "c1")).is_some());
        assert!(p.join(A, &ch, member("u", "c1")).is_none(), "replaced, not new");
        assert!(p.join(B, &ch, member("u", "c2")).is_some());
        assert_eq!(p.stats("ch"), PresenceStats { clients: 2, users: 1 });
        assert!(p.leave(B, "ch", "c1").is_none(), "another node's member");
        assert_eq!(p.leave(A, "ch", "c1").map(|i| i.client), Some("c1".into()));
        assert!(p.leave(A, "ch", "c1").is_none());
        assert!(end(&mut p, A).is_empty());
        assert_eq!(end(&mut p, B).len(), 1);
        assert!(p.channels.is_empty() && p.by_node.is_empty(), "nothing is left behind");
    }

    #[test]
    fn what_a_node_did_not_tell_again_leaves() {
        let (mut p, ch) = (Presence::default(), Arc::<str>::from("ch"));
        for client in ["c1", "c2"] {
            p.join(A, &ch, member("u", client));
        }
        let back = Holder { link: LATER, ..A };
        assert!(p.join(back, &ch, member("u", "c2")).is_none(), "it was there all the time");
        let left: Vec<String> = end(&mut p, A).into_iter().map(|(_, i)| i.client).collect();
        assert_eq!(left, ["c1"]);
        assert!(end(&mut p, A).is_empty() && p.stats("ch").clients == 1);
        assert_eq!(p.remove_before(Holder { link: LATER + 1, ..A }).len(), 1);
        assert!(p.channels.is_empty() && p.by_node.is_empty());
    }

    #[test]
    fn what_comes_late_by_an_earlier_link_changes_nothing() {
        let (mut p, ch) = (Presence::default(), Arc::<str>::from("ch"));
        let back = Holder { link: LATER, ..A };
        p.join(back, &ch, member("u", "c1"));
        assert!(p.join(A, &ch, member("u", "c1")).is_none());
        assert!(p.remove_before(back).is_empty(), "it is held by the later link");
        assert!(p.leave(A, "ch", "c1").is_none() && p.stats("ch").clients == 1);
        assert!(p.leave(back, "ch", "c1").is_some());
    }

    #[test]
    fn quiet_members_are_not_announced_and_hidden_ones_not_listed() {
        let (mut p, ch) = (Presence::default(), Arc::<str>::from("ch"));
        assert!(p.join(A, &ch, Member { announced: false, ..member("u", "c1") }).is_none());
        assert!(p.leave(A, "ch", "c1").is_none());
        assert!(p.join(A, &ch, Member { listed: false, ..member("u", "c2") }).is_some());
        assert_eq!((p.members("ch").len(), p.stats("ch")), (0, PresenceStats::default()));
        assert!(end(&mut p, A).iter().all(|(c, i)| &**c == "ch" && i.client == "c2"));
    }
}
