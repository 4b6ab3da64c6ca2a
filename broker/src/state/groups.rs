//! What channels take of what the broker has for all, by groups: one for each namespace that has a share of its own,
//! and one for all others. Each holder's own matter: it decides what is dropped or refused here, never what an entry
//! comes to.

/// Which channels are counted together.
#[derive(Debug, Default)]
pub struct Groups {
    /// Namespaces with a share (`None`: channels without one); their groups are numbered from 1 on.
    names: Vec<Option<String>>,
}

/// Of all channels that are in no other group.
pub const OTHERS: usize = 0;

/// What channels take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of publications and keys.
    pub bytes: usize,
    /// Of keys alone, which nothing shortens.
    pub key_bytes: usize,
    pub streams: usize,
}

impl Groups {
    pub fn new(names: impl IntoIterator<Item = Option<String>>) -> Groups {
        Groups { names: names.into_iter().collect() }
    }

    pub fn count(&self) -> usize {
        self.names.len() + 1
    }

    pub fn of(&self, channel: &str) -> usize {
        if self.names.is_empty() {
            return OTHERS;
        }
        // `$ns:x` is the private form of `ns:x`.
        let name = channel.strip_prefix('$').unwrap_or(channel);
        let namespace = name.split_once(':').map(|(namespace, _)| namespace);
        let at = self.names.iter().position(|name| name.as_deref() == namespace);
        at.map_or(OTHERS, |at| at + 1)
    }
}

impl Usage {
    pub fn add(&mut self, other: Usage) {
        self.bytes += other.bytes;
        self.key_bytes += other.key_bytes;
        self.streams += other.streams;
    }

    pub fn replace(&mut self, before: Usage, after: Usage) {
        self.bytes = self.bytes + after.bytes - before.bytes;
        self.key_bytes = self.key_bytes + after.key_bytes - before.key_bytes;
        self.streams = self.streams + after.streams - before.streams;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_in_the_group_of_its_namespace() {
        let groups = Groups::new([Some("chat".to_owned()), Some("game".to_owned())]);
        for (channel, group) in
            [("chat:a", 1), ("$chat:a:b", 1), ("game:", 2), ("chat", 0), ("other:chat:a", 0), ("", 0)]
        {
            assert_eq!(groups.of(channel), group, "{channel}");
        }
        assert_eq!((Groups::new([None]).of("chat"), Groups::new([None]).of("chat:")), (1, OTHERS));
        assert_eq!((groups.count(), Groups::default().of("chat:a")), (3, OTHERS));
    }
}
