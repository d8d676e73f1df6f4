//! Per-pod counters that only the agent can keep: what a connection turned out to be.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use sluice_mesh::WorkloadUid;

/// What one pod's connections turned out to be, since the agent started.
#[derive(Debug, Default)]
pub struct PodStats {
    /// Captured connections that left over mutual TLS.
    pub outbound_mtls: Counter,
    /// Captured connections that left as plaintext, because their destination takes no TLS.
    pub outbound_plaintext: Counter,
    /// Captured connections that were refused here.
    pub outbound_refused: Counter,
    /// Connections that arrived over mutual TLS and were let in.
    pub inbound_mtls: Counter,
    /// Connections that arrived as plaintext and were let in.
    pub inbound_plaintext: Counter,
    /// Connections that arrived and were refused by policy or for want of an acceptable certificate.
    pub inbound_refused: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// The counters of all pods.
#[derive(Debug, Default)]
pub struct StatsTable(RwLock<HashMap<WorkloadUid, Arc<PodStats>>>);

// === impl Counter ===

impl Counter {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl StatsTable ===

impl StatsTable {
    /// The counters of a pod that is served, or was when they were last asked for.
    pub fn get(&self, pod: &WorkloadUid) -> Option<Arc<PodStats>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(pod).cloned()
    }

    /// The counters of a pod that is to be served, which begin with it.
    pub(crate) fn of(&self, pod: &WorkloadUid) -> Arc<PodStats> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(table.entry(pod.clone()).or_default())
    }

    pub(crate) fn forget(&self, pod: &WorkloadUid) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_was_forgotten_is_not_there_again_because_its_last_connection_ends() {
        let (table, pod) = (StatsTable::default(), WorkloadUid("a/pod".into()));
        let stats = table.of(&pod);
        stats.inbound_plaintext.increment();
        assert_eq!(table.get(&pod).unwrap().inbound_plaintext.get(), 1);
        table.forget(&pod);
        stats.inbound_plaintext.increment();
        assert!(table.get(&pod).is_none());
    }
}
