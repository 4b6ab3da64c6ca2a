//! Mistakes that the simulation must find: one of them can be planted in a test, none otherwise.

use super::Core;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Commits what the owner alone has.
    CommitAlone,
    /// Commits and serves without looking at the lease.
    NoLease,
    /// Serves before the tail of the owner before is committed.
    ServeTooSoon,
    /// Asks to grow without counting the newcomer from then on.
    GrowCarelessly,
    /// Keeps what it has where the owner has something else.
    NoTruncate,
    /// Acknowledges what is not on the disk yet.
    EarlyAck,
    /// Listens to owners of before.
    NoFence,
    /// Goes on in an epoch in which the process before may have acted.
    ReuseEpoch,
    /// Drops a tail that it acknowledged when it is given an older state.
    InstallOverTail,
    /// Goes by an assignment that its owner has already gone beyond.
    RetireBlindly,
    /// Takes acknowledgements of before a holder was dropped and named again.
    AnySession,
}

impl Core {
    #[cfg(test)]
    pub(super) fn planted(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    #[cfg(not(test))]
    pub(super) fn planted(&self, _: Fault) -> bool {
        false
    }
}
