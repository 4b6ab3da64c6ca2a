//! Joins and leaves of one member that are tried again and again must not overtake each other: a leave from before
//! would take away who has come back, a join from before would leave a ghost. The last word counts; whatever was
//! said before it is not said again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use weir_core::sync::lock;
use weir_wire::entry::Call;
use weir_wire::id::NodeId;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    node: NodeId,
    channel: String,
    client: String,
}

/// Members of which something is on its way.
#[derive(Default)]
pub struct Members(Mutex<HashMap<Key, Words>>);

#[derive(Default)]
struct Words {
    last: u64,
    /// Those on their way.
    open: usize,
}

/// A join or leave on its way, until it is dropped.
pub struct Word {
    members: Arc<Members>,
    key: Key,
    number: u64,
}

impl Key {
    fn of(call: &Call) -> Option<Key> {
        let (holder, channel, client) = match call {
            Call::Join { channel, holder, member, .. } => (holder, channel, &member.info.client),
            Call::Leave { channel, holder, client } => (holder, channel, client),
            _ => return None,
        };
        Some(Key { node: holder.node, channel: channel.clone(), client: client.clone() })
    }
}

impl Members {
    /// Puts a call on its way by `send`; nothing that was said before it is put on its way after it. `None`: it is
    /// neither a join nor a leave.
    pub fn begin<T>(self: &Arc<Self>, call: &Call, send: impl FnOnce() -> T) -> (Option<Word>, T) {
        let Some(key) = Key::of(call) else { return (None, send()) };
        let mut all = lock(&self.0);
        let words = all.entry(key.clone()).or_default();
        (words.last, words.open) = (words.last + 1, words.open + 1);
        let word = Word { members: self.clone(), key, number: words.last };
        (Some(word), send())
    }

    /// This call went another way, and is the last word.
    pub fn overtake(&self, call: &Call) {
        if !matches!(call, Call::Join { .. } | Call::Leave { .. }) {
            return;
        }
        let mut all = lock(&self.0);
        if !all.is_empty()
            && let Some(words) = Key::of(call).and_then(|key| all.get_mut(&key))
        {
            words.last += 1;
        }
    }
}

impl Word {
    /// Puts it on its way again, unless it is not the last word.
    pub fn again<T>(&self, send: impl FnOnce() -> T) -> Option<T> {
        let all = lock(&self.members.0);
        let last = all.get(&self.key).is_some_and(|words| words.last == self.number);
        last.then(send)
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        let mut all = lock(&self.members.0);
        if let Some(words) = all.get_mut(&self.key) {
            words.open -= 1;
            if words.open == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_wire::entry::Holder;
    use weir_wire::envelope::{ClientInfo, Member};

    const HOLDER: Holder = Holder { node: NodeId(1), link: 1 };

    fn join(client: &str) -> Call {
        let info = ClientInfo { client: client.into(), ..ClientInfo::default() };
        let member = Member { info, listed: true, announced: true };
        Call::Join { channel: "c".into(), holder: HOLDER, member, quiet: false }
    }

    fn leave(client: &str) -> Call {
        Call::Leave { channel: "c".into(), holder: HOLDER, client: client.into() }
    }

    #[test]
    fn the_last_word_counts() {
        let members = Arc::new(Members::default());
        let begin = |call: &Call| members.begin(call, || ()).0.unwrap();
        let said = |word: &Word| word.again(|| ()).is_some();
        let left = begin(&leave("a"));
        assert!(said(&left));
        let (back, other) = (begin(&join("a")), begin(&join("b")));
        assert!(!said(&left) && said(&back) && said(&other));
        drop(back);
        assert!(!said(&left), "although the join has arrived");
        members.overtake(&leave("b"));
        assert!(!said(&other), "it went another way");
        drop((left, other));
        assert!(lock(&members.0).is_empty(), "nothing is left behind");
        assert!(members.begin(&Call::Presence { channel: "c".into() }, || ()).0.is_none());
    }
}
