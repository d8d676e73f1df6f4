//! What the controller knows of itself: what it issued and refused, and until when it can issue.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sluice_tls::UnixTime;

use crate::Refusal;

/// Counts and dates of one controller, for whoever shows them.
#[derive(Debug, Default)]
pub struct Standing {
    issued: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    /// The certificates' last seconds of validity, since 1970; zero until they are known.
    authority_ends: AtomicU64,
    server_ends: AtomicU64,
}

impl Standing {
    /// Returns the number of certificates that were issued.
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// Returns the number of requests that were refused, by the rule that they broke: see
    /// [`Refusal::rule`].
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the last second of the authority's certificate; none before the authority is open.
    pub fn authority_ends(&self) -> Option<UnixTime> {
        date(&self.authority_ends)
    }

    /// Returns the last second of the certificate that the server shows; none before there is one.
    pub fn server_ends(&self) -> Option<UnixTime> {
        date(&self.server_ends)
    }

    pub(crate) fn count_issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self, refusal: &Refusal) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(refusal.rule()).or_default() += 1;
    }

    pub(crate) fn authority_is(&self, ends: UnixTime) {
        self.authority_ends.store(ends.as_secs(), Ordering::Relaxed);
    }

    pub(crate) fn server_is(&self, ends: UnixTime) {
        self.server_ends.store(ends.as_secs(), Ordering::Relaxed);
    }
}

fn date(seconds: &AtomicU64) -> Option<UnixTime> {
    match seconds.load(Ordering::Relaxed) {
        0 => None,
        seconds => Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))),
    }
}
