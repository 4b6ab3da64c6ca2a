//! What a client's first packet leads to, by how many handshakes are under way. Pure.
//!
//! An address that was not shown to be the sender's may be anybody's, and answering it is a favour to
//! whoever made it up. So the more is under way, the less such a packet gets:
//!
//! ```text
//!   under way:              0 ........ retry_above ........ max_handshakes ........
//!   not validated           accept     retry                ignore
//!   not validated, it owes  retry      retry                ignore
//!   validated               accept     accept               refuse
//! ```
//!
//! An address owes that has had all the handshakes it may have now. Whether it really is the client's is open,
//! so it is asked to show that before anything is held against it.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub retry_above: usize,
    /// 0: no limit.
    pub max_handshakes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Asks the client to come again with a token that we send to its address; nothing is kept.
    Retry,
    /// Tells it that it cannot come in now.
    Refuse,
    /// No answer: it might go to somebody else, and costs more than it is worth.
    Ignore,
}

impl Policy {
    pub fn new(conf: &weir_conf::proxy::Quic) -> Policy {
        Policy { retry_above: conf.retry_above, max_handshakes: conf.max_handshakes }
    }

    /// `validated`: by a token of ours the client was seen at this address. `owes` is asked where it matters.
    pub fn verdict(&self, under_way: usize, validated: bool, owes: impl FnOnce() -> bool) -> Verdict {
        let full = self.max_handshakes != 0 && under_way >= self.max_handshakes;
        match (full, validated) {
            (true, true) => Verdict::Refuse,
            (true, false) => Verdict::Ignore,
            (false, false) if under_way >= self.retry_above || owes() => Verdict::Retry,
            (false, _) => Verdict::Accept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Accept, Ignore, Refuse, Retry};
    use super::*;

    #[test]
    fn the_more_is_under_way_the_less_an_unknown_address_gets() {
        let policy = |retry_above, max_handshakes| Policy { retry_above, max_handshakes };
        for (policy, under_way, unknown, validated) in [
            (policy(10, 20), 0, Accept, Accept),
            (policy(10, 20), 9, Accept, Accept),
            (policy(10, 20), 10, Retry, Accept),
            (policy(10, 20), 19, Retry, Accept),
            (policy(10, 20), 20, Ignore, Refuse),
            (policy(10, 20), usize::MAX, Ignore, Refuse),
            (policy(0, 20), 0, Retry, Accept),
            (policy(10, 0), usize::MAX, Retry, Accept),
            (policy(usize::MAX, 5), 5, Ignore, Refuse),
        ] {
            assert_eq!(policy.verdict(under_way, false, || false), unknown, "{policy:?}, {under_way}");
            assert_eq!(policy.verdict(under_way, true, || false), validated, "{policy:?}, {under_way}");
        }
    }

    #[test]
    fn an_address_that_owes_has_to_be_shown_and_nothing_is_asked_of_it_in_vain() {
        let policy = Policy { retry_above: 10, max_handshakes: 20 };
        assert_eq!(policy.verdict(0, false, || true), Retry);
        assert_eq!(policy.verdict(20, false, || panic!("it is ignored in any case")), Ignore);
        assert_eq!(policy.verdict(0, true, || panic!("it pays when it comes in")), Accept);
    }
}
