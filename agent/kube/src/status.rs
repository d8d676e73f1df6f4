//! What the source has to say about itself: for `sluice status` and for the logs.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sluice_cluster::{Finding, PolicyStanding};
use tokio::sync::watch;

/// The source's own state at one moment.
#[derive(Clone, Debug, Default)]
pub struct KubeStatus {
    /// Counts the snapshots that were published; 0 while nothing is known yet.
    pub version: u64,
    /// When the last snapshot was published.
    pub loaded_at: Option<SystemTime>,
    /// Whether the state in force was remembered from an earlier run.
    pub is_provisional: bool,
    /// What fails right now.
    pub errors: Vec<KubeError>,
    /// How long the last change took from its arrival to its publication.
    pub last_delay: Duration,
    /// Remarks on objects.
    pub findings: Arc<[Finding]>,
    /// Remarks on policies in force.
    pub policies: Arc<[sluice_policy::Finding]>,
    /// Every known policy, and whether it is in force.
    pub standings: Arc<[PolicyStanding]>,
}

/// Something that fails, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeError {
    /// What fails, such as following a kind.
    pub what: String,
    /// Why, and what to do.
    pub reason: String,
    /// Since when it fails: until it works again, what is in force may be as old as this.
    pub since: SystemTime,
}

/// Reads the status; cheap to clone.
#[derive(Clone, Debug)]
pub struct StatusHandle(pub(crate) watch::Receiver<Arc<KubeStatus>>);

// === impl StatusHandle ===

impl StatusHandle {
    /// Returns the current status.
    pub fn status(&self) -> Arc<KubeStatus> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits for a status that was not seen through this handle yet; `None` when the source has ended.
    pub async fn changed(&mut self) -> Option<Arc<KubeStatus>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update()))
    }
}

// === impl KubeStatus ===

impl KubeStatus {
    /// Returns how far the state in force may be behind the API server: as long as the oldest fault has lasted.
    pub fn lag(&self) -> Duration {
        let ages = self.errors.iter().map(|error| error.since.elapsed().unwrap_or_default());
        ages.max().unwrap_or_default()
    }
}

// === impl KubeError ===

impl fmt::Display for KubeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.since.elapsed().unwrap_or_default().as_secs();
        write!(f, "{}: {} (for {seconds} s; what was known stays in force)", self.what, self.reason)
    }
}
