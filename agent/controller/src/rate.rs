//! Bounds how often somebody may do something: everybody has a bucket that fills at a steady rate.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The most buckets that are kept. Full ones are forgotten first, which changes nothing for their
/// owners.
const MAX_BUCKETS: usize = 20_000;

/// A rate with room for bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How often something may be done in the long run.
    pub per_second: u32,
    /// How often something may be done at once, after a pause.
    pub burst: u32,
}

#[derive(Debug)]
pub(crate) struct Buckets {
    rate: Rate,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// What is left in the bucket, in millionths of one.
    level: u64,
    seen: Instant,
}

const ONE: u64 = 1_000_000;

// === impl Buckets ===

impl Buckets {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one from the bucket of `name`. Returns whether there was one.
    pub(crate) fn take(&self, name: &str, now: Instant) -> bool {
        let full = u64::from(self.rate.burst) * ONE;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(name) {
            buckets.retain(|_, bucket| bucket.level_at(now, self.rate) < full);
            if buckets.len() >= MAX_BUCKETS {
                return false;
            }
        }
        if !buckets.contains_key(name) {
            buckets.insert(name.to_owned(), Bucket { level: full, seen: now });
        }
        let Some(bucket) = buckets.get_mut(name) else { return false };
        bucket.level = bucket.level_at(now, self.rate);
        // A caller that was overtaken on its way to the lock brings an earlier moment.
        bucket.seen = bucket.seen.max(now);
        let enough = bucket.level >= ONE;
        if enough {
            bucket.level -= ONE;
        }
        enough
    }

    /// Puts one back that should not have been taken.
    pub(crate) fn give_back(&self, name: &str) {
        let full = u64::from(self.rate.burst) * ONE;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(name) {
            bucket.level = (bucket.level + ONE).min(full);
        }
    }
}

impl Bucket {
    fn level_at(&self, now: Instant, rate: Rate) -> u64 {
        let passed = now.saturating_duration_since(self.seen).min(Duration::from_hours(1));
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
        let full = u64::from(rate.burst) * ONE;
        self.level.saturating_add(micros.saturating_mul(rate.per_second.into())).min(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_each_for_itself() {
        let buckets = Buckets::new(Rate { per_second: 2, burst: 3 });
        let start = Instant::now();
        let granted = |name: &str, at| (0..10).filter(|_| buckets.take(name, start + at)).count();
        assert_eq!(granted("a", Duration::ZERO), 3);
        assert_eq!(granted("b", Duration::ZERO), 3);
        assert_eq!(granted("a", Duration::from_millis(499)), 0);
        assert_eq!(granted("a", Duration::from_millis(500)), 1);
        assert_eq!(granted("a", Duration::from_hours(5)), 3, "not more than a burst after a pause");
        assert_eq!(granted("a", Duration::ZERO), 0, "an earlier moment gives nothing back");
        assert_eq!(granted("a", Duration::from_hours(5)), 0, "no time counts twice");
    }
}
