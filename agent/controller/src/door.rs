//! Bounds how many tokens an address may have judged. A token that was good before costs nothing, so a flood of forged
//! ones, even from an agent's own node, does not keep that agent out.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::rate::{Buckets, Rate};

/// The most tokens that are remembered as good; only real ones ever are.
const MAX_PROVED: usize = 16_384;
/// How long a token is remembered after it was last good: about as long as projected tokens are in use.
const MEMORY: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub(crate) struct Door {
    addresses: Buckets,
    /// Digests of good tokens, and when each was last good. The token itself is kept nowhere.
    proved: Mutex<HashMap<[u8; 32], Instant>>,
}

/// A token that may be judged.
#[derive(Debug)]
pub(crate) struct Admitted {
    digest: [u8; 32],
    was_good: bool,
}

// === impl Door ===

impl Door {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { addresses: Buckets::new(rate), proved: Mutex::default() }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.addresses.rate()
    }

    /// Admits a token from `address` to be judged, if the address has any left. A token that was good before costs its
    /// address nothing.
    pub(crate) fn admit(&self, address: &str, bearer: &str, now: Instant) -> Option<Admitted> {
        let digest: [u8; 32] = Sha256::digest(bearer).into();
        let proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        let was_good =
            proved.get(&digest).is_some_and(|at| now.saturating_duration_since(*at) < MEMORY);
        drop(proved);
        (was_good || self.addresses.take(address, now)).then_some(Admitted { digest, was_good })
    }

    /// Records that the token was good: it costs its address nothing.
    pub(crate) fn proved(&self, address: &str, admitted: &Admitted, now: Instant) {
        if !admitted.was_good {
            self.addresses.give_back(address);
        }
        let mut proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        if proved.len() >= MAX_PROVED && !proved.contains_key(&admitted.digest) {
            proved.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
            if proved.len() >= MAX_PROVED {
                return;
            }
        }
        proved.insert(admitted.digest, now);
    }

    /// Forgets the token: it is not good, or not any more.
    pub(crate) fn disproved(&self, admitted: &Admitted) {
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).remove(&admitted.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_tokens_use_up_their_own_address_and_no_token_that_was_good() {
        let door = Door::new(Rate { per_second: 1, burst: 5 });
        let start = Instant::now();
        let good = door.admit("node", "good", start).unwrap();
        door.proved("node", &good, start);
        let forged = |at| {
            let tries =
                (0..20).filter(|n| door.admit("node", &format!("forged {n}"), at).is_some());
            tries.count()
        };
        assert_eq!(forged(start), 5, "what the good one cost was given back");
        assert!(door.admit("node", "good", start).is_some());
        assert!(door.admit("elsewhere", "unknown", start).is_some(), "another address");
        assert_eq!(forged(start + Duration::from_secs(2)), 2);
        // Once a token is refused, it counts like a stranger's.
        door.disproved(&good);
        assert!(door.admit("node", "good", start + Duration::from_secs(2)).is_none());
        let later = start + MEMORY + Duration::from_secs(9);
        assert!(door.admit("node", "good", later).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let door = Door::new(Rate { per_second: 1, burst: 1 });
        let now = Instant::now();
        for number in 0..17_000 {
            let address = number.to_string();
            if let Some(admitted) = door.admit(&address, &address, now) {
                door.proved(&address, &admitted, now);
            }
        }
        assert_eq!(door.proved.lock().unwrap().len(), MAX_PROVED);
        let half: Vec<_> =
            (0..21_000).map(|n| door.admit(&format!("a{n}"), &format!("b{n}"), now)).collect();
        assert!(half.iter().flatten().count() <= 20_000);
    }
}
