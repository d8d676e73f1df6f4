//! When to retry a pod that could not be enrolled.

use std::time::{Duration, Instant};

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// Doubling pauses between attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    delay: Duration,
    due: Instant,
}

impl Retry {
    /// Schedules the attempt after a failure at `now`; `previous` is what the failure before it
    /// scheduled.
    pub(crate) fn after(previous: Option<Self>, now: Instant) -> Self {
        let doubled = |previous: Self| previous.delay.saturating_mul(2).min(LONGEST_DELAY);
        let delay = previous.map_or(FIRST_DELAY, doubled);
        Self { delay, due: now + delay }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let now = Instant::now();
        let mut retry = Retry::after(None, now);
        assert!(!retry.is_due(now) && retry.is_due(now + FIRST_DELAY));
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            retry = Retry::after(Some(retry), now);
            assert_eq!(retry.delay, Duration::from_secs(seconds));
        }
    }
}
