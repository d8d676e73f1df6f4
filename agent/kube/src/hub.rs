//! The state that the tasks of the source share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use sluice_cluster::Cluster;
use sluice_mesh::Snapshot;
use tokio::sync::{Notify, watch};

use crate::{KubeError, KubeStatus, resource::Resource};

/// The state that the tasks of the source share.
#[derive(Debug)]
pub(crate) struct Hub {
    cluster: Mutex<Cluster>,
    /// Notified when something has come that may matter.
    pub(crate) changed: Notify,
    /// Notified when somebody waits for what has come.
    pub(crate) hurry: Notify,
    progress: Mutex<Progress>,
    pub(crate) snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    pub(crate) status: watch::Sender<Arc<KubeStatus>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// What was not listed yet and must be before the state is complete.
    unlisted: BTreeSet<&'static str>,
    errors: BTreeMap<String, KubeError>,
}

// === impl Hub ===

impl Hub {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self {
            cluster: Mutex::new(cluster),
            changed: Notify::new(),
            hurry: Notify::new(),
            progress: Mutex::default(),
            snapshots: watch::Sender::new(None),
            status: watch::Sender::new(Arc::default()),
        }
    }

    /// Locks the cluster's state, which must not be held across an await.
    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a kind will be followed. If it is essential, the state is not complete before it was listed.
    pub(crate) fn expect(&self, kind: &'static str, resource: &Resource) {
        if resource.is_essential {
            self.progress().unlisted.insert(kind);
        }
    }

    /// Notes something else without which the state is not complete.
    pub(crate) fn expect_first(&self, what: &'static str) {
        self.progress().unlisted.insert(what);
    }

    pub(crate) fn listed(&self, kind: &'static str) {
        self.progress().unlisted.remove(kind);
        self.changed.notify_one();
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.progress().unlisted.is_empty()
    }

    /// Notes that something fails. It counts as failing since the first time.
    pub(crate) fn failed(&self, what: &str, reason: String) {
        let mut progress = self.progress();
        let known = progress.errors.get(what);
        if known.is_none_or(|known| known.reason != reason) {
            tracing::warn!(what, %reason, "the API server cannot be followed");
        }
        let since = known.map_or_else(SystemTime::now, |known| known.since);
        let error = KubeError { what: what.to_owned(), reason, since };
        progress.errors.insert(what.to_owned(), error);
        drop(progress);
        self.show();
    }

    pub(crate) fn works(&self, what: &str) {
        if self.progress().errors.remove(what).is_some() {
            tracing::info!(what, "works again");
            self.show();
        }
    }

    /// Writes the current errors into the status.
    fn show(&self) {
        let errors: Vec<_> = self.progress().errors.values().cloned().collect();
        self.status.send_modify(|status| Arc::make_mut(status).errors = errors);
    }
}
