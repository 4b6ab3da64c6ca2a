//! Which tokens of returning clients were used: each is good for one connection, or else whoever sees
//! one could have us answer an address of his choice.

use quinn::{TokenLog, TokenReuseError};
use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use weir_core::sync::lock;

/// In each of two sets, 16 bytes a token. When both are full a token is not taken; its client is one
/// without a token then.
const MAX_TOKENS: usize = 64 * 1024;

/// Tokens by the time they were issued: those that are older than a lifetime need not be known any more, as
/// quinn does not take them.
#[derive(Default)]
pub struct Used(Mutex<Sets>);

#[derive(Default)]
struct Sets {
    /// Issued in the period before, and in this one.
    early: HashSet<u64>,
    late: HashSet<u64>,
    /// In lifetimes since 1970.
    period: u64,
}

impl TokenLog for Used {
    fn check_and_insert(
        &self,
        nonce: u128,
        issued: SystemTime,
        lifetime: Duration,
    ) -> Result<(), TokenReuseError> {
        let since = issued.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| TokenReuseError)?;
        let period = since.as_millis() / lifetime.as_millis().max(1);
        let period = u64::try_from(period).map_err(|_| TokenReuseError)?;
        // It is random, so half of it does.
        match lock(&self.0).is_new(nonce as u64, period) {
            true => Ok(()),
            false => Err(TokenReuseError),
        }
    }
}

impl Sets {
    fn is_new(&mut self, token: u64, period: u64) -> bool {
        if period > self.period {
            let late = std::mem::take(&mut self.late);
            self.early = if period == self.period + 1 { late } else { HashSet::new() };
            self.period = period;
        }
        let set = match self.period - period {
            0 => &mut self.late,
            1 => &mut self.early,
            _ => return false,
        };
        set.len() < MAX_TOKENS && set.insert(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_good_once() {
        let used = Used::default();
        let day = Duration::from_secs(86_400);
        let at = |hours: u64| SystemTime::UNIX_EPOCH + day * 20_000 + Duration::from_secs(hours * 3600);
        let take = |token: u128, hours| used.check_and_insert(token, at(hours), day).is_ok();
        assert!(take(1, 1) && !take(1, 1));
        assert!(take(2, 25) && !take(2, 25));
        // Issued the day before: still told apart.
        assert!(!take(1, 1) && take(3, 2));
        // Two days on, what is so old is not taken at all, and the day before is known.
        assert!(take(4, 49) && !take(5, 3) && !take(2, 25) && take(6, 26));
    }

    #[test]
    fn a_flood_of_tokens_takes_no_more_than_its_share() {
        let mut sets = Sets::default();
        for token in 0..MAX_TOKENS as u64 {
            assert!(sets.is_new(token, 7));
        }
        assert!(!sets.is_new(u64::MAX, 7));
        assert!(sets.is_new(u64::MAX, 8));
    }
}
