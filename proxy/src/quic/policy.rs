//! What a client's first packet leads to, by how many handshakes are under way. Pure.
//!
//! An address that was not shown to be the sender's may be anybody's, and answering it is a favour to
//! whoever made it up. So the more is under way, the less such a packet gets:
//!
//! ```text
//!   under way:      0 ........ retry_above ........ max_handshakes ........
//!   not validated   accept     retry                ignore
//!   validated       accept     accept               refuse
//! ```

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

    /// `validated`: by a token of ours the client was seen at this address.
    pub fn verdict(&self, under_way: usize, validated: bool) -> Verdict {
        let full = self.max_handshakes != 0 && under_way >= self.max_handshakes;
        match (full, validated) {
            (true, true) => Verdict::Refuse,
            (true, false) => Verdict::Ignore,
            (false, false) if under_way >= self.retry_above => Verdict::Retry,
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
            assert_eq!(policy.verdict(under_way, false), unknown, "{policy:?}, {under_way}");
            assert_eq!(policy.verdict(under_way, true), validated, "{policy:?}, {under_way}");
        }
    }
}
