//! The one source of time for every expiry decision: verification, issuing, renewal.
//!
//! Nothing else in this crate asks the operating system for the time of day. A test can therefore move the clock, and a
//! jump of the machine's clock arrives in one place only.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// Tells the time of day, in whole seconds since 1970.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the time of day. It may go backwards when the machine's clock is set.
    fn now(&self) -> UnixTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// A clock that stands still until it is moved; for tests only.
#[cfg(any(test, feature = "test-util"))]
#[derive(Debug)]
pub struct TestClock(std::sync::atomic::AtomicU64);

/// rustls' view of a [`Clock`].
#[derive(Debug)]
pub(crate) struct RustlsTime(pub(crate) Arc<dyn Clock>);

// === impl SystemClock ===

impl Clock for SystemClock {
    fn now(&self) -> UnixTime {
        // A clock before 1970 reads as 1970: every certificate is then "not yet valid", and refused.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixTime::since_unix_epoch(since)
    }
}

// === impl TestClock ===

#[cfg(any(test, feature = "test-util"))]
impl TestClock {
    /// Creates a clock that shows the machine's present time and then stands still.
    pub fn started_now() -> Arc<Self> {
        Self::at(SystemClock.now())
    }

    /// Creates a clock that shows `time`.
    pub fn at(time: UnixTime) -> Arc<Self> {
        Arc::new(Self(time.as_secs().into()))
    }

    /// Sets the clock, forwards or backwards.
    pub fn set(&self, time: UnixTime) {
        self.0.store(time.as_secs(), std::sync::atomic::Ordering::SeqCst);
    }

    /// Moves the clock forwards.
    pub fn advance(&self, by: Duration) {
        self.set(after(self.now(), by));
    }

    /// Moves the clock backwards.
    pub fn rewind(&self, by: Duration) {
        self.set(before(self.now(), by));
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        let seconds = self.0.load(std::sync::atomic::Ordering::SeqCst);
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }
}

// === impl RustlsTime ===

impl TimeProvider for RustlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.now())
    }
}

/// Returns `time` + `by`, or the last representable second if that is later.
pub(crate) fn after(time: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs().saturating_add(by.as_secs())))
}

/// Returns `time` - `by`, or 1970 if that is earlier.
pub(crate) fn before(time: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs().saturating_sub(by.as_secs())))
}

/// Returns the time from `earlier` to `later`; zero if `later` comes before `earlier`.
pub(crate) fn between(earlier: UnixTime, later: UnixTime) -> Duration {
    Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()))
}
